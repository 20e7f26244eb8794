"""SIGKILL at any moment: nothing promised is lost, nothing happens twice, nothing is left odd."""

from __future__ import annotations

import random
import statistics
import time
from typing import TYPE_CHECKING

import pytest

from bench.figures import tell
from chaos.ask import Asker
from chaos.crew import crew_on
from chaos.judge import collect, judge, report
from chaos.process import daemon_in

if TYPE_CHECKING:
    from pathlib import Path

    from chaos.process import Daemon

STORED = 10_000
RESTARTS = 5


def test_a_daemon_killed_under_load_loses_nothing_and_doubles_nothing(
    tmp_path: Path, seed: str, whole: bool
) -> None:
    kills = 50 if whole else 5
    moments = random.Random(seed)
    with (
        daemon_in(tmp_path) as daemon,
        crew_on(daemon.socket, tmp_path, seed) as crew,
        Asker(daemon.socket) as asker,
    ):
        starts = sum(_live_and_die(daemon, moments) for _ in range(kills))
        daemon.start()
        evidence = collect(daemon, asker, crew)
    verdict = judge(evidence)
    report("kill -9", evidence, verdict, kills=kills, of_them_while_starting=kills - starts)
    assert not verdict.wrong, verdict.wrong[:20]


def _live_and_die(daemon: Daemon, moments: random.Random) -> bool:
    """Run for a random while, once in a while not even until ready. Whether it was ready."""
    ready = moments.random() < 0.85
    if ready:
        daemon.start()
        time.sleep(moments.uniform(0.02, 2.0))  # the fault's random moment, nothing waits for it
    else:
        daemon.spawn()
        time.sleep(moments.uniform(0.2, 1.0))  # the same
    daemon.kill()
    return ready


@pytest.mark.long
def test_a_daemon_with_ten_thousand_tasks_is_ready_soon_after_it_was_killed(
    tmp_path: Path,
) -> None:
    took: list[float] = []
    with daemon_in(tmp_path) as daemon, Asker(daemon.socket, timeout_s=60) as asker:
        daemon.start()
        for first in range(0, STORED, 1000):
            tasks = [{"title": f"task {first + n}", "lease_s": 60.0} for n in range(1000)]
            asker.post("/v1/graphs", tasks=tasks, idempotency_key=f"graph {first}")
        for _ in range(RESTARTS):
            # Some of them run, so that a restart has leases to extend.
            claimed = asker.post("/v1/tasks/claim", worker="worker", count=100)
            assert len(claimed["tasks"]) == 100
            daemon.kill()
            took.append(daemon.start())
        doctor = asker.get("/v1/doctor")
        assert (doctor["healthy"], doctor["facts"]["tasks"]) == (True, STORED)
        asker.hang_up()
        assert daemon.end() == 0
    tell("restart to ready, 10,000 tasks stored", f"{statistics.median(took):.2f} s", aim="< 2 s")
