"""Whatever is injected, healed, stopped, started and restarted: in the end all is as it was."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faulting import ALICE, MACHINES, Doom, Ground, Killed, ground
from microvm_orchestrator.faults import grudges
from microvm_orchestrator.faults.plans import (
    Plan,
    flapping,
    harming,
    harms_read,
    impairing,
    link_down,
    partition,
    read,
    suffering,
)
from microvm_orchestrator.model.fault import UNHARMED, Fault, FaultKind, FaultState, Flap, Harm
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.network.impairment import Impairment, combined
from networking import STAGES, why_no_kernel
from storing import HandClock

# So many compositions, on each kind of networks.
SLICE = {"switch": 25, "kernel": 5}
WHOLE = 500
LONG_S = 120.0


@dataclass(frozen=True)
class Inject:
    plan: Plan


@dataclass(frozen=True)
class Heal:
    number: int


@dataclass(frozen=True)
class Cycle:
    """A machine is stopped and, unless it was, started: in any order with all others."""

    machine: str


@dataclass(frozen=True)
class Pass:
    seconds: int


@dataclass(frozen=True)
class Restart:
    # After so many steps of what comes next; None for one that ends in peace.
    killed_at: int | None


Act = Inject | Heal | Cycle | Pass | Restart

ORDERS = st.permutations(MACHINES)
MACHINE = st.sampled_from(MACHINES)
SHARES = st.sampled_from([0.05, 0.3])
# Some rest when a second has passed, some when they end by themselves.
PHASES = st.sampled_from([1.0, 25.0])
FLAPS = st.builds(Flap, down_s=PHASES, up_s=PHASES, count=st.sampled_from([None, 1, 2]))
# What every kernel can.
IMPAIRMENTS = st.builds(
    Impairment,
    loss=st.sampled_from([0.0, 0.1, 0.25]),
    rate_bytes=st.sampled_from([10_000, 1_000_000]),
    cut=st.booleans(),
    mtu=st.sampled_from([None, 1280, 576]),
    dns=st.booleans(),
)
ALL_IMPAIRMENTS = st.builds(
    Impairment,
    loss=SHARES,
    delay_s=st.sampled_from([0.0, 0.1]),
    corrupt=SHARES,
    duplicate=SHARES,
    reorder=SHARES,
    mtu=st.sampled_from([None, 1280]),
    seed=st.sampled_from(["", "seven"]),
)


def impaired(impairments: st.SearchStrategy[Impairment]) -> st.SearchStrategy[Plan]:
    def plan(order: list[str], count: int, impairment: Impairment) -> Plan:
        return impairing("net", order[0], order[1 : 1 + count], impairment)

    return st.builds(plan, ORDERS, st.integers(1, 4), impairments)


def plans(impairments: st.SearchStrategy[Impairment]) -> st.SearchStrategy[Plan]:
    grudge = st.one_of(
        ORDERS.map(grudges.halves),
        ORDERS.map(grudges.majorities_ring),
        ORDERS.map(grudges.bridged),
        ORDERS.map(lambda order: grudges.one_way(order[:1], order[1:3])),
        ORDERS.map(lambda order: grudges.arbitrary({order[0]: order[2:4]}, MACHINES)),
    )
    harms = st.one_of(
        st.just((FaultKind.PAUSE, Harm(paused=True))),
        st.sampled_from([0.1, 0.5]).map(lambda share: (FaultKind.SLOW_CPU, Harm(cpu_share=share))),
        st.sampled_from([-60.0, 3.5]).map(lambda skew: (FaultKind.CLOCK_SKEW, Harm(skew_s=skew))),
        st.integers(1, 3).map(lambda mib: (FaultKind.MEMORY, Harm(memory_mib=mib))),
        st.sampled_from(["/", "/var"]).map(lambda at: (FaultKind.DISK_FULL, Harm(full=(at,)))),
    )
    plan = st.one_of(
        st.builds(suffered, ORDERS, st.integers(1, 3), harms),
        grudge.map(lambda cut: partition("net", cut)),
        MACHINE.map(lambda machine: link_down("net", machine, MACHINES)),
        st.builds(flaps, MACHINE, FLAPS),
        impaired(impairments),
    )
    return st.builds(lasting, plan, st.sampled_from([None, None, 30.0]))


def suffered(order: list[str], count: int, harm: tuple[FaultKind, Harm]) -> Plan:
    return harming(harm[0], order[:count], harm[1])


def flaps(machine: str, flap: Flap) -> Plan:
    return flapping("net", machine, MACHINES, flap)


def lasting(plan: Plan, ttl_s: float | None) -> Plan:
    return replace(plan, ttl_s=ttl_s)


def acts(impairments: st.SearchStrategy[Impairment]) -> st.SearchStrategy[list[Act]]:
    return st.lists(
        st.one_of(
            plans(impairments).map(Inject),
            plans(impairments).map(Inject),
            st.builds(Heal, st.integers(0, 20)),
            st.builds(Cycle, MACHINE),
            st.builds(Pass, st.sampled_from([1, 40])),
            st.builds(Restart, st.none() | st.integers(0, 12)),
        ),
        max_size=12,
    )


async def do(world: Ground, clock: HandClock, act: Act) -> None:
    match act:
        case Inject(plan):
            if world.running.issuperset(plan.harms):
                await world.ledger.inject(plan, ALICE)
        case Heal(number):
            faults = await world.ledger.visible(ALICE)
            if faults:
                await world.ledger.heal(faults[number % len(faults)].fault_id, ALICE)
        case Cycle(machine):
            await (world.stop if machine in world.running else world.start)(machine)
        case Pass(seconds):
            clock.at += seconds
            # What comes and goes is followed, and what is over heals, as by a daemon that runs.
            await world.ledger.settle()
        case Restart():
            await world.restart()


async def composed(kind: str, composition: list[Act]) -> None:
    clock = HandClock()
    with tempfile.TemporaryDirectory() as folder, anyio.fail_after(LONG_S):
        async with ground(kind, Path(folder), clock) as world:
            pristine = await world.dump()
            kept = world.ledger
            for act in composition:
                if isinstance(act, Restart) and act.killed_at is not None:
                    # Whatever comes next is done by one who will not finish it.
                    doom = Doom()
                    world.ledger = world.doomed(doom)
                    await world.ledger.reconcile()
                    await world.ledger.settle()
                    doom.comes_at(act.killed_at)
                    continue
                try:
                    await do(world, clock, act)
                except Killed:
                    await world.restart()
                    kept = world.ledger
                if world.ledger is kept or isinstance(act, Restart):
                    await agrees(world, clock)
                    kept = world.ledger
            await world.restart()
            await agrees(world, clock)
            for name in MACHINES:
                if name not in world.running:
                    await world.start(name)
            await world.ledger.heal_all(SYSTEM)
            assert await world.dump() == pristine
            assert await world.networks.impaired("net") == {}


def holds(fault: Fault, clock: HandClock) -> bool:
    """Tell whether a fault is active, and does not rest now."""
    if fault.flap is None or fault.active_at is None or fault.state is not FaultState.ACTIVE:
        return fault.state is FaultState.ACTIVE
    down, _ = fault.flap.at(clock.at - fault.active_at.timestamp())
    return down


async def agrees(world: Ground, clock: HandClock) -> None:
    """See that frames meet what the faults say that are told to be active, and nothing else."""
    faults = await world.ledger.visible(SYSTEM)
    active = [read(each.ways) for each in faults if holds(each, clock)]
    assert all(each.state.ended or each.state is FaultState.ACTIVE for each in faults)
    ends = {way for ways in active for way in ways}
    wanted = {way: combined([ways[way] for ways in active if way in ways]) for way in ends}
    assert await world.networks.impaired("net") == wanted
    harms = [harms_read(each.harms) for each in faults if each.state is FaultState.ACTIVE]
    for name in world.running:
        mine = suffering([each[name] for each in harms if name in each])
        assert world.suffered().get(name, UNHARMED) == mine


@pytest.mark.parametrize("kind", STAGES)
def test_after_any_composition_of_faults_and_heals_all_is_as_it_was(kind: str, whole: bool) -> None:
    if kind == "kernel" and (why := why_no_kernel()):
        pytest.skip(why)
    examples = WHOLE if whole else SLICE[kind]
    counted = 0

    @settings(
        max_examples=examples,
        derandomize=not whole,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(acts(ALL_IMPAIRMENTS if kind == "switch" else IMPAIRMENTS))
    def check(composition: list[Act]) -> None:
        nonlocal counted
        counted += 1
        anyio.run(composed, kind, composition)

    check()
    assert counted >= examples
