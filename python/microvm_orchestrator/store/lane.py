"""One thread, one connection: work goes in as functions, answers come out when they are on disk.

The writing lane commits in groups: whatever has queued up while the last commit waited for the
disk runs in one transaction, each piece of work in its own savepoint, and nobody is answered before
the commit. So the cost of a sync is shared, and yet no acknowledged write can be lost.
A lane lives from `open` to `close` and owns its connection; the thread never calls back into
anything but the event loop.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import anyio

from microvm_orchestrator import errors

T = TypeVar("T")

# A group stays small enough that its last member does not wait long for its first.
_GROUP_MAX = 256


@dataclass(slots=True)
class _Job(Generic[T]):
    work: Callable[[sqlite3.Connection], T]
    future: asyncio.Future[T]
    answer: T | None = None
    error: BaseException | None = None


class Lane:
    """A thread that owns a connection."""

    def __init__(
        self,
        name: str,
        connect: Callable[[], sqlite3.Connection],
        *,
        writes: bool,
        on_commit: Callable[[], None] = lambda: None,
        on_rollback: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_commit` runs in the event loop, `on_rollback` in the lane's thread."""
        self._name = name
        self._connect = connect
        self._writes = writes
        self._on_commit = on_commit
        self._on_rollback = on_rollback
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread: threading.Thread | None = None

    async def open(self) -> None:
        """Raises: what `connect` raises, translated."""
        opened: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._main, args=(opened,), name=self._name)
        self._thread.start()
        await opened

    async def close(self) -> None:
        """Finish what was asked for and end the thread."""
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        self._jobs.put(None)
        # A thread that outlived its event loop could answer nobody.
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(thread.join)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` returns, once it is on disk. A caller who is cancelled cancels nothing."""
        if self._thread is None:
            raise errors.Stopping("the store is closed")
        job = _Job(work, self._loop.create_future())
        self._jobs.put(job)
        return await job.future

    def _main(self, opened: asyncio.Future[None]) -> None:
        try:
            connection = self._connect()
        except BaseException as error:  # noqa: BLE001 - it is handed to the one who waits for it
            self._loop.call_soon_threadsafe(_answer, opened, None, translated(error))
            return
        self._loop.call_soon_threadsafe(_answer, opened, None, None)
        try:
            while (job := self._jobs.get()) is not None:
                done = (
                    self._group(connection, job) if self._writes else [self._alone(connection, job)]
                )
                self._loop.call_soon_threadsafe(self._deliver, done)
        finally:
            connection.close()

    def _alone(self, connection: sqlite3.Connection, job: _Job[Any]) -> _Job[Any]:
        try:
            # An answer put together from several reads is of one moment.
            connection.execute("BEGIN")
            try:
                job.answer = job.work(connection)
            finally:
                # After some errors the engine has ended the transaction itself.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except Exception as error:  # noqa: BLE001 - it is handed to the one who waits for it
            job.error = translated(error)
        return job

    def _group(self, connection: sqlite3.Connection, first: _Job[Any]) -> list[_Job[Any]]:
        done: list[_Job[Any]] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for job in self._queued(first):
                done.append(job)
                self._in_savepoint(connection, job)
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - every member of the group is told
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._on_rollback()
            failure = translated(error)
            for job in done or [first]:
                # One that was refused on its own merits keeps its own reason.
                job.error = job.error or failure
            return done or [first]
        return done

    def _queued(self, first: _Job[Any]) -> Iterator[_Job[Any]]:
        yield first
        for _ in range(_GROUP_MAX - 1):
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job is None:
                # The end: finish this group first, then read the mark again.
                self._jobs.put(None)
                return
            yield job

    def _in_savepoint(self, connection: sqlite3.Connection, job: _Job[Any]) -> None:
        connection.execute("SAVEPOINT job")
        try:
            job.answer = job.work(connection)
        except Exception as error:
            job.error = translated(error)
            self._on_rollback()
            if not connection.in_transaction:
                # The engine gave up the whole transaction (disk full, input/output error).
                raise
            connection.execute("ROLLBACK TO job")
        connection.execute("RELEASE job")

    def _deliver(self, done: list[_Job[Any]]) -> None:
        changed = False
        for job in done:
            changed = changed or job.error is None
            _answer(job.future, job.answer, job.error)
        if changed and self._writes:
            self._on_commit()


def _answer(future: asyncio.Future[Any], answer: object, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is None:
        future.set_result(answer)
    else:
        future.set_exception(error)


_BY_CODE: dict[int, tuple[type[errors.Unavailable], str, str]] = {
    sqlite3.SQLITE_FULL: (
        errors.StoreFull,
        "the disk under the store is full",
        "free some space; nothing that was acknowledged is lost, and no restart is needed",
    ),
    sqlite3.SQLITE_READONLY: (
        errors.StoreReadOnly,
        "the store cannot be written",
        "check the owner and the mode of the state directory, and that its disk is mounted rw",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        errors.StoreReadOnly,
        "the store's file cannot be opened",
        "check that the state directory exists and belongs to the daemon's user",
    ),
    sqlite3.SQLITE_CORRUPT: (
        errors.StoreCorrupt,
        "the store's file is damaged",
        "stop the daemon, keep the file, and put a backup in its place",
    ),
    sqlite3.SQLITE_NOTADB: (
        errors.StoreCorrupt,
        "the store's file is not a database",
        "stop the daemon, keep the file, and put a backup in its place",
    ),
    sqlite3.SQLITE_IOERR: (
        errors.Unavailable,
        "the disk under the store answered with an error",
        "look into the kernel's log for the disk",
    ),
    sqlite3.SQLITE_BUSY: (
        errors.Unavailable,
        "another program holds the store's lock",
        "only the daemon may write it; close other programs that have the file open",
    ),
}


def translated(error: BaseException) -> BaseException:
    """An engine's error in our words; ours, and what is a bug, as they are."""
    if not isinstance(error, sqlite3.Error):
        return error
    # The low byte is the primary code; the rest says where it was met.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code not in _BY_CODE:
        return error
    kind, message, hint = _BY_CODE[code]
    ours = kind(f"{message} ({error})", hint=hint)
    ours.__cause__ = error
    return ours
