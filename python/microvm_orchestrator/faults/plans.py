"""What a fault is to do, before anything is done: what ways between machines meet, or machines.

Pure. A plan knows machines by their ids and nothing of the host; its names of luck are made of
what a caller calls the machines, so another cluster with the same names meets the same luck. Above
stands the ledger; below, grudges and what can be wrong with a way.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pydantic import JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.faults.grudges import Grudge, alone
from microvm_orchestrator.model.fault import (
    UNHARMED,
    FaultHarm,
    FaultKind,
    FaultWay,
    Flap,
    Harm,
    LossBursts,
    Meets,
)
from microvm_orchestrator.network.base import Ends
from microvm_orchestrator.network.impairment import (
    AS_IT_SHOULD_BE,
    Bursts,
    Impairment,
    Spread,
    combined,
)

T = TypeVar("T", int, float)
Ways = Mapping[Ends, Impairment]
CUT = Impairment(cut=True)
NO_NAMES = Impairment(dns=True)
# A machine that is not in the network yet.
ANYBODY = "*"
# Those of a hundred machines of which none hears another.
MOST_WAYS = 10_000
_MOST_MACHINES = 1000


@dataclass(frozen=True, slots=True)
class Plan:
    """A fault as it is asked for."""

    kind: FaultKind
    # None where it is about machines alone.
    network_id: str | None = None
    ways: Ways = field(default_factory=dict[Ends, Impairment])
    # What the caller said, to be told again.
    parameters: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    ttl_s: float | None = None
    # What befalls machines, by their ids.
    harms: Mapping[str, Harm] = field(default_factory=dict[str, Harm])
    # Who injects it by a schedule.
    campaign_id: str | None = None
    # What a machine meets that joins the network later; `ANYBODY` stands for it.
    joining: Ways = field(default_factory=dict[Ends, Impairment])
    flap: Flap | None = None
    # The same in other networks, each by its own ways: all of it is one fault.
    also: tuple[Plan, ...] = ()

    def __post_init__(self) -> None:
        if (self.network_id is None) is not self.kind.of_machines:
            raise errors.InvalidInput(f"{self.kind} is about machines, or about a network")
        if not (self.harms if self.kind.of_machines else self.ways):
            raise errors.InvalidInput("a fault has to change something")
        if AS_IT_SHOULD_BE in self.ways.values():
            raise errors.InvalidInput("a fault has to change something on each of its ways")
        if UNHARMED in self.harms.values():
            raise errors.InvalidInput("a fault has to change something for each of its machines")
        if len(self.every_way) > MOST_WAYS or len(self.harms) > _MOST_MACHINES:
            raise errors.TooLarge(f"a fault changes at most {MOST_WAYS} ways")
        if self.ttl_s is not None and not self.ttl_s > 0:
            raise errors.InvalidInput("a fault lasts longer than no time")

    @property
    def networks(self) -> tuple[Plan, ...]:
        """What it is in each network."""
        return () if self.network_id is None else (replace(self, also=()), *self.also)

    @property
    def every_way(self) -> list[tuple[Ends, Impairment]]:
        return [*self.ways.items(), *(way for each in self.also for way in each.ways.items())]

    @property
    def machines(self) -> list[str]:
        return sorted({machine for ends, _ in self.every_way for machine in ends} | set(self.harms))


def partition(network_id: str, grudge: Grudge) -> Plan:
    """Let nobody hear those it has a grudge against."""
    return Plan(FaultKind.PARTITION, network_id, dict.fromkeys(sorted(grudge), CUT))


def link_down(network_id: str, machine: str, machines: Collection[str]) -> Plan:
    """Let a machine be alone, also among those that join later. Raises: InvalidInput."""
    return _alone(FaultKind.LINK_DOWN, network_id, machine, machines)


def single(network_id: str, machine: str, machines: Collection[str]) -> Plan:
    """Part a machine from all others, also from those that join later. Raises: InvalidInput."""
    return _alone(FaultKind.PARTITION, network_id, machine, machines)


def flapping(network_id: str, machine: str, machines: Collection[str], flap: Flap) -> Plan:
    """Let a machine be alone for a while, and not, and again. Raises: InvalidInput."""
    return replace(_alone(FaultKind.FLAP, network_id, machine, machines), flap=flap)


def _alone(kind: FaultKind, network_id: str, machine: str, machines: Collection[str]) -> Plan:
    joining = dict.fromkeys((Ends(machine, ANYBODY), Ends(ANYBODY, machine)), CUT)
    ways = dict.fromkeys(sorted(alone(machine, machines)), CUT)
    return Plan(kind, network_id, ways, joining=joining)


def impairing(
    network_id: str,
    source: str,
    targets: Collection[str],
    impairment: Impairment,
    *,
    seed: str = "",
    names: Mapping[str, str] | None = None,
    all_others: bool = False,
) -> Plan:
    """Let what a machine sends to each of these meet something; what it hears stays as it is.

    Where these are all others, those that join later are among them. Raises: InvalidInput.
    """
    if source in targets:
        raise errors.InvalidInput(f"no frames go from machine {source} to itself")
    called = names or {}
    ways = {
        Ends(source, target): replace(
            impairment,
            seed=f"{seed} {called.get(source, source)} {called.get(target, target)}"
            if seed
            else "",
        )
        for target in sorted(targets)
    }
    begun = f"{seed} {called.get(source, source)}" if seed else ""
    joining = {Ends(source, ANYBODY): replace(impairment, seed=begun)} if all_others else {}
    return Plan(FaultKind.IMPAIR, network_id, ways, joining=joining)


def nameless(
    network_id: str, source: str, targets: Collection[str], *, all_others: bool = False
) -> Plan:
    """Let a machine's questions for names come to none of these. Raises: as `impairing`."""
    asking = impairing(network_id, source, targets, NO_NAMES, all_others=all_others)
    return replace(asking, kind=FaultKind.DNS)


def everywhere(plan: Plan, networks: Mapping[str, Collection[str]]) -> Plan:
    """Let a fault be in each of these networks, between those of its machines that are there.

    Raises: InvalidInput when no way that it is about goes through any of them.
    """
    in_each = [
        replace(
            plan,
            network_id=network_id,
            ways={ends: its for ends, its in plan.ways.items() if set(ends) <= set(members)},
            joining={e: its for e, its in plan.joining.items() if set(e) <= {*members, ANYBODY}},
        )
        for network_id, members in networks.items()
        if any(set(ends) <= set(members) for ends in plan.ways)
    ]
    if not in_each:
        raise errors.InvalidInput("these nodes share no network")
    return replace(in_each[0], also=tuple(in_each[1:]))


def joined(joining: Ways, machine: str, called: str) -> dict[Ends, Impairment]:
    """Tell what a machine meets that has joined its network, by its id and what it is called."""
    return {
        Ends(*(machine if each == ANYBODY else each for each in ends)): replace(
            its, seed=its.seed and f"{its.seed} {called}"
        )
        for ends, its in joining.items()
    }


def harming(kind: FaultKind, machines: Collection[str], harm: Harm) -> Plan:
    """Let something befall machines themselves. Raises: InvalidInput."""
    return Plan(kind, harms=dict.fromkeys(sorted(machines), harm))


def together(each: Collection[Ways], ends: Collection[Ends]) -> dict[Ends, Impairment]:
    """Tell what these ways meet when all that is in `each` holds; also those that meet nothing.

    Raises: Conflict for what cannot both be so.
    """
    return {way: combined([ways[way] for ways in each if way in ways]) for way in sorted(ends)}


def told(ways: Ways, network_id: str | None = None) -> list[FaultWay]:
    """Write ways down, and of which network they are, of a fault that is in several."""
    return [
        FaultWay(
            source=ends.source,
            target=ends.target,
            meets=_meets(impairment),
            network_id=network_id,
        )
        for ends, impairment in sorted(ways.items())
    ]


def read(ways: Collection[FaultWay], network_id: str | None = None) -> dict[Ends, Impairment]:
    """Read ways that were written down: those of a network, if a fault is in several."""
    return {
        Ends(way.source, way.target): impairment_of(way.meets)
        for way in ways
        if way.network_id in {None, network_id}
    }


def impairment_of(meets: Meets) -> Impairment:
    """Raises: InvalidInput for what cannot be."""
    try:
        spread = Spread(meets.spread)
    except ValueError:
        raise errors.InvalidInput(f"delays are spread {', '.join(Spread)}") from None
    plain = meets.model_dump(exclude={"bursts", "spread"})
    bursts = Bursts(**meets.bursts.model_dump()) if meets.bursts is not None else None
    return Impairment(**plain, spread=spread, bursts=bursts)


def _meets(its: Impairment) -> Meets:
    bursts = its.bursts
    return Meets(
        cut=its.cut,
        loss=its.loss,
        loss_correlation=its.loss_correlation,
        bursts=bursts
        and LossBursts(
            worsens=bursts.worsens,
            recovers=bursts.recovers,
            loss_bad=bursts.loss_bad,
            loss_good=bursts.loss_good,
        ),
        delay_s=its.delay_s,
        jitter_s=its.jitter_s,
        spread=its.spread,
        corrupt=its.corrupt,
        duplicate=its.duplicate,
        reorder=its.reorder,
        rate_bytes=its.rate_bytes,
        mtu=its.mtu,
        dns=its.dns,
        seed=its.seed,
    )


def suffering(each: Collection[Harm]) -> Harm:
    """Tell what a machine suffers when all of it holds."""
    return Harm(
        paused=any(harm.paused for harm in each),
        cpu_share=_least(harm.cpu_share for harm in each),
        skew_s=math.fsum(harm.skew_s for harm in each),
        disk_bytes_s=_least(harm.disk_bytes_s for harm in each),
        disk_operations_s=_least(harm.disk_operations_s for harm in each),
        reads_fail=any(harm.reads_fail for harm in each),
        writes_fail=any(harm.writes_fail for harm in each),
        full=tuple(sorted({path for harm in each for path in harm.full})),
        memory_mib=sum(harm.memory_mib for harm in each),
    )


def harms_told(harms: Mapping[str, Harm]) -> list[FaultHarm]:
    """Write down what befalls machines, where anything does."""
    return [
        FaultHarm(machine=machine, suffers=harm)
        for machine, harm in sorted(harms.items())
        if not harm.nothing
    ]


def harms_read(harms: Collection[FaultHarm]) -> dict[str, Harm]:
    """Read what was written down."""
    return {each.machine: each.suffers for each in harms}


def _least(values: Iterable[T | None]) -> T | None:
    return min((value for value in values if value is not None), default=None)
