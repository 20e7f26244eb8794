"""Where the commits of runs go: approved or rejected by whoever looks, and what clashes resolved.

Above are the front ends; below, the runs of this host, which merge one at a time into a repository.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from microvm_orchestrator import errors
from microvm_orchestrator.lifecycle import resolving, review
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.run import (
    AgentSpec,
    Argument,
    Budget,
    Dollars,
    DriverName,
    Merge,
    Rest,
    RunRecord,
    RunSpec,
    Step,
    Tokens,
)
from microvm_orchestrator.model.task import GroupedSpec, Task
from microvm_orchestrator.model.values import Line, Text
from microvm_orchestrator.service.calls import Answer, Call, Caller, declare
from microvm_orchestrator.service.service import Service, actor, parse
from microvm_orchestrator.service.tasks import (
    IdempotencyKey,
    SubmitAnswer,
    TaskRef,
    submit,
    submitted_as,
)
from microvm_orchestrator.store.questions import OneTask
from microvm_orchestrator.store.runs import last_run

_TITLE_CHARS = 900


class ReviewRun(TaskRef):
    """A task whose run waits to be reviewed, and what there is to say."""

    message: Text = Field(default="", description="kept with the run, for whoever reads it later")


class Reviewed(Answer):
    """A run that somebody has looked at."""

    task_id: str
    run: RunRecord


class ResolveMerge(TaskRef):
    """A task whose commits were not merged, and who is to bring both sides together."""

    prompt: Text = Field(default="", description="what an agent is told besides what does not fit")
    script: Text = Field(default="", description="a shell text to do it, in place of an agent")
    argv: Annotated[list[Argument], Field(max_length=4096)] = Field(
        default=[], description="a program and its words to do it, in place of an agent"
    )
    driver: DriverName | None = Field(
        default=None, description="which agent; by default as the repo has it, else claude"
    )
    model: Line | None = None
    max_turns: Annotated[int, Field(strict=True, ge=1, le=10_000)] | None = None
    tokens: Tokens | None = Field(
        default=None, description="how many tokens of model APIs it may use before it is paused"
    )
    cost_usd: Dollars | None = Field(
        default=None, description="what it may cost at list prices before it is paused"
    )
    egress: Annotated[list[Line], Field(max_length=256)] = Field(
        default=[], description="hosts its program may reach, as host, host:port or *.domain"
    )
    image: Line | None = None
    memory_mib: Annotated[int, Field(strict=True, ge=64, le=1 << 20)] | None = None
    timeout_s: Annotated[float, Field(strict=True, gt=0, le=2_592_000)] | None = Field(
        default=None, description="how long its program may take; a default always applies"
    )
    idempotency_key: IdempotencyKey | None = None


@declare("run_approve", "POST /v1/runs/{task_id}/approve", role=Role.OPERATOR, idempotent=True)
async def run_approve(service: Service, caller: Caller, request: ReviewRun) -> Reviewed:
    """Let the commits of a run be merged that waits to be reviewed.

    A run waits where its task or its repo has `merge` as review: the event `run.reviewing` tells,
    `run_diff` shows what it changed, and `run_reject` says no. Returns at once; `task_wait` waits
    until it is merged.
    """
    return await _decide(service, caller, request, approved=True)


@declare("run_reject", "POST /v1/runs/{task_id}/reject", role=Role.OPERATOR, idempotent=True)
async def run_reject(service: Service, caller: Caller, request: ReviewRun) -> Reviewed:
    """Refuse the commits of a run that waits to be reviewed.

    Its task fails with `merge-rejected` and your message. The commits are kept as
    refs/tasks/<task_id>, and a new run may start from them.
    """
    return await _decide(service, caller, request, approved=False)


async def _decide(
    service: Service, caller: Caller, request: ReviewRun, *, approved: bool
) -> Reviewed:
    by = actor(caller, "run_approve" if approved else "run_reject")
    task, record = await _found(service, caller, request, by.action)
    known = record.decision
    if known is None or known.approved != approved:
        if known is None:
            review.refuse_early(task.task_id, record.step)
        await service.host.runs.decide(
            task.task_id, approved=approved, by=by.name, message=request.message
        )
    await service.store.note(by, task.task_id, "ok")
    _, record = await _found(service, caller, request, by.action)
    return Reviewed(task_id=task.task_id, run=record)


@declare("run_merge", "POST /v1/runs/{task_id}/merge", role=Role.OPERATOR, idempotent=False)
async def run_merge(service: Service, caller: Caller, request: TaskRef) -> Reviewed:
    """Merge the commits of a run once more whose merge did not come about.

    For a run that did its work, and whose commits were refused because of what lay in the user's
    way, did not fit, did not pass the check or were rejected. Its program does not run again: the
    task's next attempt merges what the last one brought, by the same policy and past the same
    check, and what was given up because of it goes on. Returns at once; `task_wait` waits.
    """
    task, _ = await _found(service, caller, request, "run_merge")
    begun = await service.host.runs.merge_again(task.task_id, actor(caller, "run_merge"))
    return Reviewed(task_id=task.task_id, run=begun)


@declare("merge_resolve", "POST /v1/runs/{task_id}/resolve", role=Role.OPERATOR, idempotent=False)
async def merge_resolve(service: Service, caller: Caller, request: ResolveMerge) -> SubmitAnswer:
    """Let an agent bring the commits of a run together with what they do not fit, in a machine.

    For a run whose merge is a conflict, or did not pass its check. The agent finds the branch
    checked out, the run's commits beside it and a merge of both begun. What it commits has to have
    both sides in its history; it is merged and checked as that of any run, and the first run is
    then merged (`resolved`) too. Returns the new task at once; the commits stay where they are.
    """
    task, record = await _found(service, caller, request, "merge_resolve")
    if record.step is not Step.OVER or record.merge.state not in resolving.OPEN:
        raise errors.StateForbids(
            f"task {task.task_id} has nothing to resolve: its run is {record.step} "
            f"and its merge {record.merge.state}",
            hint="a run can be resolved whose merge is a conflict or did not pass the check",
        )
    title = f"Resolve {task.title or task.task_id}"[:_TITLE_CHARS]
    run = await _spec(service, caller, request, task, record)
    spec = GroupedSpec(title=title, group=task.group, priority=task.priority, run=run)
    done = await submit(service, caller, "merge_resolve", (spec,), request.idempotency_key)
    told = submitted_as(done.tasks[0])
    return SubmitAnswer(**told.model_dump(), replayed=done.replayed)


async def _spec(
    service: Service, caller: Caller, request: ResolveMerge, task: Task, record: RunRecord
) -> RunSpec:
    """Raises: InvalidInput, NotFound."""
    if request.script and request.argv:
        raise errors.InvalidInput("both sides are brought together by `script` or `argv`, not both")
    by = actor(caller, "merge_resolve")
    repo = await service.host.repos.get(record.repo_id or "", by)
    before = task.run
    policy = (before.merge if before else None) or repo.defaults.merge
    check = before.check if before and before.check is not None else repo.defaults.check or ""
    plain = ("script", "argv", "egress", "image", "memory_mib", "timeout_s")
    agent = AgentSpec(driver=request.driver, model=request.model, max_turns=request.max_turns)
    return parse(
        RunSpec,
        {
            **{name: getattr(request, name) for name in plain},
            "kind": "script" if request.script else "command" if request.argv else "agent",
            "repo": repo.alias,
            "base": record.merge.into,
            "into": record.merge.into,
            "resolves": task.task_id,
            "prompt": resolving.prompt_for(task, record, check, request.prompt),
            "agent": agent,
            "budget": Budget(tokens=request.tokens, cost_usd=request.cost_usd),
            # A merge that was done and left without a commit is one all the same.
            "rest": Rest.COMMIT,
            "merge": Merge.AUTO if policy in {Merge.BRANCH, Merge.MANUAL} else policy,
            "check": before.check if before else None,
        },
    )


async def _found(
    service: Service, caller: Caller, request: TaskRef, call: str
) -> tuple[Task, RunRecord]:
    """Find a task and its last run. Raises: NotFound, StateForbids before there is one."""
    by = actor(caller, call)
    task = await service.store.query(OneTask(request.task_id, request.group), by)
    record = await last_run(service.store, task, by)
    if record is None:
        raise errors.StateForbids(
            f"task {task.task_id} has brought no commits",
            hint="task_get shows how it stands",
        )
    return task, record


CALLS: tuple[Call, ...] = (run_approve, run_reject, run_merge, merge_resolve)
