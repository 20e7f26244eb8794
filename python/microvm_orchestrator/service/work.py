"""What a worker says: I take it, I am alive, it is done, it failed, I give it back."""

from __future__ import annotations

from typing import Annotated

import anyio
from pydantic import Field

from microvm_orchestrator import errors
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.task import Lease, Task, TaskError, TaskProgress, TaskState
from microvm_orchestrator.model.values import (
    Capability,
    Flag,
    Json,
    Line,
    Moment,
    Name,
    Seconds,
    Text,
    moment,
)
from microvm_orchestrator.service.calls import Answer, Call, Caller, Request, declare
from microvm_orchestrator.service.content import checked_json
from microvm_orchestrator.service.service import Service, actor
from microvm_orchestrator.service.tasks import (
    LeaseRef,
    SubmittedAs,
    submitted_as,
    worker_name,
)
from microvm_orchestrator.service.waiting import PROGRESS_EVERY_S, Wait
from microvm_orchestrator.store.base import (
    Beat,
    Claimed,
    Done,
    Failed,
    Match,
    Offer,
    Outcome,
    Ref,
    Released,
    Settled,
    Verdict,
)

LeaseLength = Annotated[float, Field(strict=True, ge=1, le=86_400)]


class TaskClaim(Request):
    """Who takes, and what it can do."""

    worker: Name | None = Field(
        default=None, description="a name of your own, the same in every later call; default: yours"
    )
    capabilities: Annotated[list[Capability], Field(max_length=256)] = Field(
        default=[], description="what you can do; tasks that need more are left to others"
    )
    roles: Annotated[list[Name], Field(max_length=64)] = Field(default=[])
    groups: Annotated[list[Name], Field(max_length=64)] = Field(
        default=[], description="only tasks of these groups; none: any"
    )
    count: Annotated[int, Field(strict=True, ge=1, le=100)] = 1
    lease_s: LeaseLength | None = Field(
        default=None, description="how long you may be silent; default: the task's own"
    )
    wait_s: Wait = Field(default=0.0, description="how long to wait for a task at the most")


class ClaimedTask(Answer):
    """A task that is yours for as long as you renew its lease."""

    task: Task
    lease: Lease


class StuckAs(Answer):
    """A task that nothing can free any more."""

    task_id: str
    key: str | None
    reason: str


class ClaimAnswer(Answer):
    """What was taken, or why nothing was."""

    verdict: Verdict = Field(
        description="`claimed`; `no_match`: ready tasks need other capabilities or roles; "
        "`blocked`: others wait for running tasks or for a time; `deadlocked`: they wait in vain, "
        "see `stuck`; `all_done`: nothing is left; `draining`: you were told to take no more"
    )
    tasks: list[ClaimedTask] = Field(default=[])
    stuck: list[StuckAs] = Field(default=[])
    due_at: Moment | None = Field(default=None, description="when the next task falls due")


class TaskHeartbeat(LeaseRef):
    """A sign of life."""

    progress: TaskProgress | None = None
    lease_s: LeaseLength | None = None


class HeartbeatAnswer(Answer):
    """`held` false: stop, the task is no longer yours; `state` tells what became of it."""

    held: bool
    state: TaskState
    expires_at: Moment | None


class TaskComplete(LeaseRef):
    """What came of it."""

    result: Json = None


class TaskFail(LeaseRef):
    """What went wrong."""

    message: Text = ""
    code: Annotated[str, Field(min_length=1, max_length=64)] = "failed"
    detail: Json = None
    retryable: Flag = Field(
        default=True, description="false: do not try again, whatever the task's retry policy says"
    )


class TaskRelease(LeaseRef):
    """Why it is given back."""

    reason: Line = ""
    delay_s: Seconds = Field(default=0.0, description="not to be claimed again before")


class SettleAnswer(Answer):
    """The task as it is now, and what it unlocked."""

    task: Task
    unlocked: list[SubmittedAs] = Field(description="tasks that became ready because of it")
    repeated: bool = Field(description="the same had been said before; nothing changed now")


@declare("task_claim", "POST /v1/tasks/claim", role=Role.WORKER, waits=True)
async def task_claim(service: Service, caller: Caller, request: TaskClaim) -> ClaimAnswer:
    """Take the best ready task you can do, under a lease.

    Renew it with task_heartbeat well within its time, and end it with task_complete, task_fail or
    task_release; each takes the lease's token. No task is ever given to two workers at a time.
    """
    offer = Offer(
        worker=worker_name(caller, request.worker),
        capabilities=frozenset(request.capabilities),
        roles=frozenset(request.roles),
        groups=tuple(request.groups),
        count=request.count,
        lease_s=request.lease_s,
    )
    return await claimed(service, caller, offer, request.wait_s)


async def claimed(service: Service, caller: Caller, offer: Offer, wait_s: float) -> ClaimAnswer:
    """Take what fits an offer, or tell why there is nothing."""
    claimed = await _claim_within(service, caller, offer, wait_s)
    return ClaimAnswer(
        verdict=claimed.verdict,
        tasks=[
            ClaimedTask.model_construct(task=task, lease=lease) for task, lease in claimed.tasks
        ],
        stuck=[StuckAs(task_id=s.task_id, key=s.key, reason=s.reason) for s in claimed.stuck],
        due_at=None if claimed.due_at is None else moment(claimed.due_at),
    )


# Events after which a claim that found nothing may find something, or another answer.
_FREEING = ("task.*", "worker.*")


async def _claim_within(service: Service, caller: Caller, offer: Offer, wait_s: float) -> Claimed:
    by = actor(caller, "task_claim")
    started = anyio.current_time()
    with service.journal.listen(Match(kinds=_FREEING)) as listener:
        while True:
            service.journal.refuse_when_stopping()
            claimed = await service.store.claim(offer, by)
            left = started + wait_s - anyio.current_time()
            # Only what time or other workers can change is worth waiting for.
            hopeful = claimed.verdict in {Verdict.NO_MATCH, Verdict.BLOCKED, Verdict.ALL_DONE}
            if not hopeful or left <= 0:
                return claimed
            with anyio.move_on_after(min(left, PROGRESS_EVERY_S, await _due_in(service, claimed))):
                await listener.wait()
            await caller.progress(wait_s - left, wait_s, f"no task yet: {claimed.verdict}")


async def _due_in(service: Service, claimed: Claimed) -> float:
    if claimed.due_at is None:
        return PROGRESS_EVERY_S
    return max(0.0, claimed.due_at - await service.store.now())


@declare(
    "task_heartbeat",
    "POST /v1/tasks/{task_id}/heartbeat",
    role=Role.WORKER,
    idempotent=True,
    audited=False,
)
async def task_heartbeat(
    service: Service, caller: Caller, request: TaskHeartbeat
) -> HeartbeatAnswer:
    """Renew the lease of a task you hold, and tell how far you are."""
    beat = Beat(request.ref(caller), request.progress, request.lease_s)
    renewed = (await service.store.renew([beat], actor(caller, "task_heartbeat")))[0]
    return HeartbeatAnswer(
        held=renewed.held,
        state=renewed.state,
        expires_at=None if renewed.expires_at is None else moment(renewed.expires_at),
    )


@declare("task_complete", "POST /v1/tasks/{task_id}/complete", role=Role.WORKER, idempotent=True)
async def task_complete(service: Service, caller: Caller, request: TaskComplete) -> SettleAnswer:
    """Say that a task you hold is done, with its result; learn which tasks that unlocked."""
    checked_json(request.result, "result")
    ref = request.ref(caller)
    return await settled(service, caller, "task_complete", ref, Done(request.result))


@declare("task_fail", "POST /v1/tasks/{task_id}/fail", role=Role.WORKER, idempotent=True)
async def task_fail(service: Service, caller: Caller, request: TaskFail) -> SettleAnswer:
    """Say that a task you hold failed; its retry policy decides whether it is tried again."""
    checked_json(request.detail, "detail")
    error = TaskError(code=request.code, message=request.message, detail=request.detail)
    outcome = Failed(error, request.retryable)
    return await settled(service, caller, "task_fail", request.ref(caller), outcome)


@declare("task_release", "POST /v1/tasks/{task_id}/release", role=Role.WORKER, idempotent=True)
async def task_release(service: Service, caller: Caller, request: TaskRelease) -> SettleAnswer:
    """Give back a task you hold, undone, for another worker; no attempt is counted as failed."""
    outcome = Released(request.reason, request.delay_s)
    return await settled(service, caller, "task_release", request.ref(caller), outcome)


async def settled(
    service: Service, caller: Caller, action: str, ref: Ref, outcome: Outcome
) -> SettleAnswer:
    """Say what became of a task that somebody holds. Raises: LeaseLost."""
    settled = await service.store.settle(ref, outcome, actor(caller, action))
    if settled.verdict == "fenced":
        raise _too_late(ref, settled)
    return SettleAnswer.model_construct(
        task=settled.task,
        unlocked=[submitted_as(task) for task in settled.unlocked],
        repeated=settled.verdict == "repeated",
    )


def _too_late(ref: Ref, settled: Settled) -> errors.LeaseLost:
    task = settled.task
    who = f" by {task.worker}" if task.worker else ""
    return errors.LeaseLost(
        f"token {ref.token} is not the current lease of task {task.task_id}: "
        f"it is {task.state}, attempt {task.attempt}{who}",
        hint="your word was recorded as a task.fenced event but changes nothing; "
        "claim another task",
    )


CALLS: tuple[Call, ...] = (task_claim, task_heartbeat, task_complete, task_fail, task_release)
