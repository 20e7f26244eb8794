from __future__ import annotations

import os
from pathlib import Path

import pytest

from git_repos import Repo, look_of, raw, sample
from microvm_orchestrator import errors
from microvm_orchestrator.git.command import Limits, git, line, objects_at


def planted(path: Path, marker: Path) -> str:
    """Write a program that leaves a trace when it is run."""
    path.write_text(f"#!/bin/sh\ntouch '{marker}'\ncat\n")
    path.chmod(0o755)
    return str(path)


async def test_git_says_one_line(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    assert await line("rev-parse", "HEAD", at=repo.path) == repo.oid()


async def test_a_git_that_fails_tells_its_words_its_status_and_what_it_said(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    with pytest.raises(errors.CommandFailed, match="Not a valid object name nowhere") as caught:
        await git("ls-tree", "nowhere", at=repo.path)
    assert caught.value.argv == ("git", "ls-tree", "nowhere")
    assert caught.value.status == 128


async def test_a_status_that_was_expected_is_no_failure(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    done = await git("rev-parse", "--quiet", "--verify", "nowhere", at=repo.path, ok=(0, 1))
    assert (done.status, done.stdout) == (1, b"")


async def test_nothing_of_our_environment_reaches_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = sample(tmp_path / "repo")
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text("[alias]\n\tmine = rev-parse\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", "'alias.mine=rev-parse'")
    assert await line("rev-parse", "HEAD", at=repo.path) == repo.oid()
    with pytest.raises(errors.CommandFailed, match="'mine' is not a git command"):
        await git("mine", "HEAD", at=repo.path)


async def test_programs_that_a_repository_names_are_not_run(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    marker = tmp_path / "it ran"
    program = planted(tmp_path / "program", marker)
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for hook in ("post-index-change", "reference-transaction", "post-checkout"):
        planted(hooks / hook, marker)
    repo.git("config", "core.hooksPath", hooks)
    repo.git("config", "core.fsmonitor", program)
    await git("status", at=repo.path)
    await git("update-index", "--refresh", at=repo.path)
    await git("update-ref", "refs/heads/new", "HEAD", at=repo.path)
    assert not marker.exists()
    # What was planted works: a git without our settings runs it.
    raw(repo.path, "status")
    assert marker.exists()


async def test_who_only_looks_writes_nothing(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    os.utime(repo.path / "README", (1, 1))  # git would note that it is the same all the same
    before = look_of(repo.path)
    await git("status", at=repo.path)
    assert look_of(repo.path) == before


async def test_no_way_to_another_repository_is_open(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    marker = tmp_path / "it ran"
    program = planted(tmp_path / "program", marker)
    repo.git("config", "protocol.ext.allow", "always")
    repo.git("config", "protocol.allow", "always")
    for url in (f"ext::{program}", f"file://{repo.path}", "ssh://localhost/x", "git://[::1]/x"):
        with pytest.raises(errors.CommandFailed, match="not allowed"):
            await git("ls-remote", url, at=repo.path)
    assert not marker.exists()


async def test_git_does_not_look_for_a_repository_above(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    with pytest.raises(errors.CommandFailed, match="not a git repository"):
        await git("rev-parse", "HEAD", at=repo.path / "src")


async def test_the_owner_of_a_repository_may_be_another_user(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a folder away")
    repo = sample(tmp_path / "repo")
    head = repo.oid()
    for path in (repo.path, repo.path / ".git"):
        os.chown(path, 54_321, 54_321)
    with pytest.raises(AssertionError, match="dubious ownership"):
        repo.oid()
    assert await line("rev-parse", "HEAD", at=repo.path) == head


@pytest.mark.parametrize(
    "limits",
    [
        Limits(memory_bytes=1 << 26, cpu_s=60, file_bytes=1 << 30),
        Limits(memory_bytes=1 << 32, cpu_s=60, file_bytes=1 << 16),
    ],
    ids=["memory", "file size"],
)
async def test_the_kernel_ends_a_git_that_wants_more_than_it_may_have(
    tmp_path: Path, limits: Limits
) -> None:
    repo = Repo.make(tmp_path / "repo")
    # Too random to become small, too large for the memory.
    (repo.path / "file").write_bytes(os.urandom(1 << 26))
    with pytest.raises(errors.CommandFailed):
        await git("hash-object", "-w", "file", at=repo.path, limits=limits)
    assert repo.objects() == 0
    roomy = Limits(memory_bytes=1 << 32, cpu_s=60, file_bytes=1 << 30)
    await git("hash-object", "-w", "file", at=repo.path, limits=roomy)
    assert repo.objects() == 1


@pytest.mark.parametrize("name", ["plain", "with:colon", 'with "quotes":', "back\\slash:", '"'])
async def test_objects_are_borrowed_from_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    lender = sample(tmp_path / name)
    repo = Repo.make(tmp_path / "repo")
    env = objects_at(repo.path / ".git/objects", lender.path / ".git/objects")
    done = await git("cat-file", "-t", lender.oid(), at=repo.path, env=env)
    assert done.stdout == b"commit\n"
