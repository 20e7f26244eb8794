"""Programs that are all malice, each through a whole run, and what it does to who ran it: nothing.

Each row of `hostile_runs.py` is a run on a repository of its own, whose user has hooks, filters and
monitors configured that would all leave a mark. All run in one daemon, so that each also has the
others beside it. Afterwards the user's repository is byte by byte what it was, but for a branch
that was rightly moved; nothing ran; the daemon is as small as it was; and the next run works.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from git_repos import look_of
from machines import LONG_S
from microvm_orchestrator import places
from system.hostile_runs import ATTACKS, Attack, Victim, victim
from system.living import MEMORY_MIB, PROGRAM, Stage, living

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of the daemon, beside what it had when it had seen one run: the windows of a few streams, what it
# keeps of some outputs, and what its allocator does not give back.
GROWTH_KIB = 96 * 1024
# What the daemon keeps of all that one program says, with what frames it.
OUTPUT_MOST = 64 << 20
# All that a landing changes: objects and the branch with its reflog; and, where it is checked out,
# the index and the files of the commit.
_MOVES = re.compile(r"\.git(/(objects|logs)(/.*)?|/index|/refs|/refs/heads(/main|/tasks(/.*)?)?)?")
# A sequence that colours, which is how the command line itself draws.
_COLOUR = re.compile(rb"\x1b\[[0-9;]*m")
_OBEYED = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xaa-\xae]")


@dataclass(frozen=True, slots=True)
class Ended:
    """What came of an attack, and how everything looked before and after it."""

    victim: Victim
    task_id: str
    task: dict[str, Any]
    run: dict[str, Any]
    before: dict[str, tuple[object, ...]]
    after: dict[str, tuple[object, ...]]

    def changed(self) -> set[str]:
        """Name what is not as it was, in the repository and beside it."""
        top = self.victim.repo.path
        paths = self.before.keys() | self.after.keys()
        odd = [each for each in paths if self.before.get(each) != self.after.get(each)]
        return {os.path.relpath(each, top) for each in odd}


@dataclass(frozen=True, slots=True)
class Den:
    """A daemon that has seen all of them."""

    stage: Stage
    ended: dict[str, Ended]
    small_kib: int


def high_kib(pid: int) -> int:
    """Return the most memory that a process ever had."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0])


def look(victim: Victim) -> dict[str, tuple[object, ...]]:
    return {**look_of(victim.repo.path), **look_of(victim.outside)}


def started(stage: Stage, victim: Victim, **what: Any) -> str:
    alias = stage.ask("repo_add", path=str(victim.repo.path))["alias"]
    asked = {"repo": alias, "memory_mib": MEMORY_MIB, **what}
    return str(stage.ask("run_start", **asked)["task_id"])


def seen_through(stage: Stage, task_id: str) -> dict[str, Any]:
    waited = stage.ask("task_wait", task_id=task_id, timeout_s=5 * LONG_S)
    told = stage.ask("run_get", task_id=task_id)
    assert waited["finished"], told
    return told


def honest(stage: Stage, victim: Victim) -> None:
    """See that a run works which does what runs are for."""
    script = "echo honest >honest.txt && git add -A && git commit -q -m honest"
    told = seen_through(stage, started(stage, victim, script=script))
    assert told["task"]["state"] == "done", told
    assert (victim.repo.path / "honest.txt").read_text() == "honest\n"


@pytest.fixture(scope="module")
def den(tmp_path_factory: pytest.TempPathFactory, *, whole: bool) -> Iterator[Den]:
    folder = tmp_path_factory.mktemp("den")
    rows = {name: row for name, row in ATTACKS.items() if whole or not row.only_whole}
    # Two at a time: more would keep each other from booting in time on a small host.
    with living(folder / "s", runs={"count": 2}) as stage:
        honest(stage, victim(folder / "first"))
        small_kib = high_kib(stage.daemon.pid)
        victims = {name: victim(folder / f"v{n}") for n, name in enumerate(rows)}
        before = {name: look(each) for name, each in victims.items()}
        tasks = {
            name: started(stage, each, **rows[name].request(each, each.outside.parent))
            for name, each in victims.items()
        }
        ended: dict[str, Ended] = {}
        for name, each in victims.items():
            told = seen_through(stage, tasks[name])
            ended[name] = Ended(
                each, tasks[name], told["task"], told["run"], before[name], look(each)
            )
        yield Den(stage, ended, small_kib)


@pytest.fixture(params=ATTACKS)
def attack(request: pytest.FixtureRequest, den: Den) -> tuple[Attack, Ended]:
    if request.param not in den.ended:
        pytest.skip("takes minutes: with --whole")
    return ATTACKS[request.param], den.ended[request.param]


def test_a_malicious_run_ends_with_a_reason_that_harms_no_terminal(
    attack: tuple[Attack, Ended],
) -> None:
    row, ended = attack
    state, code = row.ends
    error = ended.task["error"] or {"code": "", "message": ""}
    assert ended.task["state"] == state, (ended.task["error"], ended.run["merge"])
    assert not code or error["code"] == code, error
    assert re.search(row.why, error["message"]), error
    assert error["message"].isprintable()
    assert len(error["message"]) <= 1000
    assert ended.run["merge"]["state"] == row.merge, ended.run["merge"]


def test_a_malicious_run_touches_nothing_but_the_branch_it_may_move(
    attack: tuple[Attack, Ended],
) -> None:
    row, ended = attack
    assert not ended.victim.witness.exists(), ended.victim.witness.read_text()
    changed = ended.changed()
    if row.merge == "none":
        assert changed == set()
        return
    if row.merge == "refused":
        # What a branch does not name is there for git's own collection.
        assert {
            each for each in changed if not re.fullmatch(r"\.git(/objects(/.*)?)?", each)
        } == set()
        return
    into = ended.run["merge"]["into"]
    files = {each["path"] for each in ended.run["result"]["files_changed"]}
    files = files if into == "main" else set[str]()
    folders = {str(parent) for name in files for parent in Path(name).parents}
    # A link that became a folder is gone, whatever it led to.
    odd = {each for each in changed - files - folders if not _MOVES.fullmatch(each)}
    assert odd == set()


def test_the_daemon_stays_small_and_the_next_run_works(den: Den) -> None:
    grown_kib = high_kib(den.stage.daemon.pid) - den.small_kib
    print(f"the daemon grew by {grown_kib} KiB over {len(den.ended)} malicious runs")
    assert grown_kib < GROWTH_KIB
    honest(den.stage, den.ended["a hundred thousand refs"].victim)
    assert den.stage.ask("machine_list")["items"] == []


def test_commits_are_kept_where_only_what_was_not_committed_is_too_much(den: Den) -> None:
    ended = den.ended["a patch too large, and a commit"]
    assert ended.run["tip"] is not None
    told = den.stage.ask("run_diff", task_id=ended.task_id)
    assert "+two" in told["patch"]


def test_what_a_program_reports_of_itself_is_not_what_the_host_says_of_it(den: Den) -> None:
    run = den.ended["reports that are forged"].run
    assert (run["result"]["commits"], run["tip"], run["usage"]["requests"]) == ([], None, 0)
    assert (run["usage"]["tokens_in"], run["usage"]["cost_usd"]) == (0, 0.0)
    assert run["result"]["summary"].isprintable()
    assert (run["result"]["session_id"] or "").isprintable()


def test_output_without_end_is_cut(den: Den) -> None:
    for name in ("output without end", "two gigabytes of output"):
        if name in den.ended:
            run_id = den.ended[name].run["run_id"]
            file = den.stage.daemon.state_dir / places.RUNS / run_id / "output"
            assert file.stat().st_size <= OUTPUT_MOST


def test_nothing_that_a_run_left_commands_a_terminal(den: Den) -> None:
    ended = den.ended["words that a terminal obeys"]
    for words in (
        ("run", "get", ended.task_id),
        ("run", "get", ended.task_id, "--json"),
        ("run", "list"),
        ("run", "output", ended.task_id),
        ("run", "output", ended.task_id, "--json"),
        ("run", "diff", ended.task_id),
        ("run", "diff", ended.task_id, "--json"),
        ("task", "get", ended.task_id),
        ("task", "list"),
        ("task", "history", ended.task_id),
        ("event", "wait", "--subject", f"{ended.task_id}.1"),
    ):
        shown = on_a_terminal(den.stage, *words)
        assert shown, words
        assert not _OBEYED.search(_COLOUR.sub(b"", shown)), (words, shown)
    # To a file or a pipe it goes as it was.
    piped = den.stage.cli("run", "output", ended.task_id).stdout
    assert b"\x1b]0;owned\x07" in piped


def on_a_terminal(stage: Stage, *words: str) -> bytes:
    """Give what a command writes where it believes that somebody looks."""
    ours, theirs = pty.openpty()
    noun, verb, *rest = words
    command = [PROGRAM, noun, verb, "--socket", str(stage.daemon.socket), *rest]
    env = {**os.environ, "TERM": "xterm-256color"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:
            pass  # so a terminal ends whose other side is closed
        finally:
            os.close(ours)
    assert process.returncode == 0, shown
    return shown
