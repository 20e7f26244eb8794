from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from git_repos import Repo, look_of, mirrored, raw, sample
from microvm_orchestrator import errors
from microvm_orchestrator.git.mirror import Mirror
from microvm_orchestrator.git.names import Oid
from microvm_orchestrator.git.uncommitted import Room, snapshot
from microvm_orchestrator.git.upstream import look

REF = "refs/snapshots/r1"


async def taken(mirror: Mirror, repo: Repo, room: Room | None = None) -> Oid:
    """Take a snapshot and see that the repository has not changed by a byte."""
    before = look_of(repo.path)
    oid = await snapshot(mirror, await look(repo.path), REF, room)
    assert look_of(repo.path) == before
    assert oid is not None
    assert await mirror.find(REF) == oid
    assert not list(mirror.path.glob("incoming-*"))
    raw(mirror.path, "fsck", "--strict", "--full", "--no-dangling")
    return oid


def files_of(mirror: Mirror, oid: Oid) -> dict[str, str]:
    """Give mode and content of every file of a commit."""
    listed = raw(mirror.path, "ls-tree", "-r", "-z", oid).decode().split("\0")[:-1]
    found: dict[str, str] = {}
    for line in listed:
        about, _, path = line.partition("\t")
        mode, kind, blob = about.split()
        content = raw(mirror.path, "cat-file", "blob", blob).decode() if kind == "blob" else blob
        found[path] = f"{mode} {content}"
    return found


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
async def test_a_snapshot_has_all_that_is_not_committed_and_nothing_changes(
    tmp_path: Path, object_format: str
) -> None:
    repo = sample(tmp_path / "repo", object_format=object_format)
    head = repo.commit({".gitignore": "*.o\n", "gone": "gone", "kept": "kept", "link": "x"})
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    repo.write({"README": "staged\n"})
    repo.git("add", "README")
    repo.write({"README": "staged and changed\n", "staged": "staged\n"})
    repo.git("add", "staged")
    repo.write({"src/a.c": "changed\n", "new/deep": "new\n", "a.o": "ignored", "run": "#!\n"})
    (repo.path / "run").chmod(0o755)
    (repo.path / "gone").unlink()
    (repo.path / "link").unlink()
    (repo.path / "link").symlink_to("kept")
    (repo.path / ".git/info/exclude").write_text("notes\n")
    repo.write({"notes": "mine"})
    oid = await taken(mirror, repo)
    assert files_of(mirror, oid) == {
        ".gitignore": "100644 *.o\n",
        "README": "100644 staged and changed\n",
        "kept": "100644 kept",
        "link": "120000 kept",
        "new/deep": "100644 new\n",
        "run": "100755 #!\n",
        "src/a.c": "100644 changed\n",
        "staged": "100644 staged\n",
    }
    assert raw(mirror.path, "log", "-1", "--format=%P", oid).decode().strip() == head


async def test_where_nothing_is_uncommitted_there_is_no_snapshot(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    os.utime(repo.path / "README", (1, 1))
    before = look_of(mirror.path)
    assert await snapshot(mirror, await look(repo.path), REF) is None
    assert set(look_of(mirror.path)) == set(before)


async def test_what_is_only_staged_is_in_the_snapshot(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    repo.write({"staged": "only staged\n"})
    repo.git("add", "staged")
    repo.git("gc", "--quiet")
    assert files_of(mirror, await taken(mirror, repo))["staged"] == "100644 only staged\n"


@pytest.mark.parametrize("packed", [False, True])
async def test_objects_that_the_user_has_already_are_not_touched(
    tmp_path: Path, packed: bool
) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    # Git would give a new time to whatever it is to write and finds.
    repo.write({"new": "had before\n", "deep/er": "had before\n"})
    repo.git("add", ".")
    repo.git("write-tree")
    if packed:
        repo.git("commit", "--quiet", "--message", "kept by the log of refs")
        repo.git("reset", "--quiet", "--soft", "HEAD~1")
        repo.git("gc", "--quiet")
    repo.git("reset", "--quiet")
    assert set(files_of(mirror, await taken(mirror, repo))) >= {"new", "deep/er"}


async def test_a_commit_that_the_mirror_has_not_seen_is_fetched_first(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    repo.git("checkout", "--quiet", "--detach")
    head = repo.commit({"a": "alone"})
    repo.write({"a": "changed"})
    oid = await taken(mirror, repo)
    assert raw(mirror.path, "log", "-1", "--format=%P", oid).decode().strip() == head


async def test_before_the_first_commit_a_snapshot_has_no_parent(tmp_path: Path) -> None:
    repo = Repo.make(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    assert await snapshot(mirror, await look(repo.path), REF) is None
    repo.write({"a": "a"})
    oid = await taken(mirror, repo)
    assert files_of(mirror, oid) == {"a": "100644 a"}
    assert raw(mirror.path, "log", "--format=%P", oid) == b"\n"


async def test_a_linked_work_tree_has_a_snapshot_of_its_own(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    repo.git("worktree", "add", "--quiet", tmp_path / "linked", "other")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    repo.write({"README": "here\n"})
    (tmp_path / "linked/README").write_text("there\n")
    oid = await taken(mirror, Repo(tmp_path / "linked"))
    assert files_of(mirror, oid)["README"] == "100644 there\n"


async def test_files_become_folders_links_and_back(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    repo.commit({"file": "file", "folder/a": "a", "folder/b": "b", "linked/a": "a"})
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    (repo.path / "file").unlink()
    repo.write({"file/inner": "inner"})
    for name in ("folder", "linked"):
        for path in (repo.path / name).iterdir():
            path.unlink()
        (repo.path / name).rmdir()
    repo.write({"folder": "now a file"})
    (repo.path / "linked").symlink_to("src")
    found = files_of(mirror, await taken(mirror, repo))
    assert {name for name in found if name[0] in "fl"} == {"file/inner", "folder", "linked"}
    assert found["linked"] == "120000 src"


async def test_names_of_any_bytes_are_taken_as_they_are(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    names = [b"-x", b":(top)x", b"a\nb", b"\xff", b" ", b"0:a", b"*"]
    for name in names:
        (repo.path / os.fsdecode(name)).write_text("x")
    oid = await taken(mirror, repo)
    listed = raw(mirror.path, "ls-tree", "-r", "-z", "--name-only", oid).split(b"\0")
    assert set(names) <= set(listed)


async def test_no_filter_hook_or_monitor_runs(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    marker = tmp_path / "it ran"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch '{marker}'\ncat\n")
    program.chmod(0o755)
    for key in ("filter.lfs.clean", "filter.lfs.process", "core.fsmonitor", "core.hooksPath"):
        repo.git("config", key, program)
    repo.write({".gitattributes": "*.bin filter=lfs\n", "a.bin": "big", "README": "new\n"})
    await taken(mirror, repo)
    assert not marker.exists()


def pointer(content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    lines = ["version https://git-lfs.github.com/spec/v1", f"oid sha256:{digest}"]
    return "\n".join([*lines, f"size {len(content)}", ""])


async def test_files_of_lfs_are_in_the_snapshot_as_pointers(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    old = b"as it was"
    # What is committed is the pointer, and what lies in the work tree the content.
    repo.commit({".gitattributes": "*.bin filter=lfs -text\n", "old.bin": pointer(old)})
    repo.commit({"pulled.bin": pointer(old), "same.bin": pointer(old)})
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    repo.write({"pulled.bin": old})
    found = await look(repo.path)
    assert (found.lfs, found.dirty) == (True, False)
    repo.write({"old.bin": b"changed", "new.bin": b"\0" * 5000, "empty.bin": b""})
    (repo.path / "new.bin").chmod(0o755)
    assert (await look(repo.path)).dirty
    oid = await taken(mirror, repo)
    files = files_of(mirror, oid)
    assert {name: text for name, text in files.items() if name.endswith(".bin")} == {
        "old.bin": f"100644 {pointer(b'changed')}",
        "pulled.bin": f"100644 {pointer(old)}",
        "same.bin": f"100644 {pointer(old)}",
        "new.bin": f"100755 {pointer(bytes(5000))}",
        "empty.bin": "100644 ",
    }
    for path in mirror.path.glob("objects/pack/*.pack"):
        assert path.stat().st_size < 4000


async def test_what_should_pass_another_filter_is_refused(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    repo.commit({".gitattributes": "*.key filter=crypt\n", "a.key": "encrypted"})
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    repo.write({"b": "b"})
    await taken(mirror, repo)  # a file that was not changed is no matter
    before = look_of(mirror.path)
    repo.write({"b.key": "plain"})
    with pytest.raises(errors.RepoRefused, match="is to pass the filter 'crypt'"):
        await snapshot(mirror, await look(repo.path), "refs/snapshots/r2")
    assert set(look_of(mirror.path)) == set(before)


async def test_line_ends_are_what_the_users_git_would_make_them(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    repo.git("config", "core.autocrlf", "input")
    repo.commit({".gitattributes": "*.bat -text\n"})
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    repo.write({"new": "a\r\nb\r\n", "run.bat": "a\r\n"})
    files = files_of(mirror, await taken(mirror, repo))
    assert (files["new"], files["run.bat"]) == ("100644 a\nb\n", "100644 a\r\n")


async def test_files_that_the_users_own_settings_ignore_are_left_out(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    (tmp_path / "ignored").write_text("*.secret\n")
    repo.git("config", "core.excludesFile", tmp_path / "ignored")
    repo.write({"my.secret": "x", "new": "x"})
    assert "my.secret" not in files_of(mirror, await taken(mirror, repo))


async def test_files_that_the_user_ignores_everywhere_are_left_out(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    home = tmp_path / "home"
    (home / ".config/git").mkdir(parents=True)
    (home / ".config/git/ignore").write_text("*.default\n")
    repo.write({"a.default": "x", "a.own": "x", "new": "x\r\n"})
    found = replace(await look(repo.path), home=home)
    assert found.dirty
    oid = await snapshot(mirror, found, REF)
    assert oid is not None
    assert {"a.own", "new"} <= files_of(mirror, oid).keys()
    assert "a.default" not in files_of(mirror, oid)
    # What their settings say goes before that, and programs in them are nothing to us.
    (home / "mine").write_text("*.own\n")
    (home / ".gitconfig").write_text(
        "[core]\n\texcludesFile = ~/mine\n\tautocrlf = input\n\tfsmonitor = false\n"
        "[include]\n\tpath = /nowhere\n"
    )
    oid = await snapshot(mirror, found, REF, expect=oid)
    assert oid is not None
    files = files_of(mirror, oid)
    assert ("a.own" in files, "a.default" in files) == (False, True)
    assert files["new"] == "100644 x\n"
    (home / ".gitconfig").write_text("[core\n")
    assert await snapshot(mirror, found, "refs/snapshots/r2") is not None


async def test_sparse_work_trees_keep_what_is_not_checked_out(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    repo.commit({"here/a": "a", "there/b": "b"})
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    repo.git("sparse-checkout", "set", "--cone", "--sparse-index", "here")
    assert not (repo.path / "there").exists()
    repo.write({"here/a": "changed"})
    files = files_of(mirror, await taken(mirror, repo))
    assert (files["here/a"], files["there/b"]) == ("100644 changed", "100644 b")


async def test_submodules_are_taken_as_the_commit_they_are_at(tmp_path: Path) -> None:
    inner = sample(tmp_path / "inner")
    repo = sample(tmp_path / "repo")
    repo.git("submodule", "--quiet", "add", inner.path, "inner")
    repo.commit({})
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    Repo(repo.path / "inner").git("checkout", "--quiet", "HEAD~1")
    sample(repo.path / "nested")  # nobody's submodule
    repo.write({"inner/README": "changed in there\n"})
    files = files_of(mirror, await taken(mirror, repo))
    assert files["inner"] == f"160000 {inner.oid('HEAD~1')}"
    assert not [name for name in files if name.startswith("nested")]


async def test_a_merge_that_is_not_resolved_is_refused(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    found = await look(repo.path)
    repo.git("switch", "--quiet", "other")
    repo.commit({"README": "other\n"})
    with pytest.raises(AssertionError):
        repo.git("merge", "main")
    with pytest.raises(errors.RepoRefused, match="merge that is not resolved"):
        await snapshot(mirror, found, REF)
    assert (await look(repo.path)).dirty


async def test_a_bare_repository_has_nothing_uncommitted(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    raw(tmp_path, "clone", "--quiet", "--bare", repo.path, "bare.git")
    bare = Repo(tmp_path / "bare.git")
    mirror = await mirrored(tmp_path / "mirror.git", bare)
    with pytest.raises(errors.RepoRefused, match="no work tree"):
        await snapshot(mirror, await look(bare.path), REF)


async def test_more_than_there_is_room_for_is_refused(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    repo.write({"a": b"x" * 3000, "b": b"x" * 3000})
    found = await look(repo.path)
    before = look_of(mirror.path)
    with pytest.raises(errors.TooLarge):
        await snapshot(mirror, found, REF, Room(size=5999))
    with pytest.raises(errors.TooLarge):
        await snapshot(mirror, found, REF, Room(files=1))
    assert set(look_of(mirror.path)) == set(before)
    await taken(mirror, repo, Room(files=2, size=6000))


async def test_a_ref_that_stands_elsewhere_is_left_and_the_snapshot_goes(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    await mirror.keep(REF, repo.oid(), None)
    repo.write({"a": "a"})
    before = look_of(mirror.path)
    with pytest.raises(errors.VersionMoved):
        await snapshot(mirror, await look(repo.path), REF)
    assert set(look_of(mirror.path)) == set(before)
