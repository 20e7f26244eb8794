"""What the ledger promises of faults, on both kinds of networks: none half-done, none left."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

import frames
from faulting import ALICE, BOB, MACHINES, Doom, Ground, Killed, ground
from microvm_orchestrator import errors
from microvm_orchestrator.faults.grudges import groups_apart, one_way
from microvm_orchestrator.faults.ledger import Ledger
from microvm_orchestrator.faults.plans import CUT, impairing, link_down, partition
from microvm_orchestrator.machine.tap import within
from microvm_orchestrator.model.fault import Fault, FaultState
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.network import netlink, queues
from microvm_orchestrator.network.base import Ends, Networks
from microvm_orchestrator.network.impairment import Impairment
from microvm_orchestrator.store.base import Match
from networking import STAGES, KernelStage, wired
from storing import BEGIN, HandClock

LONG_S = 120.0
GONE = "its network is gone"
LOSSY, NARROW = Impairment(loss=0.25), Impairment(rate_bytes=10_000)
SPLIT = partition("net", groups_apart([["a", "b"], ["c", "d", "e"]]))
LOSE = impairing("net", "a", ["b", "c"], LOSSY)
THROTTLE = impairing("net", "a", ["b", "c"], NARROW)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture(params=STAGES)
async def world(
    request: pytest.FixtureRequest, tmp_path: Path, clock: HandClock
) -> AsyncGenerator[Ground]:
    with anyio.fail_after(LONG_S):
        async with ground(request.param, tmp_path, clock) as world:
            yield world


async def states(world: Ground) -> list[FaultState]:
    return [fault.state for fault in await world.ledger.visible(SYSTEM)]


async def test_a_fault_is_seen_while_it_is_there_and_gone_when_it_is_healed(
    world: Ground, clock: HandClock
) -> None:
    pristine = await world.dump()
    fault = await world.ledger.inject(SPLIT, ALICE)
    assert fault.state is FaultState.ACTIVE
    assert (fault.owner, fault.machines) == ("alice", list(MACHINES))
    assert await world.networks.impaired("net") == SPLIT.ways
    assert await world.dump() != pristine
    assert await world.ledger.get(fault.fault_id, ALICE) == fault
    clock.at += 5
    healed = await world.ledger.heal(fault.fault_id, ALICE)
    assert healed.state is FaultState.HEALED
    assert healed.ended_at
    assert healed.ended_at.timestamp() == BEGIN + 5
    assert await world.dump() == pristine
    assert await world.ledger.heal(fault.fault_id, ALICE) == healed
    events = await world.store.events(None, Match(subjects=(fault.fault_id,)), 10, SYSTEM)
    assert [event.kind for event in events.events] == [
        f"fault.{state}" for state in ("applying", "active", "healing", "healed")
    ]


async def test_machines_do_not_hear_each_other_while_a_fault_says_so(world: Ground) -> None:
    def frame(source: str, target: str, text: str) -> bytes:
        mine, yours = world.ports[source], world.ports[target]
        address = (mine.ipv4 or "").partition("/")[0]
        return frames.ipv4(frames.mac(yours), frames.mac(mine), address, text.encode())

    async with AsyncExitStack() as stack:
        ports = [world.ports[name] for name in "abc"]
        a, b, c = await wired(world.networks, world.stage, ports, stack)
        fault = await world.ledger.inject(partition("net", one_way(["a"], ["b"])), ALICE)
        await a.send(frame("a", "b", "lost"))
        await a.send(frame("a", "c", "first"))
        assert await c.receive() == frame("a", "c", "first")
        await b.send(frame("b", "a", "back"))
        assert await a.receive() == frame("b", "a", "back")
        await world.ledger.heal(fault.fault_id, ALICE)
        await a.send(frame("a", "b", "found"))
        assert await b.receive() == frame("a", "b", "found")


async def test_faults_on_the_same_ways_add_up_and_heal_each_by_itself(world: Ground) -> None:
    pristine = await world.dump()
    lose = await world.ledger.inject(LOSE, ALICE)
    split = await world.ledger.inject(SPLIT, ALICE)
    throttle = await world.ledger.inject(THROTTLE, ALICE)
    assert [(way.source, way.target) for way in split.before] == [("a", "c")]
    assert (await world.networks.impaired("net"))[Ends("a", "c")] == Impairment(
        cut=True, loss=0.25, rate_bytes=10_000
    )
    await world.ledger.heal(split.fault_id, ALICE)
    assert await world.networks.impaired("net") == dict.fromkeys(
        LOSE.ways, Impairment(loss=0.25, rate_bytes=10_000)
    )
    await world.ledger.heal(lose.fault_id, ALICE)
    assert await world.networks.impaired("net") == THROTTLE.ways
    await world.ledger.heal(throttle.fault_id, ALICE)
    assert await world.dump() == pristine


async def test_all_are_healed_and_counted_and_each_sees_their_own(world: Ground) -> None:
    pristine = await world.dump()
    for plan in (SPLIT, LOSE, link_down("net", "e", MACHINES)):
        await world.ledger.inject(plan, ALICE)
    mine = await world.ledger.inject(THROTTLE, BOB)
    assert [each.fault_id for each in await world.ledger.visible(BOB)] == [mine.fault_id]
    (first, *_) = await world.ledger.visible(ALICE)
    for verb in (world.ledger.get, world.ledger.heal):
        with pytest.raises(errors.NotFound):
            await verb(first.fault_id, BOB)
    assert await world.ledger.heal_all(BOB) == 1
    assert await world.ledger.heal_all(ALICE, "another") == 0
    assert await world.ledger.heal_all(ALICE, "net") == 3
    assert await world.ledger.heal_all(ALICE) == 0
    assert await world.dump() == pristine
    assert await states(world) == [FaultState.HEALED] * 4


async def test_after_a_restart_what_was_active_is_active(world: Ground) -> None:
    pristine = await world.dump()
    split = await world.ledger.inject(SPLIT, ALICE)
    await world.ledger.inject(THROTTLE, ALICE)
    healed = await world.ledger.inject(LOSE, ALICE)
    await world.ledger.heal(healed.fault_id, ALICE)
    standing, dump = await world.networks.impaired("net"), await world.dump()
    before = await world.ledger.visible(ALICE)
    await world.restart()
    assert await world.ledger.visible(ALICE) == before
    assert await world.networks.impaired("net") == standing
    if isinstance(world.stage, KernelStage):
        assert await world.dump() == dump
    await world.ledger.heal(split.fault_id, ALICE)
    assert await world.networks.impaired("net") == THROTTLE.ways
    assert await world.ledger.heal_all(ALICE) == 1
    assert await world.dump() == pristine


async def test_a_machine_that_starts_again_finds_its_fault_on_its_new_port(world: Ground) -> None:
    pristine = await world.dump()
    await world.ledger.inject(SPLIT, ALICE)
    fault = await world.ledger.inject(THROTTLE, ALICE)
    for name in ("a", "b"):
        await world.stop(name)
    standing = await world.networks.impaired("net")
    await world.ledger.heal(fault.fault_id, ALICE)
    again = await world.ledger.inject(THROTTLE, ALICE)
    assert await world.networks.impaired("net") == standing
    await world.restart()
    for name in ("b", "a"):
        await world.start(name)
    assert await world.networks.impaired("net") == standing
    await world.ledger.heal(again.fault_id, ALICE)
    assert await world.networks.impaired("net") == SPLIT.ways
    await world.ledger.heal_all(ALICE)
    assert await world.dump() == pristine


class Lying:
    """Networks that say of one way that nothing is wrong with it."""

    def __init__(self, real: Networks, ends: Ends) -> None:
        self._real, self._ends = real, ends

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def impaired(self, network_id: str) -> dict[Ends, Impairment]:
        standing = await self._real.impaired(network_id)
        standing.pop(self._ends, None)
        return standing


async def test_a_fault_that_is_not_seen_is_taken_back_whole(world: Ground) -> None:
    pristine = await world.dump()
    lying = cast("Networks", Lying(world.networks, Ends("d", "a")))
    liar = Ledger(world.store, lying, world.sufferers)
    with pytest.raises(errors.FaultUnverified, match="d -> a"):
        await liar.inject(SPLIT, ALICE)
    assert await world.dump() == pristine
    (fault,) = await world.ledger.visible(ALICE)
    assert fault.state is FaultState.FAILED
    assert "d -> a" in fault.reason
    await world.ledger.heal(fault.fault_id, ALICE)
    assert await states(world) == [FaultState.FAILED]


async def test_when_the_second_step_fails_the_first_is_gone(world: Ground) -> None:
    if not isinstance(world.stage, KernelStage):
        pytest.skip("in userspace there is one step, which cannot fail")
    await world.ledger.inject(LOSE, ALICE)
    before = await world.networks.impaired("net")
    names = [each.name for each in within(world.stage.netns, netlink.interfaces)]
    last = max(name for name in names if name.startswith("mvt"))
    world.stage.run("tc", "qdisc", "add", "dev", last, "root", "handle", "7:", "pfifo")
    foreign = await world.dump()
    everywhere = [impairing("net", name, set(MACHINES) - {name}, NARROW) for name in MACHINES]
    ways = {ends: its for plan in everywhere for ends, its in plan.ways.items()}
    with pytest.raises(errors.Unavailable):
        await world.ledger.inject(replace(everywhere[0], ways=ways), ALICE)
    assert await world.dump() == foreign
    assert await world.networks.impaired("net") == before
    assert await states(world) == [FaultState.ACTIVE, FaultState.FAILED]


async def test_what_cannot_be_is_refused_before_anything_is_written(world: Ground) -> None:
    pristine = await world.dump()
    for plan in (replace(SPLIT, network_id="none"),):
        with pytest.raises(errors.NotFound):
            await world.ledger.inject(plan, ALICE)
    slow = impairing("net", "a", ["b"], Impairment(loss=0.1, loss_correlation=0.5))
    if slow.ways[Ends("a", "b")].needs <= (await world.networks.abilities()).can:
        await world.ledger.inject(slow, ALICE)
        with pytest.raises(errors.Conflict):
            await world.ledger.inject(slow, ALICE)
        await world.ledger.heal_all(ALICE)
        assert await states(world) == [FaultState.HEALED]
    else:
        with pytest.raises(errors.FaultNotOffered, match="no netem"):
            await world.ledger.inject(slow, ALICE)
        assert await states(world) == []
    assert await world.dump() == pristine


async def test_a_fault_heals_by_itself_also_while_the_daemon_was_down(
    world: Ground, clock: HandClock
) -> None:
    pristine = await world.dump()
    fault = await world.ledger.inject(replace(SPLIT, ttl_s=60), ALICE)
    await world.ledger.inject(LOSE, ALICE)
    assert fault.heals_at
    assert fault.heals_at.timestamp() == BEGIN + 60
    clock.at += 59
    await world.restart()
    assert await states(world) == [FaultState.ACTIVE] * 2
    clock.at += 2
    await world.restart()
    assert await states(world) == [FaultState.HEALED, FaultState.ACTIVE]
    assert await world.networks.impaired("net") == LOSE.ways
    await world.ledger.heal_all(ALICE)
    assert await world.dump() == pristine


@pytest.mark.parametrize("kind", STAGES)
async def test_a_fault_heals_when_its_time_has_come(kind: str, tmp_path: Path) -> None:
    with anyio.fail_after(LONG_S):
        async with ground(kind, tmp_path) as world, world.ledger.running():
            pristine = await world.dump()
            async with world.store.hints() as changes:
                lasting = await world.ledger.inject(LOSE, ALICE)
                short = await world.ledger.inject(replace(SPLIT, ttl_s=0.2), ALICE)
                while (await world.ledger.get(short.fault_id, ALICE)).state.ended is False:
                    await anext(changes)
            assert await world.networks.impaired("net") == LOSE.ways
            await world.ledger.heal(lasting.fault_id, ALICE)
            assert await world.dump() == pristine


async def test_what_no_record_knows_is_taken_away_at_the_start(world: Ground) -> None:
    pristine = await world.dump()
    await world.ledger.inject(LOSE, ALICE)
    lossy = await world.dump()
    await world.networks.impair("net", {Ends("d", "e"): CUT, Ends("e", "d"): NARROW})
    if isinstance(world.stage, KernelStage):
        # What a daemon came to that was killed before it said what goes there.
        names = [each.name for each in within(world.stage.netns, netlink.interfaces)]
        taps = [name for name in names if name.startswith("mvt")]
        within(world.stage.netns, lambda: queues.give(taps[0], {7: NARROW}))
    await world.ledger.reconcile()
    assert await world.networks.impaired("net") == LOSE.ways
    if isinstance(world.stage, KernelStage):
        assert await world.dump() == lossy
    # So too where one of the machines is not there, and nobody knows it by name.
    await world.networks.impair("net", {Ends("d", "e"): CUT, Ends("e", "d"): CUT})
    await world.stop("e")
    await world.restart()
    assert await world.networks.impaired("net") == LOSE.ways
    await world.start("e")
    await world.ledger.heal_all(ALICE)
    assert await world.dump() == pristine


async def test_a_fault_of_a_network_that_is_gone_has_ended(world: Ground) -> None:
    await world.ledger.inject(SPLIT, ALICE)
    doomed = await world.ledger.inject(LOSE, ALICE)
    await world.networks.remove("net")
    assert (await world.ledger.heal(doomed.fault_id, ALICE)).state is FaultState.HEALED
    assert await states(world) == [FaultState.HEALED] * 2
    assert {each.reason for each in await world.ledger.visible(ALICE)} == {GONE}
    await world.ledger.reconcile()
    assert await states(world) == [FaultState.HEALED] * 2


async def killed_at(world: Ground, step: int, what: str, fault: Fault) -> bool:
    """Let a daemon do something and be killed at a step; tell whether it came so far."""
    doom = Doom()
    ledger = world.doomed(doom)
    if what != "reconcile":
        await ledger.reconcile()
    doom.comes_at(step)
    try:
        if what == "reconcile":
            await ledger.reconcile()
        elif what == "inject":
            await ledger.inject(THROTTLE, ALICE)
        else:
            await ledger.heal(fault.fault_id, ALICE)
    except Killed:
        return True
    return False


@pytest.mark.parametrize("what", ["inject", "heal", "reconcile"])
async def test_a_daemon_that_is_killed_between_any_two_steps_leaves_nothing_behind(
    world: Ground, what: str, whole: bool
) -> None:
    pristine = await world.dump()
    step = 0
    # In the kernel each takes a second.
    stride = 1 if whole or not isinstance(world.stage, KernelStage) else 5
    while True:
        fault = await world.ledger.inject(LOSE, ALICE)
        await world.ledger.inject(SPLIT, ALICE)
        killed = await killed_at(world, step, what, fault)
        await world.restart()
        ended = {each.fault_id for each in await world.ledger.visible(SYSTEM) if each.state.ended}
        holding = [
            each for each in await world.ledger.visible(SYSTEM) if each.fault_id not in ended
        ]
        # Nothing stands half-done, and what stands is what is written down.
        assert {each.state for each in holding} == {FaultState.ACTIVE}
        ways = {Ends(way.source, way.target) for each in holding for way in each.ways}
        assert set(await world.networks.impaired("net")) == ways
        await world.ledger.heal_all(SYSTEM)
        assert await world.dump() == pristine
        assert await world.networks.impaired("net") == {}
        if not killed:
            break
        step += stride
    assert step > 4
