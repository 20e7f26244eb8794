"""Letting runs go on that stand still, as they have taken what they may.

Above are the front ends; below, the runs of this host.
"""

from __future__ import annotations

from pydantic import Field

from microvm_orchestrator import errors
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.run import Budget, Dollars, RunRecord, Seconds, Tokens
from microvm_orchestrator.service.calls import Answer, Call, Caller, declare
from microvm_orchestrator.service.service import Service, actor
from microvm_orchestrator.service.tasks import TaskRef
from microvm_orchestrator.store.questions import OneTask
from microvm_orchestrator.store.runs import last_run


class ResumeTask(TaskRef):
    """A task whose run is paused, and how much more it may take; what is left out stays."""

    wall_s: Seconds | None = Field(
        default=None, description="how long its program may run in all, pauses left out"
    )
    cpu_s: Seconds | None = Field(
        default=None, description="how much of this host's processors its machine may take in all"
    )
    tokens: Tokens | None = Field(
        default=None, description="how many tokens of model APIs it may use in all"
    )
    cost_usd: Dollars | None = Field(
        default=None, description="what it may cost in all at list prices"
    )


class Resumed(Answer):
    """A run that goes on."""

    task_id: str
    run: RunRecord


@declare("task_resume", "POST /v1/tasks/{task_id}/resume", role=Role.OPERATOR)
async def task_resume(service: Service, caller: Caller, request: ResumeTask) -> Resumed:
    """Let a run go on that is paused at a limit of its budget, where it stands.

    A limit that is not above what was used already is refused. `run_get` shows which limit was
    reached and what was used.
    """
    by = actor(caller, "task_resume")
    task = await service.store.query(OneTask(request.task_id, request.group), by)
    changes = Budget(
        wall_s=request.wall_s,
        cpu_s=request.cpu_s,
        tokens=request.tokens,
        cost_usd=request.cost_usd,
    )
    await service.host.runs.resume(task.task_id, changes)
    await service.store.note(by, task.task_id, "ok")
    record = await last_run(service.store, task, by)
    if record is None:
        raise errors.NotFound(f"the run of task {task.task_id} went on, and is not kept any more")
    return Resumed(task_id=task.task_id, run=record)


CALLS: tuple[Call, ...] = (task_resume,)
