"""Folders that are complete or absent, also after a failure or a kill between two renames."""

from pathlib import Path

import pytest

from retrieval.base.errors import UserError
from retrieval.base.folders import recover_folder, swap_folder, whole_folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A folder with earlier content."""
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").touch()
    return path


def write_new(target: Path) -> None:
    with whole_folder(target, "the result") as folder:
        (folder / "new").write_text("new")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_is_replaced(target: Path):
    write_new(target)
    assert names(target) == ["new"] and names(target.parent) == ["out"]


def test_a_failure_leaves_the_old_folder(target: Path):
    with pytest.raises(KeyError), whole_folder(target, "the result") as folder:
        (folder / "new").touch()
        raise KeyError
    assert names(target) == ["old"] and names(target.parent) == ["out"]


def test_a_rename_that_fails_leaves_the_old_folder(target: Path, no_finished_folder):
    with pytest.raises(UserError, match="the result"):
        write_new(target)
    assert names(target) == ["old"] and names(target.parent) == ["out"]


@pytest.mark.parametrize("is_done", [False, True])
def test_a_kill_between_the_renames(target: Path, is_done: bool):
    """The next start finds the new folder; a new one may be written at once."""
    target.rename(target.with_name(".out.old"))
    new = target.with_name(".out.partial")
    new.mkdir()
    (new / "new").touch()
    if is_done:
        write_new(target)
        assert names(target.parent) == ["out"]
    else:
        recover_folder(target)
    assert names(target) == ["new"]


def test_recovery_does_not_touch_a_folder_that_is_there(target: Path):
    target.with_name(".out.old").mkdir()
    target.with_name(".out.partial").mkdir()
    recover_folder(target)
    assert names(target) == ["old"]


def test_links_in_a_folder_are_kept(target: Path):
    elsewhere = target.with_name("elsewhere")
    elsewhere.touch(mode=0o400)
    new = target.with_name("new")
    new.mkdir()
    (new / "link").symlink_to(elsewhere)
    swap_folder(new, target)
    assert (target / "link").is_symlink() and names(target) == ["link"]
