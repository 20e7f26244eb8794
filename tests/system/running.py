"""Tasks that run in machines of a daemon: started, held where a test wants them, and their ends.

Above are the tests of whole runs; below, the stage with its daemon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import git_repos
from machines import LONG_S
from system.living import MEMORY_MIB, Stage

if TYPE_CHECKING:
    from pathlib import Path

# What a script does until `let_go` is called for its task. It says `held` when it is there.
HOLD = "mkfifo /tmp/gate && echo held && read -r _ </tmp/gate\n"


def registered(stage: Stage, path: Path, **defaults: Any) -> git_repos.Repo:
    """Make a user's repository with `main` checked out and one commit, and register it."""
    made = git_repos.Repo.make(path)
    made.commit({"README": "a sample\n", "src/a.txt": "one\ntwo\nthree\n"})
    stage.ask("repo_add", path=str(made.path), **defaults)
    return made


def alias_of(stage: Stage, repo: git_repos.Repo) -> str:
    repos = stage.ask("repo_list")["items"]
    return next(each["alias"] for each in repos if each["path"] == str(repo.path))


def started(stage: Stage, **what: Any) -> str:
    return str(stage.ask("run_start", **{"memory_mib": MEMORY_MIB, **what})["task_id"])


def ended(stage: Stage, task_id: str) -> dict[str, Any]:
    """Wait for a task, and give the run with the task in it."""
    waited = stage.ask("task_wait", task_id=task_id, timeout_s=LONG_S)
    assert waited["finished"], stage.ask("run_get", task_id=task_id)
    told = stage.ask("run_get", task_id=task_id)
    return {**told["run"], "task": told["task"]}


def output(stage: Stage, task_id: str) -> str:
    read = stage.ask("run_output", task_id=task_id)
    return "".join(piece["text"] for piece in read["pieces"])


def until(stage: Stage, task_id: str, words: str) -> None:
    """Wait until a run's program has said something."""
    said, offset = "", 0
    while words not in said:
        read = stage.ask("run_output", task_id=task_id, offset=offset, timeout_s=LONG_S)
        assert not read["ended"], said
        said += "".join(piece["text"] for piece in read["pieces"])
        offset = read["next"]


def machine_of(stage: Stage, task_id: str) -> str:
    return str(stage.ask("run_get", task_id=task_id)["run"]["machine_id"])


def let_go(stage: Stage, task_id: str) -> None:
    """Let a script go on that stands at HOLD."""
    stage.said(machine_of(stage, task_id), "echo >/tmp/gate")
