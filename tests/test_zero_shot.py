"""Zero-shot classification: the figures against loops, the command with a tiny model, and one line for every mistake."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from retrieval import zero_shot
from retrieval.config import load_config
from retrieval.data import open_cache
from retrieval.errors import UserError
from retrieval.evaluation import similarity_matrix
from retrieval.models import DualEncoder, build_model
from retrieval.zero_shot import accuracies, labels_of_clips, read_labels


def test_figures_by_hand():
    # Labels x clips. Clip 0 is right, 1 wrong, 2 has two labels of which one wins, 3 has no label.
    scores = np.array([[0.9, 0.8, 0.1, 0.0], [0.1, 0.2, 0.7, 0.0], [0.0, 0.1, 0.2, 1.0]])
    figures = accuracies(scores, [[0], [1], [1, 2], []])
    assert figures["top-1"] == pytest.approx(2 / 3) and figures["top-5"] == 1
    assert figures["top-1, class-balanced"] == pytest.approx(np.mean([1, 1 / 2, 1]))
    assert figures["mAP over labels"] == pytest.approx(np.mean([1, 1, 1]))  # clip 3 is no candidate
    assert accuracies(scores, [[1], [0], [0], []])["mAP over labels"] == pytest.approx(np.mean([(1 / 2 + 2 / 3) / 2, 1 / 3]))


def test_figures_against_loops():
    random = np.random.default_rng(0)
    scores, right = random.normal(size=(9, 60)), [[int(random.integers(9))] for _ in range(60)]
    orders = [sorted(range(9), key=lambda label: -scores[label, clip]) for clip in range(60)]
    figures = accuracies(scores, right)
    assert figures["top-1"] == pytest.approx(np.mean([orders[clip][0] == right[clip][0] for clip in range(60)]))
    assert figures["top-5"] == pytest.approx(np.mean([right[clip][0] in orders[clip][:5] for clip in range(60)]))
    balanced, precisions = [], []
    for label in {labels[0] for labels in right}:
        mine = [clip for clip in range(60) if right[clip] == [label]]
        balanced.append(np.mean([orders[clip][0] == label for clip in mine]))
        ranking = sorted(range(60), key=lambda clip: -scores[label, clip])
        hits = [place for place, clip in enumerate(ranking, 1) if clip in mine]
        precisions.append(np.mean([(number + 1) / place for number, place in enumerate(hits)]))
    assert figures["top-1, class-balanced"] == pytest.approx(np.mean(balanced))
    assert figures["mAP over labels"] == pytest.approx(np.mean(precisions))
    assert figures["top-1"] != pytest.approx(accuracies(-scores, right)["top-1"])  # negative control


def test_a_model_that_says_the_same_of_everything_gets_nothing():
    assert accuracies(np.zeros((9, 4)), [[0], [1], [2], [3]])["top-1"] == 0


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero_shot") / "best"
    torch.manual_seed(0)
    build_model(load_config(tiny / "tiny.yaml")).save_pretrained(folder)
    return folder


def test_the_command(checkpoint, tiny, tmp_path, capsys):
    split = open_cache(tiny / "cache").split("evaluation")
    labels = ["low", "middle_note", "high"]
    rows = [f"{name},{labels[clip % 3]}" for clip, name in enumerate(split.file_names[:6])]
    (tmp_path / "labels.csv").write_text("\n".join(["file_name,label", *rows]))
    arguments = ["--checkpoint", str(checkpoint), "--cache", str(tiny / "cache"), "--output", str(tmp_path / "new" / "predictions.csv")]
    templates = ["A {} tone.", "Someone plays a {} note"]
    with_labels = ["--labels", str(tmp_path / "labels.csv"), "--template", templates[0], "--template", templates[1]]
    assert zero_shot.main([*arguments, *with_labels]) == 0
    model = DualEncoder.from_pretrained(checkpoint)
    sentences = [[template.format(label.replace("_", " ")) for label in labels] for template in templates]
    scores = np.mean([similarity_matrix(model, texts, split).numpy() for texts in sentences], axis=0)
    out = capsys.readouterr().out
    assert "6 clips, 3 labels" in out
    expected = accuracies(scores, [[clip % 3] if clip < 6 else [] for clip in range(8)])
    assert all(f"{name:<26}{100 * value:8.2f}" in out for name, value in expected.items())
    with open(tmp_path / "new" / "predictions.csv", newline="") as file:
        predictions = list(csv.DictReader(file))
    assert [row["label"] for row in predictions] == [labels[best] for best in scores.argmax(axis=0)]
    assert [float(row["score"]) for row in predictions] == pytest.approx(scores.max(axis=0), abs=1e-6)
    (tmp_path / "labels.txt").write_text("low\n\nmiddle_note\nhigh\n")
    zero_shot.main([*arguments, "--labels", str(tmp_path / "labels.txt")])
    assert "top-1" not in capsys.readouterr().out


def test_labels_of_clips():
    split = SimpleNamespace(name="evaluation", file_names=["a.wav", "B  b.WAV", "c.wav"])
    assert labels_of_clips({"a.wav": ["dog"], "B b.wav": ["cat", "rain"]}, split) == [["dog"], ["cat", "rain"], []]
    with pytest.raises(UserError, match="names 2 of 3 files that split 'evaluation' of the cache lacks: 'x.wav', 'y.wav'"):
        labels_of_clips({"a.wav": ["dog"], "x.wav": ["dog"], "y.wav": ["dog"]}, split)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"dog\n\ndog\n", "has 1 different label"),
        (b"\xff", "cannot be read"),
        (b"file_name,label\na.wav,\n", "a row lacks its label"),
    ],
)
def test_label_files_that_do_not_fit(tmp_path, content, message):
    if content is not None:
        (tmp_path / "labels").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_labels(tmp_path / "labels")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--template", "a sound"], "must hold {} once"),
        (["--template", "{} and {}"], "must hold {} once"),
        (["--template", "{0} {}"], "no other braces"),
        ([], "add --output FILE"),
        (["--checkpoint", "absent"], "absent does not exist"),
        (["--output", "."], "is a folder"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(tmp_path, checkpoint, arguments, message):
    (tmp_path / "labels").write_text("dog\ncat\n")
    with pytest.raises(UserError, match=message):
        zero_shot.main(["--checkpoint", str(checkpoint), "--labels", str(tmp_path / "labels"), *arguments])
