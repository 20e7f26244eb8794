"""How long faults hold, and for whom: some come and go, are renewed, or wait for who joins."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from faulting import ALICE, BOB, MACHINES, Ground, ground
from microvm_orchestrator import errors
from microvm_orchestrator.faults.grudges import halves
from microvm_orchestrator.faults.ledger import Ledger
from microvm_orchestrator.faults.plans import (
    CUT,
    NO_NAMES,
    Plan,
    Ways,
    flapping,
    impairing,
    link_down,
    nameless,
    partition,
    single,
)
from microvm_orchestrator.model.fault import FaultState, Flap
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.network.base import Ends, Networks
from microvm_orchestrator.network.impairment import Impairment
from microvm_orchestrator.store.base import Match
from networking import STAGES
from storing import BEGIN, HandClock

LONG_S = 120.0
FLAP = Flap(down_s=2, up_s=3)
FLAPPING = flapping("net", "a", MACHINES, FLAP)
LOSE = impairing("net", "b", ["c"], Impairment(loss=0.25))


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


async def meets(world: Ground) -> Ways:
    return await world.networks.impaired("net")


def test_what_comes_and_goes_follows_from_the_clock() -> None:
    assert [FLAP.at(elapsed_s) for elapsed_s in (0.0, 1.5, 2.0, 4.0, 5.0, 10.0, 12.5)] == [
        (True, 2.0),
        (True, 0.5),
        (False, 3.0),
        (False, 1.0),
        (True, 2.0),
        (True, 2.0),
        (False, 2.5),
    ]
    assert FLAP.lasts_s is None
    # The last time that it is up is after it.
    assert Flap(down_s=2, up_s=3, count=3).lasts_s == 12


async def test_a_daemon_that_starts_goes_on_with_a_flap_in_phase(
    world: Ground, clock: HandClock
) -> None:
    pristine = await world.dump()
    fault = await world.ledger.inject(FLAPPING, ALICE)
    await world.ledger.inject(LOSE, ALICE)
    assert await meets(world) == {**FLAPPING.ways, **LOSE.ways}
    for elapsed_s, down in ((1.9, True), (2.1, False), (4.9, False), (5.1, True), (1002.5, False)):
        clock.at = BEGIN + elapsed_s
        await world.restart()
        assert await meets(world) == {**(FLAPPING.ways if down else {}), **LOSE.ways}
        assert (await world.ledger.get(fault.fault_id, ALICE)).state is FaultState.ACTIVE
        # What comes meanwhile takes no notice of it.
        other = await world.ledger.inject(link_down("net", "e", MACHINES), ALICE)
        await world.ledger.heal(other.fault_id, ALICE)
        assert await meets(world) == {**(FLAPPING.ways if down else {}), **LOSE.ways}
    await world.ledger.heal_all(ALICE)
    assert await world.dump() == pristine


class Seen:
    """Networks that keep what they were, each time that something was said of them."""

    def __init__(self, real: Networks) -> None:
        self._real = real
        self.was: list[bool] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def impair(self, network_id: str, ways: Ways) -> None:
        await self._real.impair(network_id, ways)
        cut = bool(await self._real.impaired(network_id))
        if self.was[-1:] != [cut]:
            self.was.append(cut)


@pytest.mark.parametrize("kind", STAGES)
async def test_a_link_that_flaps_is_down_and_up_and_has_healed_after_so_many_times(
    kind: str, tmp_path: Path
) -> None:
    flap = Flap(down_s=0.3, up_s=0.3, count=2)
    async with ground(kind, tmp_path) as world:
        seen = Seen(world.networks)
        ledger = Ledger(world.store, cast("Networks", seen), world.sufferers)
        await ledger.reconcile()
        seen.was.clear()
        with anyio.fail_after(LONG_S):
            async with ledger.running(), world.store.hints() as changes:
                fault = await ledger.inject(flapping("net", "a", MACHINES, flap), ALICE)
                assert fault.active_at is not None
                assert fault.heals_at is not None
                assert (fault.heals_at - fault.active_at).total_seconds() == pytest.approx(0.9)
                while not (await ledger.get(fault.fault_id, ALICE)).state.ended:
                    await anext(changes)
        # A host that stands still for so long lets it miss a turn.
        assert seen.was in ([True, False, True, False], [True, False])
        assert await meets(world) == {}


async def test_a_fault_that_is_renewed_lasts_and_one_that_is_not_heals(
    world: Ground, clock: HandClock
) -> None:
    kept = await world.ledger.inject(replace(LOSE, ttl_s=60), ALICE)
    left = await world.ledger.inject(replace(link_down("net", "e", MACHINES), ttl_s=60), BOB)
    clock.at += 50
    renewed = await world.ledger.renew(kept.fault_id, 100, ALICE)
    assert renewed.heals_at
    assert renewed.heals_at.timestamp() == BEGIN + 150
    with pytest.raises(errors.NotFound):
        await world.ledger.renew(kept.fault_id, 100, BOB)
    clock.at += 20
    await world.restart()
    assert (await world.ledger.get(left.fault_id, BOB)).state is FaultState.HEALED
    assert await world.ledger.get(kept.fault_id, ALICE) == renewed
    assert await meets(world) == LOSE.ways
    with pytest.raises(errors.StateForbids, match="holds no more"):
        await world.ledger.renew(left.fault_id, 100, BOB)
    clock.at = BEGIN + 151
    await world.restart()
    assert await meets(world) == {}
    events = await world.store.events(None, Match(subjects=(kept.fault_id,)), 10, SYSTEM)
    kinds = [event.kind.removeprefix("fault.") for event in events.events]
    assert kinds == ["applying", "active", "renewed", "healing", "healed"]


@pytest.mark.parametrize(
    ("plan", "met"),
    [
        (link_down("net", "a", MACHINES), {Ends("a", "f"): CUT, Ends("f", "a"): CUT}),
        (single("net", "a", MACHINES), {Ends("a", "f"): CUT, Ends("f", "a"): CUT}),
        (
            flapping("net", "a", MACHINES, FLAP),
            {Ends("a", "f"): CUT, Ends("f", "a"): CUT},
        ),
        (
            nameless("net", "a", ["b"], all_others=True),
            {Ends("a", "f"): NO_NAMES},
        ),
        (
            impairing("net", "a", ["b"], Impairment(loss=0.5), seed="7", all_others=True),
            {Ends("a", "f"): Impairment(loss=0.5)},
        ),
        (impairing("net", "a", ["b"], Impairment(loss=0.5)), {}),
        (partition("net", halves(MACHINES)), {}),
    ],
)
async def test_who_joins_later_is_among_all_others_and_in_no_group(
    tmp_path: Path, plan: Plan, met: Ways
) -> None:
    with anyio.fail_after(LONG_S):
        async with ground("switch", tmp_path) as world:
            fault = await world.ledger.inject(plan, ALICE)
            for _ in range(2):
                await world.join("f")
                assert await meets(world) == {**plan.ways, **met}
                await world.restart()
            ways = {way.target: way.meets.seed for way in fault.ways} | {
                way.target: way.meets.seed
                for way in (await world.ledger.get(fault.fault_id, ALICE)).ways
            }
            assert ways.get("f", "") == ("7 a f" if ways["b"] else "")
            await world.ledger.heal_all(ALICE)
            assert await meets(world) == {}


async def test_who_joins_is_cut_off_in_the_kernel_as_well_and_by_those_who_may_see_it(
    world: Ground,
) -> None:
    down = link_down("net", "a", MACHINES)
    mine = await world.ledger.inject(down, BOB)
    await world.join("f", owner="alice")
    assert await meets(world) == down.ways
    await world.join("g", owner="bob")
    assert await meets(world) == {**down.ways, Ends("a", "g"): CUT, Ends("g", "a"): CUT}
    assert (await world.ledger.get(mine.fault_id, BOB)).machines == [*MACHINES, "g"]
    await world.ledger.heal(mine.fault_id, BOB)
    await world.join("h", owner="bob")
    assert await meets(world) == {}


async def test_what_cannot_be_for_who_joins_is_left_out(tmp_path: Path) -> None:
    follows = Impairment(loss=0.1, loss_correlation=0.5)
    with anyio.fail_after(LONG_S):
        async with ground("switch", tmp_path) as world:
            await world.ledger.inject(impairing("net", "a", ["b"], follows, all_others=True), ALICE)
            await world.ledger.inject(impairing("net", "a", ["f"], follows), ALICE)
            before = await meets(world)
            await world.join("f")
            assert await meets(world) == before
