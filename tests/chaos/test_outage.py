"""The daemon is away for longer than the leases: no healthy run is taken away, dead ones are."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import pytest

from bench.figures import tell
from chaos.ask import Asker
from chaos.crew import program
from chaos.process import daemon_in
from chaos.record import read_records

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from chaos.process import Daemon

LEASE_S = 3.0
WORKERS = 4
HELD_BY_EACH = 25
HELD_BY_THE_DEAD = 20
# Generous: decides only how long a failure takes to say so.
_REQUEUED_WITHIN_S = 60


@pytest.mark.parametrize(
    ("fault", "away_s"),
    [
        pytest.param("frozen", 2.5, marks=pytest.mark.long),
        pytest.param("frozen", 4.0, marks=pytest.mark.long),
        ("killed", 4.0),
    ],
    ids=["frozen for less than a lease", "frozen for more", "killed and away for more"],
)
def test_an_outage_takes_no_healthy_run_away_and_ends_the_dead_ones(
    tmp_path: Path, fault: str, away_s: float, whole: bool
) -> None:
    outages = 3 if whole else 1
    with (
        daemon_in(tmp_path) as daemon,
        Asker(daemon.socket, timeout_s=60) as asker,
        contextlib.ExitStack() as stack,
    ):
        daemon.start()
        _submit(asker, WORKERS * HELD_BY_EACH)
        arguments = (HELD_BY_EACH, LEASE_S)
        workers = [
            stack.enter_context(
                program("hold", name, tmp_path, daemon.socket, tmp_path / name, *arguments)
            )
            for name in (f"healthy-{number}" for number in range(WORKERS))
        ]
        for worker in workers:
            worker.until_ready()
        for _ in range(outages):
            dead = _claim_and_die(asker)
            cursor = asker.get("/v1/events", after="now")["cursor"]
            _go_away(daemon, fault, away_s)
            _until_requeued(asker, dead, cursor)
            # The dead ones' leases have run out: so would the healthy ones', had nobody renewed.
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.wait()
        journal = asker.journal()
        daemon.kill()
    taken = _taken_from_the_healthy(journal)
    lost = [
        said
        for number in range(WORKERS)
        for said in read_records(tmp_path / f"healthy-{number}")
        if said.got == "lost"
    ]
    name = f"outage, {fault} {away_s} s, lease {LEASE_S:.0f} s"
    tell(f"{name}: healthy runs taken", f"{len(taken)} of {WORKERS * HELD_BY_EACH}", aim="0")
    assert (taken, lost) == ([], [])
    assert not [event for event in journal if event["kind"] == "worker.lost"]


def _submit(asker: Asker, count: int) -> None:
    tasks = [{"lease_s": LEASE_S, "max_expiries": 100} for _ in range(count)]
    asker.post("/v1/graphs", tasks=tasks)


def _claim_and_die(asker: Asker) -> set[str]:
    """Hold tasks as a worker that is never heard of again; their ids."""
    _submit(asker, HELD_BY_THE_DEAD)
    claimed = asker.post("/v1/tasks/claim", worker="dead", count=HELD_BY_THE_DEAD)["tasks"]
    assert len(claimed) == HELD_BY_THE_DEAD
    return {each["task"]["task_id"] for each in claimed}


def _go_away(daemon: Daemon, fault: str, away_s: float) -> None:
    if fault == "killed":
        daemon.kill()
    else:
        daemon.freeze()
    time.sleep(away_s)  # the fault's length, nothing waits for it
    if fault == "killed":
        daemon.start()
    else:
        daemon.thaw()


def _until_requeued(asker: Asker, tasks: Iterable[str], cursor: str) -> None:
    left = set(tasks)
    deadline = time.monotonic() + _REQUEUED_WITHIN_S
    while left:
        assert time.monotonic() < deadline, f"still held by the dead: {left}"
        page = asker.get(
            "/v1/events", after=cursor, kinds="task.requeued", timeout_s=5.0, limit=1000
        )
        cursor = page["cursor"]
        left -= {event["subject"] for event in page["events"]}


def _taken_from_the_healthy(journal: Iterable[Any]) -> list[Any]:
    return [
        event
        for event in journal
        if event["kind"] in {"task.requeued", "task.failed"}
        and not event["body"]["silent"].startswith("dead")
    ]
