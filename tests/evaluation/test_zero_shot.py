"""Zero-shot classification: figures against loops, the command with a tiny model, mistakes."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_prep import build_folder
from retrieval.base.errors import UserError
from retrieval.config import load_config
from retrieval.data import open_cache
from retrieval.evaluation import zero_shot
from retrieval.evaluation.score_matrix import Scorer, similarity_matrix
from retrieval.evaluation.zero_shot import accuracies, chance_of_top_1, labels_of_clips, read_labels
from retrieval.models.build import build_model
from retrieval.models.dual_encoder import DualEncoder
from tests.corpora import run_build, write_sound


def test_chance_is_the_mean_share_of_right_labels():
    assert chance_of_top_1([["a"], ["a", "b"], []], 4) == pytest.approx((1 / 4 + 2 / 4) / 2)


def test_figures_by_hand():
    # Labels x clips. Clip 0 is right, 1 wrong, 2 has two labels of which one wins, 3 has no label.
    scores = np.array([[0.9, 0.8, 0.1, 0.0], [0.1, 0.2, 0.7, 0.0], [0.0, 0.1, 0.2, 1.0]])
    figures = accuracies(scores, [[0], [1], [1, 2], []])
    assert figures["top-1"] == pytest.approx(2 / 3) and figures["top-5"] == 1
    assert figures["top-1, class-balanced"] == pytest.approx(np.mean([1, 1 / 2, 1]))
    assert figures["mAP over labels"] == pytest.approx(
        np.mean([1, 1, 1])
    )  # clip 3 is not a candidate
    assert accuracies(scores, [[1], [0], [0], []])["mAP over labels"] == pytest.approx(
        np.mean([(1 / 2 + 2 / 3) / 2, 1 / 3])
    )


def test_figures_against_loops():
    random = np.random.default_rng(0)
    scores, right = random.normal(size=(9, 60)), [[int(random.integers(9))] for _ in range(60)]
    orders = [sorted(range(9), key=lambda label: -scores[label, clip]) for clip in range(60)]
    figures = accuracies(scores, right)
    assert figures["top-1"] == pytest.approx(
        np.mean([orders[clip][0] == right[clip][0] for clip in range(60)])
    )
    assert figures["top-5"] == pytest.approx(
        np.mean([right[clip][0] in orders[clip][:5] for clip in range(60)])
    )
    balanced, precisions = [], []
    for label in {labels[0] for labels in right}:
        mine = [clip for clip in range(60) if right[clip] == [label]]
        balanced.append(np.mean([orders[clip][0] == label for clip in mine]))
        ranking = sorted(range(60), key=lambda clip: -scores[label, clip])
        hits = [place for place, clip in enumerate(ranking, 1) if clip in mine]
        precisions.append(np.mean([(number + 1) / place for number, place in enumerate(hits)]))
    assert figures["top-1, class-balanced"] == pytest.approx(np.mean(balanced))
    assert figures["mAP over labels"] == pytest.approx(np.mean(precisions))
    # negative control
    assert figures["top-1"] != pytest.approx(accuracies(-scores, right)["top-1"])


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
    arguments = [
        "--checkpoint",
        str(checkpoint),
        "--cache",
        str(tiny / "cache"),
        "--output",
        str(tmp_path / "new" / "predictions.csv"),
    ]
    templates = ["A {} tone.", "Someone plays a {} note"]
    with_labels = [
        "--labels",
        str(tmp_path / "labels.csv"),
        "--template",
        templates[0],
        "--template",
        templates[1],
    ]
    assert zero_shot.main([*arguments, *with_labels]) == 0
    model = DualEncoder.from_pretrained(checkpoint)
    sentences = [
        [template.format(label.replace("_", " ")) for label in labels] for template in templates
    ]
    scores = np.mean(
        [similarity_matrix(model, texts, split).numpy() for texts in sentences], axis=0
    )
    out = capsys.readouterr().out
    assert "6 clips, 3 labels" in out
    expected = accuracies(scores, [[clip % 3] if clip < 6 else [] for clip in range(8)])
    assert all(f"{name:<26}{100 * value:8.2f}" in out for name, value in expected.items())
    with open(tmp_path / "new" / "predictions.csv", newline="") as file:
        predictions = list(csv.DictReader(file))
    assert [row["label"] for row in predictions] == [labels[best] for best in scores.argmax(axis=0)]
    assert [float(row["score"]) for row in predictions] == pytest.approx(
        scores.max(axis=0), abs=1e-6
    )
    (tmp_path / "labels.txt").write_text("low\n\nmiddle_note\nhigh\n")
    zero_shot.main([*arguments, "--labels", str(tmp_path / "labels.txt")])
    assert "top-1" not in capsys.readouterr().out


def test_recordings_without_captions_and_what_the_model_is_asked(
    checkpoint, tmp_path, monkeypatch, capsys
):
    for name in ("low.wav", "high.wav"):
        write_sound(tmp_path / "audio" / name, 0.5)
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
    (tmp_path / "labels.csv").write_text(
        'file_name, label\nlow.wav, a_low_ tone\nhigh.wav, "high, shrill"\n'
    )
    asked, matrix = [], Scorer.matrix
    monkeypatch.setattr(
        Scorer,
        "matrix",
        lambda self, captions, split: asked.append(captions) or matrix(self, captions, split),
    )
    arguments = [
        "--checkpoint",
        str(checkpoint),
        "--cache",
        str(tmp_path / "cache"),
        "--labels",
        str(tmp_path / "labels.csv"),
    ]
    assert zero_shot.main([*arguments, "--template", "A {} note.", "--template", "{}"]) == 0
    assert asked == [["A a low tone note.", "A high, shrill note.", "a low tone", "high, shrill"]]
    assert "2 clips, 2 labels" in capsys.readouterr().out


def test_lists_of_labels(tmp_path):
    """Some of AudioSet's labels hold commas; one that all of them would hold stands in quotes."""
    path = tmp_path / "labels"
    path.write_text('Speech\n Male speech, man speaking \n"Music"\nWhack, thwack, bang; thump\n')
    assert read_labels(path) == (
        ["Speech", "Male speech, man speaking", "Music", "Whack, thwack, bang; thump"],
        None,
    )
    path.write_text('"Male speech, man speaking"\n"Female speech, woman speaking"\n')
    assert read_labels(path) == (
        ["Male speech, man speaking", "Female speech, woman speaking"],
        None,
    )
    path.write_text(
        'split,label , file_name\nx,low tone,b.wav\n\n , \nx,"high, shrill",a.wav\nx,"dog",b.wav\n'
    )
    assert read_labels(path) == (
        ["low tone", "dog", "high, shrill"],
        {"b.wav": ["low tone", "dog"], "a.wav": ["high, shrill"]},
    )


def test_labels_of_clips():
    split = SimpleNamespace(name="evaluation", file_names=["a.wav", "B  b.WAV", "c.wav"])
    assert labels_of_clips({"a.wav": ["dog"], "B b.wav": ["cat", "rain"]}, split) == [
        ["dog"],
        ["cat", "rain"],
        [],
    ]
    with pytest.raises(
        UserError,
        match="names 2 of 3 files that split 'evaluation' of the cache lacks: 'x.wav', 'y.wav'",
    ):
        labels_of_clips({"a.wav": ["dog"], "x.wav": ["dog"], "y.wav": ["dog"]}, split)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"dog\n\ndog\n", "has 1 different label"),
        (b"\xff", "cannot be read"),
        (b"file_name,label\na.wav,\n", "line 2: a row lacks its label"),
        (b"file_name,label\na.wav,dog\nb.wav\n", "line 3: a row lacks its label"),
        (b"file_name,label\n,dog\n", "a row lacks its file_name"),
        (
            b"file_name,label\na.wav,dog\nb.wav,cat, purring\n",
            "line 3: 3 fields, expected 2; put a label with commas into quotes",
        ),
        (
            b"filename,category\na.wav,dog\nb.wav,cat, purring\n",
            "looks like a table, its first line is 'filename,category': .* file_name,label",
        ),
        (
            b"sound,what\na.wav,dog\nb.wav,cat\n",
            "looks like a table, its first line is 'sound,what'",
        ),
        (b"file_name;label\na.wav;dog\n", "looks like a table"),
        (b"a.wav\tdog\nb.wav\tcat\n", "looks like a table"),
        (b"label\ndog\ncat\n", "a list without a header"),
        (b'index,mid,display_name\n0,/m/09x0r,"Speech, x"\n', "looks like a table"),
        (b"dog\n_\ncat\n", "has a label without text: '_'; remove it"),
        (b"low_tone\nhigh\nlow tone\n", "'low_tone' and 'low tone' are read as one label"),
        (
            b"file_name,label\na.wav,low_tone\nb.wav,low tone\n",
            "'low_tone' and 'low tone' are read as one label",
        ),
    ],
)
def test_label_files_that_do_not_fit(tmp_path, content, message):
    if content is not None:
        (tmp_path / "labels").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_labels(tmp_path / "labels")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--template", "a sound"], "must hold {} once"),
        (["--template", "{} and {}"], "must hold {} once"),
        (["--template", "{0} {}"], "no other braces"),
        ([], "add --output FILE"),
        (["--labels", "{labels}.csv"], "looks like a table"),
        (["--checkpoint", "absent"], "absent does not exist"),
        (["--output", "."], "is a folder"),
        (["--output", "{labels}"], "--output .*labels is a file that this run reads"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(tmp_path, checkpoint, arguments, message):
    (tmp_path / "labels").write_text("dog\ncat\n")
    (tmp_path / "labels.csv").write_text("filename,category\na.wav,dog\n")
    arguments = [argument.replace("{labels}", str(tmp_path / "labels")) for argument in arguments]
    options = {"--checkpoint": str(checkpoint), "--labels": str(tmp_path / "labels")}
    words = [
        word for name, value in options.items() if name not in arguments for word in (name, value)
    ]
    with pytest.raises(UserError, match=message):
        zero_shot.main([*words, *arguments])
