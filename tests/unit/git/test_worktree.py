from __future__ import annotations

import os
from pathlib import Path

import pytest

from microvm_orchestrator.git import worktree
from microvm_orchestrator.git.worktree import Keepsakes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    (root / "folder" / "file").write_text("old")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("outside")
    (root / "link").symlink_to(tmp_path / "outside")
    return root


def replace(path: Path, text: str) -> None:
    """Put another file there, as git does."""
    path.unlink()
    path.write_text(text)


def test_nothing_is_reached_by_way_of_a_link(root: Path, tmp_path: Path) -> None:
    assert worktree.find(root, b"link/file") is None
    assert worktree.read(root, b"link/file", 99) is None
    worktree.remove(root, b"link/file")
    assert (tmp_path / "outside" / "file").exists()
    assert worktree.read(root, b"link", 99) == os.fsencode(tmp_path / "outside")


def test_what_is_no_file_or_too_large_is_not_read(root: Path) -> None:
    os.mkfifo(root / "fifo")
    assert worktree.read(root, b"fifo", 99) is None
    assert worktree.read(root, b"folder", 99) is None
    assert worktree.read(root, b"folder/file", 3) == b"old"
    assert worktree.read(root, b"folder/file", 2) is None


def test_a_file_goes_with_the_folders_that_are_empty_without_it(root: Path) -> None:
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "er" / "file").touch()
    worktree.remove(root, b"deep/er/file")
    assert not (root / "deep").exists()
    (root / "folder" / "other").touch()
    worktree.remove(root, b"folder/file")
    assert (root / "folder" / "other").exists()


def test_what_is_written_into_a_replaced_file_comes_back(root: Path, tmp_path: Path) -> None:
    kept = Keepsakes(root, tmp_path / "kept")
    path = root / "folder" / "file"
    with path.open("r+") as editor:
        kept.keep([b"folder/file", b"link", b"missing"])
        replace(path, "new")
        assert kept.find_written() == []
        editor.write("saved by the user")
    assert kept.find_written() == [b"folder/file"]
    kept.give_back([b"folder/file"], [])
    assert path.read_text() == "saved by the user"


def test_what_was_written_again_stays_and_the_earlier_one_goes_beside_it(
    root: Path, tmp_path: Path
) -> None:
    kept = Keepsakes(root, tmp_path / "kept")
    path = root / "folder" / "file"
    with path.open("r+") as editor:
        kept.keep([b"folder/file"])
        replace(path, "new")
        editor.write("saved by the user")
    path.write_text("and again")
    kept.give_back(kept.find_written(), [b"folder/file"])
    assert path.read_text() == "and again"
    beside = path.with_name("file.written-meanwhile")
    assert beside.read_text() == "saved by the user"


def test_a_file_that_git_has_removed_comes_back_if_it_was_written(
    root: Path, tmp_path: Path
) -> None:
    kept = Keepsakes(root, tmp_path / "kept")
    path = root / "folder" / "file"
    with path.open("r+") as editor:
        kept.keep([b"folder/file"])
        path.unlink()
        editor.write("saved by the user")
    kept.give_back(kept.find_written(), [])
    assert path.read_text() == "saved by the user"


def test_one_whose_folder_has_gone_comes_back_at_the_top(root: Path, tmp_path: Path) -> None:
    kept = Keepsakes(root, tmp_path / "kept")
    with (root / "folder" / "file").open("r+") as editor:
        kept.keep([b"folder/file"])
        worktree.remove(root, b"folder/file")
        editor.write("saved by the user")
    kept.give_back(kept.find_written(), [])
    assert (root / "file.written-meanwhile").read_text() == "saved by the user"
