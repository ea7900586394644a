"""Our models in the real `mteb`, on a small task in the layout of the hub; offline."""

import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import soxr
import torch

mteb = pytest.importorskip("mteb")

from mteb.abstasks.retrieval import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification  # noqa: E402
from mteb.models import EncoderProtocol, SearchProtocol  # noqa: E402

from retrieval.base.errors import UserError  # noqa: E402
from retrieval.base.sound import mono_blocks  # noqa: E402
from retrieval.config import load_config  # noqa: E402
from retrieval.data import open_cache  # noqa: E402
from retrieval.evaluation import mteb as mteb_module  # noqa: E402
from retrieval.evaluation.metrics.text_audio_retrieval.ranking import (  # noqa: E402
    all_ranks,
    metrics_of_ranks,
    ranks_of_both_directions,
)
from retrieval.evaluation.mteb import (  # noqa: E402
    EncoderModel,
    SearchModel,
    mteb_model,
    read_sound,
    reading_sounds_here,
)
from retrieval.evaluation.score_matrix import captions_of, similarity_matrix  # noqa: E402
from retrieval.models.build import build_model  # noqa: E402
from retrieval.models.dual_encoder import DualEncoder  # noqa: E402
from retrieval.models.pretrained import load_pretrained  # noqa: E402
from tests.conftest import ROOT, SAMPLE_RATE  # noqa: E402
from tests.pretrained_models import make  # noqa: E402

CITATION = "@misc{none, title = {None}}"


def task_metadata(name: str, category: str, path: str, **changes) -> TaskMetadata:
    facts = {
        "name": name,
        "description": "Tones.",
        "reference": None,
        "dataset": {"path": path, "revision": "1"},
        "type": "Any2AnyRetrieval",
        "category": category,
        "modalities": ["text", "audio"],
        "eval_splits": ["test"],
        "eval_langs": ["eng-Latn"],
        "main_score": "hit_rate_at_5",
        "date": ("2024-01-01", "2024-12-31"),
        "domains": ["AudioScene"],
        "task_subtypes": ["Environment Sound Retrieval"],
        "license": "mit",
        "annotations_creators": "derived",
        "dialect": [],
        "sample_creation": "created",
        "bibtex_citation": CITATION,
    }
    return TaskMetadata(**facts | changes)


def wav(samples: np.ndarray, rate: int = SAMPLE_RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.fixture(scope="module")
def split(tiny):
    return open_cache(tiny / "cache").split("evaluation")


@pytest.fixture(scope="module")
def tasks(split, tmp_path_factory) -> dict[str, AbsTaskRetrieval]:
    """Text to sound and sound to text, in folders that mteb's own loader of datasets reads."""
    captions, clips = captions_of(split)
    sounds = datasets.Dataset.from_dict(
        {
            "id": [f"sound{number}" for number in range(len(split))],
            "audio": [
                {"bytes": wav(split.read_stored(number)), "path": f"{number}.wav"}
                for number in range(len(split))
            ],
        }
    ).cast_column("audio", datasets.Audio())  # from_dict itself would ask for torchcodec
    texts = datasets.Dataset.from_dict(
        {"id": [f"text{number}" for number in range(len(captions))], "text": captions}
    )
    right = [(f"text{row}", f"sound{clip}") for row, clip in enumerate(clips)]
    tasks = {}
    for category, queries, corpus, pairs in (
        ("t2a", texts, sounds, right),
        ("a2t", sounds, texts, [pair[::-1] for pair in right]),
    ):
        folder = tmp_path_factory.mktemp(category)
        qrels = {
            "query-id": [query for query, _ in pairs],
            "corpus-id": [document for _, document in pairs],
            "score": [1] * len(pairs),
        }
        parts = {
            "queries": queries,
            "corpus": corpus,
            "qrels": datasets.Dataset.from_dict(qrels),
        }
        header = ["---", "configs:"]
        for name, part in parts.items():
            part.to_parquet(folder / name / "test-00000-of-00001.parquet")
            header += [f"- config_name: {name}", "  data_files:", "  - split: test"]
            header += [f"    path: {name}/test-*"]
        (folder / "README.md").write_text("\n".join([*header, "---", ""]))
        about = task_metadata(f"Tones{category}", category, str(folder))
        tasks[category] = type(about.name, (AbsTaskRetrieval,), {"metadata": about})()
    return tasks


@pytest.fixture(scope="module")
def models(tiny) -> dict[str, DualEncoder]:
    built = {}
    for name in ("tap", "mean"):
        torch.manual_seed(3)
        built[name] = build_model(load_config(tiny / "tiny.yaml", [f"pooling.name={name}"])).eval()
    return built


def run(model, task, tmp_path: Path, **settings) -> tuple[dict, dict]:
    """Scores of mteb.evaluate, and its predictions."""
    with reading_sounds_here():
        result = mteb.evaluate(
            model,
            task,
            cache=None,
            encode_kwargs={"batch_size": 3},
            prediction_folder=tmp_path,
            show_progress_bar=False,
            co2_tracker=False,
            **settings,
        )
    (scores,) = result.task_results[0].scores["test"]
    (file,) = tmp_path.glob(f"**/*{task.metadata.name}*.json")
    return scores, json.loads(file.read_text())["default"]["test"]


@pytest.mark.parametrize("pooling", ["tap", "mean"])
@pytest.mark.parametrize("category", ["t2a", "a2t"])
def test_mteb_s_own_scoring_agrees_with_ours(models, tasks, split, tmp_path, pooling, category):
    model = mteb_model(models[pooling])
    assert isinstance(model, {"tap": SearchModel, "mean": EncoderModel}[pooling])
    scores, predictions = run(model, tasks[category], tmp_path)
    captions, clips = captions_of(split)
    matrix = similarity_matrix(models[pooling], captions, split).numpy()
    right = [[clip] for clip in clips]
    direction = {"t2a": "text_to_audio", "a2t": "audio_to_text"}[category]
    ranks = ranks_of_both_directions(matrix, right)[direction]
    ours = metrics_of_ranks(ranks)
    # the scores themselves
    for row in range(len(captions)):
        for clip in range(len(split)):
            pair = f"text{row}", f"sound{clip}"
            query, document = pair if category == "t2a" else pair[::-1]
            assert predictions[query][document] == pytest.approx(matrix[row, clip], abs=1e-5)
    # hit_rate is R@k, and map with all right candidates as divisor is mAP
    for depth in (1, 5, 10):
        assert scores[f"hit_rate_at_{depth}"] == pytest.approx(ours[f"R@{depth}"], abs=1e-5)
    assert scores["map_at_10"] == pytest.approx(ours["mAP@10"], abs=1e-5)
    assert scores["main_score"] == scores["hit_rate_at_5"]
    # mteb's recall is the share of right candidates that is found: R@k with one of them only
    found = [np.mean([sum(query <= 5) / len(query)]) for query in ranks]
    assert scores["recall_at_5"] == pytest.approx(np.mean(found), abs=1e-5)
    if category == "a2t":
        assert scores["recall_at_1"] < scores["hit_rate_at_1"] or ours["R@1"] == 0
    # negative control: the numbers are not those of a perfect or an empty ranking
    assert 0 < ours["mAP@10"] < 1


@pytest.mark.parametrize("family", ["clap", "pe_audio"])
def test_a_pretrained_model_of_others_is_one_of_mteb(family, tasks, split, tmp_path):
    make(family, tmp_path / family)
    model = mteb_model(tmp_path / family)
    _, predictions = run(model, tasks["t2a"], tmp_path / "out")
    captions = captions_of(split)[0]
    ours = load_pretrained(tmp_path / family)
    ours.hear_at(SAMPLE_RATE)
    scores = similarity_matrix(ours, captions, split)
    found = [
        [predictions[f"text{row}"][f"sound{clip}"] for clip in range(len(split))]
        for row in range(len(captions))
    ]
    assert model.mteb_model_meta.similarity_fn_name == {"clap": "cosine", "pe_audio": "dot"}[family]
    # both hear 16 kHz, as the cache
    torch.testing.assert_close(torch.tensor(found), scores, atol=1e-5, rtol=0)


def test_ties_count_otherwise():
    """A collapsed model: mteb orders equal scores by their ids, here they count as misses."""
    from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores

    documents = [f"d{number}" for number in range(20)]
    found = calculate_retrieval_scores(
        {"q": dict.fromkeys(documents, 0.5)}, {"q": {"d9": 1}}, [1, 10]
    )
    assert found.hit_rate["HitRate@1"] == 1.0
    assert metrics_of_ranks(all_ranks(np.full((1, 20), 0.5), [[9]]))["R@10"] == 0.0


def test_only_the_best_and_only_those_to_rerank(models, tasks, split):
    captions, _ = captions_of(split)
    matrix = similarity_matrix(models["tap"], captions, split)
    for category, scores in (("t2a", matrix), ("a2t", matrix.T)):
        task, model = tasks[category], mteb_model(models["tap"])
        with reading_sounds_here():
            task.load_data()
        part = task.dataset["default"]["test"]
        names = list(part["corpus"]["id"])
        settings = {"task_metadata": task.metadata, "hf_split": "test", "hf_subset": "default"}
        asked = {"top_k": 3, "encode_kwargs": {"batch_size": 2, "show_progress_bar": False}}
        with pytest.raises(ValueError, match="index before search"):
            model.search(part["queries"], **settings, **asked)
        model.index(part["corpus"], **settings, encode_kwargs={}, num_proc=None)
        found = model.search(part["queries"], **settings, **asked)
        for query, row in zip(part["queries"]["id"], scores, strict=True):
            best = row.topk(3)
            assert list(found[query]) == [names[place] for place in best.indices]
            assert list(found[query].values()) == pytest.approx(best.values.tolist(), abs=1e-5)
        model.index(part["corpus"], **settings)
        queries = list(part["queries"]["id"])
        few = {queries[0]: [names[5], names[1]], queries[2]: names[:5]}
        found = model.search(part["queries"], **settings, **asked, top_ranked=few)
        assert set(found[queries[0]]) == {names[1], names[5]} and found[queries[1]] == {}
        assert set(found[queries[2]]) == {names[place] for place in scores[2][:5].topk(3).indices}


LABELS = ["a low tone", "a high tone", "a pulsing tone"]


def test_tasks_other_than_retrieval_take_vectors(models, tasks, split):
    class Kinds(AbsTaskZeroShotClassification):
        metadata = task_metadata(
            "Kinds",
            "a2t",
            "x",
            type="AudioZeroshotClassification",
            main_score="accuracy",
            modalities=["audio", "text"],
        )
        input_column_name, label_column_name = "audio", "label"

        def load_data(self, **_):
            with reading_sounds_here():
                tasks["t2a"].load_data()
            sounds = tasks["t2a"].dataset["default"]["test"]["corpus"].select_columns("audio")
            labels = [number % 3 for number in range(len(sounds))]
            self.dataset = datasets.DatasetDict(test=sounds.add_column("label", labels))
            self.data_loaded = True

        def get_candidate_labels(self):
            return LABELS

    settings = {"cache": None, "show_progress_bar": False, "co2_tracker": False}
    result = mteb.evaluate(mteb_model(models["mean"]), Kinds(), **settings)
    best = similarity_matrix(models["mean"], LABELS, split).argmax(dim=0)
    right = [label == number % 3 for number, label in enumerate(best.tolist())]
    (scores,) = result.task_results[0].scores["test"]
    assert scores["accuracy"] == pytest.approx(np.mean(right), abs=1e-5)
    with pytest.raises(TypeError, match="does not support Search"):
        mteb.evaluate(mteb_model(models["tap"]), Kinds(), **settings)


class _Batches(list):
    """Batches that are no DataLoader of a dataset."""

    dataset = None


def test_texts_sounds_and_pairs_become_unit_vectors(models, split):
    model = mteb_model(models["mean"], name="us/mean")
    assert isinstance(model, EncoderProtocol) and not isinstance(model, SearchProtocol)
    sounds = [
        {"array": split.read(number), "sampling_rate": SAMPLE_RATE} for number in range(len(split))
    ]
    texts = [captions[0] for captions in split.captions]
    settings = {"task_metadata": task_metadata("T", "t2a", "x"), "hf_split": "a", "hf_subset": "b"}

    def encode(**columns) -> np.ndarray:
        return model.encode(_Batches([columns]), **settings, show_progress_bar=False)

    text, audio = encode(text=texts), encode(audio=sounds)
    assert np.linalg.norm(text, axis=1) == pytest.approx(1) and text.dtype == np.float32
    np.testing.assert_allclose(encode(text=texts, audio=sounds), text + audio, atol=1e-6)
    expected = similarity_matrix(models["mean"], texts, split)
    torch.testing.assert_close(model.similarity(text, audio), expected)
    pairs = model.similarity_pairwise(torch.from_numpy(2 * text), audio)
    torch.testing.assert_close(pairs, expected.diagonal())
    with pytest.raises(UserError, match="T has neither text nor audio, found: image"):
        encode(image=[1])


def test_the_model_of_mteb_names_weights_and_size(models, tiny, tmp_path):
    models["tap"].save_pretrained(tmp_path / "tap" / "best")
    loaded, given = mteb_model(tmp_path / "tap" / "best"), mteb_model(models["tap"], "us/tap")
    about = loaded.mteb_model_meta
    assert about.name.endswith("/tap-best") and given.mteb_model_meta.name == "us/tap"
    assert about.revision == given.mteb_model_meta.revision
    assert about.n_parameters == sum(weight.numel() for weight in models["tap"].parameters())
    assert set(about.modalities) == {"text", "audio"}
    assert isinstance(loaded, SearchProtocol) and not isinstance(loaded, EncoderProtocol)
    # other weights are another revision: mteb's cache of results must not mix them up
    with torch.no_grad():
        next(loaded.model.parameters()).view(-1)[0] += 1
    other = mteb_model(loaded.model).mteb_model_meta
    assert other.revision != about.revision
    with pytest.raises(UserError, match="'tap'.*organisation/name"):
        mteb_model(models["tap"], "tap")
    with pytest.raises(UserError, match="absent"):
        mteb_model(tmp_path / "absent" / "best")


def test_tap_refuses_tasks_that_do_not_compare_text_with_sound(models):
    model = mteb_model(models["tap"])
    corpus = datasets.Dataset.from_dict({"id": ["a"], "text": ["b"]})
    with pytest.raises(UserError, match="SoundOnly compares audio with audio"):
        model.index(
            corpus, task_metadata=task_metadata("SoundOnly", "a2a", "x", modalities=["audio"])
        )
    with pytest.raises(UserError, match="audio and text with audio"):
        model.index(corpus, task_metadata=task_metadata("Pairs", "at2a", "x"))


# --- sounds ---


def test_sounds_in_every_form(tmp_path):
    """Files are read as a cache is built: mono, at the model's rate."""
    random = np.random.default_rng(0)
    stereo = 0.1 * random.standard_normal((48_000, 2))
    path = tmp_path / "stereo.wav"
    path.write_bytes(wav(stereo, 48_000))
    expected = np.concatenate(list(mono_blocks(path, SAMPLE_RATE)))
    for sound in ({"bytes": path.read_bytes(), "path": None}, {"bytes": None, "path": str(path)}):
        np.testing.assert_array_equal(read_sound(sound, SAMPLE_RATE), expected)
    decoded = soundfile.read(path, dtype="float32")[0].T  # (C, S)
    array = {"array": decoded, "sampling_rate": 48_000}
    np.testing.assert_allclose(read_sound(array, SAMPLE_RATE), expected, atol=1e-4)
    mono = {"array": decoded[0].astype(np.float64), "sampling_rate": SAMPLE_RATE}
    np.testing.assert_array_equal(read_sound(mono, SAMPLE_RATE), decoded[0])
    resampled = soxr.resample(decoded.mean(axis=0), 48_000, SAMPLE_RATE)
    np.testing.assert_allclose(read_sound(array, SAMPLE_RATE), resampled, atol=1e-6)


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        ({"bytes": b"no sound", "path": "a.wav"}, "a.wav .*cannot be read"),
        ({"bytes": None, "path": "absent.wav"}, "absent.wav .*cannot be read"),
        ({"bytes": None, "path": None}, "cannot be read"),
        ({"array": [], "sampling_rate": 8000}, "no samples"),
        ({"array": [0.0, np.nan], "sampling_rate": SAMPLE_RATE}, "NaN"),
    ],
)
def test_a_bad_sound_is_one_line(sound, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        read_sound(sound, SAMPLE_RATE)
    assert "\n" not in str(error.value)


def test_datasets_decode_by_our_readers_within_the_block_only(tmp_path):
    sound = wav(np.zeros(800), 8000)
    table = datasets.Dataset.from_dict(
        {"audio": [{"bytes": sound, "path": "a.wav"}]},
    ).cast_column("audio", datasets.Audio())
    original = datasets.Audio.decode_example
    with reading_sounds_here():
        row = table[0]["audio"]
        assert row["sampling_rate"] == 8000 and row["array"].shape == (800,)
        cast = table.cast_column("audio", datasets.Audio(sampling_rate=16_000))
        assert cast[0]["audio"]["array"].shape == (1600,)
    assert datasets.Audio.decode_example is original
    with pytest.raises(RuntimeError), reading_sounds_here():
        raise RuntimeError
    assert datasets.Audio.decode_example is original


def test_without_the_package_one_line_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "mteb"]:
        monkeypatch.setitem(sys.modules, name, None)
    specification = importlib.util.spec_from_file_location("again", mteb_module.__file__)
    with pytest.raises(UserError, match=r"mteb.* pip install .*\[mteb\]"):
        specification.loader.exec_module(importlib.util.module_from_spec(specification))


@pytest.mark.parametrize("folder", [ROOT, ROOT / "retrieval", ROOT / "data_prep"])
def test_import_mteb_gives_the_package(folder):
    """The module of the same name shadows nothing, wherever Python starts."""
    code = "import retrieval, importlib.util as u; print(u.find_spec('mteb').origin)"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert Path(ended.stdout.strip()) == Path(mteb.__file__), ended.stderr


def test_mteb_s_own_task_of_clotho_runs_without_torchcodec(models, split, tmp_path):
    """Its class, on a folder in place of the hub's: captions split at full stops, hit_rate_at_5."""
    table = datasets.Dataset.from_dict(
        {
            "index": [str(number) for number in range(3)],
            "audio": [{"bytes": wav(split.read_stored(n)), "path": "a.wav"} for n in range(3)],
            "text": ["A low tone. A hum.", "A high tone.", "A pulse. A beat. A tone"],
        }
    ).cast_column("audio", datasets.Audio())
    table.to_parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet")
    place = {"path": str(tmp_path / "hub"), "revision": "1"}
    for name in ("ClothoT2ARetrieval", "ClothoA2TRetrieval"):
        official, newer = (type(mteb.get_task(one)) for one in (name, f"{name}.v2"))
        assert official.metadata.main_score == newer.metadata.main_score == "hit_rate_at_5"
        about = official.metadata.model_copy(update={"dataset": place})
        task = type(name, (official,), {"metadata": about})()
        scores, found = run(mteb_model(models["tap"]), task, tmp_path / name)
        assert scores["main_score"] == scores["hit_rate_at_5"] == 1.0  # of three clips
        pieces = found if name == "ClothoT2ARetrieval" else next(iter(found.values()))
        # two captions and nothing, one and nothing, three
        assert len(pieces) == 8
    with pytest.raises(ImportError, match="torchcodec"):  # negative control
        task.data_loaded = False
        task.load_data()
