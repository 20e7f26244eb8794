"""What the ledger promises of faults of machines: the same as of those between them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from faulting import ALICE, BOB, Doom, Ground, Killed, ground
from microvm_orchestrator import errors
from microvm_orchestrator.faults.grounds import Sufferers
from microvm_orchestrator.faults.grudges import groups_apart
from microvm_orchestrator.faults.ledger import Ledger
from microvm_orchestrator.faults.plans import harming, partition
from microvm_orchestrator.model.fault import Fault, FaultKind, FaultState, Harm
from microvm_orchestrator.model.records import SYSTEM
from storing import BEGIN, HandClock

LONG_S = 60.0
STILL = harming(FaultKind.PAUSE, ["a", "b"], Harm(paused=True))
SLOW = harming(FaultKind.SLOW_CPU, ["a"], Harm(cpu_share=0.5))
SLOWER = harming(FaultKind.SLOW_CPU, ["a"], Harm(cpu_share=0.1))
LATE = harming(FaultKind.CLOCK_SKEW, ["a", "c"], Harm(skew_s=-300))
EARLY = harming(FaultKind.CLOCK_SKEW, ["a"], Harm(skew_s=60))
SPLIT = partition("net", groups_apart([["a", "b"], ["c", "d", "e"]]))


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def world(tmp_path: Path, clock: HandClock) -> AsyncGenerator[Ground]:
    with anyio.fail_after(LONG_S):
        async with ground("switch", tmp_path, clock) as world:
            yield world


async def states(world: Ground) -> list[FaultState]:
    return [fault.state for fault in await world.ledger.visible(SYSTEM)]


async def test_a_machine_suffers_what_its_open_faults_say_together(world: Ground) -> None:
    slow = await world.ledger.inject(SLOW, ALICE)
    assert (slow.network_id, slow.machines, slow.ways) == (None, ["a"], [])
    slower = await world.ledger.inject(SLOWER, ALICE)
    assert [(each.machine, each.suffers.cpu_share) for each in slower.harmed_before] == [("a", 0.5)]
    await world.ledger.inject(LATE, ALICE)
    early = await world.ledger.inject(EARLY, ALICE)
    await world.ledger.inject(SPLIT, ALICE)
    assert world.suffered() == {"a": Harm(cpu_share=0.1, skew_s=-240), "c": Harm(skew_s=-300)}
    await world.ledger.heal(slower.fault_id, ALICE)
    await world.ledger.heal(early.fault_id, ALICE)
    assert world.suffered() == {"a": Harm(cpu_share=0.5, skew_s=-300), "c": Harm(skew_s=-300)}
    assert await world.networks.impaired("net") == SPLIT.ways
    assert await world.ledger.heal_all(ALICE, machine_id="c") == 2
    assert world.suffered() == {"a": Harm(cpu_share=0.5)}
    assert await world.ledger.heal_all(BOB) == 0
    assert await world.ledger.heal_all(ALICE) == 1
    assert world.suffered() == {}
    assert await states(world) == [FaultState.HEALED] * 5


async def test_a_share_of_a_processor_is_as_fine_as_a_control_group_is(world: Ground) -> None:
    third = harming(FaultKind.SLOW_CPU, ["a"], Harm(cpu_share=1 / 3))
    fault = await world.ledger.inject(third, ALICE)
    assert world.suffered() == {"a": Harm(cpu_share=0.33333)}
    await world.restart()
    assert (await world.ledger.heal(fault.fault_id, ALICE)).state is FaultState.HEALED
    assert world.suffered() == {}


async def test_a_machine_that_is_stopped_and_started_finds_its_fault_again(world: Ground) -> None:
    fault = await world.ledger.inject(STILL, ALICE)
    await world.stop("a")
    await world.restart()
    assert world.suffered() == {"b": Harm(paused=True)}
    await world.start("a")
    assert world.suffered() == dict.fromkeys("ab", Harm(paused=True))
    await world.stop("a")
    await world.ledger.heal(fault.fault_id, ALICE)
    await world.start("a")
    assert world.suffered() == {}


async def test_a_machine_that_does_not_run_or_is_not_there_is_refused(world: Ground) -> None:
    await world.stop("b")
    with pytest.raises(errors.StateForbids):
        await world.ledger.inject(STILL, ALICE)
    with pytest.raises(errors.NotFound):
        await world.ledger.inject(harming(FaultKind.PAUSE, ["x"], Harm(paused=True)), ALICE)
    assert await states(world) == []
    assert world.suffered() == {}


@pytest.mark.parametrize(
    ("kind", "machines", "harm"),
    [
        (FaultKind.PAUSE, ["a"], Harm()),
        (FaultKind.PAUSE, [], Harm(paused=True)),
        (FaultKind.PARTITION, ["a"], Harm(paused=True)),
    ],
)
def test_a_fault_of_machines_changes_something_for_each(
    kind: FaultKind, machines: list[str], harm: Harm
) -> None:
    with pytest.raises(errors.InvalidInput):
        harming(kind, machines, harm)


class Refusing:
    """Machines of which one does not do as it is told, or says that it does not."""

    def __init__(self, real: Sufferers, *, lies: bool) -> None:
        self._real, self._lies = real, lies

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def harm(self, machine_id: str, harm: Harm, touched: frozenset[str]) -> None:
        if machine_id == "b" and harm.touched and not self._lies:
            raise errors.MachineUnreachable("b has other plans")
        await self._real.harm(machine_id, harm, touched)

    async def harmed(self, machine_id: str, touched: frozenset[str]) -> Harm | None:
        if machine_id == "b" and self._lies:
            return Harm()
        return await self._real.harmed(machine_id, touched)


@pytest.mark.parametrize("lies", [True, False])
async def test_when_one_machine_does_not_suffer_none_does(world: Ground, *, lies: bool) -> None:
    machines = cast("Sufferers", Refusing(world.sufferers, lies=lies))
    ledger = Ledger(world.store, world.networks, machines)
    error = errors.FaultUnverified if lies else errors.MachineUnreachable
    with pytest.raises(error):
        await ledger.inject(STILL, ALICE)
    (fault,) = await world.ledger.visible(ALICE)
    assert fault.state is FaultState.FAILED
    assert world.suffered() == {}


async def test_what_is_in_the_way_of_a_heal_is_healed_first(world: Ground) -> None:
    class Still:
        """Machines that are told nothing while they stand still."""

        def __getattr__(self, name: str) -> Any:
            return getattr(world.sufferers, name)

        async def harm(self, machine_id: str, harm: Harm, touched: frozenset[str]) -> None:
            if world.sufferers.standing[machine_id].paused and "paused" not in touched:
                raise errors.MachineUnreachable("it stands still")
            await world.sufferers.harm(machine_id, harm, touched)

    ledger = Ledger(world.store, world.networks, cast("Sufferers", Still()))
    late = await ledger.inject(LATE, ALICE)
    await ledger.inject(STILL, ALICE)
    with pytest.raises(errors.MachineUnreachable):
        await ledger.heal(late.fault_id, ALICE)
    assert (await ledger.get(late.fault_id, ALICE)).state is FaultState.HEALING
    assert await ledger.heal_all(ALICE) == 2
    assert world.suffered() == {}


async def test_a_fault_of_machines_that_are_gone_has_ended(world: Ground) -> None:
    fault = await world.ledger.inject(STILL, ALICE)
    world.sufferers.stop("a")
    world.sufferers.known.discard("a")
    assert (await world.ledger.get(fault.fault_id, ALICE)).state is FaultState.ACTIVE
    world.sufferers.stop("b")
    world.sufferers.known.discard("b")
    fault = await world.ledger.get(fault.fault_id, ALICE)
    assert (fault.state, fault.reason) == (FaultState.HEALED, "its machines are gone")


async def test_it_heals_by_itself_also_while_the_daemon_was_down(
    world: Ground, clock: HandClock
) -> None:
    fault = await world.ledger.inject(replace(STILL, ttl_s=60), ALICE)
    assert fault.heals_at
    assert fault.heals_at.timestamp() == BEGIN + 60
    clock.at += 61
    await world.restart()
    assert await states(world) == [FaultState.HEALED]
    assert world.suffered() == {}


async def killed_at(world: Ground, step: int, what: str, fault: Fault) -> bool:
    """Let a daemon do something and be killed at a step; tell whether it came so far."""
    doom = Doom()
    ledger = world.doomed(doom)
    if what != "settle":
        await ledger.reconcile()
        await ledger.settle()
    doom.comes_at(step)
    try:
        if what == "settle":
            await ledger.reconcile()
            await ledger.settle()
        elif what == "inject":
            await ledger.inject(LATE, ALICE)
        else:
            await ledger.heal(fault.fault_id, ALICE)
    except Killed:
        return True
    return False


@pytest.mark.parametrize("what", ["inject", "heal", "settle"])
async def test_a_daemon_that_is_killed_between_any_two_steps_leaves_no_machine_to_suffer(
    world: Ground, what: str
) -> None:
    step = 0
    killed = True
    while killed:
        fault = await world.ledger.inject(STILL, ALICE)
        await world.ledger.inject(EARLY, ALICE)
        killed = await killed_at(world, step, what, fault)
        await world.restart()
        holding = [each for each in await world.ledger.visible(SYSTEM) if not each.state.ended]
        assert {each.state for each in holding} == {FaultState.ACTIVE}
        machines = {machine for each in holding for machine in each.machines}
        assert set(world.suffered()) == machines
        await world.ledger.heal_all(SYSTEM)
        assert world.suffered() == {}
        step += 1
    assert step > 4
