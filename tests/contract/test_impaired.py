"""What every kind of networks does to ways between machines, and that it tells what it does."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import anyio
import pytest

import frames
from microvm_orchestrator import errors
from microvm_orchestrator.network.addresses import assign
from microvm_orchestrator.network.base import Ends, Network, Networks, Port
from microvm_orchestrator.network.impairment import Behaviour, Impairment
from networking import STAGES, End, Stage, new_name, wired

LONG_S = 60.0
PREFIXES = ("10.9.0.0/24", "fd09::/64")
CUT = Impairment(cut=True)
LOSSY = Impairment(loss=0.3)
NARROW = Impairment(rate_bytes=20_000)


@pytest.fixture(params=STAGES)
async def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Stage]:
    with anyio.fail_after(LONG_S):
        async with STAGES[request.param](tmp_path_factory.mktemp("links")) as stage:
            yield stage


class World:
    """Three machines in a network."""

    def __init__(self, stage: Stage, networks: Networks, stack: AsyncExitStack) -> None:
        self.stage = stage
        self.networks = networks
        self.stack = stack
        self.network = Network(new_name("net"), PREFIXES)
        self.ports: list[Port] = []
        for _ in range(3):
            self.ports.append(assign(self.network, new_name("m"), self.ports))
        self.ends: list[End] = []

    async def begin(self) -> None:
        await self.networks.make(self.network)
        self.ends = await wired(self.networks, self.stage, self.ports, self.stack)

    @property
    def id(self) -> str:
        return self.network.network_id

    def way(self, source: int, target: int) -> Ends:
        return Ends(self.ports[source].machine_id, self.ports[target].machine_id)

    async def impair(self, ways: dict[Ends, Impairment]) -> None:
        """Impair, and see that it is so."""
        before = await self.networks.impaired(self.id)
        await self.networks.impair(self.id, ways)
        after = {**before, **ways}
        assert await self.networks.impaired(self.id) == after

    def frame(self, source: int, target: int | None, text: str = "") -> bytes:
        to = frames.EVERYBODY if target is None else frames.mac(self.ports[target])
        address = (self.ports[source].ipv4 or "").partition("/")[0]
        return frames.ipv4(to, frames.mac(self.ports[source]), address, text.encode())

    async def hears(self, source: int, target: int, text: str = "hello") -> None:
        """See that one machine reaches another, whatever comes before."""
        wanted = self.frame(source, target, text)
        await self.ends[source].send(wanted)
        while await self.ends[target].receive() != wanted:
            pass


@pytest.fixture
async def world(stage: Stage) -> AsyncGenerator[World]:
    with anyio.fail_after(LONG_S):
        async with stage.open() as networks, AsyncExitStack() as stack:
            world = World(stage, networks, stack)
            await world.begin()
            yield world
            for network_id in await networks.found():
                await networks.remove(network_id)


def kinds_of(world: World) -> list[bytes]:
    """What the first says to the second and to all, in every way that it may."""
    me, you = world.ports[0], world.ports[1]
    by, to = frames.mac(me), frames.mac(you)
    ipv4, ipv6 = ((each or "").partition("/")[0] for each in (me.ipv4, me.ipv6))
    return [
        frame
        for aim in (to, frames.EVERYBODY)
        for frame in (
            frames.arp(by, by, ipv4, aim),
            frames.ipv4(aim, by, ipv4),
            frames.ipv6(aim, by, ipv6),
            frames.advertisement(aim, by, ipv6, ipv6),
        )
    ]


async def test_a_cut_way_lets_nothing_pass_and_all_others_do(world: World) -> None:
    assert await world.networks.impaired(world.id) == {}
    await world.impair({world.way(0, 1): CUT})
    for frame in kinds_of(world):
        await world.ends[0].send(frame)
    # What is for all comes to the others.
    for frame in kinds_of(world)[4:]:
        while await world.ends[2].receive() != frame:
            pass
    back = world.frame(1, 0, "back")
    await world.ends[1].send(back)
    assert await world.ends[0].receive() == back
    await world.hears(0, 2)
    mark = world.frame(2, 1, "mark")
    await world.ends[2].send(mark)
    assert await world.ends[1].receive() == mark
    for _ in range(2):
        await world.networks.mend(world.id, [world.way(0, 1)])
        assert await world.networks.impaired(world.id) == {}
    for frame in kinds_of(world):
        await world.ends[0].send(frame)
        assert await world.ends[1].receive() == frame


async def test_ways_are_changed_and_mended_each_by_itself(world: World) -> None:
    one, two, three = world.way(0, 1), world.way(1, 0), world.way(2, 1)
    await world.impair({one: CUT, two: CUT})
    await world.impair({one: LOSSY, three: NARROW})
    await world.impair({one: LOSSY})
    await world.networks.mend(world.id, [three, world.way(2, 0)])
    assert await world.networks.impaired(world.id) == {one: LOSSY, two: CUT}
    await world.networks.impair(world.id, {two: Impairment()})
    assert await world.networks.impaired(world.id) == {one: LOSSY}
    await world.hears(1, 0)


async def test_as_many_are_lost_as_asked_and_only_on_their_way(world: World) -> None:
    count = 6000
    await world.impair({world.way(0, 1): LOSSY})
    came = 0
    for number in range(0, count, 100):
        for each in range(100):
            await world.ends[0].send(world.frame(0, 1, str(number + each)))
        mark = world.frame(2, 1, f"mark {number}")
        await world.hears(0, 2, f"mark {number}")
        await world.ends[2].send(mark)
        while await world.ends[1].receive() != mark:
            came += 1
    # Five times as far as chance goes.
    assert abs(1 - came / count - 0.3) < 0.03
    for _ in range(20):
        back = world.frame(1, 0)
        await world.ends[1].send(back)
        assert await world.ends[0].receive() == back


async def test_a_rate_holds_back_what_is_on_its_way_and_nothing_else(world: World) -> None:
    await world.impair({world.way(0, 1): NARROW})
    began = anyio.current_time()
    text = "x" * 966  # of a thousand bytes in all
    for _ in range(20):
        await world.ends[0].send(world.frame(0, 1, text))
    free = world.frame(2, 1, "free")
    await world.ends[2].send(free)
    came: list[bytes] = [await world.ends[1].receive() for _ in range(21)]
    took_s = anyio.current_time() - began
    assert came.count(free) == 1
    assert came[-1] != free
    # A moment's worth passes at once, as in any network card.
    assert took_s >= 20 * 1000 / 20_000 - 0.15


async def test_what_is_larger_than_an_mtu_vanishes_whatever_is_inside(world: World) -> None:
    me, you = world.ports[:2]
    by, to = frames.mac(me), frames.mac(you)
    ipv4, ipv6 = ((each or "").partition("/")[0] for each in (me.ipv4, me.ipv6))

    def of(size: int) -> list[bytes]:
        return [
            frames.ipv4(to, by, ipv4, bytes(size - 20)),
            frames.ipv6(to, by, ipv6, bytes(size - 40)),
        ]

    await world.impair({world.way(0, 1): Impairment(mtu=1280, loss=0.0)})
    for frame in (*of(1281), *of(1500), *of(1280)):
        await world.ends[0].send(frame)
    for frame in of(1280):
        assert await world.ends[1].receive() == frame
    # Back, and to others, all pass.
    await world.hears(1, 0, "x" * 1400)
    await world.hears(0, 2, "x" * 1400)
    # Of two, the smaller one counts; beside other things, too.
    await world.impair({world.way(0, 1): Impairment(mtu=576, rate_bytes=1 << 30, dns=True)})
    for frame in (*of(577), *of(576)):
        await world.ends[0].send(frame)
    for frame in of(576):
        assert await world.ends[1].receive() == frame
    await world.networks.mend(world.id, [world.way(0, 1)])
    await world.hears(0, 1, "x" * 1400)


async def test_questions_for_names_vanish_and_nothing_else_does(world: World) -> None:
    me, you = world.ports[:2]
    by, to = frames.mac(me), frames.mac(you)
    ipv4, ipv6 = ((each or "").partition("/")[0] for each in (me.ipv4, me.ipv6))

    def of(source: int, target: int) -> list[bytes]:
        """By UDP and TCP, plainly and in the first of several fragments."""
        ports = source.to_bytes(2) + target.to_bytes(2)
        inside = ports + bytes(20)
        fragment = bytes([17, 0, 0, 1]) + bytes(4) + inside
        return [
            *(frames.ipv4(to, by, ipv4, inside, over) for over in (6, 17)),
            *(frames.ipv6(to, by, ipv6, inside, following=over) for over in (6, 17)),
            frames.ipv4(to, by, ipv4, inside, 17, fragment=0x2000),
            frames.ipv6(to, by, ipv6, fragment, following=44),
        ]

    # What is not at its place says nothing of ports.
    later = bytes(2) + b"\0\x35" + bytes(20)
    others = [
        *of(53, 5353),
        frames.ipv4(to, by, ipv4, later, 1),
        frames.ipv4(to, by, ipv4, later, 17, fragment=0x2001),
        frames.ipv6(to, by, ipv6, bytes([17, 0, 0, 9]) + bytes(4) + later, following=44),
        frames.arp(by, by, ipv4, to),
    ]
    await world.impair({world.way(0, 1): Impairment(dns=True)})
    for frame in (*of(5353, 53), *others):
        await world.ends[0].send(frame)
    for frame in others:
        assert await world.ends[1].receive() == frame
    await world.networks.mend(world.id, [world.way(0, 1)])
    for frame in of(5353, 53):
        await world.ends[0].send(frame)
        assert await world.ends[1].receive() == frame


async def test_what_is_wrong_with_a_way_outlives_the_ports_at_its_ends(world: World) -> None:
    ways = {world.way(0, 1): CUT, world.way(2, 1): NARROW, world.way(1, 2): LOSSY}
    await world.impair(ways)
    for port in world.ports[:2]:
        await world.networks.release(port)
        assert await world.networks.impaired(world.id) == ways
    async with AsyncExitStack() as again:
        world.ends[:2] = await wired(world.networks, world.stage, world.ports[:2], again)
        assert await world.networks.impaired(world.id) == ways
        await world.ends[0].send(world.frame(0, 1, "lost"))
        await world.hears(0, 2)
        mark = world.frame(2, 1, "mark")
        await world.ends[2].send(mark)
        assert await world.ends[1].receive() == mark
        await world.networks.mend(world.id, list(ways))
        await world.hears(0, 1)


async def test_ways_between_machines_that_are_not_there_yet_may_be_impaired(world: World) -> None:
    late = assign(world.network, new_name("m"), world.ports)
    world.ports.append(late)
    ways = {world.way(0, 3): NARROW, world.way(3, 0): CUT}
    await world.impair(ways)
    world.ends += await wired(world.networks, world.stage, [late], world.stack)
    assert await world.networks.impaired(world.id) == ways
    await world.ends[3].send(world.frame(3, 0, "lost"))
    await world.hears(3, 2)
    mark = world.frame(2, 0, "mark")
    await world.ends[2].send(mark)
    assert await world.ends[0].receive() == mark


async def test_networks_are_impaired_each_by_itself_and_take_it_along(world: World) -> None:
    other = Network(new_name("net"), PREFIXES)
    await world.networks.make(other)
    await world.impair({world.way(0, 1): CUT})
    assert await world.networks.impaired(other.network_id) == {}
    await world.networks.impair(other.network_id, {world.way(0, 1): LOSSY})
    assert await world.networks.impaired(world.id) == {world.way(0, 1): CUT}
    for _ in range(2):
        await world.networks.remove(other.network_id)
        assert await world.networks.impaired(other.network_id) == {}
    with pytest.raises(errors.NotFound, match="there is no network"):
        await world.networks.impair(other.network_id, {world.way(0, 1): LOSSY})
    await world.networks.mend(other.network_id, [world.way(0, 1)])
    await world.networks.make(other)
    assert await world.networks.impaired(other.network_id) == {}


async def test_after_a_restart_it_is_said_again_and_holds(world: World) -> None:
    ways = {world.way(0, 1): CUT, world.way(1, 0): NARROW}
    await world.impair(ways)
    async with world.stage.open() as after:
        await after.make(world.network)
        await after.impair(world.id, ways)
        assert await after.impaired(world.id) == ways
        for port in world.ports:
            await after.prepare(port)
            await after.connect(port, world.stage.path(port))
        assert await after.impaired(world.id) == ways
        await world.ends[0].send(world.frame(0, 1, "lost"))
        await world.hears(0, 2)
        mark = world.frame(2, 1, "mark")
        await world.ends[2].send(mark)
        assert await world.ends[1].receive() == mark
        await after.sweep([world.id], world.ports)
        assert await after.impaired(world.id) == ways
        await after.sweep([], [])
        assert await after.impaired(world.id) == {}


SAMPLES = {
    Behaviour.CUT: CUT,
    Behaviour.LOSS: LOSSY,
    Behaviour.BURSTS: Impairment(loss=0.3, loss_correlation=0.5),
    Behaviour.DELAY: Impairment(delay_s=0.1),
    Behaviour.JITTER: Impairment(delay_s=0.1, jitter_s=0.05),
    Behaviour.CORRUPT: Impairment(corrupt=0.1),
    Behaviour.DUPLICATE: Impairment(duplicate=0.1),
    Behaviour.REORDER: Impairment(reorder=0.1),
    Behaviour.RATE: NARROW,
    Behaviour.MTU: Impairment(mtu=1280),
    Behaviour.DNS: Impairment(dns=True),
}


@pytest.mark.parametrize("behaviour", Behaviour)
async def test_what_is_offered_is_done_and_what_is_not_is_refused_whole(
    world: World, behaviour: Behaviour
) -> None:
    abilities = await world.networks.abilities()
    sample = SAMPLES[behaviour]
    assert behaviour in sample.needs
    if sample.needs <= abilities.can:
        await world.impair({world.way(0, 1): sample})
        return
    assert abilities.reason
    with pytest.raises(errors.FaultNotOffered, match=behaviour) as refused:
        await world.networks.impair(world.id, {world.way(1, 0): CUT, world.way(0, 1): sample})
    assert 'networks.kind = "userspace"' in (refused.value.hint or "")
    assert await world.networks.impaired(world.id) == {}
