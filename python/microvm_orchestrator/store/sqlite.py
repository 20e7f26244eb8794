"""The embedded engine: SQLite in WAL mode, synchronous=FULL, one writing thread.

`SqliteStore` is the store's face: it gives each verb a `Tx` in the right lane and adds nothing of
its own. Above it is the service; below are the modules that know the tables. It lives as long as
the daemon and is the only writer of its file.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import anyio
import structlog
from pydantic import JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.store import (
    amend,
    figures,
    groups,
    hosts,
    journal,
    lease,
    lists,
    registry,
    reports,
)
from microvm_orchestrator.store import questions as q
from microvm_orchestrator.store import settle as settling
from microvm_orchestrator.store import submit as submitting
from microvm_orchestrator.store import sweep as sweeping
from microvm_orchestrator.store.base import (
    SWEEP_EVERY_S,
    Address,
    Amended,
    Beat,
    Change,
    Claimed,
    Events,
    Graph,
    Health,
    InGroup,
    Keep,
    Match,
    Offer,
    Outcome,
    Ref,
    Renewed,
    Settled,
    Submitted,
    Swept,
    Tell,
    WorkerCard,
)
from microvm_orchestrator.store.clock import Clock
from microvm_orchestrator.store.file import connect, count_of, problems_of, refuse_damaged, sync
from microvm_orchestrator.store.lane import Lane, translated
from microvm_orchestrator.store.migrate import migrate, schema_version
from microvm_orchestrator.store.rows import Classes, Tx

T = TypeVar("T")
log = structlog.get_logger(__name__)

# A sweep this long after the last means that the daemon was frozen, and with it every renewal.
# Shorter freezes go unnoticed, so leases should be three times this and more.
_FROZEN_S = 2 * SWEEP_EVERY_S
# How much of its time a store forgets at the most when the wall was set back while it was closed.
_NOTE_TIME_EVERY_S = 30.0

_ANSWERS: dict[type[Any], Callable[[Tx, Any], Any]] = {
    q.OneTask: lists.one_task,
    q.TaskList: lists.task_list,
    q.FullTaskList: lists.full_task_list,
    q.RunList: lists.run_list,
    q.RecordById: lists.record_by_id,
    q.RecordList: lists.record_list,
    q.WorkerByName: lists.worker_by_name,
    q.WorkerList: lists.worker_list,
    q.AuditList: lists.audit_list,
    q.GroupList: groups.group_list,
    q.OneGroup: groups.one_group,
    q.GroupAnalysis: reports.group_report,
    q.Figures: figures.figures,
}
# Questions that look at much; they have a lane of their own, so that no `task_get` waits for them.
_SLOW = frozenset(
    {q.TaskList, q.FullTaskList, q.GroupList, q.OneGroup, q.GroupAnalysis, q.Figures, q.AuditList}
)


class SqliteStore(hosts.SqliteHosts):
    """A store in one file."""

    def __init__(self, path: Path, clock: Callable[[float], Clock] = Clock) -> None:
        """`clock` is given the moment before which it must not begin."""
        self.path = path
        self._start_clock = clock

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncGenerator[None]:
        self._listeners: set[anyio.Event] = set()
        self._refusals = self._refusals_forgiven = 0
        self._classes = Classes()
        self._seen_classes = {name: Classes() for name in ("quick", "slow")}
        writer = Lane(
            "store-writer",
            self._connect_writer,
            writes=True,
            on_commit=self._wake,
            on_rollback=self._classes.forget,
        )
        readers = {
            name: Lane(f"store-{name}", self._connect_reader, writes=False)
            for name in self._seen_classes
        }
        async with contextlib.AsyncExitStack() as stack:
            for lane in (writer, *readers.values()):
                # Pushed before it opens: one that fails must not leave its thread running.
                stack.push_async_callback(lane.close)
                await lane.open()
            self._writer, self._readers = writer, readers
            extended = await self._write(SYSTEM, sweeping.grace)
            self._swept_at = self._reachable_since = self._time_noted_at = self._clock.now()
            self._stepped_s = 0.0
            log.info("store_opened", path=str(self.path), leases_extended=extended)
            yield

    # Connections

    def _connect_writer(self) -> sqlite3.Connection:
        connection = connect(self.path)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            migrate(connection)
            connection.execute(
                "INSERT OR IGNORE INTO meta (name, value) VALUES ('epoch', ?)",
                (secrets.token_hex(8),),
            )
            known = connection.execute(
                "SELECT cast(value AS REAL) FROM meta WHERE name = 'time'"
                " UNION ALL SELECT * FROM (SELECT at FROM event ORDER BY seq DESC LIMIT 1)"
            )
            self._clock = self._start_clock(max((at for (at,) in known), default=0.0))
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect_reader(self) -> sqlite3.Connection:
        connection = connect(self.path)
        connection.execute("PRAGMA query_only = ON")
        return connection

    # Lanes

    async def _write(self, by: Actor, verb: Callable[[Tx], T]) -> T:
        return await self._change(
            lambda connection: verb(Tx(connection, self._classes, self._clock.now(), by))
        )

    async def _change(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._writer.run(work)
        except errors.Unavailable:
            # It may have been a renewal, whose holder is not to blame.
            self._refusals += 1
            raise

    async def _read(self, by: Actor, read: Callable[[Tx], T], *, slow: bool = False) -> T:
        name = "slow" if slow else "quick"
        classes = self._seen_classes[name]
        return await self._readers[name].run(
            lambda connection: read(Tx(connection, classes, self._clock.now(), by))
        )

    # Verbs

    async def submit(self, graph: Graph, by: Actor) -> Submitted:
        return await self._write(by, lambda tx: submitting.submit(tx, graph))

    async def claim(self, offer: Offer, by: Actor) -> Claimed:
        return await self._write(by, lambda tx: lease.claim(tx, offer))

    async def renew(self, beats: Sequence[Beat], by: Actor) -> list[Renewed]:
        return await self._write(by, lambda tx: lease.renew(tx, beats))

    async def settle(self, ref: Ref, outcome: Outcome, by: Actor) -> Settled:
        return await self._write(by, lambda tx: settling.settle(tx, ref, outcome))

    async def amend(self, which: Address | InGroup, change: Change, by: Actor) -> Amended:
        return await self._write(by, lambda tx: amend.amend(tx, which, change))

    async def sweep(self, keep: Keep) -> Swept:
        refusals = self._refusals
        swept, self._swept_at = await self._change(lambda lane: self._sweep(lane, keep))
        # Only now is it on disk: a grace that was not written is still owed.
        if swept.grace_s:
            log.warning("leases_given_grace", away_s=round(swept.grace_s, 3))
        self._stepped_s = 0.0
        self._refusals_forgiven = refusals
        return swept

    def _sweep(self, connection: sqlite3.Connection, keep: Keep) -> tuple[Swept, float]:
        self._stepped_s += self._clock.step()
        now = self._clock.now()
        late_s = now - self._swept_at
        tx = Tx(connection, self._classes, now, SYSTEM)
        refused = self._refusals > self._refusals_forgiven
        away = self._stepped_s > 0 or late_s > _FROZEN_S or refused
        if away:
            # Nobody could renew meanwhile: first the grace, then the sweep.
            self._reachable_since = now
            sweeping.grace(tx)
        swept = sweeping.sweep(tx, keep, self._reachable_since)
        if away or (swept.next_at is not None and now > self._time_noted_at + _NOTE_TIME_EVERY_S):
            tx.run("INSERT OR REPLACE INTO meta (name, value) VALUES ('time', ?)", repr(now))
            self._time_noted_at = now
        return replace(swept, grace_s=max(self._stepped_s, late_s) if away else 0.0), now

    async def enlist(self, card: WorkerCard, ttl_s: float, by: Actor) -> None:
        await self._write(by, lambda tx: registry.enlist(tx, card, ttl_s))

    async def drain(self, worker: str, *, draining: bool, by: Actor) -> None:
        await self._write(by, lambda tx: registry.drain(tx, worker, draining=draining))

    async def dismiss(self, worker: str, by: Actor) -> None:
        await self._write(by, lambda tx: registry.dismiss(tx, worker))

    async def save(
        self, record: Record, by: Actor, *, expect: int | None = None, tell: Tell | None = None
    ) -> Record:
        return await self._write(by, lambda tx: registry.save(tx, record, expect, tell))

    async def erase(self, kind: str, id: str, by: Actor) -> bool:
        return await self._write(by, lambda tx: registry.erase(tx, kind, id))

    async def note(self, by: Actor, target: str, outcome: str) -> None:
        await self._write(by, lambda tx: tx.audit(target, outcome))

    # Reading

    async def events(self, after: str | None, match: Match, limit: int, by: Actor) -> Events:
        return await self._read(
            by, lambda tx: journal.read_events(tx.connection, tx.classes, after, match, limit, by)
        )

    async def cursor(self) -> str:
        return await self._read(
            SYSTEM,
            lambda tx: journal.write_cursor(
                journal.epoch_of(tx.connection), journal.end_of(tx.connection)
            ),
        )

    async def query(self, question: q.Query[T], by: Actor) -> T:
        answer = cast("Callable[[Tx, q.Query[T]], T]", _ANSWERS[type(question)])
        return await self._read(by, lambda tx: answer(tx, question), slow=type(question) in _SLOW)

    @contextlib.asynccontextmanager
    async def hints(self) -> AsyncGenerator[AsyncIterator[None]]:
        listener = [anyio.Event()]
        self._listeners.add(listener[0])

        async def changes() -> AsyncGenerator[None]:
            while True:
                await listener[0].wait()
                listener[0] = anyio.Event()
                self._listeners.add(listener[0])
                yield

        try:
            async with contextlib.aclosing(changes()) as looks:
                yield looks
        finally:
            self._listeners.discard(listener[0])

    def _wake(self) -> None:
        woken, self._listeners = self._listeners, set()
        for listener in woken:
            listener.set()

    # Care

    async def now(self) -> float:
        return self._clock.now()

    async def backup(self, to: Path) -> None:
        """A consistent copy, while running; it is complete and synced when this returns.

        Raises: AlreadyExists, StoreFull, StoreReadOnly.
        """
        await anyio.to_thread.run_sync(self._backup, to)

    def _backup(self, to: Path) -> None:
        unfinished = to.with_name(f".{to.name}.unfinished")
        try:
            if to.exists():
                raise errors.AlreadyExists(f"{to} already exists", hint="choose another name")
            unfinished.unlink(missing_ok=True)
            # It holds secrets as the store does: at no moment does anybody else read it.
            unfinished.touch(mode=0o600)
            with contextlib.closing(connect(self.path)) as source:
                source.execute("VACUUM INTO ?", (str(unfinished),))
            with contextlib.closing(connect(unfinished)) as copy:
                refuse_damaged(copy)
                # Cursors point into a history that a restored store no longer continues.
                copy.execute(
                    "UPDATE meta SET value = ? WHERE name = 'epoch'", (secrets.token_hex(8),)
                )
            sync(unfinished)
            unfinished.rename(to)
            sync(to.parent)
        except sqlite3.Error as error:
            raise translated(error) from error
        except OSError as error:
            raise errors.StoreReadOnly(f"cannot write the backup {to}: {error.strerror}") from error
        finally:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)

    async def check(self) -> Health:
        """Read the whole store and say what is wrong with it."""
        return await anyio.to_thread.run_sync(self._check)

    def _check(self) -> Health:
        started = time.monotonic()
        with contextlib.closing(self._connect_reader()) as connection:
            problems = problems_of(connection)
            facts: dict[str, JsonValue] = {
                "schema": schema_version(connection),
                "bytes": self.path.stat().st_size,
                "tasks": count_of(connection, "task"),
                "events": count_of(connection, "event"),
                "clock_behind_s": round(self._clock.behind(), 3),
                "seconds": round(time.monotonic() - started, 3),
            }
        return Health(f"SQLite {sqlite3.sqlite_version}", tuple(problems), facts)
