"""The runs of this host: it claims tasks as a worker does, and sees each through in a machine.

A task that says how it is to be run is claimed by no one else. How far a run has come is written
down step by step, so a daemon that comes up again goes on with those whose lease it still holds,
and puts away what is left of the others. Above are the host and the service; below, the lifecycle.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from microvm_orchestrator import errors, log
from microvm_orchestrator.lifecycle import anew, budget, review
from microvm_orchestrator.lifecycle.live import OUTPUT, Ground, live
from microvm_orchestrator.lifecycle.output import texts
from microvm_orchestrator.lifecycle.place import put_away
from microvm_orchestrator.lifecycle.run import Run
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.records import SYSTEM, Actor
from microvm_orchestrator.model.run import (
    IN_A_MACHINE,
    RUN,
    Budget,
    MergeState,
    Result,
    RunRecord,
    Step,
)
from microvm_orchestrator.model.task import Task, TaskError, TaskProgress
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.store.base import (
    Address,
    Beat,
    Done,
    Failed,
    Match,
    Offer,
    Outcome,
    Ref,
    Released,
    Store,
)
from microvm_orchestrator.store.every import every_record
from microvm_orchestrator.store.questions import OneTask, RecordById

if TYPE_CHECKING:
    from pathlib import Path

    from anyio.abc import TaskGroup

    from microvm_orchestrator.model.task import Lease

_log = log.get(__name__)

# As which worker this host claims.
WORKER = "host"
# How long a host may be silent: a daemon that is restarted, or an engine that hangs.
_LEASE_S = 120.0
_RENEW_EVERY_S = 20.0
# What is known of an end is worth writing down even while the daemon stops.
_LAST_WORD_S = 5.0
_MERGED = frozenset({MergeState.NONE, MergeState.MERGED})
# Why a task failed whose program did not.
_CODES = {
    MergeState.CONFLICT: "merge-conflict",
    MergeState.CHECK_FAILED: "check-failed",
    MergeState.REJECTED: "merge-rejected",
    MergeState.FAILED: "merge-failed",
}
# Of each channel, what a callback carries: whoever wants all of it reads it here.
_MESSAGE_MOST = 1 << 18
# The store says no more now; soon it may.
_AGAIN_S = 1.0

_HOST = Actor(WORKER, Role.ADMIN, "run", "run")


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many runs this host has at a time; machines wait for their places beyond that."""

    count: int


class Runs:
    """The runs of one daemon; they live as long as `running`."""

    def __init__(self, store: Store, ground: Ground, count: int) -> None:
        self._store = store
        self._ground = ground
        self._count = count
        self._live: dict[str, Run] = {}
        # Held from looking what was decided until it is written down.
        self._deciding = anyio.Lock()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Go on with what was begun and claim more until the block ends. Machines go on then."""
        async with anyio.create_task_group() as tasks:
            await self._take_up(tasks)
            tasks.start_soon(self._claim, tasks)
            tasks.start_soon(self._renew)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    def output(self, run_id: str) -> Path:
        """The file with what a run's program said; there may be none yet."""
        return self._ground.output(run_id)

    async def said(self, run_id: str) -> tuple[str, str]:
        """What a run's program said by now on each of its channels, as much as a message takes."""
        return await anyio.to_thread.run_sync(texts, self.output(run_id), _MESSAGE_MOST)

    def find(self, task_id: str) -> Run | None:
        """The run of a task that is under way here."""
        return self._live.get(task_id)

    async def resume(self, task_id: str, changes: Budget) -> None:
        """Let a run that is paused go on; limits that are left out stay as they are.

        Raises: StateForbids; InvalidInput for a limit that is reached already.
        """
        run = self._live.get(task_id)
        if run is None:
            raise errors.StateForbids(f"no run of task {task_id} is under way on this host")
        given = changes.model_dump(exclude_none=True)
        await budget.resume(run, run.record.budget.model_copy(update=given))

    @property
    def _busy(self) -> int:
        """How many take a place: one that is paused has its machine, and takes nothing else.

        One that somebody is to look at has not even that, nor has one that is over.
        """
        return sum(
            run.record.paused is None and run.record.step not in {Step.REVIEWING, Step.OVER}
            for run in self._live.values()
        )

    async def decide(self, task_id: str, *, approved: bool, by: str, message: str) -> None:
        """Say what becomes of the commits of a run that waits to be reviewed.

        Raises: StateForbids.
        """
        run = self._live.get(task_id)
        if run is None:
            raise errors.StateForbids(f"no run of task {task_id} is under way on this host")
        async with self._deciding:
            await review.decide(run, approved=approved, by=by, message=message)

    async def merge_again(self, task_id: str, by: Actor) -> RunRecord:
        """Let the commits of a task be merged once more. Raises: as `anew.ask`."""
        async with self._deciding:
            return await anew.ask(self._store, task_id, by)

    # Claims

    async def _claim(self, tasks: TaskGroup) -> None:
        cursor = await self._store.cursor()
        looked = ""
        async with self._store.hints() as changes:
            async for _ in changes:
                with contextlib.suppress(errors.Unavailable):
                    cursor = await self._hear(cursor)
                    # To ask for work writes that we asked, which is a change, but nothing that
                    # the journal tells: without this a host would never rest.
                    end = await self._store.cursor()
                    if end != looked:
                        await self._claim_what_fits(tasks)
                        looked = end

    async def _claim_what_fits(self, tasks: TaskGroup) -> None:
        while (room := self._count - self._busy) > 0:
            offer = Offer(WORKER, frozenset({IN_A_MACHINE}), count=room, lease_s=_LEASE_S)
            claimed = await self._store.claim(offer, _HOST)
            if not claimed.tasks:
                return
            for task, lease in claimed.tasks:
                await self._begin(tasks, task, lease)

    async def _begin(self, tasks: TaskGroup, task: Task, lease: Lease) -> None:
        spec = task.run
        ref = Ref(Address(task.task_id), lease.token, WORKER)
        if spec is None:
            await self._store.settle(ref, Released("it is for workers"), _HOST)
            return
        run_id, now = f"{task.task_id}.{task.attempt}", moment(await self._store.now())
        record = await anew.continued(self._store, task, run_id, now)
        if record is None:
            record = RunRecord(
                run_id=run_id,
                task_id=task.task_id,
                owner=task.owner,
                budget=spec.budget,
                started_at=now,
            )
        run = Run(task, spec, ref, record, 0, self._store)
        self._live[task.task_id] = run
        tasks.start_soon(self._see_through, run)

    async def _hear(self, cursor: str) -> str:
        """Look whether somebody put an end to a task that runs here."""
        match = Match(kinds=("task.cancelled", "task.failed", "task.deleted"))
        while True:
            try:
                read = await self._store.events(cursor, match, 1000, SYSTEM)
            except errors.NotFound:
                return await self._store.cursor()  # retention overtook us; leases tell as well
            told = [self._live[each.subject] for each in read.events if each.subject in self._live]
            if told:
                await self._beat(told)
            cursor = read.cursor
            if not read.more:
                return cursor

    # Leases

    async def _renew(self) -> None:
        while True:
            await anyio.sleep(_RENEW_EVERY_S)
            with contextlib.suppress(errors.Unavailable):
                await self._beat(list(self._live.values()))

    async def _beat(self, runs: list[Run]) -> None:
        for run in runs:
            progress = TaskProgress(message=run.said[:1000]) if run.said else None
            run.said = ""
            try:
                (renewed,) = await self._store.renew([Beat(run.ref, progress)], _HOST)
            except errors.NotFound:
                run.end_soon("its task was deleted")
                continue
            if not renewed.held and run.record.step is not Step.OVER:
                run.end_soon(f"its task is {renewed.state}")

    # One run

    async def _see_through(self, run: Run) -> None:
        try:
            outcome = await self._outcome(run)
            if outcome is not None:
                await self._settle(run, outcome)
        finally:
            del self._live[run.task.task_id]

    async def _outcome(self, run: Run) -> Outcome | None:
        """See a run to its end; None when nobody is to be told."""
        try:
            with run.scope:
                if run.version == 0:
                    if run.record.continues is not None:
                        await self._ground.artifacts.inherit(
                            run.record.run_id, run.record.continues, (OUTPUT,)
                        )
                    await run.enter(run.record.step)
                if run.before(Step.OVER):
                    await live(run, self._ground)
        except (errors.LeaseLost, errors.VersionMoved):
            return None  # it is another daemon's by now
        except errors.OrchestratorError as error:
            return await self._failed(run, error)
        except Exception as error:  # noqa: BLE001 - a bug in one run must not end the others
            _log.error("run_crashed", run=run.record.run_id, exc_info=error)
            return await self._failed(
                run, errors.MachineFailed("it failed in the daemon; see its log")
            )
        if run.scope.cancelled_caught:
            await self._over(run, run.why)
            return None
        return outcome_of(run.record)

    async def _failed(self, run: Run, error: errors.OrchestratorError) -> Outcome:
        await self._over(run, error.message)
        told = TaskError.of(error)
        # One that only merges is not to become one that runs its program.
        passing = isinstance(error, errors.Unavailable) and run.record.continues is None
        return Failed(told, retryable=passing)

    async def _over(self, run: Run, why: str) -> None:
        result = run.record.result or Result(success=False, error=why[:1000])
        merge = run.record.merge
        if run.record.continues is not None:
            merge = anew.cut_off(run.record, why)
        elif merge.state is MergeState.PENDING:
            merge = merge.model_copy(update={"state": MergeState.NONE, "reason": why[:1000]})
        if result.error is None and why and run.record.continues is None:
            result = result.model_copy(update={"success": False, "error": why[:1000]})
        with (
            anyio.move_on_after(_LAST_WORD_S, shield=True),
            contextlib.suppress(errors.Unavailable, errors.VersionMoved),
        ):
            await run.enter(Step.OVER, result=result, merge=merge)

    async def _settle(self, run: Run, outcome: Outcome) -> None:
        while True:
            try:
                with anyio.CancelScope(shield=True):
                    await self._store.settle(run.ref, outcome, _HOST)
            except errors.Unavailable as error:
                _log.error("run_end_unwritten", run=run.record.run_id, reason=error.message)
                await anyio.sleep(_AGAIN_S)
            except errors.OrchestratorError as error:
                _log.info("run_not_settled", run=run.record.run_id, reason=error.message)
                return
            else:
                return

    # The start of a daemon

    async def _take_up(self, tasks: TaskGroup) -> None:
        """Go on with the runs whose leases are still ours, and put the others away."""
        for stored in await every_record(self._store, RUN, SYSTEM):
            record = RunRecord.model_validate(stored.body)
            run = await self._of(record, stored.version)
            if run is None:
                if record.step is not Step.OVER:
                    await self._abandon(record, stored.version)
            elif record.step is Step.OVER:
                tasks.start_soon(self._settle, run, outcome_of(record))
            else:
                self._live[record.task_id] = run
                tasks.start_soon(self._see_through, run)

    async def _of(self, record: RunRecord, version: int) -> Run | None:
        """Make the run of a record whose lease is still ours."""
        try:
            task = await self._store.query(OneTask(record.task_id), SYSTEM)
        except errors.NotFound:
            return None
        attempt = int(record.run_id.rpartition(".")[2])
        ref = Ref(Address(task.task_id), attempt, WORKER)
        if task.run is None or task.attempt != attempt:
            return None
        (renewed,) = await self._store.renew([Beat(ref)], _HOST)
        return Run(task, task.run, ref, record, version, self._store) if renewed.held else None

    async def _abandon(self, record: RunRecord, version: int) -> None:
        for machine_id in (record.machine_id, record.check_machine_id):
            if machine_id is not None:
                with contextlib.suppress(errors.OrchestratorError):
                    await put_away(self._ground.machines, machine_id)
        kept = await self._store.query(RecordById(RUN, record.run_id), SYSTEM)
        if kept is not None and kept.version == version:
            result = Result(success=False, error="its task was ended while no daemon ran")
            ended_at = moment(await self._store.now())
            told = record.model_copy(
                update={"step": Step.OVER, "result": record.result or result, "ended_at": ended_at}
            )
            kept = type(kept)(RUN, record.run_id, told.model_dump(mode="json"))
            await self._store.save(kept, SYSTEM, expect=version)


def outcome_of(record: RunRecord) -> Outcome:
    """What becomes of the task of a run that is over."""
    result = record.result or Result(success=False, error="nothing came of it")
    told = {
        "run_id": record.run_id,
        **result.model_dump(mode="json", exclude_defaults=True),
        "merge": record.merge.model_dump(mode="json", exclude_defaults=True),
        "usage": record.usage.model_dump(mode="json", exclude_defaults=True),
        "artifacts": record.model_dump(mode="json", include={"artifacts"})["artifacts"],
    }
    if not result.success:
        message = result.error or "its program did not succeed"
        return Failed(TaskError(code="run-failed", message=message, detail=told))
    if record.merge.state in _MERGED:
        return Done(told)
    code = _CODES.get(record.merge.state, "merge-refused")
    reason = record.merge.reason or f"its commits were not merged: {record.merge.state}"
    return Failed(TaskError(code=code, message=reason, detail=told), retryable=False)
