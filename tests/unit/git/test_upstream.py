from __future__ import annotations

import os
from pathlib import Path

import pytest

from git_repos import Repo, clone_of_bundle, look_of, raw, sample
from microvm_orchestrator import errors
from microvm_orchestrator.git.names import ObjectFormat
from microvm_orchestrator.git.upstream import Checkout, Kind, checkouts, look


async def test_a_repository_is_told_as_it_is(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    found = await look(repo.path)
    assert found.path == repo.path
    assert found.kind is Kind.MAIN
    assert found.git_dir == found.common_dir == repo.path / ".git"
    assert found.object_format is ObjectFormat.SHA1
    assert (found.branch, found.default_branch, found.head) == ("main", "main", repo.oid())
    assert (found.empty, found.submodules, found.lfs, found.dirty) == (False,) * 4
    assert found.checkouts == (Checkout(repo.path, "main", repo.oid(), None),)


async def test_looking_changes_nothing_and_runs_nothing(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    marker = tmp_path / "it ran"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch '{marker}'\ncat\n")
    program.chmod(0o755)
    for key in ("core.fsmonitor", "filter.x.clean", "filter.x.smudge", "diff.external"):
        repo.git("config", key, program)
    repo.write({".gitattributes": "* filter=x\n", "new": "new", "src/a.c": "changed\n"})
    os.utime(repo.path / "README", (1, 1))  # git would refresh its index for it
    before = look_of(tmp_path)
    assert (await look(repo.path)).dirty
    assert look_of(tmp_path) == before


async def test_an_empty_repository_has_a_branch_and_no_commit(tmp_path: Path) -> None:
    repo = Repo.make(tmp_path / "repo")
    found = await look(repo.path)
    assert (found.empty, found.head, found.branch, found.dirty) == (True, None, "main", False)
    assert found.checkouts == (Checkout(repo.path, "main", None, None),)
    repo.write({"new": "new"})
    assert (await look(repo.path)).dirty


async def test_a_sha256_repository_is_told_as_one(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo", object_format="sha256")
    found = await look(repo.path)
    assert found.object_format is ObjectFormat.SHA256
    assert found.head == repo.oid()
    assert not found.dirty


async def test_a_detached_head_is_on_no_branch(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    repo.git("checkout", "--quiet", "--detach", "other")
    found = await look(repo.path)
    assert (found.branch, found.head) == (None, repo.oid("other"))
    assert found.default_branch == "main"
    assert found.with_branch("main") == []


async def test_linked_work_trees_and_what_they_have_out(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    linked, detached, gone = tmp_path / "linked", tmp_path / "detached", tmp_path / "gone"
    repo.git("worktree", "add", "--quiet", linked, "other")
    repo.git("worktree", "add", "--quiet", "--detach", detached)
    repo.git("worktree", "add", "--quiet", "-b", "third", gone)
    raw(tmp_path, "-C", "repo", "worktree", "list")
    gone.rename(tmp_path / "moved away")
    found = await look(linked)
    assert found.kind is Kind.LINKED
    assert (found.branch, found.common_dir) == ("other", repo.path / ".git")
    assert found.git_dir == repo.path / ".git/worktrees/linked"
    assert {(tree.path, tree.branch) for tree in found.checkouts} == {
        (repo.path, "main"),
        (linked, "other"),
        (detached, None),
    }
    assert [tree.path for tree in found.with_branch("other")] == [linked]


async def test_a_bare_repository_has_no_checkout(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    bare = tmp_path / "bare.git"
    raw(tmp_path, "clone", "--quiet", "--bare", repo.path, bare)
    found = await look(bare)
    assert (found.kind, found.checkouts, found.dirty) == (Kind.BARE, (), False)
    assert found.head == repo.oid()


async def test_a_branch_that_a_rebase_will_come_back_to_is_out(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    repo.git("checkout", "--quiet", "other")
    repo.commit({"README": "three\n"})
    with pytest.raises(AssertionError, match="could not apply"):
        repo.git("rebase", "main")
    assert await checkouts(repo.path) == [Checkout(repo.path, "other", repo.oid("main"), "rebase")]


async def test_submodules_and_lfs_are_seen(tmp_path: Path) -> None:
    inner = sample(tmp_path / "inner")
    repo = sample(tmp_path / "repo")
    repo.git("submodule", "--quiet", "add", inner.path, "inner")
    repo.commit({"big/.gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n"})
    found = await look(repo.path)
    assert (found.submodules, found.lfs, found.dirty) == (True, True, False)


@pytest.mark.parametrize(
    "change",
    ["staged", "changed", "deleted", "untracked", "executable"],
)
async def test_what_is_not_committed_makes_it_dirty(tmp_path: Path, change: str) -> None:
    repo = sample(tmp_path / "repo")
    match change:
        case "staged":
            repo.write({"README": "three\n"})
            repo.git("add", "README")
            repo.write({"README": "two\n"})
        case "changed":
            repo.write({"README": "six\n"})
        case "deleted":
            (repo.path / "README").unlink()
        case "untracked":
            repo.write({"new": ""})
        case _:
            (repo.path / "README").chmod(0o755)
    assert (await look(repo.path)).dirty


async def test_a_change_that_no_time_shows_is_seen(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    repo.git("config", "core.trustctime", "false")
    file, index = repo.path / "README", repo.path / ".git/index"
    repo.git("update-index", "--refresh")
    noted = file.stat().st_mtime_ns
    repo.write({"README": "six\n"})  # as long as before
    # Changed within the same tick in which git noted it: git looks because the index is no younger.
    for path in (file, index):
        os.utime(path, ns=(noted, noted))
    assert (await look(repo.path)).dirty


async def test_what_is_ignored_or_only_touched_does_not(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    repo.commit({".gitignore": "*.o\n"})
    repo.write({"a.o": "", "notes": "", "README": "two\n"})
    (repo.path / ".git/info/exclude").write_text("notes\n")
    assert not (await look(repo.path)).dirty


@pytest.mark.parametrize("where", ["src", ".git", "nowhere", "README"])
async def test_what_is_not_the_top_of_a_repository_is_refused(tmp_path: Path, where: str) -> None:
    repo = sample(tmp_path / "repo")
    with pytest.raises(errors.RepoRefused) as caught:
        await look(repo.path / where)
    if where == "src":
        assert caught.value.hint == f"{repo.path} is one"


@pytest.mark.parametrize("path", ["repo", "../x", "/tmp/\n", "/tmp/\x1b[2J", "/nowhere/\0"])
async def test_a_path_that_is_none_is_refused(path: str) -> None:
    with pytest.raises(errors.RepoRefused):
        await look(Path(path))


async def test_a_path_is_normalised(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    (tmp_path / "link").symlink_to(repo.path)
    assert (await look(tmp_path / "link")).path == repo.path
    assert (await look(repo.path / "src" / "..")).path == repo.path


async def test_a_part_of_a_history_is_refused(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    repo.git("config", "uploadpack.allowFilter", "true")
    url = f"file://{repo.path}"
    raw(tmp_path, "clone", "--quiet", "--depth=1", url, "shallow")
    raw(tmp_path, "clone", "--quiet", "--filter=blob:none", url, "partial")
    with pytest.raises(errors.RepoRefused, match="shallow clone") as caught:
        await look(tmp_path / "shallow")
    assert caught.value.hint
    with pytest.raises(errors.RepoRefused, match="partial clone"):
        await look(tmp_path / "partial")


async def test_a_repository_that_git_does_not_understand_is_refused_with_its_reason(
    tmp_path: Path,
) -> None:
    repo = sample(tmp_path / "repo")
    repo.git("config", "core.repositoryFormatVersion", "1")
    with (repo.path / ".git/config").open("a") as file:
        file.write("[extensions]\n\tfromTheFuture = true\n")
    with pytest.raises(errors.RepoRefused, match="fromthefuture"):
        await look(repo.path)


async def test_a_work_tree_that_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    repo.git("config", "core.worktree", elsewhere)
    with pytest.raises(errors.RepoRefused, match="has its work tree in"):
        await look(repo.path)


def test_the_sample_of_a_guest_is_a_whole_repository(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    repo.git("branch", "task")
    sent = repo.bundle(tmp_path / "sent", "refs/heads/task")
    guest = clone_of_bundle(tmp_path / "guest", sent)
    assert guest.oid() == repo.oid()
