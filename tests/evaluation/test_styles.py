"""`evaluate.py --captions`: queries in other styles, each scored by itself."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

from retrieval.base.errors import UserError
from retrieval.config import load_config
from retrieval.data import open_cache
from retrieval.evaluation.score_files import open_scores
from retrieval.evaluation.score_matrix import captions_of, similarity_matrix
from retrieval.evaluation.styles import UNNAMED, read_styles
from retrieval.models.build import build_model
from retrieval.models.dual_encoder import DualEncoder
from tests.conftest import write_rows
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


@pytest.fixture(scope="module")
def split(tiny):
    return open_cache(tiny / "cache").split("evaluation")


def write_styles(path: Path, rows: list[tuple[str, ...]], header="file_name,caption,style") -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def rows_of(split) -> list[tuple[str, str, str]]:
    """Tags of all clips, one of them of three clips; questions of two clips, one with two."""
    names = split.file_names
    tags = [(name, f"tone {number}", "tags") for number, name in enumerate(names)]
    tags += [(names[number], "low", "tags") for number in (1, 4, 6)]
    questions = [
        (names[2], "Is that high, or low?", "questions"),
        (names[2], "Who whistles there?", "questions"),
        (names[5], "Is there a pulse?", "questions"),
        (names[5], "tone 5", "questions"),  # also a tag: another style, another query
    ]
    return [tags[0], questions[0], *tags[1:], *questions[1:]]


def slow_metrics(scores, right: list[list[int]]) -> dict[str, float]:
    """mAP@10 and R@k from loops; ties are worst."""
    sums = dict.fromkeys(("mAP@10", "R@1", "R@5", "R@10"), 0.0)
    for row, clips in zip(scores.tolist(), right, strict=True):
        order = sorted(range(len(row)), key=lambda clip: (-row[clip], clip in clips))
        ranks = [place for place, clip in enumerate(order, 1) if clip in clips]
        hits = [(hit + 1) / rank for hit, rank in enumerate(ranks) if rank <= 10]
        sums["mAP@10"] += sum(hits) / len(clips)
        for depth in (1, 5, 10):
            sums[f"R@{depth}"] += ranks[0] <= depth
    return {name: value / len(right) for name, value in sums.items()}


def grouped(rows, split) -> dict[str, dict[str, list[int]]]:
    styles: dict[str, dict[str, list[int]]] = {}
    for name, caption, style in rows:
        right = styles.setdefault(style, {}).setdefault(caption, [])
        right.append(split.file_names.index(name))
    return styles


def test_each_style_is_scored_against_all_clips(checkpoint, split, tmp_path, capsys):
    rows = rows_of(split)
    path = write_styles(tmp_path / "styles.csv", rows)
    evaluate("--checkpoint", checkpoint, "--captions", path, "--save-scores", "--report", tmp_path)
    model = DualEncoder.from_pretrained(checkpoint)
    output = checkpoint / "results" / "evaluation_captions"
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["captions"] == str(path)
    # the split's own captions: as without the option
    own = similarity_matrix(model, captions_of(split)[0], split)
    torch.testing.assert_close(torch.from_numpy(open_scores(output).scores), own)
    right = [[clip] for clip in captions_of(split)[1]]
    assert metrics["text_to_audio"] == pytest.approx(slow_metrics(own, right))

    report = json.loads((tmp_path / "report.json").read_text())
    assert [part["style"] for part in report["styles"]] == ["tags", "questions"]
    printed = capsys.readouterr().out.splitlines()
    for part, (style, queries) in zip(report["styles"], grouped(rows, split).items(), strict=True):
        found = metrics["styles"][style]
        scores = similarity_matrix(model, list(queries), split)
        expected = slow_metrics(scores, list(queries.values()))
        assert found["text_to_audio"] == pytest.approx(expected)
        asked = sorted({clip for clips in queries.values() for clip in clips})
        captions = [
            [row for row, clips in enumerate(queries.values()) if clip in clips] for clip in asked
        ]
        assert found["audio_to_text"] == pytest.approx(slow_metrics(scores.T[asked], captions))
        assert found["num_captions"] == part["num_queries"] == len(queries)
        assert found["num_clips"] == part["num_clips"] == len(asked)
        assert found["num_candidates"] == len(split)
        values = {name: cell["value"] for name, cell in part["metrics"]["text_to_audio"].items()}
        assert values == pytest.approx(expected)
        (line,) = [line for line in printed if line.startswith(f"style {style} ")]
        assert line.split()[2:] == [f"{100 * x:.2f}" for x in expected.values()] + [
            str(len(queries))
        ]
    # tags of three clips, drawn query by query; questions belong to one clip each
    assert [part["bootstrap"]["unit"] for part in report["styles"]] == ["queries", "clips"]
    assert 'id="styles"' in (tmp_path / "report.html").read_text()
    # negative control: the styles differ, from each other and from the split's own captions
    each = [metrics["text_to_audio"], *(one["text_to_audio"] for one in metrics["styles"].values())]
    assert len({values["mAP@10"] for values in each}) == 3
    with open(output / "style_ranks.csv", newline="") as file:
        ranks = [(row["style"], row["query"], row["ranks"]) for row in csv.DictReader(file)]
    assert [len(text.split()) for style, query, text in ranks if query == "low"] == [3]
    assert len(ranks) == sum(map(len, grouped(rows, split).values()))


def test_clips_without_captions_of_their_own(checkpoint, split, tmp_path, tiny):
    bare = [
        {
            "clip_id": clip_id,
            "file_name": name,
            "audio": split.read_stored(number).tobytes(),
            "num_samples": int(split.num_samples[number]),
            "captions": [],
        }
        for number, (clip_id, name) in enumerate(zip(split.clip_ids, split.file_names, strict=True))
    ]
    cache = write_rows(tmp_path / "cache", {"evaluation": bare})
    path = write_styles(tmp_path / "styles.csv", rows_of(split))
    score = ["--checkpoint", checkpoint, "--cache", cache, "--captions", path]
    with pytest.raises(UserError, match="--save-scores .*evaluation"):
        evaluate(*score, "--save-scores", "--output", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    evaluate(*score, "--output", tmp_path / "out", "--report", tmp_path / "report")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    model = DualEncoder.from_pretrained(checkpoint)
    queries = [
        (query, clips)
        for style in grouped(rows_of(split), split).values()
        for query, clips in style.items()
    ]
    scores = similarity_matrix(model, [query for query, _ in queries], split)
    right = [clips for _, clips in queries]
    assert metrics["text_to_audio"] == pytest.approx(slow_metrics(scores, right))
    assert set(metrics["styles"]) == {"tags", "questions"}


def test_beside_relevance_submission_and_stored_results(checkpoint, split, tmp_path):
    names = split.file_names
    path = write_styles(tmp_path / "s.csv", [(names[0], "hum")], "file_name,caption")
    (tmp_path / "relevance.csv").write_text(
        f'query,audio_filenames\nA low tone,"{[names[1], names[3]]}"\n'
    )
    asked = ["--checkpoint", checkpoint, "--captions", path]
    evaluate(*asked, "--relevance", tmp_path / "relevance.csv")
    metrics = json.loads(
        (checkpoint / "results" / "evaluation_relevance_captions" / "metrics.json").read_text()
    )
    assert "mAP@16" in metrics["text_to_audio"]
    assert list(metrics["styles"]) == [UNNAMED]
    # a submission and another run are of the split's own captions
    evaluate("--checkpoint", checkpoint, "--output", tmp_path / "other")
    evaluate(
        *asked,
        *("--submission", "dcase2024", tmp_path / "best.csv"),
        *("--report", tmp_path / "report", "--against", tmp_path / "other"),
    )
    with open(tmp_path / "best.csv", newline="") as file:
        assert [row["caption"] for row in csv.DictReader(file)] == captions_of(split)[0]


def test_styles_keep_their_order_and_spelling(tmp_path):
    path = tmp_path / "styles.csv"
    path.write_text(
        "\ufeffcaption, file_name ,style,note\n"
        "Rain  but no\tthunder,a.wav,negated,x\n"
        "\n"
        '"Is that\nrain?",Caf\u00e9.wav, questions ,\n'
        "rain,a.wav,tags,\nrain,b.wav,tags,\n",
        encoding="utf-8",
    )
    assert read_styles(path) == {
        "negated": {"Rain but no thunder": ["a.wav"]},
        "questions": {"Is that rain?": ["Caf\u00e9.wav"]},
        "tags": {"rain": ["a.wav", "b.wav"]},
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "column file_name .*found: nothing"),
        (b"file_name,text\na.wav,Rain.\n", "column caption .*found: file_name, text"),
        (b"file_name,caption,caption\na.wav,Rain.,Rain.\n", "column caption once"),
        (b"file_name,caption\n", "no captions"),
        (b"file_name,caption\na.wav,\n", "line 2: caption is empty"),
        (b"file_name,caption\n ,Rain.\n", "line 2: file_name is empty"),
        (b"file_name,caption,style\na.wav,Rain., \n", "line 2: style is empty"),
        (b"file_name,caption\na.wav,Rain, and wind.\n", "line 2: 3 fields, expected 2.*quotes"),
        (b"file_name,caption,style\na.wav,Rain.\n", "line 2: 2 fields, expected 3"),
        (b"file_name,caption\na.wav,Rain.\nA.wav,x\na.wav,Rain. \n", "'Rain.' .*in line 2"),
        (b"file_name,caption\na.wav,caf\xe9\n", "not UTF-8 .*byte"),
        ("file_name,caption\n".encode("utf-16"), "not UTF-8"),
        (b'file_name,caption\na.wav,"Rain.\n', "line 2: cannot be read"),
        (b'file_name,caption\na.wav,"Rain" falls\n', "line 2: cannot be read"),
    ],
)
def test_bad_files_are_one_line_before_anything_is_loaded(
    checkpoint, tmp_path, monkeypatch, content, message
):
    path = tmp_path / "styles.csv"
    path.write_bytes(content)
    monkeypatch.setattr(DualEncoder, "from_pretrained", lambda *_: 1 / 0)
    with pytest.raises(UserError, match=message) as error:
        evaluate("--checkpoint", checkpoint, "--captions", path, "--output", tmp_path / "out")
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_unknown_clips_and_options_that_do_not_fit(checkpoint, split, tmp_path, monkeypatch):
    path = write_styles(tmp_path / "s.csv", [("absent.wav", "hum", "tags")])
    output = ["--output", tmp_path / "out"]
    monkeypatch.setattr("retrieval.evaluation.score_matrix.score_columns", lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match=r"--captions \(style 'tags'\).*absent.wav"):
        evaluate("--checkpoint", checkpoint, "--captions", path, *output)
    with pytest.raises(UserError, match="--captions .*--queries"):
        submission = ["--submission", "dcase2024", tmp_path / "s", "--queries", path]
        evaluate("--checkpoint", checkpoint, "--captions", path, *submission)
    with pytest.raises(UserError, match="--submission .*s.csv"):
        evaluate("--checkpoint", checkpoint, "--captions", path, "--submission", "dcase2024", path)
    (tmp_path / "out" / "style_ranks.csv").mkdir(parents=True)
    with pytest.raises(UserError, match="style_ranks.csv is a folder"):
        evaluate("--checkpoint", checkpoint, "--captions", path, *output)
