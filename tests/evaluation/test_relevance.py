"""Queries with several right clips: the CSV of DCASE 2025, joined with a split by file name."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from retrieval.base.errors import UserError
from retrieval.base.sound_files import normalise_name
from retrieval.evaluation.relevance import MAP_AT, read_relevance, relevant_columns
from retrieval.evaluation.result import EvaluationResult
from tests.evaluation.test_metrics import slow_metrics

REAL = (
    Path(__file__).resolve().parents[3]
    / "shared"
    / "data"
    / "dcase2025_clotho_evaluation_relevance.csv"
)
NAMES = ["a.wav", "Cafe\u0301  no. 1 .WAV", "d'eau.wav", "b.wav"]


def write(path: Path, *rows: str, header: str = "query,audio_filenames") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_names_are_joined_as_the_corpus_reader_does(tmp_path):
    path = write(
        tmp_path / "r.csv",
        "\"A brook, \nand rain.\",\"['d&#39;eau.wav', 'Caf\u00e9 no. 1.wav', 'd&#39;eau.wav']\"",
        "Birds,['b.wav']",
    )
    relevance = read_relevance(path)
    assert list(relevance) == ["A brook, and rain.", "Birds"]
    assert relevant_columns(relevance, SimpleNamespace(name="evaluation", file_names=NAMES)) == [
        [2, 1],
        [3],
    ]
    others = (" Caf&eacute;  no. 1 .WAV", "no suffix", "x.y.wav ")
    assert [normalise_name(name) for name in (NAMES[1], *others)] == [
        *("Caf\u00e9 no. 1.wav", "Caf\u00e9 no. 1.wav", "no suffix", "x.y.wav")
    ]


def test_clips_of_one_name_are_all_right():
    assert relevant_columns(
        {"q": ["a.wav"]},
        SimpleNamespace(name="evaluation", file_names=["a.wav", "b.wav", "A.wav", "a.WAV"]),
    ) == [[0, 3]]


def test_metrics_with_several_right_clips_against_loops():
    random = np.random.default_rng(0)
    scores = random.normal(size=(30, 40)).astype(np.float32)
    relevant = [
        random.choice(40, size=random.integers(1, 6), replace=False).tolist() for _ in range(30)
    ]
    names = [f"{clip}.wav" for clip in range(40)]
    result = EvaluationResult(
        "evaluation",
        scores,
        [str(i) for i in range(30)],
        [r[0] for r in relevant],
        names,
        names,
        relevant,
        MAP_AT,
    )
    metrics = result.metrics["text_to_audio"]
    assert (
        list(metrics)
        == ["mAP@10", "mAP@16", "R@1", "R@5", "R@10"]
        == list(result.chance["text_to_audio"])
    )
    assert {name: metrics[name] for name in slow_metrics(scores, relevant)} == pytest.approx(
        slow_metrics(scores, relevant)
    )
    at_16 = [
        sum((hit + 1) / rank for hit, rank in enumerate(sorted(ranks)) if rank <= 16) / len(ranks)
        for ranks in by_sorting(scores, relevant)
    ]
    assert (
        metrics["mAP@16"] == pytest.approx(np.mean(at_16)) and metrics["mAP@16"] > metrics["mAP@10"]
    )


def by_sorting(scores, relevant):
    for row, right in zip(scores, relevant, strict=True):
        order = sorted(range(len(row)), key=lambda clip: -row[clip])
        yield [order.index(clip) + 1 for clip in right]


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (
            ["a,['a.wav']"],
            "caption,files",
            "needs the columns query and audio_filenames, found: caption, files",
        ),
        ([], "query,audio_filenames", "has no queries"),
        (
            ["a,a.wav"],
            None,
            r"line 2: audio_filenames must be a list of file names .* found 'a.wav'",
        ),
        (["a,['a.wav'"], None, "line 2: audio_filenames must be a list"),
        (["a,[]"], None, "must be a list of file names"),
        (["a,\"['a.wav', 3]\""], None, "must be a list of file names"),
        (["a,__import__('os')"], None, "must be a list of file names"),
        (["a"], None, "must be a list of file names"),
        ([" ,['a.wav']"], None, "line 2: no query"),
        (["a,['a.wav']", "a,['b.wav']"], None, "line 3: the query 'a' is there twice"),
    ],
)
def test_files_that_do_not_fit(tmp_path, rows, header, message):
    path = write(tmp_path / "r.csv", *rows, **({"header": header} if header else {}))
    with pytest.raises(UserError, match=message) as error:
        read_relevance(path)
    assert "\n" not in str(error.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="absent.csv cannot be read"):
        read_relevance(tmp_path / "absent.csv")
    (tmp_path / "latin.csv").write_bytes(b"query,audio_filenames\ncaf\xe9,['a.wav']\n")
    with pytest.raises(UserError, match="latin.csv cannot be read"):
        read_relevance(tmp_path / "latin.csv")


def test_unknown_clips_are_listed():
    split = SimpleNamespace(name="validation", file_names=NAMES)
    with pytest.raises(
        UserError,
        match=r"lacks 4 of the 5 clips .* 'v.wav', 'w.wav', 'x.wav', \.\.\.; give the split",
    ):
        relevant_columns({"q": ["v.wav", "a.wav", "w.wav"], "p": ["x.wav", "y.wav"]}, split)


@pytest.mark.skipif(not REAL.is_file(), reason=f"{REAL} is absent")
def test_the_real_file():
    relevance = read_relevance(REAL)
    names = list(
        dict.fromkeys(normalise_name(name) for names in relevance.values() for name in names)
    )
    assert (
        len(relevance) == 1037 and len(names) == 1006 and sum(map(len, relevance.values())) == 3116
    )
    assert not any("&" in name and ";" in name for name in names)
    columns = relevant_columns(relevance, SimpleNamespace(name="evaluation", file_names=names))
    assert max(map(len, columns)) == 12 and min(map(len, columns)) == 1
