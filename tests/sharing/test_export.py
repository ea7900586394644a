"""ONNX graphs against PyTorch, and vectors as Parquet. Models are tiny and their weights random;
what is compared is what comes out.
"""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import onnxruntime
import pandas
import pyarrow.parquet
import pytest
import torch
import transformers
from torch.nn import functional

from retrieval.base.errors import UserError
from retrieval.config import load_config
from retrieval.data import open_cache
from retrieval.evaluation.result import evaluate_split
from retrieval.models.audio import efficientat
from retrieval.models.audio.huggingface import HuggingFaceAudioEncoder
from retrieval.models.build import build_model
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.pooling import TextAwareAttentionPooling
from retrieval.models.pretrained import load_pretrained
from retrieval.models.text import load_tokenizer, text_architecture
from retrieval.search.local.clips import IndexedClips
from retrieval.search.two_stage import TwoStage
from retrieval.sharing.export import checks, onnx_files, parquet
from retrieval.sharing.export.command import main
from retrieval.sharing.export.graphs import AudioTower, Score
from tests import pretrained_models
from tests.conftest import PATIENCE, SAMPLE_RATE, write_cache, write_text_encoder

# torch.export tells pytest's log of every symbol that it makes
logging.getLogger("torch.__trace").disabled = True

ATST = {"name": "atst_frame", "embed_dim": 32, "depth": 1, "num_heads": 2}
TAP = {"name": "tap", "attention_dim": 48}
WAVLM = {
    "conv_dim": [8, 8],
    "conv_kernel": [10, 8],
    "conv_stride": [20, 16],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
}
WAVLM |= {
    "num_conv_pos_embedding_groups": 2,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def make_model(
    text_folder: Path,
    audio: dict,
    pooling: dict,
    sample_rate: int = SAMPLE_RATE,
    hop_seconds: float = 1.0,
    **settings,
) -> DualEncoder:
    torch.manual_seed(0)
    model = DualEncoder(
        audio_encoder=audio,
        text_encoder=text_architecture(str(text_folder), 0.1),
        pooling=pooling,
        dim=24,
        sample_rate=sample_rate,
        clip_seconds=3.0,
        window_seconds=1.0,
        hop_seconds=hop_seconds,
        max_tokens=12,
        temperature=0.05,
        **settings,
    )
    model.text_encoder.tokenizer = load_tokenizer(text_folder)
    return model.eval()


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory) -> Path:
    return write_text_encoder(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def saved(tiny: Path, tmp_path_factory) -> dict[str, Path]:
    """A model folder of each pooling that fits the tiny cache."""
    folders = {}
    for pooling in ("tap", "mean"):
        folders[pooling] = tmp_path_factory.mktemp("run") / pooling
        torch.manual_seed(1)
        model = build_model(load_config(tiny / "tiny.yaml", [f"pooling.name={pooling}"]))
        for weights in model.text_encoder.parameters():
            # of the size that they are drawn with, all captions have nearly one vector
            weights.data.mul_(4.0)
        model.save_pretrained(folders[pooling])
    return folders


@pytest.fixture(scope="module")
def exported(saved: dict[str, Path], tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "tap"
    main(["--checkpoint", str(saved["tap"]), "--onnx", "--output", str(folder), "--quiet"])
    return folder


# --- ONNX ---


def onnx_scores(
    folder: Path, model: DualEncoder, waveform: np.ndarray, lengths: np.ndarray, captions: list[str]
) -> np.ndarray:
    audio, text, score = (
        onnxruntime.InferenceSession(str(folder / f"{name}.onnx"))
        for name in ("audio", "text", "score")
    )
    frames, mask = audio.run(None, {"waveform": waveform, "lengths": lengths})
    tokens = model.text_encoder.tokens(captions)
    texts = text.run(
        None, {name: tokens[name].numpy() for name in ("input_ids", "attention_mask")}
    )[0]
    return score.run(None, {"text": texts, "frames": frames, "mask": mask})[0]


@torch.no_grad()
def test_the_graphs_score_like_the_model_in_sizes_that_the_check_does_not_use(
    saved: dict[str, Path], exported: Path, tiny: Path
):
    model, rng = DualEncoder.from_pretrained(saved["tap"]), np.random.default_rng(3)
    captions = [
        "A rising high tone.",
        "Someone plays a low, steady note.",
        "tone",
        "a a a a a a a a a a a a a a a",
        "high",
    ]
    for lengths in ([700], [20_000, 31_999, 5], [9_000] * 5):
        waveform = (0.2 * rng.standard_normal((len(lengths), max(lengths)))).astype(np.float32)
        for row, length in enumerate(lengths):
            waveform[row, length:] = 0
        expected = model.score(
            model.encode_text(captions),
            *model.encode_audio(torch.from_numpy(waveform), torch.tensor(lengths)),
        )
        found = onnx_scores(exported, model, waveform, np.array(lengths), captions)
        assert found.shape == (5, len(lengths)) and np.abs(found - expected.numpy()).max() < 1e-4
        other = model.score(
            model.encode_text(captions[::-1]),
            *model.encode_audio(torch.from_numpy(waveform), torch.tensor(lengths)),
        )
        # negative control: the scores of other captions
        assert np.abs(found - other.numpy()).max() > 1e-3


def test_export_json_says_how_to_call_the_graphs(saved: dict[str, Path], exported: Path):
    about = json.loads((exported / "export.json").read_text(encoding="utf-8"))
    assert (
        about["sample_rate"],
        about["clip_seconds"],
        about["dim"],
        about["pooling"],
        about["opset"],
    ) == (SAMPLE_RATE, 2.0, 32, "tap", 18)
    assert about["graphs"]["audio"]["inputs"]["waveform"] == {
        "type": "tensor(float)",
        "shape": ["clips", "samples"],
    }
    assert about["graphs"]["audio"]["outputs"]["frames"]["shape"] == ["clips", "frames", 32]
    assert about["graphs"]["score"]["outputs"]["scores"]["shape"] == ["captions", "clips"]
    assert set(about["differences_to_pytorch"]) == {"mask", "frames", "text", "score", "all three"}
    assert all(found <= 1e-4 for found in about["differences_to_pytorch"].values())
    assert about["source"]["weights_sha256"] == checks.weights_sha256(saved["tap"])
    assert set(about["versions"]) == {"torch", "transformers", "onnx", "onnxscript", "onnxruntime"}


def python_of_readme(folder: Path) -> np.ndarray:
    """Run the Python of README.md in its folder, and return the scores that it prints."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    outcome = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=PATIENCE
    )
    assert outcome.returncode == 0, outcome.stderr
    rows = outcome.stdout.replace("[", "").split("]")
    return np.array([row.split() for row in rows if row.strip()], float)


def test_the_python_of_the_readme_runs(exported: Path):
    assert python_of_readme(exported).shape == (2, 2)


@pytest.mark.parametrize(
    ("audio", "pooling", "settings"),
    [
        (
            ATST,
            {"name": "transformer", "num_heads": 2},
            {"hop_seconds": 0.7, "sample_rate": 22_050},
        ),
        (
            {"name": "passt", "embed_dim": 32, "depth": 1, "num_heads": 2, "patchout_time": 1},
            TAP,
            {"sample_rate": 32_000},
        ),
        (
            {"name": "mn40_as_ext", "width": 0.1},
            {"name": "mean"},
            {"sample_rate": 32_000, "hop_seconds": 2.0},
        ),
    ],
    ids=["atst transformer, resampled, overlapping windows", "passt tap", "efficientat mean"],
)
@torch.no_grad()
def test_audio_encoders_and_poolings(
    text_folder: Path, tmp_path: Path, monkeypatch, audio: dict, pooling: dict, settings: dict
):
    monkeypatch.setattr(
        efficientat, "BLOCKS", [block for block in efficientat.BLOCKS if block[-1] == 2]
    )  # one of each stage: fewer to trace
    model = make_model(text_folder, audio, pooling, **settings)
    _, module, *trace = next(onnx_files.parts(model))
    onnx_files.write_graph(tmp_path / "audio.onnx", module.eval(), *trace)
    outcomes = list(
        onnx_files.check_audio(model, tmp_path / "audio.onnx", np.random.default_rng(0))
    )
    assert [tuple(frames.shape[:1]) for (frames, _), _ in outcomes] == [(1,), (3,), (2,), (1,)]
    for (frames, mask), (found, found_mask) in outcomes:
        # and not one and the same computation
        assert torch.equal(mask, found_mask) and 0 < onnx_files.difference(frames, found) < 1e-4


@torch.no_grad()
def test_the_text_tower_reads_the_last_token_of_each_caption(text_folder: Path, tmp_path: Path):
    model = make_model(text_folder, ATST, {"name": "mean"}, text_readout="last")
    name, module, *trace = list(onnx_files.parts(model))[1]
    onnx_files.write_graph(tmp_path / "text.onnx", module.eval(), *trace)
    assert name == "text"
    for text, found in onnx_files.check_text(
        model, tmp_path / "text.onnx", np.random.default_rng(0)
    ):
        assert onnx_files.difference(text, found) < 1e-4


def test_a_graph_that_differs_is_not_left_behind(
    saved: dict[str, Path], exported: Path, tmp_path: Path, monkeypatch
):
    """The graphs are those of a model with other weights, by little."""
    model = DualEncoder.from_pretrained(saved["tap"])
    model.pooling.output.bias.data[0] += 0.05

    def graph_of_another(path: Path, *_) -> dict:
        shutil.copy(exported / path.name, path)
        return {}

    monkeypatch.setattr(onnx_files, "write_graph", graph_of_another)
    message = (
        r"the ONNX graphs differ from PyTorch, score by 0\.\S+, all three by 0\.\S+, more than"
        r" 0.0001: nothing was written"
    )
    with pytest.raises(UserError, match=message):
        onnx_files.export_onnx(model, tmp_path / "onnx", {})
    assert list(tmp_path.iterdir()) == []


def test_a_difference_of_a_shape_or_to_nan_is_no_small_one():
    one = torch.tensor([1.0, 10.0])
    # of numbers above 1 as a part of the largest
    assert onnx_files.difference(one, one + 5e-4) == pytest.approx(5e-5, rel=0.01)
    assert onnx_files.difference(one / 100, one / 100 + 5e-4) == pytest.approx(5e-4, rel=0.01)
    assert onnx_files.difference(one, one[:1]) == float("inf")
    assert not onnx_files.difference(one, one * float("nan")) <= onnx_files.TOLERANCE


@pytest.mark.parametrize("do_normalize", [True, False])
@torch.no_grad()
def test_an_encoder_that_hears_the_waveform_itself(do_normalize: bool):
    """The graph of such an encoder is its model's own: here what stands before it, against
    transformers.
    """
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=do_normalize).to_dict()
    encoder = HuggingFaceAudioEncoder(transformers.WavLMConfig(**WAVLM).to_dict(), extractor).eval()
    windows = (
        torch.randn(3, 8000, generator=torch.Generator().manual_seed(0))
        * torch.tensor([[0.01], [0.5], [0.0]])
        + 0.1
    )
    lengths = torch.full((3,), 8000)
    features = encoder.family.graph_features(windows, lengths)
    found = encoder.family.encode(encoder.model, features, lengths)
    torch.testing.assert_close(found, encoder(windows), atol=1e-5, rtol=0)


SPECTROGRAMS = {
    "ast": (
        transformers.ASTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_length=128,
        ),
        transformers.ASTFeatureExtractor(max_length=128),
    ),
    "clap": (
        transformers.ClapAudioConfig(**pretrained_models.CLAP_AUDIO),
        pretrained_models.clap()[1].feature_extractor,
    ),
    "whisper": (
        transformers.WhisperConfig(
            d_model=16,
            encoder_layers=1,
            encoder_attention_heads=2,
            encoder_ffn_dim=32,
            max_source_positions=100,
            num_mel_bins=20,
        ),
        transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=2),
    ),
}


@pytest.mark.parametrize("kind", SPECTROGRAMS)
@torch.no_grad()
def test_encoders_of_spectrograms(text_folder: Path, monkeypatch, kind: str):
    """The module of the graph, without the graph: it takes the path of an export."""
    config, extractor = SPECTROGRAMS[kind]
    audio = {"architecture": config.to_dict(), "feature_extractor": extractor.to_dict()}
    model = make_model(text_folder, {"name": "huggingface", **audio}, TAP)
    waveform, lengths = batch_of_sounds([30_000, 16_001, 400])
    expected, mask = model.encode_audio(waveform, lengths)
    tower = AudioTower(model)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    found, found_mask = tower(waveform, lengths)
    assert torch.equal(found_mask, mask)
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-5, rtol=0)


# --- pretrained models as ONNX ---


def batch_of_sounds(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise (B, S), the last one silent, and lengths (B,)."""
    generator = torch.Generator().manual_seed(len(lengths))
    waveform = 0.2 * torch.randn(len(lengths), max(lengths), generator=generator)
    for row, length in enumerate(lengths):
        waveform[row, length:] = 0
    waveform[1:][-1:] = 0
    return waveform, torch.tensor(lengths)


@pytest.mark.parametrize("family", pretrained_models.FAMILIES)
@torch.no_grad()
def test_the_modules_of_the_graphs_of_pretrained_models(tmp_path: Path, monkeypatch, family: str):
    """As they take the path of an export: from one sample to several windows of CLAP (1 s)."""
    pretrained_models.make(family, tmp_path)
    model = load_pretrained(tmp_path)
    tower, score = AudioTower(model), Score(model.pooling)
    text = model.encode_text(["A dog barks", "rain"])
    for sizes in ([1], [640], [48_000, 1, 17, 639, 641, 20_000], [100, 40_007]):
        waveform, lengths = batch_of_sounds(sizes)
        with monkeypatch.context() as patch:
            expected, mask = model.encode_audio(waveform, lengths)
            patch.setattr(torch.compiler, "is_exporting", lambda: True)
            found, found_mask = tower(waveform, lengths)
        assert torch.equal(found_mask, mask)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        scores = model.score(text, expected, mask)
        torch.testing.assert_close(score(text, found, mask), scores, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module", params=["clap", "pe_a_frame"])
def exported_pretrained(request, tmp_path_factory) -> tuple[str, DualEncoder, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:  # fewer layers to trace
        codec = pretrained_models.PE_AUDIO["dac_config"] | {"downsampling_ratios": [4, 160]}
        smaller = {"dac_config": codec, "num_hidden_layers": 1}
        patch.setattr(pretrained_models, "PE_AUDIO", pretrained_models.PE_AUDIO | smaller)
        pretrained_models.make(request.param, folder / "model")
    arguments = ["--checkpoint", folder / "model", "--onnx", "--output", folder / "onnx", "--quiet"]
    main(list(map(str, arguments)))
    return request.param, load_pretrained(folder / "model"), folder / "onnx"


@torch.no_grad()
def test_graphs_of_pretrained_models_score_like_them(exported_pretrained):
    _, model, folder = exported_pretrained
    captions = ["A dog barks loudly, and then Rain falls.", "rain", "the wind blows and a cat"]
    for sizes in ([1], [30_011, 9_000, 640, 16_000], [16_000] * 3):
        waveform, lengths = batch_of_sounds(sizes)
        expected = model.score(model.encode_text(captions), *model.encode_audio(waveform, lengths))
        found = onnx_scores(folder, model, waveform.numpy(), lengths.numpy(), captions)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
        # negative control: capitals and clips matter
        assert np.abs(found[::-1] - expected.numpy()).max() > 1e-3


def test_the_readme_of_pretrained_models(exported_pretrained):
    family, model, folder = exported_pretrained
    about = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    similarity = {"clap": "cosine", "pe_a_frame": "dot"}[family]
    assert about["similarity"] == model.pooling.similarity == similarity
    assert about["captions"] == "as written" and about["pooling"] == "average"
    assert all(found <= 1e-4 for found in about["differences_to_pytorch"].values())
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert {"cosine": "cosines: divide", "dot": "dot products: multiply"}[similarity] in readme
    assert python_of_readme(folder).shape == (2, 2)


# --- Parquet ---


@pytest.fixture(scope="module")
def table(saved: dict[str, Path], tiny: Path, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("parquet") / "vectors.parquet"
    main(
        [
            "--checkpoint",
            str(saved["tap"]),
            "--parquet",
            str(path),
            "--cache",
            str(tiny / "cache"),
            "--frames",
            "--quiet",
        ]
    )
    return path


def test_pandas_and_datasets_read_the_vectors(
    saved: dict[str, Path], tiny: Path, table: Path, tmp_path: Path
):
    split = open_cache(tiny / "cache").split("evaluation")
    rows = pandas.read_parquet(table)
    clips, captions = rows[rows.kind == "audio"], rows[rows.kind == "caption"]
    assert (
        list(clips.clip_id) == split.clip_ids
        and list(clips.file_name) == split.file_names
        and clips.caption.isna().all()
    )
    assert list(captions.caption) == [
        caption for captions in split.captions for caption in captions
    ]
    assert list(captions.clip_id) == [
        clip for clip, captions in zip(split.clip_ids, split.captions) for _ in captions
    ]
    assert captions.frames.isna().all() and not clips.frames.isna().any()
    loaded = datasets.load_dataset(
        "parquet", data_files=str(table), cache_dir=str(tmp_path), split="train"
    )
    assert (
        loaded.features["vector"] == datasets.List(datasets.Value("float32"), length=32)
        and len(loaded) == 8 + 16
    )
    metadata = {
        key.decode(): value.decode()
        for key, value in pyarrow.parquet.read_schema(table).metadata.items()
    }
    expected = {
        "split": "evaluation",
        "dim": "32",
        "pooling": "tap",
        "weights_sha256": checks.weights_sha256(saved["tap"]),
    }
    assert (
        expected.items() <= metadata.items()
        and metadata["split_fingerprint"] == split.fingerprint()
    )


def test_the_vectors_and_frames_give_the_scores_of_the_model(
    saved: dict[str, Path], tiny: Path, table: Path
):
    """TAP: candidates by the vectors, scores by the frames, both from the file alone."""
    model = DualEncoder.from_pretrained(saved["tap"])
    rows = pandas.read_parquet(table)
    clips, captions = rows[rows.kind == "audio"], rows[rows.kind == "caption"]
    vectors, texts = (
        torch.from_numpy(np.stack(part.vector.tolist())) for part in (clips, captions)
    )
    frames = [torch.from_numpy(np.stack(clip.tolist())) for clip in clips.frames]
    num_frames = np.array([len(clip) for clip in frames])
    with torch.no_grad():
        keys = model.pooling.norm(torch.cat(frames))
    indexed = IndexedClips(
        functional.normalize(vectors).numpy(), keys, num_frames.cumsum() - num_frames, num_frames
    )
    found = torch.empty(16, 8)
    chosen, scores = TwoStage(model.pooling, indexed).scores(texts, 8)
    found.scatter_(1, chosen, scores)
    expected = evaluate_split(model, open_cache(tiny / "cache").split("evaluation")).scores
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_with_mean_pooling_the_cosine_is_the_score(
    saved: dict[str, Path], tiny: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(parquet, "GROUP_ROWS", 3)
    model, split = (
        DualEncoder.from_pretrained(saved["mean"]),
        open_cache(tiny / "cache").split("validation"),
    )
    assert (
        parquet.export_parquet(model, split, tmp_path / "vectors.parquet", {}, audio_batch_size=2)
        == 24
    )
    groups = pyarrow.parquet.ParquetFile(tmp_path / "vectors.parquet").metadata
    assert [groups.row_group(number).num_rows for number in range(groups.num_row_groups)] == [
        4,
        4,
        3,
        3,
        3,
        3,
        3,
        1,
    ]
    rows = pandas.read_parquet(tmp_path / "vectors.parquet")
    assert "frames" not in rows
    unit = [
        torch.nn.functional.normalize(
            torch.from_numpy(np.stack(rows[rows.kind == kind].vector.tolist()))
        )
        for kind in ("caption", "audio")
    ]
    torch.testing.assert_close(
        unit[0] @ unit[1].T, evaluate_split(model, split).scores, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("family", ["clap", "pe_a_frame"])
def test_the_dot_products_of_pretrained_models_are_their_scores(
    tiny: Path, tmp_path: Path, family: str
):
    pretrained_models.make(family, tmp_path / "model")
    path, cache = tmp_path / "vectors.parquet", tiny / "cache"
    arguments = ["--checkpoint", tmp_path / "model", "--parquet", path, "--cache", cache, "--quiet"]
    main(list(map(str, arguments)))
    rows = pandas.read_parquet(path)
    captions, clips = (
        np.stack(rows[rows.kind == kind].vector.tolist()) for kind in ("caption", "audio")
    )
    model, cache = load_pretrained(tmp_path / "model"), open_cache(cache)
    model.hear_at(cache.sample_rate)
    expected = evaluate_split(model, cache.split("evaluation")).scores
    np.testing.assert_allclose(captions @ clips.T, expected.numpy(), atol=1e-5)
    metadata = pyarrow.parquet.read_schema(path).metadata
    assert metadata[b"similarity"].decode() == model.pooling.similarity
    assert metadata[b"dim"].decode() == str(model.dim)


def test_an_interrupted_export_leaves_no_file(
    saved: dict[str, Path], tiny: Path, tmp_path: Path, monkeypatch
):
    model, split = (
        DualEncoder.from_pretrained(saved["mean"]),
        open_cache(tiny / "cache").split("validation"),
    )

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parquet, "_caption_rows", full_disk)
    with pytest.raises(UserError, match="cannot be written .No space left on device"):
        parquet.export_parquet(model, split, tmp_path / "vectors.parquet", {})
    assert list(tmp_path.iterdir()) == []


# --- mistakes ---


def error_of(capsys, *arguments: str) -> str:
    """The one line of a mistake that argparse or the command itself finds."""
    try:
        main([*map(str, arguments), "--quiet"])
    except UserError as error:
        text = str(error)
    except SystemExit:
        text = capsys.readouterr().err.strip()
    assert "\n" not in text
    return text


def test_mistakes_of_the_command_line(capsys):
    assert "give either --onnx --output DIR, or --parquet" in error_of(capsys, "--checkpoint", "x")
    assert "--onnx needs --output DIR" in error_of(capsys, "--checkpoint", "x", "--onnx")
    assert "--parquet needs --cache DIR" in error_of(capsys, "--checkpoint", "x", "--parquet", "f")
    assert "belong to --parquet" in error_of(
        capsys, "--checkpoint", "x", "--onnx", "--output", "o", "--frames"
    )
    assert error_of(capsys, "--checkpoint", "absent", "--onnx", "--output", "o").startswith(
        "checkpoint absent does not exist"
    )


def test_outputs_in_the_way(
    capsys, saved: dict[str, Path], exported: Path, table: Path, tiny: Path, tmp_path: Path
):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").touch()
    onnx, vectors = (
        ("--checkpoint", saved["tap"], "--onnx"),
        (
            "--checkpoint",
            saved["tap"],
            "--cache",
            tiny / "cache",
        ),
    )
    assert "is not an earlier export" in error_of(
        capsys, *onnx, "--output", tmp_path / "mine", "--overwrite"
    )
    (exported / "mine.txt").touch()
    assert "mine.txt beside an export" in error_of(
        capsys, *onnx, "--output", exported, "--overwrite"
    )
    (exported / "mine.txt").unlink()
    assert "holds an export already" in error_of(capsys, *onnx, "--output", exported)
    assert "exists: give another file" in error_of(capsys, *vectors, "--parquet", table)
    assert "is a folder" in error_of(
        capsys, *vectors, "--parquet", tmp_path / "mine", "--overwrite"
    )
    assert "cannot be written" in error_of(
        capsys, *vectors, "--parquet", tmp_path / "mine" / "precious" / "below"
    )
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["precious"]


def test_mistakes_about_cache_and_pooling(
    capsys, saved: dict[str, Path], tiny: Path, tmp_path: Path
):
    cache = write_cache(tmp_path / "cache", {"evaluation": 2}, sample_rate=8000)
    out = ("--parquet", tmp_path / "vectors.parquet")
    assert "is sampled at 8000 Hz" in error_of(
        capsys, "--checkpoint", saved["tap"], *out, "--cache", cache
    )
    assert "has no split 'test'" in error_of(
        capsys, "--checkpoint", saved["tap"], *out, "--cache", tiny / "cache", "--split", "test"
    )
    assert "--frames is for models with TAP" in error_of(
        capsys, "--checkpoint", saved["mean"], *out, "--cache", tiny / "cache", "--frames"
    )
    assert not (tmp_path / "vectors.parquet").exists()


def test_a_pooling_of_another_form_is_refused(
    capsys, saved: dict[str, Path], tmp_path, monkeypatch
):
    monkeypatch.delattr(TextAwareAttentionPooling, "folded_maps")
    out = ("--onnx", "--output", tmp_path / "onnx")
    assert "neither searched nor exported" in error_of(capsys, "--checkpoint", saved["tap"], *out)
    assert not (tmp_path / "onnx").exists()


def test_weights_that_are_not_finite_and_a_pooling_that_is_unknown(
    capsys, saved: dict[str, Path], tiny: Path, tmp_path: Path
):
    model = DualEncoder.from_pretrained(saved["tap"])
    model.text_projection.bias.data[3] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    message = "weight text_projection.bias of the model is not finite"
    assert message in error_of(
        capsys, "--checkpoint", tmp_path / "nan", "--onnx", "--output", tmp_path / "onnx"
    )
    out = ("--parquet", tmp_path / "vectors.parquet", "--cache", tiny / "cache")
    assert message in error_of(capsys, "--checkpoint", tmp_path / "nan", *out)
    shutil.copytree(saved["tap"], tmp_path / "unknown")
    config = json.loads((tmp_path / "unknown" / "config.json").read_text())
    (tmp_path / "unknown" / "config.json").write_text(
        json.dumps(config | {"pooling": {"name": "nope"}})
    )
    message = "pooling 'nope' of the model's config.json is unknown; there is: mean, tap"
    assert message in error_of(
        capsys, "--checkpoint", tmp_path / "unknown", "--onnx", "--output", tmp_path / "onnx"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nan", "unknown"]


def test_a_full_disk_is_found_before_the_work(saved: dict[str, Path], tmp_path: Path, monkeypatch):
    model = DualEncoder.from_pretrained(saved["mean"])
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"takes 0\.\d MB, and 0\.0 MB are left there: make room"):
        onnx_files.export_onnx(model, tmp_path / "onnx", {})
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_it_wrote(capsys, saved: dict[str, Path], tiny: Path, tmp_path: Path):
    path = tmp_path / "vectors.parquet"
    main(
        [
            "--checkpoint",
            str(saved["mean"]),
            "--parquet",
            str(path),
            "--cache",
            str(tiny / "cache"),
            "--split",
            "validation",
        ]
    )
    outcome = capsys.readouterr()
    assert (
        outcome.out == f"written: {path} (8 clips, 16 captions, 32 numbers each)\n"
        and outcome.err == ""
    )
