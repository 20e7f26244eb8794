"""What every kind of networks does, with machines that are bare ends of links."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack

import anyio
import pytest

import frames
from microvm_orchestrator import errors
from microvm_orchestrator.network.addresses import assign
from microvm_orchestrator.network.base import Network, Networks, Port, PortUsage
from networking import STAGES, End, Stage, new_name, wired

# Only decides how long a broken test takes to say so.
LONG_S = 60.0
PREFIXES = ("10.9.0.0/24", "fd09::/64")
NOBODY = "0.0.0.0"  # noqa: S104 # nothing is bound
NOT_PREPARED = "has no port"


@pytest.fixture(params=STAGES)
async def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Stage]:
    with anyio.fail_after(LONG_S):
        async with STAGES[request.param](tmp_path_factory.mktemp("links")) as stage:
            yield stage


@pytest.fixture
async def networks(stage: Stage) -> AsyncGenerator[Networks]:
    with anyio.fail_after(LONG_S):
        async with stage.open() as networks:
            yield networks
            for network_id in await networks.found():
                await networks.remove(network_id)


@pytest.fixture
async def stack() -> AsyncGenerator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


def ports_in(network: Network, count: int) -> list[Port]:
    ports: list[Port] = []
    for _ in range(count):
        ports.append(assign(network, new_name("m"), ports))
    return ports


async def made(networks: Networks, *prefixes: str) -> Network:
    network = Network(new_name("net"), prefixes)
    await networks.make(network)
    return network


async def test_a_frame_for_a_machine_reaches_it_and_nobody_else(
    networks: Networks, stage: Stage, stack: AsyncExitStack
) -> None:
    ports = ports_in(await made(networks), 3)
    one, two, three = await wired(networks, stage, ports, stack)
    by, to, other = (frames.mac(port) for port in ports)
    await one.send(frames.plain(to, by, "for two"))
    await one.send(frames.plain(other, by, "for three"))
    assert await two.receive() == frames.plain(to, by, "for two")
    assert await three.receive() == frames.plain(other, by, "for three")
    await two.send(frames.plain(by, to, "back"))
    assert await one.receive() == frames.plain(by, to, "back")


@pytest.mark.parametrize("to", [frames.EVERYBODY, frames.NEIGHBOURS])
async def test_a_frame_for_many_reaches_all_but_its_sender(
    networks: Networks, stage: Stage, stack: AsyncExitStack, to: bytes
) -> None:
    ports = ports_in(await made(networks), 3)
    one, two, three = await wired(networks, stage, ports, stack)
    by, last = frames.mac(ports[0]), frames.mac(ports[2])
    await one.send(frames.plain(to, by))
    assert await two.receive() == frames.plain(to, by)
    assert await three.receive() == frames.plain(to, by)
    await three.send(frames.plain(by, last, "only this"))
    assert await one.receive() == frames.plain(by, last, "only this")


async def test_a_frame_for_nobody_goes_nowhere_or_to_all_and_back_to_none(
    networks: Networks, stage: Stage, stack: AsyncExitStack
) -> None:
    ports = ports_in(await made(networks), 2)
    one, two = await wired(networks, stage, ports, stack)
    by, to = (frames.mac(port) for port in ports)
    await one.send(frames.plain(by, by, "to myself"))
    await one.send(frames.plain(to, by, "next"))
    assert await two.receive() == frames.plain(to, by, "next")
    await two.send(frames.plain(by, to, "first that came"))
    assert await one.receive() == frames.plain(by, to, "first that came")


async def test_networks_do_not_hear_each_other(
    networks: Networks, stage: Stage, stack: AsyncExitStack
) -> None:
    here = ports_in(await made(networks, *PREFIXES), 2)
    there = ports_in(await made(networks, *PREFIXES), 2)
    one, two = await wired(networks, stage, here, stack)
    three, four = await wired(networks, stage, there, stack)
    by, other = frames.mac(here[0]), frames.mac(there[0])
    loud = frames.ipv4(frames.EVERYBODY, by, own(here[0], 4))
    aimed = frames.ipv4(frames.mac(there[1]), by, own(here[0], 4))
    for frame in (aimed, loud):
        await one.send(frame)
    while await two.receive() != loud:  # a bridge may show it what is for nobody
        pass
    inside = frames.ipv4(frames.EVERYBODY, other, own(there[0], 4))
    await three.send(inside)
    assert await four.receive() == inside


async def test_a_machine_may_be_in_two_networks_and_joins_nothing(
    networks: Networks, stage: Stage, stack: AsyncExitStack
) -> None:
    left, right = await made(networks), await made(networks)
    machine_id = new_name("m")
    both = [assign(left, machine_id), assign(right, machine_id)]
    others = [assign(left, new_name("m"), both), assign(right, new_name("m"), both)]
    assert both[0].mac != both[1].mac
    mine, also_mine = await wired(networks, stage, both, stack)
    one, two = await wired(networks, stage, others, stack)
    for end, port, peer, beyond in ((one, *others, two), (two, *reversed(others), one)):
        await end.send(frames.plain(frames.EVERYBODY, frames.mac(port)))
        at = mine if port.network_id == left.network_id else also_mine
        assert await at.receive() == frames.plain(frames.EVERYBODY, frames.mac(port))
        assert peer.network_id != port.network_id
        assert beyond is not end


def own(port: Port, version: int) -> str:
    return next(
        text.partition("/")[0] for text in port.addresses if (":" in text) == (version == 6)
    )


Frame = Callable[[bytes, Port, Port], bytes]

IN_ITS_OWN_NAME: dict[str, Frame] = {
    "arp": lambda to, me, _: frames.arp(frames.mac(me), frames.mac(me), own(me, 4), to),
    "arp probe": lambda to, me, _: frames.arp(frames.mac(me), frames.mac(me), NOBODY, to),
    "ipv4": lambda to, me, _: frames.ipv4(to, frames.mac(me), own(me, 4)),
    "ipv6": lambda to, me, _: frames.ipv6(to, frames.mac(me), own(me, 6)),
    "ipv6 of its link": lambda to, me, _: frames.ipv6(
        to, frames.mac(me), frames.own_link_local(me)
    ),
    "ipv6 of nobody": lambda to, me, _: frames.icmpv6(to, frames.mac(me), "::", 135, bytes(20)),
    "whose address is whose": lambda to, me, _: frames.advertisement(
        to, frames.mac(me), own(me, 6), own(me, 6)
    ),
}

IN_ANOTHER_NAME: dict[str, Frame] = {
    "mac of another": lambda to, me, you: frames.ipv4(to, frames.mac(you), own(me, 4)),
    "mac of many": lambda to, me, _: frames.ipv4(to, frames.EVERYBODY, own(me, 4)),
    "arp about another's mac": lambda to, me, you: frames.arp(
        frames.mac(me), frames.mac(you), own(me, 4), to
    ),
    "arp about another's address": lambda to, me, you: frames.arp(
        frames.mac(me), frames.mac(me), own(you, 4), to
    ),
    "ipv4 of another": lambda to, me, you: frames.ipv4(to, frames.mac(me), own(you, 4)),
    "ipv4 of nobody": lambda to, me, _: frames.ipv4(to, frames.mac(me), NOBODY),
    "ipv6 of another": lambda to, me, you: frames.ipv6(to, frames.mac(me), own(you, 6)),
    "ipv6 of another's link": lambda to, me, you: frames.ipv6(
        to, frames.mac(me), frames.own_link_local(you)
    ),
    "somebody else's address is mine": lambda to, me, you: frames.advertisement(
        to, frames.mac(me), own(me, 6), own(you, 6)
    ),
    "the same behind options": lambda to, me, you: frames.ipv6(
        to,
        frames.mac(me),
        own(me, 6),
        bytes([58, 0, 1, 4, 0, 0, 0, 0, 136, 0, 0, 0]) + bytes(4) + frames.packed(own(you, 6)),
        following=0,
    ),
    "i am the router": lambda to, me, _: frames.icmpv6(
        to, frames.mac(me), frames.own_link_local(me), 134, bytes(12)
    ),
    "neither arp nor ip": lambda to, me, _: frames.plain(to, frames.mac(me)),
    "with a tag": lambda to, me, _: frames.ethernet(
        to,
        frames.mac(me),
        0x8100,
        b"\0\0\x08\0" + frames.ipv4(to, frames.mac(me), own(me, 4))[14:],
    ),
    "too short for ipv4": lambda to, me, _: to + frames.mac(me) + b"\x08\0\x45",
}


async def pair(
    networks: Networks, stage: Stage, stack: AsyncExitStack, *prefixes: str
) -> tuple[list[Port], list[End]]:
    ports = ports_in(await made(networks, *prefixes), 2)
    return ports, await wired(networks, stage, ports, stack)


@pytest.mark.parametrize("name", IN_ITS_OWN_NAME)
async def test_what_a_machine_says_in_its_own_name_is_passed_on(
    networks: Networks, stage: Stage, stack: AsyncExitStack, name: str
) -> None:
    (me, you), (mine, yours) = await pair(networks, stage, stack, *PREFIXES)
    for to in (frames.mac(you), frames.EVERYBODY):
        frame = IN_ITS_OWN_NAME[name](to, me, you)
        await mine.send(frame)
        assert await yours.receive() == frame
    assert (await networks.usage(me)).refused == 0


@pytest.mark.parametrize("name", IN_ANOTHER_NAME)
async def test_what_a_machine_says_in_another_name_is_refused_and_counted(
    networks: Networks, stage: Stage, stack: AsyncExitStack, name: str
) -> None:
    (me, you), (mine, yours) = await pair(networks, stage, stack, *PREFIXES)
    for to in (frames.mac(you), frames.EVERYBODY):
        await mine.send(IN_ANOTHER_NAME[name](to, me, you))
    honest = frames.ipv4(frames.mac(you), frames.mac(me), own(me, 4))
    await mine.send(honest)
    assert await yours.receive() == honest
    assert (await networks.usage(me)).refused == 2


async def test_a_machine_without_addresses_says_what_it_likes_with_its_own_mac(
    networks: Networks, stage: Stage, stack: AsyncExitStack
) -> None:
    (me, you), (mine, yours) = await pair(networks, stage, stack)
    to, by = frames.mac(you), frames.mac(me)
    said = [frames.ipv4(to, by, "192.0.2.7"), frames.arp(by, to, "192.0.2.8"), frames.plain(to, by)]
    for frame in said:
        await mine.send(frame)
    assert [await yours.receive() for _ in said] == said
    await mine.send(frames.plain(to, to))
    await mine.send(frames.plain(to, by, "last"))
    assert await yours.receive() == frames.plain(to, by, "last")


async def test_what_goes_through_a_port_is_counted_for_both_sides(
    networks: Networks, stage: Stage, stack: AsyncExitStack
) -> None:
    (me, you), (mine, yours) = await pair(networks, stage, stack)
    assert await networks.usage(me) == PortUsage()
    frame = frames.plain(frames.mac(you), frames.mac(me), "x" * 86)
    for _ in range(3):
        await mine.send(frame)
        await yours.receive()
    assert await networks.usage(me) == PortUsage(tx_packets=3, tx_bytes=300)
    assert await networks.usage(you) == PortUsage(rx_packets=3, rx_bytes=300)


async def test_a_machine_that_takes_nothing_loses_frames_and_costs_bounded_memory(
    networks: Networks, stage: Stage, stack: AsyncExitStack
) -> None:
    ports = ports_in(await made(networks), 3)
    one, _, three = await wired(networks, stage, ports, stack)
    by, deaf, other = (frames.mac(port) for port in ports)
    sent = 0
    while not (await networks.usage(ports[1])).dropped:
        for _ in range(500):
            await one.send(frames.plain(deaf, by, "x" * 1400))
        sent += 500
        assert sent * 1400 < 64 << 20
        await one.send(frames.plain(other, by, "goes on"))
        assert await three.receive() == frames.plain(other, by, "goes on")


async def test_a_pulled_cable_passes_nothing_until_it_is_plugged_in_again(
    networks: Networks, stage: Stage, stack: AsyncExitStack
) -> None:
    ports = ports_in(await made(networks), 3)
    one, two, three = await wired(networks, stage, ports, stack)
    by, to, other = (frames.mac(port) for port in ports)
    await networks.disconnect(ports[1])
    await networks.disconnect(ports[1])
    await one.send(frames.plain(to, by, "lost"))
    await one.send(frames.plain(frames.EVERYBODY, by, "lost too"))
    while await three.receive() != frames.plain(frames.EVERYBODY, by, "lost too"):
        pass
    await networks.connect(ports[1], stage.path(ports[1]))
    await one.send(frames.plain(to, by, "found"))
    assert await two.receive() == frames.plain(to, by, "found")
    await networks.disconnect(ports[2])
    await two.send(frames.plain(by, to, "back"))
    assert await one.receive() == frames.plain(by, to, "back")
    assert other != by


async def test_everything_may_be_said_twice(
    networks: Networks, stage: Stage, stack: AsyncExitStack
) -> None:
    network = await made(networks, *PREFIXES)
    ports = ports_in(network, 2)
    one, two = await wired(networks, stage, ports, stack)
    await networks.make(network)
    for port in ports:
        assert await networks.prepare(port) == await networks.prepare(port)
        await networks.connect(port, stage.path(port))
    frame = frames.ipv4(frames.mac(ports[1]), frames.mac(ports[0]), own(ports[0], 4))
    await one.send(frame)
    assert await two.receive() == frame
    assert await networks.found() == [network.network_id]


async def test_what_is_released_is_gone_and_may_be_made_anew(
    networks: Networks, stage: Stage, stack: AsyncExitStack
) -> None:
    network = await made(networks)
    ports = ports_in(network, 2)
    await wired(networks, stage, ports, stack)
    for port in ports:
        for _ in range(2):
            await networks.release(port)
        with pytest.raises(errors.NotFound, match=NOT_PREPARED):
            await networks.usage(port)
        with pytest.raises(errors.NotFound, match=NOT_PREPARED):
            await networks.connect(port, stage.path(port))
        await networks.disconnect(port)
    async with AsyncExitStack() as again:
        one, two = await wired(networks, stage, ports, again)
        frame = frames.plain(frames.mac(ports[1]), frames.mac(ports[0]))
        await one.send(frame)
        assert await two.receive() == frame


async def test_a_removed_network_takes_its_ports_along(
    networks: Networks, stage: Stage, stack: AsyncExitStack
) -> None:
    network = await made(networks)
    ports = ports_in(network, 2)
    await wired(networks, stage, ports, stack)
    for _ in range(2):
        await networks.remove(network.network_id)
    assert await networks.found() == []
    with pytest.raises(errors.NotFound):
        await networks.usage(ports[0])
    with pytest.raises(errors.NotFound, match="there is no network"):
        await networks.prepare(ports[0])


async def test_a_machine_has_one_port_in_a_network_and_a_mac_one_machine(
    networks: Networks,
) -> None:
    network = await made(networks, *PREFIXES)
    one, two = ports_in(network, 2)
    await networks.prepare(one)
    with pytest.raises(errors.Conflict, match="MAC"):
        await networks.prepare(Port(network.network_id, two.machine_id, one.mac))
    with pytest.raises(errors.Conflict, match="another port"):
        await networks.prepare(Port(network.network_id, one.machine_id, two.mac))
    for wrong in ("01:00:00:00:00:01", "02:00", "nonsense", ""):
        with pytest.raises(errors.InvalidInput, match="is no MAC"):
            await networks.prepare(Port(network.network_id, two.machine_id, wrong))


async def test_after_a_restart_the_same_is_said_again_and_the_rest_is_swept(
    stage: Stage, stack: AsyncExitStack
) -> None:
    async with stage.open() as before:
        kept, left = await made(before, *PREFIXES), await made(before)
        ports = ports_in(kept, 3)
        ends = await wired(before, stage, ports, stack)
        frame = frames.ipv4(frames.mac(ports[1]), frames.mac(ports[0]), own(ports[0], 4))
        await ends[0].send(frame)
        assert await ends[1].receive() == frame
    async with stage.open() as after:
        await after.make(kept)
        for port in ports[:2]:
            await after.prepare(port)
            await after.connect(port, stage.path(port))
        await after.sweep([kept.network_id], ports[:2])
        assert await after.found() == [kept.network_id]
        with pytest.raises(errors.NotFound):
            await after.usage(ports[2])
        await ends[0].send(frame)
        assert await ends[1].receive() == frame
        assert await after.sweep([kept.network_id], ports[:2]) == []
        assert await after.sweep([], []) == [f"network {kept.network_id}"]
        assert left.network_id not in await after.found()
