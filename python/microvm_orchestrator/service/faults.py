"""Faults between machines of a network: injected, looked at, healed.

What is asked for in names becomes a plan of ways here; the ledger does the rest. Above are the
front ends; below, the ledger and the networks of this host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from microvm_orchestrator import errors
from microvm_orchestrator.faults import grudges
from microvm_orchestrator.faults.plans import (
    Plan,
    impairing,
    impairment_of,
    link_down,
    nameless,
    partition,
)
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.fault import Fault, FaultKind, LossBursts, Meets, Share
from microvm_orchestrator.model.fault import Seconds as UpToAnHour
from microvm_orchestrator.model.values import Seconds
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.service import Service, actor

Named = Annotated[str, Field(min_length=1, max_length=100)]
Machines = Annotated[list[Named], Field(max_length=1000)]
# A way's chances to worsen and to recover, and what is lost while it is bad, and while it is good.
_BURSTS = tuple(LossBursts.model_fields)


class Shape(StrEnum):
    """How a partition parts machines."""

    GROUPS = "groups"
    ONE_WAY = "one_way"
    HALVES = "halves"
    SINGLE = "single"
    BRIDGE = "bridge"
    MAJORITIES_RING = "majorities_ring"
    GRUDGES = "grudges"


class InjectFault(Request):
    """A fault to inject. Machines are named by their names or ids."""

    network: Named = Field(description="its name or id")
    kind: FaultKind
    shape: Shape = Field(
        default=Shape.GROUPS,
        description="of a partition: groups apart; one_way, where the second group does not hear "
        "the first; halves; a single machine; two halves with a bridge that both hear; a ring of "
        "majorities, of which no two are the same; or any grudges",
    )
    groups: Annotated[list[Machines], Field(max_length=100)] = Field(
        default=[], description="of a partition in groups, or one way"
    )
    grudges: Annotated[dict[Named, Machines], Field(max_length=1000)] = Field(
        default={}, description="of a partition by grudges: whom each machine does not hear"
    )
    machine: Named | None = Field(
        default=None,
        description="that is single, whose link is down, whose frames are impaired, or whose "
        "questions for names go nowhere",
    )
    targets: Machines = Field(
        default=[],
        description="for whom impaired frames, or questions, are; by default all others of the "
        "network",
    )
    shuffle: Named | None = Field(
        default=None,
        description="seed of the order of machines in halves, bridge and ring; by default they "
        "stand in the order of their names",
    )
    delay_s: UpToAnHour = Field(default=0.0, description="how late frames come")
    jitter_s: UpToAnHour = Field(default=0.0, description="how far delays are from that")
    spread: Named = Field(
        default="uniform", description="of delays: uniform within the jitter, or normal or pareto"
    )
    loss: Share = Field(default=0.0, description="share that is lost, from 0 to 1")
    loss_correlation: Share = Field(
        default=0.0, description="how much the loss of a frame follows that of the one before"
    )
    bursts: Annotated[list[Share], Field(max_length=4)] = Field(
        default=[],
        description="loss in bursts, instead: the chances that a good way turns bad and a bad one "
        "good; then the shares lost on a bad way (1 by default) and on a good one (0)",
    )
    corrupt: Share = Field(default=0.0, description="share that has one bit changed")
    duplicate: Share = Field(default=0.0, description="share that comes twice")
    reorder: Share = Field(
        default=0.0,
        description="share that comes at once where others are delayed; that is overtaken, "
        "where none is",
    )
    rate_bytes: int | None = Field(default=None, description="what passes in a second")
    mtu: int | None = Field(
        default=None,
        description="larger packets vanish, and nobody is told: bytes behind the Ethernet header",
    )
    seed: Annotated[str, Field(max_length=100)] = Field(
        default="",
        description="repeats the luck of impaired frames, between machines of the same names; in "
        "userspace only",
    )
    ttl_s: Annotated[Seconds, Field(gt=0)] | None = Field(
        default=None, description="after which it heals by itself"
    )


class NamedFault(Request):
    """A fault."""

    fault_id: Named


class HealFaults(Request):
    """Which faults to heal."""

    network: Named | None = Field(default=None, description="only those of this network")


class FaultFilter(Request):
    """Which faults to list."""

    network: Named | None = Field(default=None, description="only those of this network")
    ended: bool = Field(default=False, description="also those that have ended")


class FaultList(Answer):
    """Faults, oldest first."""

    items: list[Fault]


class FaultsHealed(Answer):
    """How many faults were healed."""

    healed: int


@declare("fault_inject", "POST /v1/faults", role=Role.OPERATOR)
async def fault_inject(service: Service, caller: Caller, request: InjectFault) -> Fault:
    """Break something between the machines of a network, on purpose.

    A fault is active when it was seen where frames pass. It holds through restarts of machines and
    of the daemon until it is healed, or its time is over. Several add up. What machines are told
    and files go by is no part of their networks, and stays up.
    """
    by = actor(caller, "fault_inject")
    network = await service.host.networks.get(request.network, by)
    members = {
        machine.machine_id: machine.name or machine.machine_id
        for machine in await service.host.networks.members(network)
        if by.sees_of(machine.owner)
    }
    return await service.host.faults.inject(plan_of(request, network.network_id, members), by)


@declare("fault_get", "GET /v1/faults/{fault_id}", role=Role.VIEWER, effect=Effect.READ)
async def fault_get(service: Service, caller: Caller, request: NamedFault) -> Fault:
    """Look at a fault: where it stands, and what it does to which ways."""
    return await service.host.faults.get(request.fault_id, actor(caller, "fault_get"))


@declare("fault_list", "GET /v1/faults", role=Role.VIEWER, effect=Effect.READ)
async def fault_list(service: Service, caller: Caller, request: FaultFilter) -> FaultList:
    """List faults, oldest first: yours, or all if you see everything."""
    by = actor(caller, "fault_list")
    wanted = request.network and (await service.host.networks.get(request.network, by)).network_id
    return FaultList(
        items=[
            fault
            for fault in await service.host.faults.visible(by)
            if (request.ended or not fault.state.ended)
            and (wanted is None or fault.network_id == wanted)
        ]
    )


@declare("fault_heal", "POST /v1/faults/{fault_id}/heal", role=Role.OPERATOR, idempotent=True)
async def fault_heal(service: Service, caller: Caller, request: NamedFault) -> Fault:
    """End a fault, and see that it is gone; one that has ended stays so."""
    return await service.host.faults.heal(request.fault_id, actor(caller, "fault_heal"))


@declare("fault_heal_all", "POST /v1/faults/heal", role=Role.OPERATOR, idempotent=True)
async def fault_heal_all(service: Service, caller: Caller, request: HealFaults) -> FaultsHealed:
    """End all faults that you see, or those of a network, and count them."""
    by = actor(caller, "fault_heal_all")
    wanted = request.network and (await service.host.networks.get(request.network, by)).network_id
    return FaultsHealed(healed=await service.host.faults.heal_all(by, wanted))


def plan_of(request: InjectFault, network_id: str, members: Mapping[str, str]) -> Plan:
    """Work out what is asked for, among machines by id and name.

    Raises: NotFound for a machine that is not among them, InvalidInput.
    """
    order = sorted(members, key=lambda machine_id: members[machine_id])

    def find(reference: str) -> str:
        if reference in members:
            return reference
        for machine_id, name in members.items():
            if name == reference:
                return machine_id
        raise errors.NotFound(f"no machine {reference} in network {request.network}")

    def the_machine() -> str:
        if request.machine is None:
            raise errors.InvalidInput(f"{request.kind} takes a machine")
        return find(request.machine)

    def the_targets(source: str) -> list[str]:
        named = [find(each) for each in request.targets]
        return named or [each for each in order if each != source]

    match request.kind:
        case FaultKind.PARTITION:
            plan = partition(network_id, _grudge(request, order, find, the_machine))
        case FaultKind.LINK_DOWN:
            plan = link_down(network_id, the_machine(), order)
        case FaultKind.DNS:
            plan = nameless(network_id, the_machine(), the_targets(the_machine()))
        case FaultKind.IMPAIR:
            source = the_machine()
            plan = impairing(
                network_id,
                source,
                the_targets(source),
                impairment_of(_meets(request)),
                seed=request.seed,
                names=members,
            )
    parameters = request.model_dump(mode="json", exclude_defaults=True)
    return Plan(plan.kind, network_id, plan.ways, parameters, request.ttl_s)


def _grudge(
    request: InjectFault,
    order: Sequence[str],
    find: Callable[[str], str],
    the_machine: Callable[[], str],
) -> grudges.Grudge:
    groups = [[find(each) for each in group] for group in request.groups]
    if request.shuffle is not None:
        order = grudges.shuffled(order, request.shuffle)
    match request.shape:
        case Shape.GROUPS:
            return grudges.groups_apart(groups)
        case Shape.ONE_WAY:
            if len(groups) != 2:  # one speaks, and one does not hear
                raise errors.InvalidInput("a partition one way takes two groups")
            return grudges.one_way(*groups)
        case Shape.HALVES:
            return grudges.halves(order)
        case Shape.SINGLE:
            return grudges.alone(the_machine(), order)
        case Shape.BRIDGE:
            return grudges.bridged(order)
        case Shape.MAJORITIES_RING:
            return grudges.majorities_ring(order)
        case Shape.GRUDGES:
            had = {find(deaf): [find(e) for e in said] for deaf, said in request.grudges.items()}
            return grudges.arbitrary(had, order)


def _meets(request: InjectFault) -> Meets:
    if len(request.bursts) == 1:
        raise errors.InvalidInput("bursts take the chances to worsen and to recover")
    bursts = dict(zip(_BURSTS, request.bursts, strict=False))
    return Meets(
        loss=request.loss,
        loss_correlation=request.loss_correlation,
        bursts=LossBursts.model_validate(bursts) if bursts else None,
        delay_s=request.delay_s,
        jitter_s=request.jitter_s,
        spread=request.spread,
        corrupt=request.corrupt,
        duplicate=request.duplicate,
        reorder=request.reorder,
        rate_bytes=request.rate_bytes,
        mtu=request.mtu,
    )


CALLS: tuple[Call, ...] = (fault_inject, fault_get, fault_list, fault_heal, fault_heal_all)
