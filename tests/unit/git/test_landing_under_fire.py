"""Landings that are killed at any moment, and landings beside a user who works meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from landing import Stage, make_stage
from microvm_orchestrator.git import land
from microvm_orchestrator.git.names import Oid
from microvm_orchestrator.git.outcomes import Landed, Moved, Reason, Refused
from user_at_work import User

PYTHON = Path(__file__).parents[3] / "python"
# A landing in a process of its own, which says when it begins and what came of it.
LANDING = """
import asyncio, sys
from pathlib import Path
import anyio
from microvm_orchestrator.git import land
from microvm_orchestrator.git.land import CheckedOut
mirror, user, old, new = sys.argv[1:]

async def main():
    print("begin", flush=True)
    outcome = await land.land(
        Path(mirror), Path(user), "main", old=old, new=new, checked_out=CheckedOut.UPDATE
    )
    print(type(outcome).__name__, flush=True)

anyio.run(main)
"""
FILES = 60


def begin(stage: Stage, old: Oid, new: Oid) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", LANDING, stage.mirror.path, stage.user.path, old, new]
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        # What a killed one has just begun goes with the test.
        env={**os.environ, "PYTHONPATH": str(PYTHON), "TMPDIR": str(stage.user.path.parent)},
        start_new_session=True,
    )


def children(pid: int) -> list[int]:
    """List what a process has started; each leads a session of its own."""
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in listing.read_text().split()]
    return found


def results(stage: Stage, count: int) -> list[Oid]:
    """Make a chain of results that each change, add and remove many files of some size."""
    made = [stage.old]
    for turn in range(1, count + 1):
        script = (
            f"for n in $(seq {FILES}); do seq {turn} $((turn + 4000)) > f$n; done;"
            f"mkdir -p d{turn % 3}; seq {turn} 900 > d{turn % 3}/file; rm -f new-*;"
            f"echo {turn} > new-{turn}"
        ).replace("turn", str(turn))
        made.append(stage.change(script, onto=made[-1]))
    return made[1:]


def check_nothing_is_lost(stage: Stage, mine: dict[str, str]) -> None:
    for name, content in mine.items():
        assert (stage.user.path / name).read_text() == content


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 2))])
async def test_a_landing_that_is_killed_at_any_moment_is_finished_or_taken_back(
    tmp_path: Path, seed: int, whole: bool
) -> None:
    stage = make_stage(tmp_path)
    chain = results(stage, 30 if whole else 5)
    mine = {"untracked": "u\n", "b": "changed\n"}
    stage.user.write({**mine})
    stage.user.write({"staged": "s\n"})
    stage.user.git("add", "staged")
    random_ = random.Random(seed)
    old, cut_off, left, took_s = stage.old, 0, 0, 0.5
    for new in chain:
        process = begin(stage, old, new)
        with process:
            assert process.stdout is not None
            assert await anyio.to_thread.run_sync(process.stdout.readline) == b"begin\n"
            began = time.monotonic()
            # The moment at which it is killed, of those at which a landing does something.
            reached = process.wait if random_.random() < 0.1 else None
            if reached is None:
                await anyio.sleep(random_.random() * took_s)
                # Alone, as by a crash, or with each git it has started, as by a power cut.
                gits = children(process.pid) if random_.random() < 0.5 else []
                for pid in [process.pid, *gits]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            await anyio.to_thread.run_sync(process.wait)
            said = process.stdout.read()
            if said:
                took_s = time.monotonic() - began
            cut_off += not said
        left += (stage.user.path / ".git" / "index.lock").exists()
        assert stage.user.oid("main") in {old, new}
        check_nothing_is_lost(stage, mine)
        with anyio.fail_after(60):
            outcome = await stage.land(new, old=old)
        assert isinstance(outcome, Landed), outcome
        assert stage.user.oid("main") == new
        assert stage.user.git("status", "--porcelain").splitlines() == [
            "M b",
            "A  staged",
            "?? untracked",
        ]
        check_nothing_is_lost(stage, mine)
        assert list((stage.user.path / ".git").glob("**/*.lock")) == []
        assert not (stage.user.path / ".git" / "microvm-orchestrator").exists()
        old = new
    stage.user.git("fsck", "--strict")
    print(json.dumps({"landings": len(chain), "cut off": cut_off, "under the lock": left}))
    assert cut_off or not whole


async def test_what_a_killed_one_left_is_cleared_away_without_another_landing(
    tmp_path: Path,
) -> None:
    stage = make_stage(tmp_path)
    (new,) = results(stage, 1)
    random_ = random.Random(5)
    lock = stage.user.path / ".git" / "index.lock"
    for _ in range(40):
        process = begin(stage, stage.old, new)
        with process:
            assert process.stdout is not None
            assert await anyio.to_thread.run_sync(process.stdout.readline) == b"begin\n"
            # As soon as it has the lock.
            while not lock.exists() and process.poll() is None:
                await anyio.lowlevel.checkpoint()
            await anyio.sleep(random_.random() * 0.1)
            process.kill()
        if lock.exists():
            break
    with anyio.fail_after(30):
        while lock.exists():
            # Its gits end by themselves; until then they are not disturbed.
            await land.recover(stage.user.path)
    now = stage.user.oid("main")
    assert now in {stage.old, new}
    assert stage.user.git("status", "--porcelain") == ""
    assert isinstance(await stage.land(new), Landed)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
async def test_a_user_who_works_on_beside_many_landings_loses_nothing(
    tmp_path: Path, seed: int, whole: bool
) -> None:
    stage = make_stage(tmp_path)
    User.prepare(stage.user)
    stage.old = stage.user.oid()
    stop = threading.Event()
    user = User(stage.user, seed, stop)
    user.start()
    landed: list[Oid] = []
    reasons: dict[str, int] = {}
    try:
        with anyio.fail_after(500):
            turn = 0
            while len(landed) < (40 if whole else 6) and user.failed is None:
                old = stage.user.oid("main")
                new = stage.change(f"echo {turn} > task-{turn}; echo {turn} > shared", onto=old)
                outcome = await stage.land(new, old=old)
                match outcome:
                    case Landed():
                        landed.append(new)
                        turn += 1
                    case Moved():
                        reasons["moved"] = reasons.get("moved", 0) + 1
                    case Refused(reason):
                        reasons[reason] = reasons.get(reason, 0) + 1
                        assert reason in {Reason.BUSY, Reason.DIRTY}, outcome
    finally:
        stop.set()
        await anyio.to_thread.run_sync(user.join)
    assert user.failed is None, user.failed
    assert set(landed) <= set(stage.user.git("rev-list", "--all").split())
    assert user.lost() == []
    # No commit of the user's has undone what landed before it.
    listing = set(stage.user.git("ls-tree", "--name-only", "main").splitlines())
    assert {f"task-{turn}" for turn in range(len(landed))} <= listing
    assert not (stage.user.path / ".git" / "index.lock").exists()
    stage.user.git("fsck", "--strict")
    print(json.dumps({"landed": len(landed), "commits": len(user.commits), **reasons}))


async def test_bytes_written_into_a_file_while_it_is_replaced_come_back(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    # It is replaced first, and the others keep the landing busy for a while.
    stage.user.write({"0": "old\n" * 10})
    stage.old = stage.user.commit({})
    new = stage.change("for n in $(seq 1500); do echo $n > f$n; done; echo new > 0")
    handle = os.open(stage.user.path / "0", os.O_WRONLY)
    inode = os.fstat(handle).st_ino

    def save_when_replaced() -> None:
        deadline = time.monotonic() + 60
        while (stage.user.path / "0").stat().st_ino == inode and time.monotonic() < deadline:
            pass
        os.pwrite(handle, b"the user's", 0)

    # An editor that has the file open, and saves in the middle of the landing.
    thread = threading.Thread(target=suppressed, args=[save_when_replaced])
    thread.start()
    try:
        outcome = await stage.land(new)
    finally:
        await anyio.to_thread.run_sync(thread.join)
        os.close(handle)
    assert outcome == Landed("main", new, str(stage.user.path), ("0",))
    assert (stage.user.path / "0").read_bytes().startswith(b"the user's")
    assert stage.user.git("status", "--porcelain") == "M 0"


def suppressed(work: Callable[[], None]) -> None:
    """Go on where the file is missing for the moment in which git puts another one there."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            work()
            return
