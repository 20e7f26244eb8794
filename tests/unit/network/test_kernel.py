"""What is left of the kernel's networks, whose it is, and that this host takes no part in them."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

import frames
from microvm_orchestrator import errors
from microvm_orchestrator.machine.base import Tap
from microvm_orchestrator.machine.tap import open_tap, within
from microvm_orchestrator.network import netlink
from microvm_orchestrator.network.addresses import assign
from microvm_orchestrator.network.base import Network, Port
from microvm_orchestrator.network.kernel import KernelNetworks
from networking import KernelStage, kernel_stage, wired

LONG_S = 60.0
NETWORK = Network("net", ("10.9.0.0/24",))


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncGenerator[KernelStage]:
    with anyio.fail_after(LONG_S):
        async with kernel_stage(tmp_path) as stage:
            yield stage


@pytest.fixture
async def networks(stage: KernelStage) -> KernelNetworks:
    return KernelNetworks(netns=stage.netns)


def there(stage: KernelStage) -> set[str]:
    return {each.name for each in within(stage.netns, netlink.interfaces)}


async def test_what_is_removed_leaves_nothing_in_the_kernel(
    stage: KernelStage, networks: KernelNetworks
) -> None:
    before = there(stage)
    await networks.make(NETWORK)
    port = assign(NETWORK, "m")
    await networks.prepare(port)
    await networks.connect(port, stage.path(port))
    assert len(there(stage) - before) == 2
    await networks.remove(NETWORK.network_id)
    assert there(stage) == before
    assert stage.run("nft", "list", "ruleset") == ""


async def test_what_others_made_is_neither_found_nor_touched(
    stage: KernelStage, networks: KernelNetworks
) -> None:
    another = KernelNetworks(netns=stage.netns, owner="another")
    await another.make(NETWORK)
    await another.prepare(assign(NETWORK, "m"))
    within(stage.netns, lambda: netlink.make_bridge("br0"))
    before = there(stage)
    assert await networks.found() == []
    assert await networks.sweep([], []) == []
    await networks.remove(NETWORK.network_id)
    await networks.release(assign(NETWORK, "m"))
    assert there(stage) == before
    assert await another.found() == [NETWORK.network_id]
    assert (await another.usage(assign(NETWORK, "m"))).refused == 0


async def test_what_was_not_finished_is_made_anew(
    stage: KernelStage, networks: KernelNetworks
) -> None:
    port = assign(NETWORK, "m")
    await networks.make(NETWORK)
    link = await networks.prepare(port)
    assert link.tap is not None
    name = link.tap.name
    before = within(stage.netns, lambda: netlink.find(name))
    within(stage.netns, lambda: netlink.mark(name, ""))
    with pytest.raises(errors.NotFound):
        await networks.usage(port)
    assert await networks.prepare(port) == link
    after = within(stage.netns, lambda: netlink.find(name))
    assert before
    assert after
    assert after.index != before.index
    assert after.alias == before.alias


async def test_what_a_daemon_was_killed_over_is_swept(
    stage: KernelStage, networks: KernelNetworks
) -> None:
    port = assign(NETWORK, "m")
    await networks.make(NETWORK)
    link = await networks.prepare(port)
    assert link.tap is not None
    name = link.tap.name
    # It had not come to its mark.
    within(stage.netns, lambda: netlink.mark(name, ""))
    assert await networks.sweep([NETWORK.network_id], [port]) == [f"unfinished {name}"]
    # Its rules had not come to their end.
    await networks.prepare(port)
    within(stage.netns, lambda: netlink.delete(name))
    assert await networks.sweep([NETWORK.network_id], [port]) == [f"rules for {name}"]
    assert await networks.sweep([NETWORK.network_id], [port]) == []
    await networks.remove(NETWORK.network_id)
    assert stage.run("nft", "list", "ruleset") == ""


async def test_a_daemon_that_starts_gives_rules_again_that_somebody_has_cleared(
    stage: KernelStage, networks: KernelNetworks
) -> None:
    ports = [assign(NETWORK, name) for name in ("m", "n")]
    await networks.make(NETWORK)
    for port in ports:
        await networks.prepare(port)
    before = stage.dump()
    assert "table netdev" in before
    assert "table bridge" in before
    stage.run("nft", "flush", "ruleset")
    fresh = KernelNetworks(netns=stage.netns)
    await fresh.make(NETWORK)
    for port in ports:
        await fresh.prepare(port)
    assert stage.dump() == before


async def test_a_name_that_is_anothers_is_a_conflict(
    stage: KernelStage, networks: KernelNetworks
) -> None:
    await networks.make(NETWORK)
    (bridge,) = there(stage) - {"lo"}
    within(stage.netns, lambda: netlink.mark(bridge, "somebody's own"))
    with pytest.raises(errors.Conflict, match="somebody's own"):
        await networks.make(NETWORK)
    assert bridge in there(stage)


async def test_this_host_neither_hears_nor_says_anything(
    stage: KernelStage, networks: KernelNetworks
) -> None:
    await networks.make(NETWORK)
    ports = [assign(NETWORK, "me"), assign(NETWORK, "you")]
    async with AsyncExitStack() as stack:
        me, you = await wired(networks, stage, ports, stack)
        # Somebody gives the bridge the very address that the machine asks for.
        (bridge,) = (name for name in there(stage) if name.startswith("mvb"))
        stage.run("ip", "address", "add", "10.9.0.1/24", "dev", bridge)
        mine, yours = (frames.mac(port) for port in ports)
        address = (ports[0].ipv4 or "").partition("/")[0]
        asking = frames.arp(mine, mine, address)
        await me.send(asking)
        assert await you.receive() == asking
        honest = frames.ipv4(mine, yours, (ports[1].ipv4 or "").partition("/")[0])
        await you.send(honest)
        assert await me.receive() == honest


async def test_a_tap_that_is_not_there_is_not_made_by_opening_it(stage: KernelStage) -> None:
    before = there(stage)
    with pytest.raises(errors.Unavailable, match="mvt-none cannot be opened"):
        open_tap(Tap("mvt-none", stage.netns))
    assert there(stage) == before


async def test_a_namespace_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    networks = KernelNetworks(netns=tmp_path / "none")
    with pytest.raises(errors.Unavailable, match="no network namespace"):
        await networks.found()
    with pytest.raises(errors.Unavailable):
        await networks.make(NETWORK)


def test_names_that_the_kernel_cannot_keep_are_refused() -> None:
    assert within(None, lambda: 1) == 1
    for wrong in ("", "a b", "-x", "a" * 65):
        with pytest.raises(errors.InvalidInput):
            Network(wrong)
        with pytest.raises(errors.InvalidInput):
            Port("net", wrong, "02:00:00:00:00:01")
    for wrong in ("", "10.9.0.2", "10.9.0.2/255.0.0.0", "fe80::1%x } accept/64", "FD09::1/64"):
        with pytest.raises(errors.InvalidInput):
            Port("net", "m", "02:00:00:00:00:01", (wrong,))


async def test_a_tap_in_no_network_lets_nothing_through(networks: KernelNetworks) -> None:
    """Before a machine is connected, what it says is not for this host either."""
    await networks.make(NETWORK)
    port = assign(NETWORK, "m")
    link = await networks.prepare(port)
    assert link.tap is not None
    with (
        os.fdopen(open_tap(link.tap), "r+b", buffering=0) as end,
        pytest.raises(OSError, match="Input/output error"),
    ):
        end.write(frames.plain(frames.EVERYBODY, frames.mac(port)))
    assert (await networks.usage(port)).tx_packets == 0
