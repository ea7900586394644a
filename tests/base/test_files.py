"""Files that are whole or absent, and the question whether they could be written."""

from pathlib import Path

import pytest

from retrieval.base.errors import UserError
from retrieval.base.files import atomic_writer, check_writable


def test_a_file_is_replaced_only_when_the_new_one_is_whole(tmp_path: Path):
    path = tmp_path / "new" / "file"
    with atomic_writer(path) as file:
        file.write("old")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), atomic_writer(path) as file:
        file.write("half of the new")
        1 / 0  # noqa: B018
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
    with atomic_writer(path) as file:
        file.write("new")
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError,
        match=r"file/below cannot be written \(File exists\); .*choose another output folder",
    ):
        with atomic_writer(tmp_path / "file" / "below"):
            raise AssertionError("nothing was opened")


@pytest.mark.parametrize("folder", ["", "new", "new/below"])
def test_asking_leaves_nothing_behind(tmp_path: Path, monkeypatch, folder: str):
    monkeypatch.chdir(tmp_path)
    check_writable(tmp_path / folder)
    check_writable(Path(folder))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["file", "file/below", "file/far/below", "n" * 300])
def test_a_folder_that_cannot_be(tmp_path: Path, folder: str):
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match="cannot be written .*choose another output folder"
    ) as error:
        check_writable(tmp_path / folder)
    assert "\n" not in str(error.value)
