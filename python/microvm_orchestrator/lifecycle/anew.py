"""Commits that are merged once more, by an attempt that has no program and no machine.

Something of the user's was in the way, or another task has brought them in meanwhile. The next
attempt has all that the one before brought, and ends as its merge does. Above are the runs of this
host and the service; below, the records.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from microvm_orchestrator import errors
from microvm_orchestrator.model.records import SYSTEM, Record
from microvm_orchestrator.model.run import RUN, MergeOutcome, MergeState, RunRecord, Step
from microvm_orchestrator.store.base import Address, RetryTasks, Tell
from microvm_orchestrator.store.questions import OneTask, RecordById

if TYPE_CHECKING:
    from datetime import datetime

    from microvm_orchestrator.model.records import Actor
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


async def ask(store: Store, run: RunRecord, by: Actor) -> None:
    """Let the commits of a run be merged by the next attempt of its task, which begins now.

    Raises: StateForbids when there is nothing to merge, or its task is under way.
    """
    if run.step is not Step.OVER or run.merge.state not in OPEN:
        raise errors.StateForbids(
            f"task {run.task_id} has nothing to merge: its run is {run.step} "
            f"and its merge {run.merge.state}",
            hint="run_get shows how it stands; run_diff what it changed",
        )
    stored = await store.query(RecordById(RUN, run.run_id), SYSTEM)
    if stored is None:
        raise errors.NotFound(f"run {run.run_id} is not kept any more")
    body = run.model_copy(update={"again": True}).model_dump(mode="json")
    tell = Tell("again", {"task_id": run.task_id, "by": by.name}, audited=False)
    await store.save(Record(RUN, run.run_id, body), SYSTEM, expect=stored.version, tell=tell)
    await store.amend(Address(run.task_id), RetryTasks(), by)


async def revive(store: Store, runs: list[RunRecord]) -> None:
    """Let tasks be done whose commits others have brought in, and what waits for them go on."""
    for run in runs:
        # It is gone, or done, or tried anew already.
        with contextlib.suppress(errors.NotFound, errors.StateForbids):
            task = await store.query(OneTask(run.task_id), SYSTEM)
            if run.run_id == f"{task.task_id}.{task.attempt}":
                await store.amend(Address(run.task_id), RetryTasks(), SYSTEM)


def continued(before: RunRecord, run_id: str, started_at: datetime) -> RunRecord | None:
    """Make the run of an attempt that only merges what the one before brought; None for others."""
    merge = before.merge
    resolved = merge.resolved_by is not None
    if not (resolved or before.again):
        return None
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
