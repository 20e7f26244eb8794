"""A fault that is in several networks: seen in each, or in none, and healed in all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest

from faulting import ALICE, MACHINES, Doom, Ground, Killed, ground
from microvm_orchestrator import errors
from microvm_orchestrator.faults.grudges import groups_apart
from microvm_orchestrator.faults.ledger import Ledger
from microvm_orchestrator.faults.plans import CUT, everywhere, impairing, link_down, partition
from microvm_orchestrator.model.fault import FaultState
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.network.addresses import assign
from microvm_orchestrator.network.base import Ends, Network, Networks
from microvm_orchestrator.network.impairment import Impairment
from networking import STAGES

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

LONG_S = 120.0
SAN = Network("san", ("10.8.0.0/24",))
# The second has these alone.
WHERE = {"net": MACHINES, "san": ("a", "b", "c")}
SPLIT = everywhere(partition("", groups_apart([["a"], ["b", "d"]])), WHERE)
LOSSY = Impairment(loss=0.25)
IN_NET = {Ends(*ends): CUT for ends in ("ab", "ba", "ad", "da")}
IN_SAN = {Ends(*ends): CUT for ends in ("ab", "ba")}


@pytest.fixture(params=STAGES)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Ground]:
    with anyio.fail_after(LONG_S):
        async with ground(request.param, tmp_path) as world:
            await world.networks.make(SAN)
            for name in WHERE["san"]:
                port = assign(SAN, name, list(world.ports.values()))
                world.ports[f"{name} in san"] = port
                await world.networks.prepare(port)
            yield world
            await world.networks.remove("san")


async def met(networks: Networks) -> list[dict[Ends, Impairment]]:
    return [await networks.impaired(network_id) for network_id in WHERE]


class Lying:
    """Networks that say of one network that nothing is wrong with it."""

    def __init__(self, real: Networks) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def impaired(self, network_id: str) -> dict[Ends, Impairment]:
        return {} if network_id == "san" else await self._real.impaired(network_id)


async def test_it_is_one_fault_in_all_of_them_and_heals_in_all_of_them(world: Ground) -> None:
    fault = await world.ledger.inject(SPLIT, ALICE)
    assert (fault.network_ids, fault.machines) == (["net", "san"], ["a", "b", "d"])
    assert await met(world.networks) == [IN_NET, IN_SAN]
    lossy = everywhere(impairing("", "a", ["b"], LOSSY), WHERE)
    more = await world.ledger.inject(lossy, ALICE)
    assert [(way.network_id, way.target) for way in more.before] == [("net", "b"), ("san", "b")]
    await world.ledger.heal(fault.fault_id, ALICE)
    assert await met(world.networks) == [{Ends("a", "b"): LOSSY}] * 2
    # Who heals one of its networks heals all of it, once.
    assert await world.ledger.heal_all(ALICE, "san") == 1
    assert await met(world.networks) == [{}, {}]


async def test_what_is_not_seen_in_one_is_taken_back_in_each(world: Ground) -> None:
    liar = Ledger(world.store, cast("Networks", Lying(world.networks)), world.sufferers)
    with pytest.raises(errors.FaultUnverified, match="network san"):
        await liar.inject(SPLIT, ALICE)
    assert await met(world.networks) == [{}, {}]
    (fault,) = await world.ledger.visible(ALICE)
    assert fault.state is FaultState.FAILED


async def test_a_daemon_that_is_killed_anywhere_leaves_it_in_all_or_in_none(
    world: Ground, *, whole: bool
) -> None:
    step = 0
    while True:
        doom = Doom()
        ledger = world.doomed(doom)
        await ledger.reconcile()
        doom.comes_at(step)
        killed = False
        try:
            await ledger.inject(SPLIT, ALICE)
        except Killed:
            killed = True
        await world.ledger.reconcile()
        (*_, fault) = await world.ledger.visible(SYSTEM) or [None]
        holds = fault is not None and fault.state is FaultState.ACTIVE
        assert await met(world.networks) == ([IN_NET, IN_SAN] if holds else [{}, {}])
        await world.ledger.heal_all(SYSTEM)
        assert await met(world.networks) == [{}, {}]
        if not killed:
            break
        step += 1 if whole else 4
    assert holds


async def test_who_joins_one_of_them_suffers_there(world: Ground) -> None:
    down = await world.ledger.inject(everywhere(link_down("", "a", MACHINES), WHERE), ALICE)
    await world.join("f")
    again = await world.ledger.get(down.fault_id, ALICE)
    new = {(way.network_id, way.source, way.target) for way in again.ways if way not in down.ways}
    assert new == {("net", "a", "f"), ("net", "f", "a")}
    await world.networks.remove("net")
    # It is in the other one still.
    assert (await world.ledger.get(down.fault_id, ALICE)).state is FaultState.ACTIVE
    assert await world.ledger.heal_all(ALICE) == 1
    assert await world.networks.impaired("san") == {}


def test_a_fault_is_only_where_its_machines_are() -> None:
    with pytest.raises(errors.InvalidInput, match="share no network"):
        everywhere(partition("", groups_apart([["d"], ["e"]])), {"san": WHERE["san"]})
    assert [each.network_id for each in SPLIT.networks] == ["net", "san"]
    only = everywhere(partition("", groups_apart([["a"], ["d"]])), WHERE)
    assert (only.network_id, only.also) == ("net", ())
