"""Many results at once on one repository, while its user works and the daemon dies.

Two hundred runs have each changed a file of their own, and forty the same line. All have come in
through their bundles and are merged by one daemon, through its own queue; a user edits, commits and
switches branches in the work tree meanwhile. With --whole two hundred runs do all of it in machines
as well.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import hosted
from bench.figures import tell
from chaos.harvest import Brought, bring
from daemon import running_daemon
from git_repos import Repo
from machines import LONG_S
from system.living import MEMORY_MIB, Stage, living, staged
from user_at_work import User

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

LINES = 60
# The line that all of one kind change; far enough from both ends to be a place of its own.
SHARED = 30


def user_repo(path: Path) -> Repo:
    """Make a user's repository with a long file that tasks will change, and files of their own."""
    user = Repo.make(path)
    user.commit({"README": "one\n", "long.txt": "".join(f"line {n}\n" for n in range(LINES))})
    User.prepare(user)
    return user


def apart(count: int) -> list[Brought]:
    return [
        Brought(f"apart {n}", {f"task/{n % 10}/file{n}.txt": f"of task {n}\n"})
        for n in range(count)
    ]


def on_one_line(count: int) -> list[Brought]:
    made: list[Brought] = []
    for n in range(count):
        lines = [f"line {at}\n" for at in range(LINES)]
        lines[SHARED] = f"as task {n} has it\n"
        made.append(Brought(f"same {n}", {"long.txt": "".join(lines), f"same{n}.txt": "mine\n"}))
    return made


@contextmanager
def at_work(repo: Repo, seed: str) -> Generator[User]:
    """Let a user work in a repository until the block ends, and see that they could."""
    stop = threading.Event()
    user = User(repo, seed, stop)
    user.start()
    try:
        yield user
    finally:
        stop.set()
        user.join()
    assert user.failed is None, user.failed


def over(stage: Stage, tasks: Sequence[str], within_s: float) -> dict[str, dict[str, Any]]:
    """Wait until all of these have ended; the run of each."""
    deadline = time.monotonic() + within_s
    runs: dict[str, dict[str, Any]] = {}
    for task_id in tasks:
        while not stage.ask("task_wait", task_id=task_id, timeout_s=10.0)["finished"]:
            assert time.monotonic() < deadline, stage.ask("run_get", task_id=task_id)
        runs[task_id] = stage.ask("run_get", task_id=task_id)["run"]
    return runs


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong, and how many are merged."""

    wrong: list[str]
    merged: Counter[str]


def judge(
    user: Repo, brought: dict[str, Brought], runs: dict[str, dict[str, Any]], unmerged: set[str]
) -> Verdict:
    """Hold what the daemon says became of each against what is on the branch."""
    wrong: list[str] = []
    states = Counter[str]()
    subjects = Counter(user.git("log", "--format=%s", "main").splitlines())
    files = set(user.git("ls-tree", "-r", "--name-only", "main").splitlines())
    for task_id, each in brought.items():
        merge = runs[task_id]["merge"]
        states[merge["state"]] += 1
        landed = merge["state"] == "merged"
        if subjects[each.title] != landed:
            wrong.append(f"{each.title} is {merge['state']} and {subjects[each.title]} times there")
        own = {name for name in each.files if name != "long.txt"}
        if (own <= files) != landed:
            wrong.append(f"{each.title} is {merge['state']} and its files do not say so")
        if landed == (f"refs/tasks/{task_id}" in unmerged):
            wrong.append(f"{each.title} is {merge['state']} and told as the opposite")
        same = each.title.startswith("same")
        if merge["state"] != "merged" and not (same and merge["state"] == "conflict"):
            wrong.append(f"{each.title} is {merge['state']}: {merge['reason']}")
        if merge["state"] == "conflict" and [c["path"] for c in merge["conflicts"]] != ["long.txt"]:
            wrong.append(f"{each.title} does not name what it conflicts in: {merge['conflicts']}")
    return Verdict(wrong, states)


def check_whole(user: Repo) -> None:
    """See that nothing of ours is left in a user's repository, and that it is one."""
    user.git("fsck", "--strict")
    assert list((user.path / ".git").glob("**/*.lock")) == []
    assert not (user.path / ".git" / "microvm-orchestrator").exists()


@pytest.mark.parametrize("kills", [0, 20], ids=["undisturbed", "killed"])
def test_results_that_come_together_are_all_merged_but_those_that_do_not_fit(
    tmp_path: Path, seed: str, kills: int, whole: bool
) -> None:
    count, same = (200, 40) if whole else (24, 6)
    kills = kills if whole else min(kills, 2)
    state, user = tmp_path / "state", user_repo(tmp_path / "user")
    began = time.monotonic()
    brought = anyio.run(bring, state, user, [*apart(count), *on_one_line(same)])
    came_s = time.monotonic() - began
    moments = random.Random(seed)
    began = time.monotonic()
    with at_work(user, seed) as somebody:
        for _ in range(kills):
            with running_daemon(state) as daemon:
                time.sleep(moments.uniform(0.0, 0.6))  # the fault's random moment
                daemon.kill()
        with staged(state) as stage:
            runs = over(stage, list(brought), LONG_S + 3.0 * len(brought))
            took_s = time.monotonic() - began
            repo = stage.ask("repo_get", repo="site")
            told = [event["kind"] for event in _ends(stage)]
    unmerged = {each["ref"] for each in repo["unmerged"]}
    verdict = judge(user, brought, runs, unmerged)
    tell(f"{count} apart and {same} on one line, {kills} kills: taken in", f"{came_s:.1f} s")
    tell("  merged while a user works", f"{took_s:.1f} s")
    tell("  of them", json.dumps(verdict.merged))
    tell("  commits of the user's", str(len(somebody.commits)))
    assert verdict.wrong == [], verdict.wrong[:20]
    assert verdict.merged == {"merged": count + 1, "conflict": same - 1}
    assert somebody.lost() == []
    assert Counter(told) == {"task.done": count + 1, "task.failed": same - 1}
    check_whole(user)


def _ends(stage: Stage) -> list[dict[str, Any]]:
    """Give every event of a task's end."""
    found: list[dict[str, Any]] = []
    page = stage.ask("event_wait", kinds=["task.done", "task.failed"], limit=1000)
    while page["events"]:
        found += page["events"]
        page = stage.ask(
            "event_wait", kinds=["task.done", "task.failed"], limit=1000, after=page["cursor"]
        )
    return found


def test_two_hundred_runs_in_machines_are_all_merged(
    tmp_path: Path, seed: str, whole: bool
) -> None:
    if not whole:
        pytest.skip("takes half an hour: with --whole")
    count, same = 200, 40
    user = user_repo(tmp_path / "user")
    wanted = [*apart(count), *on_one_line(same)]
    began = time.monotonic()
    with living(tmp_path / "state") as stage, at_work(user, seed) as somebody:
        stage.ask("repo_add", path=str(user.path), alias="site")
        # The same beginning for all, though others are merged before the last of them starts.
        base = user.oid("main")
        brought = {_started(stage, base, each): each for each in wanted}
        runs = over(stage, list(brought), 60.0 * len(brought))
        took_s = time.monotonic() - began
        unmerged = {each["ref"] for each in stage.ask("repo_get", repo="site")["unmerged"]}
        assert stage.ask("machine_list")["items"] == []
        assert hosted.processes(tmp_path / "state") == {}
    verdict = judge(user, brought, runs, unmerged)
    tell(f"{len(brought)} runs in machines", f"{took_s:.0f} s", aim="")
    tell("  of them", json.dumps(verdict.merged))
    assert verdict.wrong == [], verdict.wrong[:20]
    assert verdict.merged == {"merged": count + 1, "conflict": same - 1}
    assert somebody.lost() == []
    check_whole(user)


def _started(stage: Stage, base: str, wanted: Brought) -> str:
    files = [{"path": path, "text": text} for path, text in wanted.files.items()]
    script = f"git add -A && git commit -q -m '{wanted.title}'"
    given: dict[str, Any] = {
        "repo": "site",
        "base": base,
        "into": "main",
        "title": wanted.title,
        "files": files,
        "script": script,
        "memory_mib": MEMORY_MIB,
    }
    return str(stage.ask("run_start", **given)["task_id"])
