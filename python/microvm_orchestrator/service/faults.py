"""Faults between machines of a network, and of machines themselves: injected, looked at, healed.

What is asked for in names becomes a plan of ways or harms here; the ledger does the rest. Above are
the front ends; below, the ledger, the networks and the machines of this host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Annotated, TypeVar

from pydantic import Field, JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.clusters.records import node_of
from microvm_orchestrator.faults import grudges
from microvm_orchestrator.faults.plans import (
    Plan,
    everywhere,
    flapping,
    harming,
    impairing,
    impairment_of,
    link_down,
    nameless,
    partition,
    single,
)
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.cluster import Cluster
from microvm_orchestrator.model.fault import (
    Fault,
    FaultKind,
    FaultState,
    Flap,
    Harm,
    LossBursts,
    Meets,
    Phase,
    Share,
)
from microvm_orchestrator.model.fault import Seconds as UpToAnHour
from microvm_orchestrator.model.records import Actor
from microvm_orchestrator.model.values import Key, Seconds
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.idempotency import id_for
from microvm_orchestrator.service.service import Service, actor

T = TypeVar("T", int, float)
Named = Annotated[str, Field(min_length=1, max_length=100)]
Machines = Annotated[list[Named], Field(max_length=1000)]
# A way's chances to worsen and to recover, and what is lost while it is bad, and while it is good.
_BURSTS = tuple(LossBursts.model_fields)
_YEAR_S = 366 * 86400.0
# A clock is set and read by commands.
_LEAST_SKEW_S = 1.0


class Shape(StrEnum):
    """How a partition parts machines."""

    GROUPS = "groups"
    ONE_WAY = "one_way"
    HALVES = "halves"
    SINGLE = "single"
    BRIDGE = "bridge"
    MAJORITIES_RING = "majorities_ring"
    GRUDGES = "grudges"


class Fails(StrEnum):
    """What of a disk fails."""

    READS = "reads"
    WRITES = "writes"
    BOTH = "both"


class InjectFault(Request):
    """A fault to inject. Machines are named by their names or ids, or as nodes of a cluster."""

    cluster: Named | None = Field(
        default=None,
        description="its name or id; then machines are named as its nodes, and the network as in "
        "its topology, or left out: then the fault is in all networks that nodes share",
    )
    network: Named | None = Field(
        default=None,
        description="its name or id, where something is broken between machines; without it, the "
        "machine itself suffers",
    )
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
        "questions for names go nowhere; or that suffers itself",
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
    cpu_share: Annotated[float, Field(ge=0.01, le=1)] | None = Field(
        default=None, description="of slow_cpu: the share of one processor that is left"
    )
    skew_s: Annotated[float, Field(ge=-_YEAR_S, le=_YEAR_S)] = Field(
        default=0.0, description="of clock_skew: how far the clock goes ahead; behind, below zero"
    )
    disk_bytes_s: Annotated[int, Field(ge=1024)] | None = Field(
        default=None, description="of disk_slow: what each disk passes in a second"
    )
    disk_operations_s: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="of disk_slow: what each disk passes in a second"
    )
    fails: Fails = Field(default=Fails.BOTH, description="of disk_error: which of a disk's")
    path: Annotated[str, Field(pattern=r"^/[^\x00-\x1f\x7f]{0,1000}$")] = Field(
        default="/", description="of disk_full: a folder of the guest, on the file system that is"
    )
    memory_mib: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="of memory: how much of the guest's is taken"
    )
    down_s: Phase | None = Field(
        default=None, description="of flap: how long the link is down at a time, first at once"
    )
    up_s: Phase | None = Field(default=None, description="of flap: how long it is up in between")
    count: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="of flap: how often the link is down before the fault has healed; for ever, if "
        "left out",
    )
    ttl_s: Annotated[Seconds, Field(gt=0)] | None = Field(
        default=None, description="after which it heals by itself, unless it is renewed"
    )
    idempotency_key: Key | None = Field(
        default=None,
        description="the same request with the same key breaks it once, and answers with the fault "
        "as it stands",
    )
    label: Named | None = Field(
        default=None,
        description="a name of your own, told again with its parameters; several may have the same",
    )


class NamedFault(Request):
    """A fault."""

    fault_id: Named


class RenewFault(NamedFault):
    """How long a fault is to last."""

    ttl_s: Annotated[Seconds, Field(gt=0)] = Field(
        description="from now on, after which it heals by itself"
    )


class HealFaults(Request):
    """Which faults to heal."""

    cluster: Named | None = Field(
        default=None,
        description="only those in its networks and of its nodes, as which machines are named then",
    )
    network: Named | None = Field(default=None, description="only those of this network")
    machine: Named | None = Field(default=None, description="only those that affect this machine")


class FaultFilter(Request):
    """Which faults to list."""

    cluster: Named | None = Field(
        default=None,
        description="only those in its networks and of its nodes, as which machines are named then",
    )
    network: Named | None = Field(default=None, description="only those of this network")
    machine: Named | None = Field(default=None, description="only those that affect this machine")
    ended: bool = Field(default=False, description="also those that have ended")


class FaultList(Answer):
    """Faults, oldest first."""

    items: list[Fault]


class FaultsHealed(Answer):
    """How many faults were healed."""

    healed: int


@declare("fault_inject", "POST /v1/faults", role=Role.OPERATOR)
async def fault_inject(service: Service, caller: Caller, request: InjectFault) -> Fault:
    """Break something between the machines of a network, or let a machine suffer, on purpose.

    A fault is active when it was seen where it holds. It holds through restarts of machines and of
    the daemon until it is healed, or its time is over. Several add up. What machines are told and
    files go by is no part of their networks, and stays up; a machine that is paused is told
    nothing.
    """
    by = actor(caller, "fault_inject")
    ledger = service.host.faults
    fault_id = id_for("fault", by.name, request.idempotency_key)
    if request.idempotency_key is not None:
        with contextlib.suppress(errors.NotFound):
            return _same(await ledger.get(fault_id, by), request)
    return await ledger.inject(await _plan(service, request, by), by, fault_id=fault_id)


def _same(fault: Fault, request: InjectFault) -> Fault:
    """Raises: KeyReused, and FaultUnverified where it came to nothing."""
    if fault.parameters != asked(request):
        raise errors.KeyReused(f"this key made fault {fault.fault_id}, which is another one")
    if fault.state is FaultState.FAILED:
        raise errors.FaultUnverified(
            f"fault {fault.fault_id} came to nothing: {fault.reason}",
            hint="another key tries it again",
        )
    return fault


async def _plan(service: Service, request: InjectFault, by: Actor) -> Plan:
    """Work out what is asked for, by the names of a cluster or of this host."""
    if request.cluster is not None:
        return plan_in(await service.host.clusters.records.standing(request.cluster, by), request)
    if request.kind.of_machines:
        return await _harming(service, request, by)
    if request.network is None:
        raise errors.InvalidInput(f"{request.kind} takes a network")
    network = await service.host.networks.get(request.network, by)
    members = {
        machine.machine_id: machine.name or machine.machine_id
        for machine in await service.host.networks.members(network)
        if by.sees_of(machine.owner)
    }
    return plan_of(request, network.network_id, members)


@declare("fault_get", "GET /v1/faults/{fault_id}", role=Role.VIEWER, effect=Effect.READ)
async def fault_get(service: Service, caller: Caller, request: NamedFault) -> Fault:
    """Look at a fault: where it stands, and what it does to which ways."""
    return await service.host.faults.get(request.fault_id, actor(caller, "fault_get"))


@declare("fault_list", "GET /v1/faults", role=Role.VIEWER, effect=Effect.READ)
async def fault_list(service: Service, caller: Caller, request: FaultFilter) -> FaultList:
    """List faults, oldest first: yours, or all if you see everything."""
    by = actor(caller, "fault_list")
    wanted = await _only(service, request, by)
    return FaultList(
        items=[
            fault
            for fault in await service.host.faults.visible(by)
            if (request.ended or not fault.state.ended)
            and any(
                network_id in {None, *fault.network_ids}
                and (machine_id is None or machine_id in fault.machines)
                for network_id, machine_id in wanted
            )
        ]
    )


@declare("fault_renew", "POST /v1/faults/{fault_id}/renew", role=Role.OPERATOR)
async def fault_renew(service: Service, caller: Caller, request: RenewFault) -> Fault:
    """Let a fault last for some more time, from now on, before it heals by itself.

    Whoever breaks something for as long as they live gives it a short time and renews that: when
    they are gone, it heals.
    """
    by = actor(caller, "fault_renew")
    return await service.host.faults.renew(request.fault_id, request.ttl_s, by)


@declare("fault_heal", "POST /v1/faults/{fault_id}/heal", role=Role.OPERATOR, idempotent=True)
async def fault_heal(service: Service, caller: Caller, request: NamedFault) -> Fault:
    """End a fault, and see that it is gone; one that has ended stays so."""
    return await service.host.faults.heal(request.fault_id, actor(caller, "fault_heal"))


@declare("fault_heal_all", "POST /v1/faults/heal", role=Role.OPERATOR, idempotent=True)
async def fault_heal_all(service: Service, caller: Caller, request: HealFaults) -> FaultsHealed:
    """End all faults that you see, or those of a network, machine or cluster, and count them."""
    by = actor(caller, "fault_heal_all")
    healed = 0
    failed: errors.OrchestratorError | None = None
    for wanted in await _only(service, request, by):
        try:
            healed += await service.host.faults.heal_all(by, *wanted)
        except errors.OrchestratorError as error:
            failed = error
    if failed is not None:
        raise failed
    return FaultsHealed(healed=healed)


async def _only(
    service: Service, request: FaultFilter | HealFaults, by: Actor
) -> list[tuple[str | None, str | None]]:
    """Find the networks and the machines that somebody means, any of them. Raises: NotFound."""
    host = service.host
    if request.cluster is not None:
        cluster = await host.clusters.records.get(request.cluster, by)
        if request.network is None and request.machine is None:
            networks = [each.network_id for each in cluster.networks if each.network_id is not None]
            return [
                *((network_id, None) for network_id in networks),
                *((None, node.machine_id) for node in cluster.nodes),
            ]
        within = request.network and _network_of(cluster, request.network)
        return [(within, request.machine and node_of(cluster, request.machine).machine_id)]
    network_id = request.network and (await host.networks.get(request.network, by)).network_id
    machine_id = request.machine and (await host.machines.get(request.machine, by)).machine_id
    return [(network_id, machine_id)]


async def _harming(service: Service, request: InjectFault, by: Actor) -> Plan:
    """Work out what befalls a machine. Raises: NotFound, InvalidInput."""
    machine = await service.host.machines.get(_sufferer(request), by)
    return _harm(request, machine.machine_id)


def _sufferer(request: InjectFault) -> str:
    if request.network is not None or request.machine is None:
        raise errors.InvalidInput(f"{request.kind} takes a machine, and no network")
    return request.machine


def _harm(request: InjectFault, machine_id: str) -> Plan:
    plan = harming(request.kind, [machine_id], harm_of(request))
    return replace(plan, parameters=asked(request), ttl_s=request.ttl_s)


def plan_in(cluster: Cluster, request: InjectFault) -> Plan:
    """Work out what is asked for, by the names of a cluster's nodes and networks.

    Raises: NotFound, InvalidInput.
    """
    if request.kind.of_machines:
        return _harm(request, node_of(cluster, _sufferer(request)).machine_id)
    topology = cluster.topology
    there = {node.name: {nic.name for nic in topology.nics_of(node)} for node in topology.nodes}
    members = {
        _network_of(cluster, each.name): {
            node.machine_id: node.name for node in cluster.nodes if each.name in there[node.name]
        }
        for each in cluster.networks
        if request.network in {None, each.name}
    }
    if request.network is not None:
        network_id = _network_of(cluster, request.network)
        return plan_of(request, network_id, members[network_id])
    nodes = {node.machine_id: node.name for node in cluster.nodes}
    everybody = plan_of(request, next(iter(members), ""), nodes, cluster.name)
    plan = everywhere(everybody, members)
    # A partition parts whom it can; whoever is spoken of alone is told where nothing can be done.
    for name in (*([] if request.machine is None else [request.machine]), *request.targets):
        if node_of(cluster, name).machine_id not in plan.machines:
            raise errors.InvalidInput(f"node {name} shares no network with the others")
    return plan


def _network_of(cluster: Cluster, name: str) -> str:
    for each in cluster.networks:
        if each.name == name and each.network_id is not None:
            return each.network_id
    raise errors.NotFound(f"cluster {cluster.name} has no network {name}")


def harm_of(request: InjectFault) -> Harm:
    """Tell what befalls a machine by a fault of this kind. Raises: InvalidInput."""
    match request.kind:
        case FaultKind.PAUSE:
            return Harm(paused=True)
        case FaultKind.SLOW_CPU:
            return Harm(cpu_share=_said(request, "cpu_share", request.cpu_share))
        case FaultKind.CLOCK_SKEW:
            if abs(request.skew_s) < _LEAST_SKEW_S:
                raise errors.InvalidInput(f"clock_skew takes a skew_s of {_LEAST_SKEW_S:g} or more")
            return Harm(skew_s=request.skew_s)
        case FaultKind.DISK_SLOW:
            slow = (request.disk_bytes_s, request.disk_operations_s)
            if slow == (None, None):
                raise errors.InvalidInput("disk_slow takes disk_bytes_s or disk_operations_s")
            return Harm(disk_bytes_s=slow[0], disk_operations_s=slow[1])
        case FaultKind.DISK_ERROR:
            return Harm(
                reads_fail=request.fails is not Fails.WRITES,
                writes_fail=request.fails is not Fails.READS,
            )
        case FaultKind.DISK_FULL:
            return Harm(full=(request.path,))
        case FaultKind.MEMORY:
            return Harm(memory_mib=_said(request, "memory_mib", request.memory_mib))
        case _:
            raise errors.InvalidInput(f"{request.kind} befalls no machine")


def _said(request: InjectFault, name: str, value: T | None) -> T:
    if value is None:
        raise errors.InvalidInput(f"{request.kind} takes a {name}")
    return value


def asked(request: InjectFault) -> dict[str, JsonValue]:
    """Give what somebody has said, to be told again."""
    return request.model_dump(mode="json", exclude_defaults=True, exclude={"idempotency_key"})


def plan_of(
    request: InjectFault, network_id: str, members: Mapping[str, str], cluster: str | None = None
) -> Plan:
    """Work out what is asked for, among machines by id and name: of a network, or a cluster.

    Raises: NotFound for a machine that is not among them, InvalidInput.
    """
    order = sorted(members, key=lambda machine_id: members[machine_id])
    where, what = f"network {request.network}", "machine"
    if cluster is not None:
        where, what = f"cluster {cluster}", "node"

    def find(reference: str) -> str:
        if reference in members:
            return reference
        for machine_id, name in members.items():
            if name == reference:
                return machine_id
        raise errors.NotFound(f"{where} has no {what} {reference}")

    def the_machine() -> str:
        if request.machine is None:
            raise errors.InvalidInput(f"{request.kind} takes a machine")
        return find(request.machine)

    def the_targets(source: str) -> list[str]:
        named = [find(each) for each in request.targets]
        return named or [each for each in order if each != source]

    match request.kind:
        case FaultKind.PARTITION:
            if request.shape is Shape.SINGLE:
                plan = single(network_id, the_machine(), order)
            else:
                plan = partition(network_id, _grudge(request, order, find))
        case FaultKind.LINK_DOWN:
            plan = link_down(network_id, the_machine(), order)
        case FaultKind.DNS:
            source = the_machine()
            plan = nameless(network_id, source, the_targets(source), all_others=not request.targets)
        case FaultKind.FLAP:
            if request.down_s is None or request.up_s is None:
                raise errors.InvalidInput("flap takes a down_s and an up_s")
            flap = Flap(down_s=request.down_s, up_s=request.up_s, count=request.count)
            plan = flapping(network_id, the_machine(), order, flap)
        case FaultKind.IMPAIR:
            source = the_machine()
            plan = impairing(
                network_id,
                source,
                the_targets(source),
                impairment_of(_meets(request)),
                seed=request.seed,
                names=members,
                all_others=not request.targets,
            )
        case _:
            raise errors.InvalidInput(f"{request.kind} is about no network")
    return replace(plan, parameters=asked(request), ttl_s=request.ttl_s)


def _grudge(
    request: InjectFault,
    order: Sequence[str],
    find: Callable[[str], str],
) -> grudges.Grudge:
    groups = [[find(each) for each in group] for group in request.groups]
    if request.shuffle is not None:
        # By their places among the names: other machines of these names have other ids.
        places = grudges.shuffled([f"{place:06}" for place in range(len(order))], request.shuffle)
        order = [order[int(place)] for place in places]
    match request.shape:
        case Shape.GROUPS:
            return grudges.groups_apart(groups)
        case Shape.ONE_WAY:
            if len(groups) != 2:  # one speaks, and one does not hear
                raise errors.InvalidInput("a partition one way takes two groups")
            return grudges.one_way(*groups)
        case Shape.HALVES:
            return grudges.halves(order)
        case Shape.BRIDGE:
            return grudges.bridged(order)
        case Shape.MAJORITIES_RING:
            return grudges.majorities_ring(order)
        case Shape.GRUDGES:
            had = {find(deaf): [find(e) for e in said] for deaf, said in request.grudges.items()}
            return grudges.arbitrary(had, order)
        case Shape.SINGLE:
            raise errors.InvalidInput("a single machine is in no group")


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


CALLS: tuple[Call, ...] = (
    fault_inject,
    fault_get,
    fault_list,
    fault_renew,
    fault_heal,
    fault_heal_all,
)
