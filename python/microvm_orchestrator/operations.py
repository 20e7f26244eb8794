"""Long work: begun by a call, done by the daemon, looked at by anyone who may.

Above are the services that begin operations; below is the store, where each has a record from
before it starts until long after it ended. No client's leaving ends one. One that was running when
the daemon went down is `lost` when it comes up again: whoever began it decides what to do. But for
kinds of work that are written down step by step: these go on where they were.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from dataclasses import dataclass, field

import anyio
import anyio.abc
from pydantic import JsonValue

from microvm_orchestrator import errors, log
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.operation import OPERATION, Operation, OperationState
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.model.task import TaskError, TaskProgress
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.store.base import Store, Tell
from microvm_orchestrator.store.every import every_record
from microvm_orchestrator.store.seen import find_seen

_log = log.get(__name__)

# Progress is written this often at the most: it is for people.
_PROGRESS_EVERY_S = 0.5
# What is known of an end is worth writing down even while the daemon stops.
_LAST_WORD_S = 2.0

Report = Callable[[float | None, str], Awaitable[None]]
Work = Callable[[Report], Awaitable[JsonValue]]


@dataclass(slots=True)
class _Running:
    operation: Operation
    version: int
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    cancelled: bool = False
    reported_at: float = 0.0


class Operations:
    """The long work of one daemon; lives as long as `running`."""

    def __init__(self, store: Store, *, lasting: Collection[str] = ()) -> None:
        self._store = store
        # The kinds that outlive a daemon: whoever does the work goes on with it.
        self._lasting = lasting
        # Of these, what an earlier daemon was in the middle of, by kind and target.
        self._left: dict[tuple[str, str], _Running] = {}
        self._running: dict[str, _Running] = {}
        self._tasks: anyio.abc.TaskGroup | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Take operations on until the block ends; what runs then is cancelled and `lost`."""
        await self._lose_interrupted()
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            try:
                yield
            finally:
                self._tasks = None
                tasks.cancel_scope.cancel()

    async def begin(self, kind: str, target: str, by: Actor, work: Work) -> Operation:
        """Store a new operation and start its work. Raises: Stopping.

        This is the deed that the audit log tells of; what the work changes are only events.
        """
        tasks = self._tasks
        if tasks is None:
            raise errors.Stopping("the daemon takes on no more work")
        operation = Operation(
            operation_id=new_id("op"),
            kind=kind,
            target=target,
            owner=by.name,
            state=OperationState.RUNNING,
            created_at=moment(await self._store.now()),
        )
        running = _Running(operation, 0)
        tell = Tell("started", {"kind": kind, "target": target}, target=target)
        # Whoever leaves now leaves no operation that nobody works on.
        with anyio.CancelScope(shield=True):
            await self._save(running, by, tell)
            self._running[operation.operation_id] = running
            if self._tasks is None:
                await self._finish(running, {"state": OperationState.LOST, "error": _LOST})
                raise errors.Stopping("the daemon takes on no more work")
            tasks.start_soon(self._perform, running, work)
        return operation

    async def go_on(self, kind: str, target: str, by: Actor, work: Work) -> None:
        """Go on with lasting work as the operation it was; as a new one if it had none.

        Raises: Stopping.
        """
        left = self._left.pop((kind, target), None)
        if left is None:
            await self.begin(kind, target, by, work)
            return
        if self._tasks is None:
            raise errors.Stopping("the daemon takes on no more work")
        self._running[left.operation.operation_id] = left
        self._tasks.start_soon(self._perform, left, work)

    def is_left(self, kind: str, target: str) -> bool:
        """Whether an earlier daemon was in the middle of it, and nobody goes on with it yet."""
        return (kind, target) in self._left

    async def lose_left(self, kind: str) -> None:
        """Call lost what nobody goes on with."""
        for key in [key for key in self._left if key[0] == kind]:
            left = self._left.pop(key)
            self._running[left.operation.operation_id] = left
            await self._finish(left, {"state": OperationState.LOST, "error": _LOST})

    async def get(self, operation_id: str, by: Actor) -> Operation:
        """Raises: NotFound, also for what the actor cannot see."""
        operation = await find_seen(self._store, OPERATION, operation_id, Operation, by)
        if operation is None:
            raise errors.NotFound(
                f"no operation {operation_id}", hint="operation_list shows the operations there are"
            )
        return operation

    def at_work(self, kind: str, target: str) -> str | None:
        """Name the operation of this kind that runs for somebody, if one does."""
        for operation in (running.operation for running in self._running.values()):
            if (operation.kind, operation.target) == (kind, target):
                return operation.operation_id
        return None

    async def cancel(self, operation_id: str, by: Actor) -> None:
        """Ask a running operation to end. Raises: NotFound, StateForbids."""
        operation = await self.get(operation_id, by)
        running = self._running.get(operation_id)
        if running is None:
            raise errors.StateForbids(f"operation {operation_id} is {operation.state}")
        await self._store.note(by, operation_id, "ok")
        running.cancelled = True
        running.scope.cancel()

    async def _perform(self, running: _Running, work: Work) -> None:
        async def report(fraction: float | None, message: str) -> None:
            await self._report(running, fraction, message)

        end: dict[str, object] = {"state": OperationState.LOST, "error": _LOST}
        try:
            with running.scope:
                result = await work(report)
                end = {"state": OperationState.SUCCEEDED, "result": result}
            if running.cancelled and running.scope.cancelled_caught:
                end = {"state": OperationState.CANCELLED, "error": None}
        except errors.Stopping:
            # What it needs went down before it: it has failed no more than what is cancelled then.
            pass
        except errors.OrchestratorError as error:
            told = TaskError.of(error)
            end = {"state": OperationState.FAILED, "error": told}
        except Exception as error:  # noqa: BLE001 - a bug in one work must not end the others
            named = running.operation.operation_id
            _log.error("operation_crashed", operation=named, exc_info=error)
            told = TaskError(code="internal-error", message="it failed in the daemon; see its log")
            end = {"state": OperationState.FAILED, "error": told}
        finally:
            if end["state"] is OperationState.LOST and running.operation.kind in self._lasting:
                # It stays written down as running, and the next daemon goes on with it.
                del self._running[running.operation.operation_id]
            else:
                with anyio.move_on_after(_LAST_WORD_S, shield=True):
                    await self._finish(running, end)

    async def _finish(self, running: _Running, end: dict[str, object]) -> None:
        end["finished_at"] = moment(await self._store.now())
        running.operation = running.operation.model_copy(update=end)
        state = running.operation.state
        try:
            await self._save(running, SYSTEM, Tell(state, _told(running.operation), audited=False))
        except errors.Unavailable as error:
            # The next start finds it running and calls it lost.
            _log.error("operation_end_unwritten", state=state, reason=error.message)
        finally:
            del self._running[running.operation.operation_id]

    async def _report(self, running: _Running, fraction: float | None, message: str) -> None:
        now = anyio.current_time()
        if now - running.reported_at < _PROGRESS_EVERY_S:
            return
        running.reported_at = now
        progress = TaskProgress(fraction=fraction, message=message)
        running.operation = running.operation.model_copy(update={"progress": progress})
        tell = Tell("progress", {"progress": progress.model_dump()}, audited=False)
        await self._save(running, SYSTEM, tell)

    async def _save(self, running: _Running, by: Actor, tell: Tell) -> None:
        operation = running.operation
        record = Record(OPERATION, operation.operation_id, operation.model_dump(mode="json"))
        # What is cancelled meanwhile is saved all the same, and the next version is one more.
        with anyio.CancelScope(shield=True):
            saved = await self._store.save(record, by, expect=running.version, tell=tell)
            running.version = saved.version

    async def _lose_interrupted(self) -> None:
        for record in await every_record(self._store, OPERATION, SYSTEM):
            operation = Operation.model_validate(record.body)
            if not operation.finished:
                lost = _Running(operation, record.version)
                if operation.kind in self._lasting:
                    self._left[operation.kind, operation.target] = lost
                    continue
                self._running[operation.operation_id] = lost
                await self._finish(lost, {"state": OperationState.LOST, "error": _LOST})


_LOST = TaskError(code="lost", message="the daemon ended while this ran")


def _told(operation: Operation) -> dict[str, JsonValue]:
    told: dict[str, JsonValue] = {"kind": operation.kind, "target": operation.target}
    if operation.error is not None:
        told["error"] = operation.error.model_dump()
    return told
