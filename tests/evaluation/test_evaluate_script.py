"""`python evaluate.py`: a scored checkpoint, and one line for every mistake."""

import csv
import gc
import json
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from data_prep import build_folder
from retrieval.base.errors import UserError
from retrieval.config import load_config
from retrieval.data import open_cache
from retrieval.evaluation.result import evaluate_split
from retrieval.evaluation.score_files import open_scores
from retrieval.evaluation.score_matrix import captions_of, similarity_matrix
from retrieval.models.build import build_model
from retrieval.models.dual_encoder import DualEncoder
from tests.conftest import ROOT, SAMPLE_RATE, write_cache, write_rows
from tests.corpora import run_build, write_sound
from tests.evaluation.evaluate_command import evaluate


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """Accelerate keeps the precision of the first Accelerator of a process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "tap"
    config = load_config(tiny / "tiny.yaml")
    torch.manual_seed(0)
    build_model(config).save_pretrained(run / "best")
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump()))
    return run / "best"


def test_a_run_is_scored(checkpoint, tiny, capsys):
    assert evaluate("--checkpoint", checkpoint) == 0
    captured = capsys.readouterr()
    assert (
        "text to audio" in captured.out
        and "audio to text" in captured.out
        and "chance" in captured.out
    )
    assert "R@10 says nothing" in captured.err
    metrics = json.loads((checkpoint / "results" / "evaluation" / "metrics.json").read_text())
    result = evaluate_split(
        DualEncoder.from_pretrained(checkpoint), open_cache(tiny / "cache").split("evaluation")
    )
    for direction, values in result.metrics.items():
        assert metrics[direction] == pytest.approx(values)
    assert (
        metrics["num_clips"] == 8
        and metrics["cache"] == str(tiny / "cache")
        and "_git_commit_hash" in metrics
    )
    fingerprint = open_cache(tiny / "cache").split("evaluation").fingerprint()
    assert metrics["fingerprint"] == fingerprint and metrics["sample_rate"] == SAMPLE_RATE
    with open(checkpoint / "results" / "evaluation" / "ranks.csv", newline="") as file:
        assert [row["query"] for row in csv.DictReader(file)] == result.captions


def test_the_result_on_another_cache_does_not_take_the_place_of_the_run_s_own(
    checkpoint, tiny, tmp_path, monkeypatch
):
    cache = write_cache(tmp_path / "cache", {"evaluation": 4})
    score = ["--checkpoint", checkpoint, "--cache"]
    with (
        monkeypatch.context() as patch,
        pytest.raises(
            UserError, match="is for results on the cache of the run, and .* add --output DIR"
        ),
    ):
        patch.setattr(
            "retrieval.evaluation.score_matrix.Scorer.matrix",
            lambda *_: pytest.fail("scored first"),
        )
        evaluate(*score, cache)
    evaluate(*score, cache, "--output", tmp_path / "out")
    evaluate(*score, f"{tiny}/../{tiny.name}/cache")  # the run's own, spelled otherwise


def test_given_settings_win(checkpoint, tmp_path):
    cache = write_cache(tmp_path / "cache", {"validation": 12})
    arguments = [
        "--checkpoint",
        checkpoint,
        "--split",
        "validation",
        "--cache",
        cache,
        "--output",
        tmp_path / "out",
    ]
    evaluate(
        *arguments, "--audio-batch-size", "3", "--text-batch-size", "5", "--mixed-precision", "bf16"
    )
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (
        metrics["num_clips"] == 12
        and metrics["mixed_precision"] == "bf16"
        and metrics["split"] == "validation"
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "metrics.json",
        "ranks.csv",
    ]


def _truncated(copy):
    weights = copy / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def _other_architecture(copy):
    weights = load_file(copy / "best" / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in weights.items() if "pooling" not in name},
        copy / "best" / "model.safetensors",
    )


def _not_finite(copy):
    weights = load_file(copy / "best" / "model.safetensors")
    save_file(
        {name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()},
        copy / "best" / "model.safetensors",
    )


@pytest.mark.parametrize(
    ("spoil", "arguments", "message"),
    [
        (None, ["--checkpoint", "{copy}/absent"], "absent does not exist; train.py writes"),
        (None, ["--checkpoint", "{copy}"], "did you mean .*best"),
        (_truncated, [], "best does not load"),
        (
            lambda copy: (copy / "best" / "config.json").write_text("3"),
            [],
            "config.json cannot be read",
        ),
        (
            lambda copy: (copy / "config.yaml").write_bytes(b"\xff"),
            [],
            "config.yaml cannot be read",
        ),
        (_other_architecture, [], "best does not load"),
        (_not_finite, [], "scores on split 'evaluation' are NaN"),
        (lambda copy: (copy / "config.yaml").unlink(), [], "add --cache DIR"),
        (
            lambda copy: (copy / "config.yaml").write_text("data: ["),
            [],
            "config.yaml is not valid YAML",
        ),
        (
            lambda copy: (copy / "config.yaml").write_text(""),
            [],
            r"config.yaml cannot be read \(it holds no settings\); .* put back",
        ),
        (None, ["--cache", "{copy}/absent"], "absent does not exist"),
        (None, ["--split", "test"], "no split 'test'"),
        (
            lambda copy: write_cache(copy / "cache", {"evaluation": 2}, sample_rate=32_000),
            ["--cache", "{copy}/cache"],
            "needs 16000 Hz",
        ),
        (None, ["--output", "{copy}/config.yaml/below"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line(checkpoint, tmp_path, spoil, arguments, message):
    copy = tmp_path / "run"
    shutil.copytree(checkpoint.parent, copy, ignore=shutil.ignore_patterns("results"))
    if spoil is not None:
        spoil(copy)
    arguments = [argument.format(copy=copy) for argument in arguments]
    if "--checkpoint" not in arguments:
        arguments += ["--checkpoint", copy / "best"]
    with pytest.raises(UserError, match=message) as error:
        evaluate(*arguments)
    assert "\n" not in str(error.value) and not (copy / "best" / "results").exists()


def test_an_impossible_output_is_noticed_before_the_model_is_loaded(
    checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr(DualEncoder, "from_pretrained", lambda *_: 1 / 0)
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError,
        match=r"file/below cannot be written \(Not a directory\); .*choose another output folder",
    ):
        evaluate("--checkpoint", checkpoint, "--output", tmp_path / "file" / "below")
    with pytest.raises(ZeroDivisionError):  # negative control
        evaluate("--checkpoint", checkpoint, "--output", tmp_path / "new" / "below")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["metrics.json", "ranks.csv", "scores.npy", "scores.json"])
def test_a_folder_in_the_place_of_a_file_is_noticed_before_the_model_is_loaded(
    checkpoint, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(DualEncoder, "from_pretrained", lambda *_: 1 / 0)
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is a folder, expected a file"):
        evaluate("--checkpoint", checkpoint, "--output", tmp_path, "--save-scores")


def test_save_scores(checkpoint, tiny, tmp_path, monkeypatch, capsys):
    split = open_cache(tiny / "cache").split("development")
    output = tmp_path / "teacher"
    # no whole matrix beside the memory map
    monkeypatch.setattr("retrieval.evaluation.score_matrix.Scorer.matrix", lambda *_: 1 / 0)
    evaluate(
        "--checkpoint",
        checkpoint,
        "--split",
        "development",
        "--save-scores",
        "--output",
        output,
        "--audio-batch-size",
        "5",
    )
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == [
        f"written: {output}/metrics.json, {output}/ranks.csv",
        f"written: {output}/scores.npy, {output}/scores.json",
    ]
    assert sorted(path.name for path in output.iterdir()) == [
        "metrics.json",
        "ranks.csv",
        "scores.json",
        "scores.npy",
    ]
    file = open_scores(output)
    file.check(split)
    expected = evaluate_split(DualEncoder.from_pretrained(checkpoint), split)
    torch.testing.assert_close(torch.from_numpy(file.scores), expected.scores)
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["text_to_audio"] == pytest.approx(expected.metrics["text_to_audio"])
    about = json.loads((output / "scores.json").read_text())
    assert (
        about["checkpoint"] == str(checkpoint)
        and about["split"] == "development"
        and "git_commit" in about
    )
    with pytest.raises(UserError, match="scores of other clips or captions"):
        file.check(open_cache(tiny / "cache").split("evaluation"))


@pytest.fixture(scope="module")
def mean_checkpoint(tiny, tmp_path_factory) -> Path:
    """Another architecture, without a config.yaml beside it."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("mean") / "best"
    build_model(load_config(tiny / "tiny.yaml", ["pooling.name=mean", "dim=24"])).save_pretrained(
        folder
    )
    return folder


def test_the_mean_of_several(checkpoint, mean_checkpoint, tiny, tmp_path, monkeypatch):
    both = ["--checkpoint", checkpoint, "--checkpoint", mean_checkpoint]
    with pytest.raises(UserError, match="add --output DIR"):
        evaluate(*both)
    with pytest.raises(UserError, match="names one model twice"):
        evaluate(*both, "--checkpoint", mean_checkpoint, "--output", tmp_path)
    loaded, most = [], []
    load = DualEncoder.from_pretrained

    def counted(path):
        most.append(sum(model() is not None for model in loaded))
        model = load(path)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(DualEncoder, "from_pretrained", counted)
    evaluate(*both, "--output", tmp_path / "both", "--save-scores")
    gc.collect()
    # never a second one beside it; the first is loaded once, the other to be checked and to be used
    assert most == [0, 0, 0]
    split = open_cache(tiny / "cache").split("evaluation")
    matrices = [
        similarity_matrix(load(path), captions_of(split)[0], split).double()
        for path in (checkpoint, mean_checkpoint)
    ]
    scores = torch.from_numpy(open_scores(tmp_path / "both").scores)
    torch.testing.assert_close(scores, ((matrices[0] + matrices[1]) / 2).float())
    assert not torch.allclose(scores, matrices[0].float(), atol=1e-3)  # negative control
    metrics = json.loads((tmp_path / "both" / "metrics.json").read_text())
    assert metrics["checkpoint"] == [str(checkpoint), str(mean_checkpoint)]


def test_one_of_several_that_does_not_fit_is_found_before_scoring(
    checkpoint, tiny, tmp_path, monkeypatch
):
    settings = ["data.sample_rate=32000", "audio_encoder.window_seconds=1.0"]
    build_model(load_config(tiny / "tiny.yaml", settings)).save_pretrained(tmp_path / "other")
    monkeypatch.setattr("retrieval.evaluation.score_matrix.score_columns", lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match=r"sampled at 16000 Hz, checkpoint .*other needs 32000 Hz"):
        evaluate(
            "--checkpoint",
            checkpoint,
            "--checkpoint",
            tmp_path / "other",
            "--output",
            tmp_path / "out",
        )


def test_a_checkpoint_in_a_file(checkpoint, tiny, tmp_path, monkeypatch):
    path = tmp_path / "passt_roberta.ckpt"
    path.touch()
    asked = []

    def load(path: Path, text_encoder: Path | None) -> DualEncoder:
        asked.append((path, text_encoder))
        return DualEncoder.from_pretrained(checkpoint)

    monkeypatch.setattr("retrieval.models.pretrained.load.load_salsa_checkpoint", load)
    with pytest.raises(
        UserError, match="is a file and has no folder for its result: add --output DIR"
    ):
        evaluate("--checkpoint", path, "--cache", tiny / "cache")
    with pytest.raises(UserError, match="add --cache DIR"):
        evaluate("--checkpoint", path, "--output", tmp_path / "out")
    tokenizer = tiny / "text_encoder"
    evaluate(
        "--checkpoint",
        path,
        "--cache",
        tiny / "cache",
        "--output",
        tmp_path / "out",
        "--text-encoder",
        tokenizer,
    )
    assert asked[-1] == (path, tokenizer)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    expected = evaluate_split(
        DualEncoder.from_pretrained(checkpoint), open_cache(tiny / "cache").split("evaluation")
    )
    assert metrics["text_to_audio"] == pytest.approx(expected.metrics["text_to_audio"])


def test_several_right_clips_a_query(checkpoint, tiny, tmp_path, capsys):
    split = open_cache(tiny / "cache").split("evaluation")
    relevance = {"A low tone": [0, 4], "Something high, or shrill": [2, 3, 7]}
    rows = [
        f'"{query}","{[split.file_names[clip] for clip in clips]}"'
        for query, clips in relevance.items()
    ]
    (tmp_path / "relevance.csv").write_text("\n".join(["query,audio_filenames", *rows]))
    evaluate("--checkpoint", checkpoint, "--relevance", tmp_path / "relevance.csv")
    assert "mAP@16" in capsys.readouterr().out
    results = checkpoint / "results" / "evaluation_relevance"
    metrics = json.loads((results / "metrics.json").read_text())
    scores = similarity_matrix(
        DualEncoder.from_pretrained(checkpoint), list(relevance), split
    ).numpy()
    expected = []
    for row, right in zip(scores, relevance.values(), strict=True):
        ranks = sorted(1 + sum(row > row[clip]) for clip in right)
        expected.append(sum((hit + 1) / rank for hit, rank in enumerate(ranks)) / len(ranks))
    assert metrics["text_to_audio"]["mAP@16"] == pytest.approx(sum(expected) / 2)
    assert metrics["relevance"] == str(tmp_path / "relevance.csv") and metrics["num_captions"] == 2
    with open(results / "ranks.csv", newline="") as file:
        assert [len(row["ranks"].split()) for row in csv.DictReader(file)] == [2, 3]


def test_submission_with_queries_and_captions(checkpoint, tiny, tmp_path):
    (tmp_path / "queries.csv").write_text("caption\nA low tone\nA high tone\n")
    asked = [
        "--submission",
        "dcase2025",
        tmp_path / "s25.csv",
        "--queries",
        tmp_path / "queries.csv",
    ]
    evaluate("--checkpoint", checkpoint, *asked, "--output", tmp_path / "unused")
    split = open_cache(tiny / "cache").split("evaluation")
    scores = similarity_matrix(
        DualEncoder.from_pretrained(checkpoint), ["A low tone", "A high tone"], split
    )
    with open(tmp_path / "s25.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header[1:] == split.file_names and [row[0] for row in rows] == [
        "A low tone",
        "A high tone",
    ]
    assert [float(value) for value in rows[1][1:]] == pytest.approx(scores[1].tolist(), abs=1e-6)
    assert not (tmp_path / "unused").exists()
    evaluate(
        "--checkpoint",
        checkpoint,
        "--submission",
        "dcase2024",
        tmp_path / "s24.csv",
        "--output",
        tmp_path / "out",
    )
    with (
        open(tmp_path / "s24.csv", newline="") as submitted,
        open(tmp_path / "out" / "ranks.csv", newline="") as ranks,
    ):
        for ours, row in zip(csv.DictReader(ranks), csv.DictReader(submitted), strict=True):
            assert (
                ours["query"] == row["caption"] and row[f"file_name_{ours['rank']}"] == ours["clip"]
            )


def test_recordings_without_captions(checkpoint, tmp_path, monkeypatch):
    """Built from audio alone: what is asked comes from the files."""
    for number, seconds in enumerate((0.5, 0.7, 0.9)):
        write_sound(tmp_path / "audio" / f"{number}.wav", seconds)
    assert (
        run_build(
            build_folder,
            {},
            "--audio",
            tmp_path / "audio",
            "--without-captions",
            "--output",
            tmp_path / "cache",
        )
        == 0
    )
    score = ["--checkpoint", checkpoint, "--cache", tmp_path / "cache"]
    (tmp_path / "queries.csv").write_text("caption\nA low tone\nA high tone\n")
    evaluate(
        *score,
        "--submission",
        "dcase2025",
        tmp_path / "s.csv",
        "--queries",
        tmp_path / "queries.csv",
    )
    split = open_cache(tmp_path / "cache").split("evaluation", need_captions=False)
    scores = similarity_matrix(
        DualEncoder.from_pretrained(checkpoint), ["A low tone", "A high tone"], split
    )
    with open(tmp_path / "s.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["index", "0.wav", "1.wav", "2.wav"] and [
        float(value) for value in rows[1][1:]
    ] == pytest.approx(scores[1].tolist(), abs=1e-6)

    (tmp_path / "relevance.csv").write_text(
        "query,audio_filenames\nA low tone,\"['2.wav', '0.wav']\"\nA high tone,['1.wav']\n"
    )
    evaluate(*score, "--relevance", tmp_path / "relevance.csv", "--output", tmp_path / "out")
    with open(tmp_path / "out" / "ranks.csv", newline="") as file:
        row = next(csv.DictReader(file))
    best = 0 if scores[0, 0] > scores[0, 2] else 2
    assert row["clip"] == f"{best}.wav" and float(row["score"]) == pytest.approx(
        float(scores[0, best]), abs=1e-6
    )

    monkeypatch.setattr("retrieval.evaluation.score_matrix.score_columns", lambda *_, **__: 1 / 0)
    for arguments in ([], ["--submission", "dcase2025", tmp_path / "t.csv"], ["--save-scores"]):
        with pytest.raises(
            UserError,
            match="has no captions, .* --queries FILE, or labels: python -m retrieval.zero_shot",
        ) as error:
            evaluate(*score, *arguments, "--output", tmp_path / "none")
        assert "\n" not in str(error.value) and not (tmp_path / "none").exists()


def test_clips_of_one_name_are_found_before_scoring(checkpoint, tmp_path, monkeypatch):
    row = {"file_name": "a.wav", "audio": bytes(2000), "num_samples": 1000, "captions": ["A tone."]}
    cache = write_rows(
        tmp_path / "cache", {"evaluation": [row | {"clip_id": "1"}, row | {"clip_id": "2"}]}
    )
    monkeypatch.setattr("retrieval.evaluation.score_matrix.score_columns", lambda *_, **__: 1 / 0)
    arguments = ["--checkpoint", checkpoint, "--cache", cache, "--output", tmp_path / "out"]
    with pytest.raises(UserError, match="two clips are called 'a.wav'"):
        evaluate(*arguments, "--submission", "dcase2025", tmp_path / "s.csv")
    with pytest.raises(ZeroDivisionError):  # negative control
        evaluate(*arguments)


@pytest.mark.parametrize(
    "name", ["metrics.json", "ranks.csv", "scores.npy", "scores.json", "relevance.csv"]
)
def test_a_submission_takes_the_place_of_no_other_file(checkpoint, tmp_path, monkeypatch, name):
    monkeypatch.setattr(DualEncoder, "from_pretrained", lambda *_: 1 / 0)
    (tmp_path / "relevance.csv").write_text("query,audio_filenames\nA tone,['0.wav']\n")
    (tmp_path / "link").symlink_to(tmp_path)
    arguments = [
        "--checkpoint",
        checkpoint,
        "--relevance",
        tmp_path / "relevance.csv",
        "--output",
        tmp_path,
    ]
    with pytest.raises(
        UserError,
        match=(f"--submission .*{name} is a file that this run reads, or another result"),
    ):
        evaluate(*arguments, "--submission", "dcase2024", tmp_path / "link" / name)
    default = checkpoint / "results" / "evaluation"
    if name != "relevance.csv":
        with pytest.raises(UserError, match="or another result"):
            evaluate("--checkpoint", checkpoint, "--submission", "dcase2024", default / name)
    with pytest.raises(ZeroDivisionError):  # negative control
        evaluate(*arguments, "--submission", "dcase2024", tmp_path / "submission.csv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--queries", "q.csv"], "--queries .* --submission"),
        (
            ["--queries", "q.csv", "--submission", "dcase2024", "s.csv", "--save-scores"],
            "--queries .* --save-scores",
        ),
        (["--relevance", "r.csv", "--save-scores"], "leave out --relevance"),
        (["--submission", "dcase2020", "s.csv"], "must be dcase2024 or dcase2025"),
        (["--submission", "dcase2024", "."], "is a folder"),
        (["--relevance", "absent.csv"], "absent.csv cannot be read"),
    ],
)
def test_options_that_do_not_go_together(checkpoint, monkeypatch, arguments, message):
    monkeypatch.setattr(DualEncoder, "from_pretrained", lambda *_: 1 / 0)
    with pytest.raises(UserError, match=message):
        evaluate("--checkpoint", checkpoint, *arguments)


def test_process_ends_with_one_line_and_code_2(tmp_path):
    ended = subprocess.run(
        [sys.executable, "evaluate.py", "--checkpoint", str(tmp_path / "no")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (
        ended.returncode == 2
        and ended.stdout == ""
        and ended.stderr.startswith("error: checkpoint")
        and ended.stderr.count("\n") == 1
    )
