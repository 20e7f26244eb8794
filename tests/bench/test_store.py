"""What the store costs above what SQLite costs, at the same durability, in the same run."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import statistics
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import pytest

from bench.figures import Stopwatch, Timed, median_ms, p95_ms, tell
from microvm_orchestrator import config
from microvm_orchestrator.events import Journal
from microvm_orchestrator.host import open_host
from microvm_orchestrator.model.access import Principal, Role
from microvm_orchestrator.service import journal as journal_calls
from microvm_orchestrator.service import tasks as task_calls
from microvm_orchestrator.service import work
from microvm_orchestrator.service.calls import Caller
from microvm_orchestrator.service.service import Service
from microvm_orchestrator.store.sqlite import SqliteStore

BY_NAME = {call.name: call for part in (task_calls, work, journal_calls) for call in part.CALLS}
VERBS = 4
WORKERS = 32
ROUNDS = 5


async def _silent(done: float, total: float | None, message: str) -> None:
    del done, total, message


ADMIN = Caller(Principal("bench", Role.ADMIN), "bench", _silent)


@contextlib.asynccontextmanager
async def _service(folder: Path) -> AsyncGenerator[Service]:
    folder.mkdir(parents=True)  # noqa: ASYNC240 - before anything else runs
    settings = config.load(None, {}, {"state_dir": str(folder)}).settings
    store = SqliteStore(folder / "store.sqlite")
    async with store.opened(), open_host(settings, store) as host:
        journal = Journal(store)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(journal.pump)
            yield Service(store, journal, host, settings, BY_NAME)
            tasks.cancel_scope.cancel()


async def _life_of_a_task(service: Service, worker: str) -> None:
    await service.invoke(ADMIN, "task_submit", {"title": "bench"})
    claimed = await service.invoke(ADMIN, "task_claim", {"worker": worker})
    lease = claimed.model_dump()["tasks"][0]
    held = {
        "task_id": lease["task"]["task_id"],
        "token": lease["lease"]["token"],
        "worker": worker,
    }
    await service.invoke(ADMIN, "task_heartbeat", held)
    await service.invoke(ADMIN, "task_complete", {**held, "result": {"ok": True}})


async def _through_the_service(folder: Path, tasks: int) -> Timed:
    async with _service(folder) as service:
        await _life_of_a_task(service, "warm")
        numbers = iter(range(tasks))

        async def work(worker: str) -> None:
            for _ in numbers:
                await _life_of_a_task(service, worker)

        with Stopwatch() as watch:
            async with anyio.create_task_group() as group:
                for number in range(WORKERS):
                    group.start_soon(work, f"w{number}")
        return watch.timed


def _schema(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


# The rows the four verbs write, and nothing else: no rule, no check, no look at what is there.
_CREATE, _CLAIM, _HEARTBEAT, _COMPLETE = (
    tuple(statement.strip() for statement in verb.split(";"))
    for verb in (
        """
        INSERT INTO task (seq, id, grp, key, class_id, priority, state, gates_left, attempt,
            failures, expiries, lease_s, on_unmet, policy, created_at, ready_at, version)
            VALUES (:n, :id, 'default', :id, 1, 0, 'ready', 0, 0, 0, 0, 90, 'wait', '[]', 1, 1, 1);
        INSERT INTO task_body (seq, spec) VALUES (:n, :text)
        """,
        """
        UPDATE task SET state = 'running', attempt = 1, worker = 'w', holder = 'b',
            lease_until = 9, expires_at = 9, started_at = 1, version = version + 1 WHERE seq = :n;
        INSERT INTO run (task, attempt, worker, holder, state, waited_s, started_at)
            VALUES (:n, 1, 'w', 'b', 'running', 0, 1)
        """,
        """
        UPDATE task SET lease_until = 10, expires_at = 10, version = version + 1 WHERE seq = :n
        """,
        """
        UPDATE task SET state = 'done', finished_at = 2, lease_until = NULL, expires_at = NULL,
            version = version + 1 WHERE seq = :n;
        UPDATE task_body SET result = :text WHERE seq = :n;
        UPDATE run SET state = 'succeeded', finished_at = 2, result = :text
            WHERE task = :n AND attempt = 1
        """,
    )
)
_RAW_EVENT = (
    "INSERT INTO event (at, kind, subject, grp, class_id, actor, body)"
    " VALUES (1, 'task.done', :id, 'default', 1, 'bench', :text)"
)
_RAW_AUDIT = (
    "INSERT INTO audit (at, actor, role, via, action, target, outcome)"
    " VALUES (1, 'bench', 'admin', 'bench', 'task_complete', :id, 'ok')"
)
_TEXT = '{"task_id":"t_01m7xryph2kxyfeb5eds60x1ps","state":"done","attempt":1,"worker":"w1"}'


async def _raw(folder: Path, tasks: int, group: int) -> Timed:
    """The same rows in the same tables, straight through sqlite3, `group` verbs to a commit."""
    async with _service(folder) as service:
        path = folder / "store.sqlite"
        del service
    connection = _schema(path)
    connection.execute("INSERT INTO class (id, signature) VALUES (1, 'bench')")
    try:
        with Stopwatch() as watch:
            for first in range(0, tasks, group):
                numbers = range(first + 1, min(first + group, tasks) + 1)
                told = (_RAW_EVENT, _RAW_AUDIT)
                for verb in (_CREATE + told, _CLAIM + told, _HEARTBEAT, _COMPLETE + told):
                    connection.execute("BEGIN IMMEDIATE")
                    for n in numbers:
                        row = {"n": n, "id": f"t_{n:026}", "text": _TEXT}
                        for statement in verb:
                            connection.execute(statement, row)
                    connection.execute("COMMIT")
        return watch.timed
    finally:
        connection.close()


def _two_statements(folder: Path, transactions: int) -> Timed:
    """The notes' floor: one insert and one update to a transaction and to a sync."""
    folder.mkdir(parents=True)
    connection = _schema(folder / "raw.sqlite")
    try:
        connection.execute("CREATE TABLE t (i INTEGER PRIMARY KEY, v TEXT)")
        with Stopwatch() as watch:
            for n in range(transactions):
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("INSERT INTO t VALUES (?, ?)", (n, _TEXT))
                connection.execute("UPDATE t SET v = 'x' WHERE i = ?", (n - 1,))
                connection.execute("COMMIT")
        return watch.timed
    finally:
        connection.close()


async def test_the_life_of_a_task_against_raw_transactions(tmp_path: Path, whole: bool) -> None:
    tasks = 2000 if whole else 100
    rounds = ROUNDS if whole else 1
    ours: list[Timed] = []
    raw: list[Timed] = []
    single: list[Timed] = []
    for turn in range(rounds):
        ours.append(await _through_the_service(tmp_path / f"ours{turn}", tasks))
        raw.append(await _raw(tmp_path / f"raw{turn}", tasks, WORKERS))
        single.append(_two_statements(tmp_path / f"single{turn}", tasks))

    def per_s(timings: list[Timed], each: int) -> float:
        return each * tasks / statistics.median(timing.wall_s for timing in timings)

    verbs, floor, alone = per_s(ours, VERBS), per_s(raw, VERBS), per_s(single, 1)
    cpu = statistics.median(t.cpu_s for t in ours) / statistics.median(t.cpu_s for t in raw)
    tell(
        "create-claim-heartbeat-complete",
        f"{verbs:,.0f} verbs/s",
        floor=f"{floor:,.0f}/s raw rows, {WORKERS} to a commit",
        ratio=f"{verbs / floor:.2f} wall, {cpu:.1f}x CPU",
        aim="0.50 or more",
    )
    tell(
        "  against one raw transaction to a sync",
        f"{verbs:,.0f} verbs/s",
        floor=f"{alone:,.0f}/s",
        ratio=f"{verbs / alone:.2f}",
    )
    assert all(timing.wall_s > 0 for timing in itertools.chain(ours, raw, single))


@pytest.mark.parametrize("size", [10_000])
async def test_insertion_into_a_large_graph(tmp_path: Path, whole: bool, size: int) -> None:
    size = size if whole else 500
    probes = 500 if whole else 20
    async with _service(tmp_path / "state") as service:
        for first in range(0, size, 1000):
            tasks = [
                {"key": f"k{n}", "depends_on": [f"k{n - 1}", f"k{n // 2}"] if n > 1 else []}
                for n in range(first, min(first + 1000, size))
            ]
            await service.invoke(ADMIN, "graph_submit", {"tasks": tasks, "group": "large"})
        durations: list[float] = []
        for probe in range(probes):
            spec = {"group": "large", "depends_on": [f"k{probe}", f"k{size - 1 - probe}"]}
            started = time.perf_counter()
            await service.invoke(ADMIN, "task_submit", spec)
            durations.append(time.perf_counter() - started)
    connection = _schema(tmp_path / "floor.sqlite")
    connection.execute("CREATE TABLE t (i INTEGER PRIMARY KEY, v TEXT)")
    floor: list[float] = []
    for n in range(probes):
        started = time.perf_counter()
        connection.execute("INSERT INTO t VALUES (?, ?)", (n, _TEXT))
        floor.append(time.perf_counter() - started)
    connection.close()
    tell(
        f"insertion into a graph of {size:,}",
        f"p95 {p95_ms(durations):.2f} ms",
        floor=f"p95 {p95_ms(floor):.2f} ms, one raw synced insert",
        ratio=f"{median_ms(durations) / median_ms(floor):.1f} of medians",
        aim="p95 under 1 ms",
    )
    assert len(durations) == probes


async def test_an_event_wakes_whoever_waits_for_it(tmp_path: Path, whole: bool) -> None:
    probes = 300 if whole else 10
    delays: list[float] = []
    commits: list[float] = []
    async with _service(tmp_path / "state") as service:
        heard = anyio.Event()
        written = 0.0

        here = (await service.invoke(ADMIN, "event_wait", {"after": "now"})).model_dump()

        async def listen() -> None:
            cursor = here["cursor"]
            for _ in range(probes):
                ask = {"after": cursor, "kinds": ["task.submitted"], "timeout_s": 30.0}
                answer = (await service.invoke(ADMIN, "event_wait", ask)).model_dump()
                delays.append(time.perf_counter() - written)
                cursor = answer["cursor"]
                heard.set()

        async with anyio.create_task_group() as group:
            group.start_soon(listen)
            for _ in range(probes):
                heard = anyio.Event()
                written = time.perf_counter()
                await service.invoke(ADMIN, "task_submit", {})
                commits.append(time.perf_counter() - written)
                with anyio.fail_after(5):
                    await heard.wait()
    tell(
        "event: from the asking to the hearing",
        f"p50 {median_ms(delays):.2f} ms",
        floor=f"p50 {median_ms(commits):.2f} ms until the writer itself is answered",
        ratio=f"{median_ms(delays) / median_ms(commits):.1f}",
        aim="p50 under 15 ms",
    )
    assert len(delays) == probes
