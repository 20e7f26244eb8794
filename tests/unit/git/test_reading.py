from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from git_repos import Repo, long_history, mirrored, sample
from microvm_orchestrator import errors
from microvm_orchestrator.git import reading
from microvm_orchestrator.git.names import Oid
from microvm_orchestrator.model.run import ChangedFile, Commit


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
async def test_commits_are_told_from_the_newest_with_who_made_them_and_when(
    tmp_path: Path, object_format: str
) -> None:
    repo = sample(tmp_path / "repo", object_format=object_format)
    base = repo.oid()
    first = repo.commit({"a": "a"}, "Add a\n\nWith reasons.")
    tip = repo.commit({"b": "b"}, "Ünïcödé \x1b[31m subject")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    at = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    author = "Ada <ada@example.org>"
    found = await reading.commits(mirror, base, tip)
    assert found.items == [
        Commit(commit=tip, subject="Ünïcödé \x1b[31m subject", author=author, at=at),
        Commit(commit=first, subject="Add a", author=author, at=at),
    ]
    assert found.total == 2
    everything = await reading.commits(mirror, None, tip)
    assert everything.total == 4


async def test_of_many_commits_the_newest_are_told_and_all_are_counted(tmp_path: Path) -> None:
    repo = long_history(tmp_path / "repo.git", 1500)
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    found = await reading.commits(mirror, None, repo.oid("main"), limit=3)
    assert [commit.subject for commit in found.items] == [f"commit {n}" for n in (1499, 1498, 1497)]
    assert found.total == 1500


async def test_what_a_hostile_commit_says_is_text_of_a_bounded_length(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    words = ["commit-tree", "HEAD^{tree}", "-p", "HEAD"]
    text = b"\xff\xfe" + b"s" * 100_000 + b"\n"
    made = Oid(repo.git(*words, stdin=text))
    content = repo.git("cat-file", "commit", made).replace("1714979289", str(1 << 60))
    late = Oid(repo.git("hash-object", "-w", "-t", "commit", "--stdin", stdin=content.encode()))
    repo.git("update-ref", "refs/heads/main", late)
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    [found] = (await reading.commits(mirror, Oid(repo.git("rev-parse", "main~1")), late)).items
    assert len(found.subject) <= 410
    found.subject.encode()
    assert found.at.year <= 9998


async def test_changed_files_are_told_by_what_happened_to_them(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    base = repo.commit(
        {"old name": "a text that is long enough to be known again\n", "gone": "gone"}
    )
    (repo.path / "old name").rename(repo.path / "new\nname")
    (repo.path / "gone").unlink()
    (repo.path / "README").unlink()
    (repo.path / "README").symlink_to("src/a.c")
    tip = repo.commit({"added": "new", "src/a.c": "int b;\n"})
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    found = await reading.files(mirror, base, tip)
    assert sorted(found.items, key=lambda file: file.path) == [
        ChangedFile(path="README", status="type_changed"),
        ChangedFile(path="added", status="added"),
        ChangedFile(path="gone", status="deleted"),
        ChangedFile(path="new\nname", status="renamed", old_path="old name"),
        ChangedFile(path="src/a.c", status="modified"),
    ]
    few = await reading.files(mirror, base, tip, limit=2)
    assert (len(few.items), few.total) == (2, 5)
    stat = await reading.shortstat(mirror, base, tip)
    assert (stat.files, stat.insertions, stat.deletions) == (5, 3, 3)
    assert await reading.shortstat(mirror, tip, tip) == reading.Stat()
    assert (await reading.files(mirror, None, tip)).total == 4


async def test_a_patch_can_be_applied_and_is_cut_where_it_is_told_to_be(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    base = repo.oid("other")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    patch = await reading.patch(mirror, base, repo.oid(), cap=10_000)
    assert not patch.truncated
    repo.git("checkout", "--quiet", "other")
    repo.git("apply", stdin=patch.data)
    assert (repo.path / "README").read_text() == "two\n"
    cut = await reading.patch(mirror, base, repo.oid("main"), cap=20)
    assert (cut.data, cut.truncated) == (patch.data[:20], True)


async def test_attributes_in_a_tree_start_no_program(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    base = repo.oid()
    marker = tmp_path / "it ran"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch '{marker}'\n")
    program.chmod(0o755)
    tip = repo.commit({".gitattributes": "* diff=x\n", "a": "a\n"})
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    # Even if our own configuration had it.
    for key in ("diff.external", "diff.x.textconv", "diff.x.command"):
        Repo(mirror.path).git("config", key, program)
    assert b"+a\n" in (await reading.patch(mirror, base, tip, cap=10_000)).data
    await reading.shortstat(mirror, base, tip)
    await reading.files(mirror, base, tip)
    assert not marker.exists()


async def test_nothing_of_the_daemons_environment_reaches_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = sample(tmp_path / "repo")
    mirror, tip = await mirrored(tmp_path / "mirror.git", repo), repo.oid()
    told = tmp_path / "told"
    monkeypatch.setenv("GIT_TRACE", str(told))
    assert (await reading.commits(mirror, None, tip)).total == 2
    assert not told.exists()


async def test_what_is_no_commit_here_is_an_error(tmp_path: Path) -> None:
    mirror = await mirrored(tmp_path / "mirror.git", sample(tmp_path / "repo"))
    with pytest.raises(errors.CommandFailed, match="bad object"):
        await reading.commits(mirror, None, Oid("1" * 40))
    with pytest.raises(errors.InvalidInput):
        await reading.files(mirror, None, Oid("--output=x"))
