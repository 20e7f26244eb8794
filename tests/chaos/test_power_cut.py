"""The power goes: what has not reached the disk is gone, and nothing of that was acknowledged.

The store lies on an ext4 in a file. The daemon is frozen, the file is copied - what reached the
disk - and the original thrown away with all that the kernel still held back.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from bench.figures import tell
from chaos.ask import Asker
from chaos.crew import crew_on
from chaos.disks import make_ext4, mounted, run
from chaos.judge import collect, judge, report
from chaos.process import daemon_in

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

_IMAGE_MIB = 96
# Against the same cut: a database that does not wait for the disk, ten writes a second.
_CARELESS = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("PRAGMA synchronous = NORMAL")
connection.execute("CREATE TABLE t (i INTEGER PRIMARY KEY)")
for i in range(10_000):
    connection.execute("INSERT INTO t VALUES (?)", (i,))
    print(i, flush=True)
    time.sleep(0.1)
"""
_CARELESS_WRITES = 40


def test_every_acknowledged_write_survives_a_power_cut(disks: Path, seed: str, whole: bool) -> None:
    cuts = 10 if whole else 2
    moments = random.Random(seed)
    image, at = disks / "disk", disks / "mnt"
    make_ext4(image, _IMAGE_MIB)
    with (
        daemon_in(disks, state_dir=at / "state") as daemon,
        crew_on(daemon.socket, disks, seed) as crew,
        Asker(daemon.socket) as asker,
    ):
        for _ in range(cuts):
            with _disk(image, at), daemon.cleared_away():
                daemon.start()
                time.sleep(moments.uniform(0.5, 3.0))  # the fault's random moment
                daemon.freeze()
                copy = _what_reached(image)
                daemon.kill()
            copy.rename(image)
        with _disk(image, at), daemon.cleared_away():
            daemon.start()
            evidence = collect(daemon, asker, crew)
    verdict = judge(evidence)
    report("power cut", evidence, verdict, power_cuts=cuts)
    assert not verdict.wrong, verdict.wrong[:20]


def test_the_same_cut_takes_writes_from_a_store_that_does_not_wait_for_the_disk(
    disks: Path,
) -> None:
    image, at = disks / "disk", disks / "mnt"
    make_ext4(image, _IMAGE_MIB)
    with _disk(image, at):
        process = subprocess.Popen(
            [sys.executable, "-c", _CARELESS, str(at / "t.db")], stdout=subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            acknowledged = {int(process.stdout.readline()) for _ in range(_CARELESS_WRITES)}
            os.kill(process.pid, signal.SIGSTOP)
            copy = _what_reached(image)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
    copy.rename(image)
    with _disk(image, at):
        gone = acknowledged - _numbers_in(at / "t.db")
    tell(
        "power cut, control: SQLite synchronous=NORMAL", f"{len(gone)} of {len(acknowledged)} lost"
    )
    assert gone, "the cut takes nothing from anybody, so it proves nothing"


@contextlib.contextmanager
def _disk(image: Path, at: Path) -> Generator[None]:
    with mounted(image, at, "-o", "loop"):
        yield
    assert not run("losetup", "--associated", image), "the loop device is still there"


def _what_reached(image: Path) -> Path:
    copy = image.with_name("copy")
    run("cp", "--sparse=always", "--reflink=auto", image, copy)
    return copy


def _numbers_in(path: Path) -> set[int]:
    if not path.exists():
        return set()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        try:
            return {number for (number,) in connection.execute("SELECT i FROM t")}
        except sqlite3.OperationalError:
            return set()  # not even the table is there
