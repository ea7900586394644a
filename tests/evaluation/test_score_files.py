"""Score files: written column by column, whole or absent, and refused for another corpus."""

import json
import os
import subprocess

import numpy as np
import pytest
import torch

from retrieval.base.errors import UserError
from retrieval.evaluation.score_files import captions_fingerprint, open_scores, write_scores
from tests.conftest import SCORING_RECORD


class Split:
    name = "development"

    def __init__(self, captions=((), ("a", "b"), ("c",), ("d", "e", "f"))):
        self.captions = [list(texts) for texts in captions]

    def __len__(self):
        return len(self.captions)

    @property
    def clip_ids(self):
        return [str(clip) for clip in range(len(self))]


SCORES = torch.arange(24.0).view(6, 4) / 7


def columns(order=((2, 0), (1, 3))):
    for clips in order:
        yield torch.tensor(clips), SCORES[:, list(clips)]


def test_what_is_written_is_read(tmp_path):
    written = write_scores(tmp_path / "new" / "teacher", columns(), Split(), SCORING_RECORD)
    assert sorted(path.name for path in (tmp_path / "new" / "teacher").iterdir()) == [
        "scores.json",
        "scores.npy",
    ]
    file = open_scores(str(tmp_path / "new" / "teacher"))
    for scores in (written.scores, file.scores):
        assert isinstance(scores, np.memmap) and scores.dtype == np.float32
        np.testing.assert_array_equal(scores, SCORES.numpy())
    np.testing.assert_array_equal(
        np.load(tmp_path / "new" / "teacher" / "scores.npy"), SCORES.numpy()
    )
    assert (
        file.captions_fingerprint == captions_fingerprint(Split()) and file.split == "development"
    )
    about = json.loads((tmp_path / "new" / "teacher" / "scores.json").read_text())
    assert (
        about["shape"] == [6, 4]
        and SCORING_RECORD.to_json().items() <= about.items()
        and about["captions_fingerprint"] == file.captions_fingerprint
    )
    file.check(Split())


def test_writing_to_an_opened_file_changes_nothing_on_disk(tmp_path):
    file = write_scores(tmp_path, columns(), Split(), SCORING_RECORD)
    # also: torch takes it without a warning about an array that is read-only
    torch.from_numpy(file.scores)[0] = 9
    np.testing.assert_array_equal(open_scores(tmp_path).scores, SCORES.numpy())


def test_another_corpus_is_refused(tmp_path):
    file = write_scores(tmp_path, columns(), Split(), SCORING_RECORD)
    for captions in ((("a",), ("b", "c")), ((), ("a", "b"), ("c",), ("d", "e", "g"))):
        with pytest.raises(
            UserError,
            match=(
                "scores of other clips or captions, or in another order: 6 captions x 4 clips of"
                " split 'development'"
            ),
        ):
            file.check(Split(captions))


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path):
    process = subprocess.Popen(["true"])
    process.wait()
    dead, alive, odd = (
        tmp_path / f".scores.npy.{suffix}.tmp" for suffix in (process.pid, os.getppid(), "old")
    )
    for path in (dead, alive, odd):
        path.touch()
    write_scores(tmp_path, columns(), Split(), SCORING_RECORD)
    assert not dead.exists() and alive.exists() and odd.exists()


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    write_scores(tmp_path, columns(), Split(), SCORING_RECORD)

    def failing():
        yield torch.tensor([0]), SCORES[:, :1] + 1
        raise UserError("scores are NaN")

    with pytest.raises(UserError, match="NaN"):
        write_scores(tmp_path, failing(), Split(), SCORING_RECORD)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores.json", "scores.npy"]
    np.testing.assert_array_equal(open_scores(tmp_path).scores, SCORES.numpy())


def test_a_full_disk_is_noticed_before_the_first_column(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(
        UserError, match=r"scores.npy cannot be written \(No space left on device\); .*make room"
    ):
        write_scores(tmp_path, (1 / 0 for _ in "x"), Split(), SCORING_RECORD)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_scores(tmp_path / "file" / "below", columns(), Split(), SCORING_RECORD)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scores.json", None, "has no scores.json; write it with"),
        ("scores.npy", None, "has no scores.npy; write it with"),
        ("scores.json", b"\xff", "cannot be read"),
        ("scores.json", b"[]", "cannot be read"),
        (
            "scores.json",
            b'{"split": "development", "captions_fingerprint": "x", "shape": [6, 5]}',
            r"says float32 \(6, 5\)",
        ),
        ("scores.npy", b"", "cannot be read"),
        ("scores.npy", b"\x93NUMPY", "cannot be read"),
        ("scores.npy", "truncated", "cannot be read"),
        ("scores.npy", "float64", "is float64"),
        ("scores.npy", "objects", "cannot be read"),
    ],
)
def test_damaged_files(tmp_path, name, content, message):
    write_scores(tmp_path, columns(), Split(), SCORING_RECORD)
    path = tmp_path / name
    if content is None:
        path.unlink()
    elif content == "truncated":
        path.write_bytes(path.read_bytes()[:-8])
    elif isinstance(content, str):
        np.save(
            path, SCORES.double().numpy() if content == "float64" else SCORES.numpy().astype(object)
        )
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        open_scores(tmp_path)
    assert "\n" not in str(error.value)
