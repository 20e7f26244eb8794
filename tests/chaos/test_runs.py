"""SIGKILL of the daemon in every step of a run: nothing is lost, nothing is merged twice.

One run after another, in real machines, on a repository in whose work tree somebody is in the
middle of something. In each step of each run, told by its event, the daemon dies a moment later and
comes back; the run goes on, and in the end its commit is on the branch, once.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import hosted
from bench.figures import tell
from git_repos import Repo
from machines import LONG_S
from system.living import MEMORY_MIB, Stage, furnish, staged

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

# By the steps of a run: for how long at most the daemon goes on in it. About as long as each takes,
# so that the kills fall all over it.
STEPS = {"starting": 3.0, "sending": 0.8, "performing": 1.5, "collecting": 0.5, "merging": 0.25}
SCRIPT = """\
set -eu
echo begun
sleep 1.5
printf '%s\\n' "$MICROVM_TASK_ID" >"$1.txt"
git add -A
git commit -q -m "turn $1"
echo ended
"""
# What a user is in the middle of.
MINE = {"README": "changed by me\n", "staged.txt": "staged\n", "notes.txt": "not added\n"}
STATUS = [" M README", "A  staged.txt", "?? notes.txt"]


@dataclass
class Tally:
    """In which steps the daemon died, and what went wrong."""

    # By the step that was waited for, and by the one the run was in.
    meant: Counter[str] = field(default_factory=Counter[str])
    met: Counter[str] = field(default_factory=Counter[str])
    slowest_s: float = 0.0
    wrong: list[str] = field(default_factory=list[str])


def test_a_daemon_killed_in_every_step_of_a_run_loses_nothing_and_merges_once(
    tmp_path: Path, seed: str, whole: bool
) -> None:
    turns = 20 if whole else 1
    moments = random.Random(seed)
    state, tally = tmp_path / "s", Tally()
    furnish(state)
    user = Repo.make(tmp_path / "sample")
    user.commit({"README": "a sample\n"}, "begin")
    user.write(MINE)
    user.git("add", "staged.txt")
    with _nothing_runs_on(state):
        for turn in range(turns):
            _see_through(state, user, turn, moments, tally)
        left = hosted.left(state)
    tell("daemon killed in the steps of runs", f"{tally.meant.total()} times")
    tell("  waited for", json.dumps(tally.meant))
    tell("  and found in", json.dumps(tally.met))
    tell("  slowest run with its five kills", f"{tally.slowest_s:.1f} s")
    assert tally.wrong == [], tally.wrong[:20]
    assert left == []
    assert user.git("log", "--format=%s", "main").splitlines() == [
        *(f"turn {turn}" for turn in reversed(range(turns))),
        "begin",
    ]
    user.git("fsck", "--strict")


def _see_through(state: Path, user: Repo, turn: int, moments: random.Random, tally: Tally) -> None:
    """Let one run live through a kill in each of its steps, and look at what became of it."""
    began = time.monotonic()
    task_id, killed_at = "", list[float]()
    for step, longest_s in STEPS.items():
        if step == "collecting" and turn % 2 == 0:
            # Its commit belongs to the branch that was there when it began.
            user.git("checkout", "--quiet", "-B", "elsewhere")
        with staged(state) as stage:
            task_id = task_id or _started(stage, user, turn)
            stage.hear(f"run.{step}", f"{task_id}.1")
            time.sleep(moments.uniform(0.0, longest_s))  # the fault's random moment
            stage.daemon.kill()
            killed_at.append(time.time())
        tally.meant[step] += 1
    with staged(state) as stage:
        stage.ask("task_wait", task_id=task_id, timeout_s=LONG_S)
        user.git("checkout", "--quiet", "main")
        tally.wrong += _odd(stage, user, turn, task_id)
        met = _steps_at(stage, task_id, killed_at)
        if machines := stage.ask("machine_list")["items"]:
            tally.wrong.append(f"turn {turn}: {[each['name'] for each in machines]} are left")
    tally.met += Counter(met)
    tally.slowest_s = max(tally.slowest_s, time.monotonic() - began)
    print(f"turn {turn}: killed in {', '.join(met)}; wrong: {tally.wrong}", flush=True)


def _started(stage: Stage, user: Repo, turn: int) -> str:
    alias = stage.ask("repo_add", path=str(user.path))["alias"]
    asked: dict[str, Any] = {
        "repo": alias,
        "title": f"turn {turn}",
        "script": SCRIPT.replace("$1", str(turn)),
        "memory_mib": MEMORY_MIB,
    }
    return str(stage.ask("run_start", **asked)["task_id"])


def _odd(stage: Stage, user: Repo, turn: int, task_id: str) -> list[str]:
    """Wait for the end of a run, and hold what is said of it against what is there."""
    waited = stage.ask("task_wait", task_id=task_id, timeout_s=LONG_S)
    told = stage.ask("run_get", task_id=task_id)
    task, run = told["task"], told["run"]
    if not waited["finished"]:
        return [f"turn {turn} hangs in {run['step']}"]
    odd: list[str] = []
    if (task["state"], task["attempt"], run["merge"]["state"]) != ("done", 1, "merged"):
        odd.append(f"turn {turn} is {task['state']}: {task['error']} {run['merge']}")
    read = stage.ask("run_output", task_id=task_id)
    said = "".join(piece["text"] for piece in read["pieces"])
    if said != "begun\nended\n":
        odd.append(f"turn {turn} said {said!r}")
    ends = [kind for kind in stage.told(task_id) if kind in {"task.done", "task.failed"}]
    if ends != ["task.done"]:
        odd.append(f"turn {turn} ended as {ends}")
    subjects = user.git("log", "--format=%s", "main").splitlines()
    if subjects.count(f"turn {turn}") != 1:
        odd.append(f"turn {turn} is {subjects.count(f'turn {turn}')} times on the branch")
    file = user.path / f"{turn}.txt"
    if not file.exists() or file.read_text() != f"{task_id}\n":
        odd.append(f"turn {turn} is not in the work tree")
    return odd + [f"turn {turn}: {each}" for each in _harmed(user)]


def _harmed(user: Repo) -> list[str]:
    """Name what is not as the user left it."""
    odd = [f"{name} was changed" for name, text in MINE.items() if _read(user, name) != text]
    status = user.git("status", "--porcelain", "--untracked-files=all").splitlines()
    # The first line lost its blank on the way.
    if [line.strip() for line in status] != [line.strip() for line in STATUS]:
        odd.append(f"the work tree is {status}")
    odd += [f"{path} is left" for path in (user.path / ".git").glob("**/*.lock")]
    if (user.path / ".git" / "microvm-orchestrator").exists():
        odd.append("a landing left its folder")
    return odd


def _read(user: Repo, name: str) -> str:
    path = user.path / name
    return path.read_text() if path.exists() else ""


def _steps_at(stage: Stage, task_id: str, moments: list[float]) -> list[str]:
    """Tell which step had begun last at each of these moments."""
    events = stage.ask("event_wait", subjects=[f"{task_id}.1"], limit=1000)["events"]
    steps = [
        (datetime.fromisoformat(event["at"]).timestamp(), event["body"]["step"]) for event in events
    ]
    return [[step for at, step in steps if at <= moment][-1] for moment in moments]


@contextmanager
def _nothing_runs_on(state: Path) -> Generator[None]:
    """End the machines of a campaign that failed; one that did not has none left."""
    try:
        yield
    finally:
        for pid in hosted.processes(state).values():
            os.kill(pid, signal.SIGKILL)
