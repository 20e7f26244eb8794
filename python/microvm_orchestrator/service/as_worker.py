"""What an agent does as a worker of the task graph, from its own machine.

It claims as itself, by the name that its token gives, what whoever spawned it may see and has let
it do. A task of another's is refused, and so is one who may not work; both are in the audit log.
Above is the profile `agent`; below, the calls of workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from microvm_orchestrator import errors
from microvm_orchestrator.conversations.claims import worker_of
from microvm_orchestrator.conversations.home import acting
from microvm_orchestrator.model.access import Principal, Role
from microvm_orchestrator.model.run import IN_A_MACHINE
from microvm_orchestrator.model.task import TaskState
from microvm_orchestrator.service import work
from microvm_orchestrator.service.calls import Caller
from microvm_orchestrator.service.service import actor
from microvm_orchestrator.store.base import Address, Beat, Offer, Ref
from microvm_orchestrator.store.questions import OneTask, TaskList

if TYPE_CHECKING:
    from microvm_orchestrator.model.agent import Agent
    from microvm_orchestrator.model.agent_claims import Works
    from microvm_orchestrator.model.task import Task, TaskBrief, TaskProgress
    from microvm_orchestrator.service.service import Service
    from microvm_orchestrator.store.base import Outcome, Renewed

# Of those that are ready, as many are looked at.
_LOOKED_AT = 1000
_PAGE = 200


async def refuse(service: Service, caller: Caller, agent: Agent, why: str, hint: str) -> NoReturn:
    """Raises: Denied, which the audit log keeps."""
    await service.store.note(acting(agent, caller.via), agent.agent_id, errors.Denied.code)
    raise errors.Denied(why, hint=hint)


async def _working(service: Service, caller: Caller, agent: Agent) -> tuple[Caller, Works]:
    """Give who claims on behalf of an agent, and what. Raises: Denied."""
    works = agent.works
    if works is None:
        hint = "who spawns an agent says so by `works`"
        await refuse(service, caller, agent, "you do no tasks", hint)
    who = Principal(agent.owner, Role.WORKER, works.scope, caller.principal.token_id)
    return Caller(who, caller.via, caller.progress), works


def _offer(
    agent: Agent, works: Works, groups: list[str], count: int, lease_s: float | None
) -> Offer:
    role = agent.character.role
    return Offer(
        worker=worker_of(agent),
        capabilities=frozenset(works.capabilities),
        roles=frozenset() if role is None else frozenset({role}),
        groups=tuple(groups or works.groups),
        count=count,
        lease_s=lease_s,
    )


async def claimable_as(
    service: Service, caller: Caller, agent: Agent, limit: int
) -> tuple[list[TaskBrief], list[TaskBrief]]:
    """List the tasks that an agent holds, and those it could claim. Raises: Denied."""
    who, works = await _working(service, caller, agent)
    by = actor(who, "task_list")
    offer = _offer(agent, works, [], 1, None)
    mine = await service.store.query(
        TaskList((TaskState.RUNNING,), worker=offer.worker, limit=limit), by
    )
    ready: list[TaskBrief] = []
    for group in offer.groups or (None,):
        cursor, seen = None, 0
        while seen < _LOOKED_AT and len(ready) < limit:
            asked = TaskList((TaskState.READY,), group=group, limit=_PAGE, cursor=cursor)
            page = await service.store.query(asked, by)
            ready += [each for each in page.items if _fits(each, offer)]
            cursor, seen = page.cursor, seen + len(page.items)
            if cursor is None:
                break
    return list(mine.items), ready[:limit]


def _fits(task: TaskBrief, offer: Offer) -> bool:
    return (
        IN_A_MACHINE not in task.capabilities
        and frozenset(task.capabilities) <= offer.capabilities
        and (task.role is None or task.role in offer.roles)
    )


async def claim_as(
    service: Service,
    caller: Caller,
    agent: Agent,
    *,
    groups: list[str],
    wait_s: float,
    lease_s: float | None,
) -> work.ClaimAnswer:
    """Claim a task as an agent. Raises: Denied, also for groups it was not let into."""
    who, works = await _working(service, caller, agent)
    if works.groups and not set(groups) <= set(works.groups):
        told = ", ".join(works.groups)
        await refuse(service, caller, agent, f"you do tasks of {told} only", "leave `groups` out")
    offer = _offer(agent, works, groups, 1, lease_s)
    return await work.claimed(service, who, offer, wait_s)


async def beat_as(
    service: Service, caller: Caller, agent: Agent, task_id: str, progress: TaskProgress | None
) -> Renewed:
    """Tell how far an agent is with a task that it holds. Raises: Denied, NotFound."""
    who, ref = await _held(service, caller, agent, task_id)
    [renewed] = await service.store.renew([Beat(ref, progress)], actor(who, "task_heartbeat"))
    return renewed


async def settle_as(
    service: Service, caller: Caller, agent: Agent, call: str, task_id: str, outcome: Outcome
) -> work.SettleAnswer:
    """Say what became of a task that an agent holds. Raises: Denied, NotFound, LeaseLost."""
    who, ref = await _held(service, caller, agent, task_id)
    return await work.settled(service, who, call, ref, outcome)


async def _held(service: Service, caller: Caller, agent: Agent, task_id: str) -> tuple[Caller, Ref]:
    who, _ = await _working(service, caller, agent)
    task: Task = await service.store.query(OneTask(task_id), actor(who, "task_get"))
    worker = worker_of(agent)
    if task.worker != worker:
        hint = "`tasks` shows which you hold"
        await refuse(service, caller, agent, f"task {task.task_id} is not yours", hint)
    return who, Ref(Address(task.task_id), task.attempt, worker)


async def works_for(
    service: Service, caller: Caller, agent: Agent, *, works: bool | None, groups: list[str]
) -> Works | None:
    """Tell which tasks a child of an agent may do: those that it may itself, or fewer.

    Raises: Denied for more.
    """
    if works is False or (agent.works is None and not works and not groups):
        return None
    _, own = await _working(service, caller, agent)
    narrowed = own.narrowed(groups)
    if narrowed is None:
        hint = "leave `groups` out"
        await refuse(service, caller, agent, f"you do tasks of {', '.join(own.groups)} only", hint)
    return narrowed
