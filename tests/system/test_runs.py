"""Runs from the submission to the merge: a whole daemon, real guests, a user's real repository."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import git_repos
from machines import LONG_S
from microvm_orchestrator.cli.client import Client
from system.living import MEMORY_MIB, Stage, living, staged

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

EDIT = """\
set -eu
printf 'by the machine\\n' >made.txt
printf '%s\\n' "$MICROVM_TASK_ID" >id.txt
git add -A
git commit -q -m 'Add what was made'
echo done with it
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with living(tmp_path_factory.mktemp("runs") / "s") as stage:
        yield stage


@pytest.fixture
def repo(stage: Stage, tmp_path: Path) -> git_repos.Repo:
    """A user's repository with `main` checked out and one commit, registered as `sample`."""
    made = git_repos.Repo.make(tmp_path / "sample")
    made.commit({"README": "a sample\n", "src/a.txt": "one\ntwo\nthree\n"})
    stage.ask("repo_add", path=str(made.path), alias=f"sample-{tmp_path.name[-20:]}".lower())
    return made


def alias_of(stage: Stage, repo: git_repos.Repo) -> str:
    repos = stage.ask("repo_list")["items"]
    return next(each["alias"] for each in repos if each["path"] == str(repo.path))


def started(stage: Stage, **what: Any) -> str:
    return str(stage.ask("run_start", memory_mib=MEMORY_MIB, **what)["task_id"])


def ended(stage: Stage, task_id: str) -> dict[str, Any]:
    """Wait for a task, and give the run with the task in it."""
    waited = stage.ask("task_wait", task_id=task_id, timeout_s=LONG_S)
    assert waited["finished"], stage.ask("run_get", task_id=task_id)
    told = stage.ask("run_get", task_id=task_id)
    return {**told["run"], "task": told["task"]}


def output(stage: Stage, task_id: str) -> str:
    read = stage.ask("run_output", task_id=task_id)
    return "".join(piece["text"] for piece in read["pieces"])


def test_the_commits_of_a_script_are_on_the_users_branch_and_in_the_work_tree(
    stage: Stage, repo: git_repos.Repo
) -> None:
    task_id = started(stage, repo=alias_of(stage, repo), script=EDIT)
    run = ended(stage, task_id)
    assert run["task"]["state"] == "done", run
    assert run["result"]["success"]
    assert (run["merge"]["state"], run["merge"]["how"]) == ("merged", "fast_forward")
    assert [each["path"] for each in run["result"]["files_changed"]] == ["id.txt", "made.txt"]
    assert (repo.path / "made.txt").read_text() == "by the machine\n"
    assert (repo.path / "id.txt").read_text() == f"{task_id}\n"
    assert output(stage, task_id) == "done with it\n"
    assert "+by the machine" in stage.ask("run_diff", task_id=task_id)["patch"]
    assert stage.ask("machine_list")["items"] == []


def test_a_command_without_a_repo_fails_with_its_own_status_and_words(stage: Stage) -> None:
    task_id = started(stage, argv=["/bin/sh", "-c", "echo said; echo why >&2; exit 3"])
    run = ended(stage, task_id)
    assert run["task"]["state"] == "failed"
    assert run["task"]["error"]["code"] == "run-failed"
    assert (run["result"]["success"], run["result"]["exit_code"]) == (False, 3)
    assert output(stage, task_id).splitlines() == ["said", "why"]
    assert stage.ask("machine_list")["items"] == []
