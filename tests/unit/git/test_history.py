from __future__ import annotations

from pathlib import Path

import pytest

from git_repos import Repo, mirrored, sample
from microvm_orchestrator.git import history


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
async def test_what_a_commit_reaches_is_written_and_nothing_else(
    tmp_path: Path, object_format: str
) -> None:
    repo = sample(tmp_path / "repo", object_format=object_format)
    repo.git("switch", "--quiet", "other")
    repo.commit({"elsewhere": "not for everybody\n"})
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    objects = tmp_path / "reader" / ".git" / "objects" / "pack"
    reader = Repo.make(tmp_path / "reader", object_format=object_format)
    objects.mkdir(exist_ok=True)
    files = await history.export(mirror, repo.oid("main"), objects)
    assert sorted(path.suffix for path in files) == [".idx", ".pack"]
    assert all(path.is_file() for path in files)
    listed = repo.git("rev-list", "--objects", "--no-object-names", "main").splitlines()
    words = ["cat-file", "--batch-all-objects", "--batch-check=%(objectname)"]
    assert sorted(reader.git(*words).splitlines()) == sorted(listed)
    reader.git("update-ref", "refs/heads/main", repo.oid("main"))
    reader.git("fsck", "--strict", "--full")


async def test_what_comes_after_a_commit_is_measured_without_it(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    first, second = repo.oid("main~1"), repo.oid("main")
    whole = await history.size(mirror, second)
    more = await history.size(mirror, second, first)
    assert 0 < more < whole
    assert whole == more + await history.size(mirror, first)
    assert await history.size(mirror, first, second) == 0


async def test_who_is_within_whom(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    first, second = repo.oid("main~1"), repo.oid("main")
    assert await history.is_within(mirror, first, second)
    assert await history.is_within(mirror, second, second)
    assert not await history.is_within(mirror, second, first)
    tree = repo.git("rev-parse", "HEAD^{tree}")
    unknown = repo.git("commit-tree", tree, "-m", "not fetched")
    assert not await history.is_within(mirror, type(first)(unknown), second)
    assert await history.is_published(mirror, first)
    assert await history.first_parent(mirror, second) == first
    assert await history.first_parent(mirror, first) is None
