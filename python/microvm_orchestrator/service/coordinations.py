"""Coordinations: tasks that several agents work on together, begun and looked at.

Above are the front ends; below, the coordinations of this host, which go on whoever leaves and
whatever becomes of the daemon. `operation_wait` waits for one, `operation_cancel` stops it.
"""

from __future__ import annotations

from decimal import Decimal
from math import ceil
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from microvm_orchestrator import errors
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.coordination import (
    COORDINATION,
    PARTICIPANTS_MOST,
    PROPOSAL_MOST,
    ROUNDS_MOST,
    TASK_MOST,
    Coordination,
    CoordinationKind,
    CoordinationState,
    Participant,
    Rules,
    Step,
)
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.operation import Operation
from microvm_orchestrator.model.values import Flag, Line, moment
from microvm_orchestrator.service.agents import AgentRef
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.operations import USUAL_WAIT_S, WaitS, awaited
from microvm_orchestrator.service.page import ListRequest, PageOf
from microvm_orchestrator.service.records import page_of
from microvm_orchestrator.service.service import Service, actor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from microvm_orchestrator.model.agent import Agent
    from microvm_orchestrator.model.records import Actor, Record

# Most that can be agreed on is agreed on by then.
_USUAL_ROUNDS = 3
# Two thirds, or nearly.
_USUAL_SHARE = 0.66
# As long as a turn may take, where nothing else is set for runs.
_USUAL_STEP_S = 3600.0
_STEP_MOST_S = 86_400.0
# What is said of votes, and means nothing for other kinds.
_OF_VOTES = {"proposal", "rounds", "quorum", "quorum_share"}


class Together(Request):
    """A task for several agents, and how they work together on it."""

    task: Annotated[str, Field(min_length=1, max_length=TASK_MOST)]
    kind: CoordinationKind = Field(
        default=CoordinationKind.SEQUENTIAL,
        description="`sequential`: each hears what those before answered; `parallel`: all at once; "
        "`consensus`: they vote on a proposal in rounds; `hierarchical`: the coordinator divides "
        "the task among them. But for a consensus, the coordinator hears the answers and sums up",
    )
    proposal: Annotated[str, Field(min_length=1, max_length=PROPOSAL_MOST)] | None = Field(
        default=None,
        description="for a consensus: what is voted on first; else the coordinator is asked for it",
    )
    rounds: Annotated[int, Field(strict=True, ge=1, le=ROUNDS_MOST)] = Field(
        default=_USUAL_ROUNDS, description="of votes, at most"
    )
    quorum: Annotated[int, Field(strict=True, ge=1, le=PARTICIPANTS_MOST)] | None = Field(
        default=None, description="how many votes have to agree"
    )
    quorum_share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = Field(
        default=None,
        description="instead: which share of all who take part, also of those who give no vote; "
        f"{_USUAL_SHARE:g} by default",
    )
    step_timeout_s: Annotated[float, Field(gt=0, le=_STEP_MOST_S, allow_inf_nan=False)] = Field(
        default=_USUAL_STEP_S,
        description="how long to wait for one answer; later it counts as none",
    )


class CoordinateTeam(Together):
    """Agents that are to work together."""

    coordinator: AgentRef
    participants: Annotated[list[AgentRef], Field(max_length=PARTICIPANTS_MOST)] = Field(
        default=[],
        description="names or ids, in their order; by default all who belong to the coordinator, "
        "but for ephemeral ones",
    )
    ask_coordinator: Flag = Field(
        default=True,
        description="whether the coordinator is asked anything; if not, there are the answers of "
        "the others alone, and a consensus needs a `proposal`, which stays as it is",
    )
    wait_s: WaitS = USUAL_WAIT_S


class NamedCoordination(Request):
    """A coordination."""

    coordination_id: Line


class CoordinationListRequest(ListRequest):
    """Which coordinations."""

    coordinator: AgentRef | None = Field(default=None, description="only of this agent")
    state: CoordinationState | None = None


class CoordinationAnswer(Answer):
    """A coordination, and its steps so far."""

    coordination: Coordination
    steps: list[Step]


@declare("team_coordinate", "POST /v1/coordinations", role=Role.OPERATOR, waits=True)
async def team_coordinate(service: Service, caller: Caller, request: CoordinateTeam) -> Operation:
    """Have several agents work together on a task, by messages whose answers are awaited.

    The operation's target is the coordination, which coordination_get shows with each step; its
    result is the coordination at its end. An agent that fails, or gives no answer in time, is an
    error of its step, and the others go on. It survives the daemon: the next one goes on where it
    was, and says nothing twice. When it is cancelled, agents break off what they were asked.
    """
    by = actor(caller, "team_coordinate")
    agents = service.host.agents
    coordinator = await agents.get(request.coordinator, by)
    if request.participants:
        participants = [await agents.get(name, by) for name in request.participants]
    else:
        participants = usual(await agents.children(coordinator.agent_id, by))
    operation = await begin(
        service, by, request, coordinator, participants, ask_coordinator=request.ask_coordinator
    )
    return await awaited(service, caller, by, operation.operation_id, request.wait_s)


def usual(children: Iterable[Agent]) -> list[Agent]:
    """Who takes part if nobody is named: those who do not end by themselves between two steps."""
    return [each for each in children if not each.ephemeral]


async def begin(
    service: Service,
    by: Actor,
    wish: Together,
    coordinator: Agent,
    participants: list[Agent],
    *,
    ask_coordinator: bool,
) -> Operation:
    """Begin a coordination of these agents.

    Raises: InvalidInput for agents or rules that do not fit together; StateForbids for agents that
        are over; TooLarge.
    """
    _check(coordinator, participants)
    coordination = Coordination(
        coordination_id=new_id("co"),
        owner=coordinator.owner,
        coordinator=_named(coordinator),
        participants=[_named(each) for each in participants],
        task=wish.task,
        rules=_rules(wish, len(participants), ask_coordinator=ask_coordinator),
        state=CoordinationState.RUNNING,
        begun_by=by.name,
        created_at=moment(await service.store.now()),
    )
    return await service.host.coordinations.begin(coordination, by)


def _check(coordinator: Agent, participants: list[Agent]) -> None:
    """Raises: InvalidInput, StateForbids."""
    if not participants:
        raise errors.InvalidInput(
            f"nobody takes part; to {coordinator.name} belongs no agent that stays"
        )
    known = [coordinator.agent_id, *(each.agent_id for each in participants)]
    for agent in participants:
        if known.count(agent.agent_id) > 1:
            raise errors.InvalidInput(f"agent {agent.name} is named more than once")
        if agent.owner != coordinator.owner:
            raise errors.InvalidInput(f"{agent.name} and {coordinator.name} belong to two owners")
    for agent in (coordinator, *participants):
        if agent.over:
            raise errors.StateForbids(f"agent {agent.name} is {agent.state}")
        if agent.ephemeral:
            raise errors.StateForbids(
                f"agent {agent.name} is ephemeral: it ends by itself between two steps"
            )


def _named(agent: Agent) -> Participant:
    return Participant(agent_id=agent.agent_id, name=agent.name)


def _rules(wish: Together, count: int, *, ask_coordinator: bool) -> Rules:
    """Raises: InvalidInput for what contradicts itself."""
    kind = wish.kind
    if kind is not CoordinationKind.CONSENSUS and (idle := _OF_VOTES & wish.model_fields_set):
        raise errors.InvalidInput(f"{min(idle)} is for a consensus, and this is {kind}")
    if not ask_coordinator and kind is CoordinationKind.HIERARCHICAL:
        raise errors.InvalidInput("nobody divides the task when the coordinator is not asked")
    if not ask_coordinator and kind is CoordinationKind.CONSENSUS and wish.proposal is None:
        raise errors.InvalidInput("nobody proposes anything when the coordinator is not asked")
    return Rules(
        kind=kind,
        proposal=wish.proposal,
        rounds=wish.rounds,
        needed=_needed(wish, count),
        ask_coordinator=ask_coordinator,
        step_timeout_s=wish.step_timeout_s,
    )


def _needed(wish: Together, count: int) -> int:
    """How many votes have to agree. Raises: InvalidInput."""
    if wish.quorum is None:
        share = _USUAL_SHARE if wish.quorum_share is None else wish.quorum_share
        # Of three tenths of ten there are three, and not a little more.
        return max(1, ceil(Decimal(str(share)) * count))
    if wish.quorum_share is not None:
        raise errors.InvalidInput("`quorum` and `quorum_share` are one or the other")
    if wish.quorum > count:
        raise errors.InvalidInput(f"the quorum is {wish.quorum}, and {count} take part")
    return wish.quorum


@declare(
    "coordination_get",
    "GET /v1/coordinations/{coordination_id}",
    role=Role.VIEWER,
    effect=Effect.READ,
)
async def coordination_get(
    service: Service, caller: Caller, request: NamedCoordination
) -> CoordinationAnswer:
    """Look at a coordination: where it stands, each step with its answer, and what came of it."""
    by = actor(caller, "coordination_get")
    coordinations = service.host.coordinations
    coordination = await coordinations.get(request.coordination_id, by)
    steps = await coordinations.steps(coordination.coordination_id)
    return CoordinationAnswer(coordination=coordination, steps=steps)


@declare("coordination_list", "GET /v1/coordinations", role=Role.VIEWER, effect=Effect.READ)
async def coordination_list(
    service: Service, caller: Caller, request: CoordinationListRequest
) -> PageOf[Coordination]:
    """List coordinations, oldest first: yours, or all if you see everything."""
    by = actor(caller, "coordination_list")

    async def shown(record: Record) -> Coordination | None:
        found = Coordination.model_validate(record.body)
        leads = found.coordinator
        fits = request.coordinator in {None, leads.agent_id, leads.name}
        fits = fits and request.state in {None, found.state}
        return found if fits and by.sees_of(found.owner) else None

    items, cursor = await page_of(service.store, COORDINATION, request, by, shown)
    return PageOf[Coordination](items=items, next_cursor=cursor)


CALLS: tuple[Call, ...] = (team_coordinate, coordination_get, coordination_list)
