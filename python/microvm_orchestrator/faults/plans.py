"""What a fault is to do, before anything is done: ways between machines, and what they meet.

Pure. A plan knows machines by their ids and nothing of the host; its names of luck are made of
what a caller calls the machines, so another cluster with the same names meets the same luck. Above
stands the ledger; below, grudges and what can be wrong with a way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from pydantic import JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.faults.grudges import Grudge, alone
from microvm_orchestrator.model.fault import FaultKind, FaultWay, LossBursts, Meets
from microvm_orchestrator.network.base import Ends
from microvm_orchestrator.network.impairment import (
    AS_IT_SHOULD_BE,
    Bursts,
    Impairment,
    Spread,
    combined,
)

Ways = Mapping[Ends, Impairment]
CUT = Impairment(cut=True)
NO_NAMES = Impairment(dns=True)
# Those of a hundred machines of which none hears another.
_MOST_WAYS = 10_000


@dataclass(frozen=True, slots=True)
class Plan:
    """A fault as it is asked for."""

    kind: FaultKind
    network_id: str
    ways: Ways
    # What the caller said, to be told again.
    parameters: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    ttl_s: float | None = None

    def __post_init__(self) -> None:
        if not self.ways or AS_IT_SHOULD_BE in self.ways.values():
            raise errors.InvalidInput("a fault has to change something on each of its ways")
        if len(self.ways) > _MOST_WAYS:
            raise errors.TooLarge(f"a fault changes at most {_MOST_WAYS} ways")
        if self.ttl_s is not None and not self.ttl_s > 0:
            raise errors.InvalidInput("a fault lasts longer than no time")

    @property
    def machines(self) -> list[str]:
        return sorted({machine for ends in self.ways for machine in ends})


def partition(network_id: str, grudge: Grudge) -> Plan:
    """Let nobody hear those it has a grudge against."""
    return Plan(FaultKind.PARTITION, network_id, dict.fromkeys(sorted(grudge), CUT))


def link_down(network_id: str, machine: str, machines: Collection[str]) -> Plan:
    """Let a machine be alone among those that its network has now. Raises: InvalidInput."""
    ways = dict.fromkeys(sorted(alone(machine, machines)), CUT)
    return Plan(FaultKind.LINK_DOWN, network_id, ways)


def impairing(
    network_id: str,
    source: str,
    targets: Collection[str],
    impairment: Impairment,
    *,
    seed: str = "",
    names: Mapping[str, str] | None = None,
) -> Plan:
    """Let what a machine sends to each of these meet something; what it hears stays as it is.

    Raises: InvalidInput.
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
    return Plan(FaultKind.IMPAIR, network_id, ways)


def nameless(network_id: str, source: str, targets: Collection[str]) -> Plan:
    """Let a machine's questions for names come to none of these. Raises: InvalidInput."""
    asking = impairing(network_id, source, targets, NO_NAMES)
    return Plan(FaultKind.DNS, network_id, asking.ways)


def together(each: Collection[Ways], ends: Collection[Ends]) -> dict[Ends, Impairment]:
    """Tell what these ways meet when all that is in `each` holds; also those that meet nothing.

    Raises: Conflict for what cannot both be so.
    """
    return {way: combined([ways[way] for ways in each if way in ways]) for way in sorted(ends)}


def told(ways: Ways) -> list[FaultWay]:
    """Write ways down."""
    return [
        FaultWay(source=ends.source, target=ends.target, meets=_meets(impairment))
        for ends, impairment in sorted(ways.items())
    ]


def read(ways: Collection[FaultWay]) -> dict[Ends, Impairment]:
    """Read ways that were written down."""
    return {Ends(way.source, way.target): impairment_of(way.meets) for way in ways}


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
