"""The runs of a task, as they are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm_orchestrator.model.run import RUN, RunRecord
from microvm_orchestrator.store.questions import RecordById

if TYPE_CHECKING:
    from microvm_orchestrator.model.records import Actor
    from microvm_orchestrator.model.task import Task
    from microvm_orchestrator.store.base import Store


async def last_run(store: Store, task: Task, by: Actor) -> RunRecord | None:
    """Find the run of a task's last attempt; None when there was none."""
    return await run_of(store, task, task.attempt, by)


async def run_of(store: Store, task: Task, attempt: int, by: Actor) -> RunRecord | None:
    """Find the run of one attempt of a task; None when there was none."""
    return await run_by_id(store, f"{task.task_id}.{attempt}", by)


async def run_by_id(store: Store, run_id: str, by: Actor) -> RunRecord | None:
    """Find a run as it is by now; None when it is not kept."""
    stored = await store.query(RecordById(RUN, run_id), by)
    return None if stored is None else RunRecord.model_validate(stored.body)
