"""JSON of any origin, in the files that hold it: one line if it is damaged, too deep, no file."""

import os
from pathlib import Path

import pytest

from data_prep.corpora.wavcaps_files import _data
from retrieval.base.errors import UserError
from retrieval.base.files import parse_json, read_json
from retrieval.data import open_cache
from retrieval.models.dual_encoder import WEIGHTS, check_folder

DEEP = "[" * 100_000 + "]" * 100_000
BAD = {
    "deep": DEEP,
    "deep objects": '{"a":' * 100_000,
    "cut off": '{"schema": 1',
    "enormous number": '{"schema": ' + "9" * 5000 + "}",
    "empty": "",
}
READERS = {
    "cache.json": open_cache,
    "config.json": check_folder,
    "final.json": lambda folder: _data(folder / "final.json"),
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
@pytest.mark.parametrize("file", READERS)
def test_a_bad_file_is_one_line(tmp_path: Path, file: str, text: str):
    (tmp_path / WEIGHTS).touch()
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=file) as caught:
        READERS[file](tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_what_is_no_file_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="regular file"):
            read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent")


def test_marks_and_depths_that_are_fine(tmp_path: Path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": ' + b"[" * 90 + b"]" * 90 + b"}\r\n")
    assert list(read_json(tmp_path / "a.json")) == ["a"] and parse_json(b"[1]") == [1]
    with pytest.raises(ValueError):
        parse_json(b'"\xe9"')
