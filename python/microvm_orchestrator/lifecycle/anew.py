"""Commits that are merged once more, by an attempt that has no program and no machine.

Something of the user's was in the way, or another task has brought them in meanwhile. The next
attempt has all that the one before brought, and ends as its merge does. Above are the runs of this
host and the service; below, the records.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.model.records import SYSTEM, Record
from microvm_orchestrator.model.run import RUN, MergeOutcome, MergeState, RunRecord, Step
from microvm_orchestrator.model.task import TaskState
from microvm_orchestrator.store.base import Address, RetryTasks, Tell
from microvm_orchestrator.store.questions import OneTask, RecordById
from microvm_orchestrator.store.runs import run_of

if TYPE_CHECKING:
    from datetime import datetime

    from microvm_orchestrator.model.records import Actor
    from microvm_orchestrator.model.task import Task
    from microvm_orchestrator.store.base import Store

# What may be otherwise when it is tried once more.
OPEN = frozenset(
    {
        MergeState.CONFLICT,
        MergeState.REFUSED,
        MergeState.CHECK_FAILED,
        MergeState.REJECTED,
        MergeState.FAILED,
    }
)


async def ask(store: Store, task_id: str, by: Actor) -> RunRecord:
    """Let the commits of a task's last run be merged by its next attempt, which begins now.

    To be called by one at a time. Raises: NotFound, StateForbids when there is nothing to merge, or
    its task is under way.
    """
    task = await store.query(OneTask(task_id), SYSTEM)
    stored = await store.query(RecordById(RUN, f"{task_id}.{task.attempt}"), SYSTEM)
    run = None if stored is None else RunRecord.model_validate(stored.body)
    ended = task.state in {TaskState.FAILED, TaskState.CANCELLED}
    if stored is None or run is None or not ended or run.merge.state not in OPEN:
        merge = "" if run is None else f" and its merge {run.merge.state}"
        raise errors.StateForbids(
            f"task {task_id} has nothing to merge: it is {task.state}{merge}",
            hint="run_get shows how it stands; run_diff what it changed",
        )
    kept = await _mark(store, run, by, stored.version, again=True)
    try:
        await store.amend(Address(task_id), RetryTasks(), by)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await _mark(store, run, by, kept, again=False)
        raise
    return run


async def _mark(store: Store, run: RunRecord, by: Actor, version: int, *, again: bool) -> int:
    body = run.model_copy(update={"again": again}).model_dump(mode="json")
    what = "again" if again else "not_again"
    tell = Tell(what, {"task_id": run.task_id, "by": by.name}, audited=False)
    saved = await store.save(Record(RUN, run.run_id, body), SYSTEM, expect=version, tell=tell)
    return saved.version


async def revive(store: Store, runs: list[RunRecord]) -> None:
    """Let tasks be done whose commits others have brought in, and what waits for them go on."""
    for run in runs:
        # It is gone, or done, or tried anew already.
        with contextlib.suppress(errors.NotFound, errors.StateForbids):
            task = await store.query(OneTask(run.task_id), SYSTEM)
            if run.run_id == f"{task.task_id}.{task.attempt}":
                await store.amend(Address(run.task_id), RetryTasks(), SYSTEM)


async def continued(
    store: Store, task: Task, run_id: str, started_at: datetime
) -> RunRecord | None:
    """Make the run of an attempt that only merges what an earlier one brought; None for others.

    An attempt that was to do so and was lost before it came to a verdict does not count.
    """
    for attempt in range(task.attempt - 1, 0, -1):
        before = await run_of(store, task, attempt, SYSTEM)
        if before is None:
            continue
        resolved = before.merge.resolved_by is not None
        if resolved or before.again:
            return _continued(before, run_id, started_at, resolved=resolved)
        if before.continues is None or before.merge.state in OPEN:
            return None
    return None


def _continued(
    before: RunRecord, run_id: str, started_at: datetime, *, resolved: bool
) -> RunRecord:
    merge = before.merge
    known = before.model_dump(include={"task_id", "owner", "repo_id", "base", "tip", "usage"})
    return RunRecord.model_validate(
        {
            **known,
            "run_id": run_id,
            "continues": before.run_id,
            "step": Step.OVER if resolved else Step.MERGING,
            "result": before.result,
            "artifacts": before.artifacts,
            "left_out": before.left_out,
            "reported": before.reported,
            "merge": merge if resolved else MergeOutcome(into=merge.into),
            "started_at": started_at,
        }
    )


def cut_off(run: RunRecord, why: str) -> MergeOutcome:
    """Tell how such an attempt ended; without a verdict it can be asked for once more."""
    if run.merge.state not in {MergeState.NONE, MergeState.PENDING}:
        return run.merge
    update = {"state": MergeState.FAILED, "reason": why[:1000], "ref": f"refs/tasks/{run.task_id}"}
    return run.merge.model_copy(update=update)
