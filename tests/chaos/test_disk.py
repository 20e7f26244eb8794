"""Disks that are full, broken, read-only or hold something else than our store."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from bench.figures import tell
from chaos.ask import Answer, Asker
from chaos.crew import program
from chaos.disks import fill, read_only, small_tmpfs
from chaos.process import Daemon, DidNotStart, daemon_in
from chaos.record import read_records
from machines import LONG_S
from system.living import living

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_PAYLOAD = "x" * 20_000
# Far more than fits.
_TRIES = 2000
_LEASE_S = 3.0


@dataclass(frozen=True, slots=True)
class Filled:
    """What was acknowledged until the first refusal, and the refusal."""

    acknowledged: list[str]
    refusal: Answer


def _submit_until_refused(asker: Asker, name: str) -> Filled:
    acknowledged: list[str] = []
    for number in range(_TRIES):
        title = f"{name} {number}"
        answer = asker.ask("POST", "/v1/tasks", {"title": title, "input": _PAYLOAD})
        if not answer.ok:
            return Filled(acknowledged, answer)
        acknowledged.append(title)
    pytest.fail("the disk takes everything")


def _assert_all_there(asker: Asker, acknowledged: list[str]) -> None:
    """Each acknowledged task once, none of the refused ones, no gap, and a clean bill of health."""
    titles = [task["title"] for task in asker.pages("/v1/tasks")]
    assert sorted(titles) == sorted(acknowledged)
    journal = asker.journal()
    assert [event["seq"] for event in journal] == list(range(1, len(journal) + 1))
    submitted = [event for event in journal if event["kind"] == "task.submitted"]
    assert [event["body"]["title"] for event in submitted] == acknowledged
    assert asker.get("/v1/doctor")["healthy"]


def _assert_readable(asker: Asker, title: str) -> None:
    listed = asker.get("/v1/tasks", text=title)["items"]
    assert asker.get(f"/v1/tasks/{listed[0]['task_id']}")["input"] == _PAYLOAD
    assert asker.get("/v1/events", limit=10)["events"]
    assert asker.get("/v1/doctor")["healthy"]


def test_a_full_disk_refuses_changes_and_loses_nothing(disks: Path) -> None:
    with (
        small_tmpfs(disks / "mnt", 16) as at,
        daemon_in(disks, state_dir=at / "state") as daemon,
        Asker(daemon.socket) as asker,
    ):
        daemon.start()
        worker = {"worker": "worker", "lease_s": 60.0}
        asker.post("/v1/tasks", title="held", input=_PAYLOAD)
        held = asker.post("/v1/tasks/claim", **worker)["tasks"][0]
        filler = fill(at, leave_kib=4096)
        filled = _submit_until_refused(asker, "before")
        assert (filled.refusal.status, filled.refusal.code) == (503, "store-full")
        assert "free some space" in filled.refusal.body["hint"]
        told = {"worker": "worker", "token": held["lease"]["token"], "result": _PAYLOAD * 40}
        complete = f"/v1/tasks/{held['task']['task_id']}/complete"
        assert asker.ask("POST", complete, told).code == "store-full"
        _assert_readable(asker, "before 0")
        pid = daemon.pid
        filler.unlink()
        after = [f"after {number}" for number in range(20)]
        for title in after:
            asker.post("/v1/tasks", title=title, input=_PAYLOAD)
        assert asker.post(complete, **told)["task"]["state"] == "done"
        assert daemon.pid == pid, "it was started anew"
        _assert_all_there(asker, ["held", *filled.acknowledged, *after])
        asker.hang_up()
        assert daemon.end() == 0
    tell("disk full: acknowledged before, lost", f"{len(filled.acknowledged)}, 0", aim="0 lost")


def test_a_full_disk_takes_no_healthy_run_away(disks: Path) -> None:
    record = disks / "healthy"
    with (
        small_tmpfs(disks / "mnt", 16) as at,
        daemon_in(disks, state_dir=at / "state") as daemon,
        Asker(daemon.socket, timeout_s=60) as asker,
    ):
        daemon.start()
        asker.post("/v1/graphs", tasks=[{"lease_s": _LEASE_S} for _ in range(10)])
        with program("hold", "healthy", disks, daemon.socket, record, 10, _LEASE_S) as worker:
            worker.until_ready()
            filler = fill(at)
            _submit_until_refused(asker, "filler")
            # Nothing can be written, so nothing comes: this only takes longer than the leases.
            cursor = asker.get("/v1/events", after="now")["cursor"]
            page = asker.get("/v1/events", after=cursor, timeout_s=2 * _LEASE_S + 1)
            assert not page["events"]
            filler.unlink()
            # As long as a run may take to be taken away: twice its lease, a sweep, and some more.
            asker.get("/v1/events", after=cursor, kinds="task.requeued", timeout_s=9.0)
            worker.stop()
            worker.wait()
        requeued = asker.get("/v1/events", kinds="task.requeued")["events"]
        asker.hang_up()
        assert daemon.end() == 0
    said = read_records(record)
    assert said[-1].answer["refused"] > 0, "no renewal was refused, so nothing was shown"
    lost = [one for one in said if one.got == "lost"]
    tell("disk full for 7 s, lease 3 s: healthy runs taken", f"{len(requeued)} of 10", aim="0")
    assert (lost, requeued) == ([], [])


def test_a_disk_that_answers_with_errors_loses_nothing_and_is_outlived(tmp_path: Path) -> None:
    with daemon_in(tmp_path) as daemon, Asker(daemon.socket) as asker:
        daemon.start()
        asker.post("/v1/tasks", title="first", input=_PAYLOAD)
        largest = max(file.stat().st_size for file in daemon.state_dir.iterdir())
        _limit_files(daemon, largest + 1_048_576)
        filled = _submit_until_refused(asker, "before")
        assert (filled.refusal.status, filled.refusal.code) == (503, "unavailable")
        _assert_readable(asker, "before 0")
        _limit_files(daemon, resource.RLIM_INFINITY)
        asker.post("/v1/tasks", title="after", input=_PAYLOAD)
        _assert_all_there(asker, ["first", *filled.acknowledged, "after"])
        asker.hang_up()
        assert daemon.end() == 0


def _limit_files(daemon: Daemon, size: int) -> None:
    _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (size, hard))


# Starting on something that cannot be used


def _refused(daemon: Daemon) -> DidNotStart:
    with pytest.raises(DidNotStart) as refused:
        daemon.start()
    assert refused.value.status not in {0, -9, -11}
    assert "Traceback" not in refused.value.log
    return refused.value


@pytest.mark.parametrize("stored", [True, False], ids=["with a store", "empty"])
def test_a_state_directory_that_cannot_be_written_is_named(
    request: pytest.FixtureRequest, tmp_path: Path, stored: bool
) -> None:
    if os.geteuid() == 0:
        request.getfixturevalue("disks")  # modes do not bind root
    with daemon_in(tmp_path) as daemon:
        if stored:
            daemon.start()
            daemon.end()
        daemon.state_dir.mkdir(exist_ok=True)
        with read_only(daemon.state_dir):
            refused = _refused(daemon)
        assert (refused.code, str(daemon.state_dir) in refused.log) == ("store-read-only", True)
        daemon.start()  # and once it can be written, all is well
        assert daemon.end() == 0


def test_a_store_of_a_newer_release_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with daemon_in(tmp_path) as daemon:
        _with_tasks(daemon)
        with contextlib.closing(sqlite3.connect(daemon.store)) as connection:
            connection.execute("PRAGMA user_version = 999")
        before = daemon.store.read_bytes()
        assert _refused(daemon).code == "schema-too-new"
        assert daemon.store.read_bytes() == before


def test_a_second_daemon_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with daemon_in(tmp_path) as first, Asker(first.socket) as asker:
        first.start()
        other = tmp_path / "other"
        other.mkdir()
        same_state = Daemon(first.state_dir, other / "socket", other / "a.log")
        same_socket = Daemon(other / "state", first.socket, other / "b.log")
        assert _refused(same_state).code == "already-running"
        assert _refused(same_socket).code == "already-running"
        asker.post("/v1/tasks", title="still here")
        asker.hang_up()
        assert first.end() == 0


def test_what_a_dead_daemon_left_behind_is_in_nobodys_way(tmp_path: Path) -> None:
    with daemon_in(tmp_path) as daemon, Asker(daemon.socket) as asker:
        daemon.start()
        asker.post("/v1/tasks", title="kept")
        daemon.kill()
        assert daemon.socket.exists()
        assert {file.name for file in daemon.state_dir.iterdir()} >= {"lock", "store.db-wal"}
        daemon.start()
        assert [task["title"] for task in asker.get("/v1/tasks")["items"]] == ["kept"]
        asker.hang_up()
        assert daemon.end() == 0
        left = {file.name for file in daemon.state_dir.iterdir()}
        assert left == {"artifacts", "lock", "repos", "runs", "store.db"}
        assert not daemon.socket.exists()


# Damage


def _with_tasks(daemon: Daemon) -> None:
    daemon.start()
    with Asker(daemon.socket) as asker:
        tasks = [{"title": f"task {number}", "input": "y" * 500} for number in range(500)]
        asker.post("/v1/graphs", tasks=tasks)
    assert daemon.end() == 0


def _text(store: Path) -> None:
    store.write_text("This is a shopping list: milk, bread, a database.\n" * 100)


def _empty(store: Path) -> None:
    store.write_bytes(b"")


def _gone(store: Path) -> None:
    """Leave only the log, as after a crash and a mistake."""
    store.rename(store.with_name("store.db-wal"))


def _cut_off(store: Path) -> None:
    os.truncate(store, store.stat().st_size // 2 // 4096 * 4096)


def _cut_within_a_page(store: Path) -> None:
    os.truncate(store, 5000)


def _header(store: Path) -> None:
    _overwrite(store, 0, 100)


def _schema(store: Path) -> None:
    _overwrite(store, 100, 4096)


def _a_fifth(store: Path) -> None:
    """Overwrite every fifth page, but not the first."""
    for page in range(3, store.stat().st_size // 4096, 5):
        _overwrite(store, page * 4096, (page + 1) * 4096)


def _what_tells_of_a_task(store: Path) -> None:
    """Overwrite single pages of the journal and of the tasks, which no start reads."""
    data = store.read_bytes()
    marker = b'"title":"task 77"'
    found = data.find(marker)
    while found >= 0:
        _overwrite(store, found // 4096 * 4096, found // 4096 * 4096 + 4096)
        found = data.find(marker, found + 1)


def _overwrite(store: Path, first: int, end: int) -> None:
    with store.open("r+b") as file:
        file.seek(first)
        file.write(random.Random(1).randbytes(end - first))


@pytest.mark.parametrize(
    "damage",
    [
        _text,
        _empty,
        _gone,
        _cut_off,
        _cut_within_a_page,
        _header,
        _schema,
        _a_fifth,
        _what_tells_of_a_task,
    ],
)
def test_a_damaged_store_is_told_and_never_made_anew(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    with daemon_in(tmp_path) as daemon:
        _with_tasks(daemon)
        damage(daemon.store)
        before = _bytes_of(daemon.state_dir)
        told = [_told(daemon), _told(daemon)]
        assert set(told) <= {"store-corrupt at start", "store-corrupt at doctor"}
        if told[0] == "store-corrupt at start":
            assert _bytes_of(daemon.state_dir) == before
    tell(f"damage: {damage.__name__.strip('_').replace('_', ' ')}", told[0])


def _bytes_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _told(daemon: Daemon) -> str:
    """Start on the damaged store and say where it was noticed; one that starts must live on."""
    try:
        daemon.start()
    except DidNotStart as refused:
        if "Traceback" in refused.log or refused.status != 1:
            raise
        return f"{refused.code} at start"
    with Asker(daemon.socket) as asker:
        found: list[Any] = []
        for path in ("/v1/tasks?limit=200", "/v1/events?after=begin&timeout_s=3", "/v1/doctor"):
            answer = asker.ask("GET", path)
            assert answer.ok or answer.code == "store-corrupt", answer
            found.append(answer)
        claim = asker.ask("POST", "/v1/tasks/claim", {"worker": "w", "wait_s": 1.0})
        assert claim.ok or claim.code == "store-corrupt", claim
        doctor = found[-1]
    assert daemon.end() == 0, daemon.tail()
    unwell = doctor.code == "store-corrupt" or not doctor.body["healthy"]
    return "store-corrupt at doctor" if unwell else "not noticed"


@pytest.mark.long
def test_a_machine_for_whose_memory_there_is_no_room_is_not_saved_and_goes_on(disks: Path) -> None:
    with small_tmpfs(disks / "mnt", 256) as at, living(at / "state") as stage:
        stage.boot("box")
        filler = fill(at, leave_kib=8192)
        failed = stage.ask("snapshot_create", machine="box", wait_s=LONG_S)["error"]
        assert failed["code"] == "machine-failed"
        assert "No space left on device" in failed["message"]
        filler.unlink()
        assert stage.ask("snapshot_list")["items"] == []
        assert stage.said("box", "hostname") == "box\n"
        stage.done("snapshot_create", machine="box")
