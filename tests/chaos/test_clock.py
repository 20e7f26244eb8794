"""The wall clock jumps by an hour: leases and retries go on, and time never runs backwards."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from bench.figures import tell
from chaos.ask import Asker
from chaos.crew import program
from chaos.process import daemon_in
from chaos.record import read_records
from chaos.wall import Wall, find_library, wall_in

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from chaos.process import Daemon

HOUR_S = 3600
_LEASE_S = 3.0
# Of those that are renewed each second: a host may stand still for a while.
_RENEWED_S = 30.0
_BACKOFF_S = 2.0
_HELD = 20
# Nothing here takes long unless it takes an hour.
_SOON_S = 60.0


@pytest.fixture
def wall(tmp_path: Path) -> Generator[Wall]:
    library = find_library()
    if library is None:
        pytest.skip("NOT RUN HERE: needs the package faketime, to set a clock of the daemon's own")
    with wall_in(tmp_path, library) as wall:
        yield wall


def _back(daemon: Daemon, wall: Wall) -> None:
    del daemon
    wall.set(-HOUR_S)


def _back_across_a_restart(daemon: Daemon, wall: Wall) -> None:
    daemon.kill()
    wall.set(-HOUR_S)
    daemon.start()


def _forward(daemon: Daemon, wall: Wall) -> None:
    del daemon
    wall.set(HOUR_S)


def _forward_across_a_restart(daemon: Daemon, wall: Wall) -> None:
    daemon.kill()
    wall.set(HOUR_S)
    daemon.start()


@pytest.mark.parametrize(
    "jump",
    [
        pytest.param(_back, marks=pytest.mark.long),
        _back_across_a_restart,
        _forward,
        pytest.param(_forward_across_a_restart, marks=pytest.mark.long),
    ],
)
def test_a_jump_of_an_hour_neither_ends_nor_prolongs_a_lease(
    tmp_path: Path, wall: Wall, jump: Any
) -> None:
    with (
        daemon_in(tmp_path, env=wall.env) as daemon,
        Asker(daemon.socket, timeout_s=2 * _SOON_S) as asker,
    ):
        daemon.start()
        asker.post("/v1/graphs", tasks=[{"lease_s": _RENEWED_S} for _ in range(_HELD)])
        record = tmp_path / "healthy"
        held = ("healthy", tmp_path, daemon.socket, record, _HELD, _RENEWED_S)
        with program("hold", *held) as worker:
            worker.until_ready()
            retry = {"max_attempts": 2, "backoff_s": _BACKOFF_S}
            tasks = [{"lease_s": _LEASE_S}, {"lease_s": _LEASE_S, "retry": retry}]
            asker.post("/v1/graphs", tasks=tasks)
            began = time.monotonic()
            silent, failing = asker.post("/v1/tasks/claim", worker="other", count=2)["tasks"]
            failed, token = failing["task"]["task_id"], failing["lease"]["token"]
            asker.post(f"/v1/tasks/{failed}/fail", worker="other", token=token)
            jump(daemon, wall)
            retried_s = _until(asker, "task.ready", failed) - began
            taken_s = _until(asker, "task.requeued", silent["task"]["task_id"]) - began
            clock = next(
                each for each in asker.get("/v1/doctor")["checks"] if each["name"] == "clock"
            )
            worker.stop()
            worker.wait()
        journal = asker.journal()
        asker.hang_up()
        assert daemon.end() == 0
    times = [datetime.fromisoformat(event["at"]) for event in journal]
    assert times == sorted(times)
    assert not [said for said in read_records(record) if said.got == "lost"]
    assert [event["subject"] for event in journal if event["kind"] == "task.requeued"] == [
        failed,
        silent["task"]["task_id"],
    ]
    assert taken_s >= _LEASE_S
    assert clock["state"] == ("warning" if jump in {_back, _back_across_a_restart} else "ok")
    name = f"clock an hour{jump.__name__.replace('_', ' ')}"
    tell(f"{name}: retry, lease after", f"{retried_s:.1f} s, {taken_s:.1f} s")


def test_a_lease_renewed_while_the_wall_was_wrong_ends_when_it_is_right_again(
    tmp_path: Path, wall: Wall
) -> None:
    """An hour ahead and, with the daemon away, back: nothing but renewals told of that hour."""
    with (
        daemon_in(tmp_path, env=wall.env) as daemon,
        Asker(daemon.socket, timeout_s=2 * _SOON_S) as asker,
    ):
        daemon.start()
        asker.post("/v1/tasks", lease_s=_LEASE_S)
        held = asker.post("/v1/tasks/claim", worker="worker")["tasks"][0]
        task_id, token = held["task"]["task_id"], held["lease"]["token"]
        first = datetime.fromisoformat(held["lease"]["expires_at"])
        wall.set(HOUR_S)
        deadline = time.monotonic() + _SOON_S
        ahead_s = 0.0
        while ahead_s < HOUR_S / 2:
            assert time.monotonic() < deadline, "the daemon did not follow the wall"
            # Waits for an event that does not come: a worker that renews now and then.
            asker.get("/v1/events", after="now", timeout_s=0.3)
            beat = asker.post(f"/v1/tasks/{task_id}/heartbeat", token=token, worker="worker")
            assert beat["held"]
            ahead_s = (datetime.fromisoformat(beat["expires_at"]) - first).total_seconds()
        daemon.kill()
        wall.set(0)
        daemon.start()
        _until(asker, "task.requeued", task_id)
        asker.hang_up()
        assert daemon.end() == 0


def _until(asker: Asker, kind: str, task_id: str) -> float:
    """Wait for an event of a task; when it was there."""
    page = asker.get("/v1/events", kinds=kind, subjects=task_id, timeout_s=_SOON_S)
    assert page["events"], f"no {kind} of {task_id} within {_SOON_S:.0f} s"
    return time.monotonic()
