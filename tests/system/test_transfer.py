"""Repositories of every shape in runs: large ones are read from a disk, odd ones as they are."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

import git_repos
from git_repos import Repo, raw
from system.living import Stage, living
from system.running import alias_of, ended, output, started

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
EDIT = """\
set -eu
printf 'by the machine\\n' >>made.txt
git add -A
git commit -q -m 'Add what was made'
"""
LOOK = """\
cat .git/objects/info/alternates 2>/dev/null || echo none
git rev-list --objects --all >/dev/null
git log --all --format=%H | wc -l
touch /opt/history/mine 2>/dev/null || echo 'not mine'
git count-objects -v | grep in-pack
"""
POINTER = """\
version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 12345
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with living(tmp_path_factory.mktemp("transfer") / "s") as stage:
        yield stage


def registered(stage: Stage, repo: Repo, **defaults: str) -> str:
    return str(stage.ask("repo_add", path=str(repo.path), **defaults)["alias"])


def disks(stage: Stage) -> list[Path]:
    return sorted(stage.daemon.state_dir.glob("repos/*/histories/*"))


def test_a_large_history_is_read_from_a_disk_that_later_runs_share(
    stage: Stage, tmp_path: Path
) -> None:
    repo = Repo.make(tmp_path / "large")
    for seed in range(2):
        repo.commit({"large": random.Random(seed).randbytes(9 * MIB)})
    first = repo.commit({"large": "small by now\n"})
    alias = registered(stage, repo)
    task_id = started(stage, repo=alias, script=LOOK + EDIT)
    run = ended(stage, task_id)
    assert (run["task"]["state"], run["merge"]["state"]) == ("done", "merged"), run
    said = output(stage, task_id).split("\n")
    assert said[:4] == ["/opt/history/objects", "3", "not mine", "in-pack: 0"]
    [disk] = disks(stage)
    assert (disk.stem, disk.stat().st_size > 18 * MIB) == (first, True)
    made = disk.stat().st_ino
    # What came since is sent, and the disk is the same.
    repo.commit({"more": "of the user\n"})
    task_id = started(stage, repo=alias, script=LOOK + EDIT)
    assert ended(stage, task_id)["merge"]["state"] == "merged"
    said = output(stage, task_id).split("\n")
    assert said[:3] == ["/opt/history/objects", "5", "not mine"]
    assert said[3] != "in-pack: 0"
    assert [each.stat().st_ino for each in disks(stage)] == [made]
    assert (repo.path / "made.txt").read_text() == "by the machine\n" * 2
    assert repo.git("status", "--porcelain") == ""
    repo.git("fsck", "--strict")


@pytest.mark.long
def test_repositories_of_odd_shapes_are_worked_on_as_they_are(stage: Stage, tmp_path: Path) -> None:
    # Long object names, with what LFS and submodules leave in a tree, by a linked work tree.
    wide = Repo.make(tmp_path / "wide", object_format="sha256")
    wide.write({".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n"})
    wide.write({".gitmodules": '[submodule "s"]\n\tpath = sub\n\turl = https://example.org/s\n'})
    wide.write({"big.bin": POINTER})
    wide.git("add", "--all")
    wide.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 64},sub")
    wide.git("commit", "--quiet", "--message", "odd")
    linked = Repo(tmp_path / "linked")
    wide.git("worktree", "add", "--quiet", "-b", "side", linked.path)
    empty = Repo.make(tmp_path / "empty")
    bare = git_repos.long_history(tmp_path / "bare.git", 5)
    detached = git_repos.sample(tmp_path / "detached")
    detached.git("checkout", "--quiet", "--detach", "other")
    shapes = {"linked": linked, "empty": empty, "bare": bare, "detached": detached}
    look = "cat big.bin; git ls-tree HEAD sub; git symbolic-ref -q HEAD >&2\n"
    tasks = {
        name: started(stage, repo=registered(stage, repo), script=look + EDIT)
        for name, repo in shapes.items()
    }
    runs = {name: ended(stage, task_id) for name, task_id in tasks.items()}
    assert {name: run["merge"]["state"] for name, run in runs.items()} == dict.fromkeys(
        shapes, "merged"
    ), runs
    # The branch that a linked work tree has out; the first of an empty one; else the usual.
    branches = {"linked": "side", "empty": "main", "bare": "main", "detached": "main"}
    assert {name: run["merge"]["into"] for name, run in runs.items()} == branches
    for name, repo in shapes.items():
        assert repo.git("show", f"{branches[name]}:made.txt") == "by the machine"
        repo.git("fsck", "--strict")
    assert output(stage, tasks["linked"]).startswith(POINTER)
    assert "160000 commit 1111" in output(stage, tasks["linked"])
    assert (linked.path / "made.txt").exists()
    assert (empty.path / "made.txt").exists()
    assert not (detached.path / "made.txt").exists()
    assert wide.oid("main") != linked.oid("side")


def test_what_git_cannot_read_any_more_is_not_taken_for_nothing(
    stage: Stage, tmp_path: Path
) -> None:
    alias = registered(stage, git_repos.sample(tmp_path / "harmed"))
    harms = {"rm -rf .git": "not a git repository", "echo x >.git/index": "index file"}
    tasks = [started(stage, repo=alias, script=f"echo x >made\n{harm}\n") for harm in harms]
    for task_id, why in zip(tasks, harms.values(), strict=True):
        task = ended(stage, task_id)["task"]
        assert (task["state"], task["error"]["code"]) == ("failed", "machine-failed"), task
        assert why in task["error"]["message"], task["error"]


def test_a_shallow_clone_is_refused_with_what_to_do(stage: Stage, tmp_path: Path) -> None:
    repo = git_repos.sample(tmp_path / "whole")
    shallow = tmp_path / "shallow"
    raw(tmp_path, "clone", "--quiet", "--depth=1", f"file://{repo.path}", shallow)
    assert stage.refusal("repo_add", path=str(shallow)) == "repo-refused"
    # One that became so later fails the run, and says why.
    alias = registered(stage, repo)
    (repo.path / ".git" / "shallow").write_text(f"{repo.oid()}\n")
    run = ended(stage, started(stage, repo=alias, script=EDIT))
    assert run["task"]["error"]["code"] == "repo-refused"
    assert "unshallow" in run["task"]["error"]["detail"]


def test_a_task_is_deleted_with_its_run_but_not_with_commits_that_nobody_merged(
    stage: Stage, tmp_path: Path
) -> None:
    repo = git_repos.sample(tmp_path / "kept")
    alias = registered(stage, repo)
    task_id = started(stage, repo=alias, script=EDIT, merge="manual", artifacts=["README"])
    run = ended(stage, task_id)
    assert stage.refusal("task_delete", task_id=task_id) == "state-forbids"
    said = stage.cli("task", "delete", task_id).stderr.decode()
    assert f"1 commit at refs/tasks/{task_id} of repo {alias_of(stage, repo)}; " in said
    assert "artifact" in said
    assert "drop_unmerged" in said
    folder = stage.daemon.state_dir / "runs" / run["run_id"]
    assert folder.exists()
    done = stage.cli("task", "delete", task_id, "--drop-unmerged")
    assert done.returncode == 0, done
    assert not folder.exists()
    assert stage.ask("repo_get", repo=alias)["unmerged"] == []
    assert all(each["task_id"] != task_id for each in stage.ask("run_list", limit=200)["items"])
