"""Impaired ways of the userspace switch, by frames that go in and out as those of machines do."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

import frames
from lanes import HandClock, overtaken
from microvm_orchestrator import errors
from microvm_orchestrator.network.addresses import assign
from microvm_orchestrator.network.base import Ends, Network, Port
from microvm_orchestrator.network.impairment import Behaviour, Impairment
from microvm_orchestrator.network.switch import Switch, open_switch, unheard
from microvm_orchestrator.network.way import Late
from networking import SocketEnd, SwitchStage

LONG_S = 60.0
NETWORK = Network("net")
ME, YOU, THIRD = (assign(NETWORK, name) for name in ("me", "you", "third"))
FORTH, BACK, AWAY = Ends("me", "you"), Ends("you", "me"), Ends("me", "third")
COUNT = 2000
CLOSE = 0.1


class World:
    """Three machines on a switch whose clock is moved by hand."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.stage = SwitchStage(folder)
        self._stack = stack
        self.clock = HandClock()
        self.late = Late(self.clock.now)
        self.switch: Switch
        self.me: SocketEnd
        self.you: SocketEnd
        self.third: SocketEnd

    async def begin(self) -> None:
        group = await self._stack.enter_async_context(anyio.create_task_group())
        self._stack.callback(group.cancel_scope.cancel)
        self.switch = Switch(group, unheard, self.late)
        await self.switch.make(NETWORK)
        self.me, self.you, self.third = [await self._wire(port) for port in (ME, YOU, THIRD)]

    async def _wire(self, port: Port) -> SocketEnd:
        link = await self.switch.prepare(port)
        end = await self._stack.enter_async_context(self.stage.machine(port, link))
        await self.switch.connect(port, self.stage.path(port))
        return end

    async def impair(self, ends: Ends, impairment: Impairment) -> None:
        await self.switch.impair("net", {ends: impairment})

    async def heard_all(self) -> None:
        """Wait until the switch has seen all that I have sent: what I send next comes to me."""
        await self.me.send(LAST)
        while await self.third.receive() != LAST:
            pass

    def pass_time(self, until: float) -> None:
        while (due := self.late.next_at) is not None and due <= until:
            self.clock.at = max(self.clock.at, due)
            self.late.let_go()
        self.clock.at = until


@asynccontextmanager
async def opened(folder: Path) -> AsyncGenerator[World]:
    with anyio.fail_after(LONG_S):
        async with AsyncExitStack() as stack:
            world = World(folder, stack)
            await world.begin()
            yield world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[World]:
    async with opened(tmp_path) as world:
        yield world


def to_you(text: str) -> bytes:
    return frames.plain(frames.mac(YOU), frames.mac(ME), text)


LAST = frames.plain(frames.mac(THIRD), frames.mac(ME), "last")
END = to_you("end")


async def numbers_that_come(world: World, count: int = COUNT) -> list[int]:
    """Send numbered frames in groups, as a machine does, and read what comes of them."""
    came: list[int] = []

    async def read() -> None:
        while (frame := await world.you.receive()) != END:
            came.append(int(bytes(frame[14:20])))

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        for begin in range(0, count, 100):
            sent = [to_you(f"{number:06}") for number in range(begin, begin + 100)]
            await world.me.send_raw(b"".join(len(one).to_bytes(4) + one for one in sent))
            await world.heard_all()
            world.pass_time(world.clock.at + 0.5)
        await world.switch.mend("net", [FORTH])
        await world.me.send(END)
    return came


async def test_a_cut_way_lets_nothing_pass_and_all_others_do(world: World) -> None:
    await world.impair(FORTH, Impairment(cut=True))
    back = frames.plain(frames.mac(ME), frames.mac(YOU), "back")
    loud = frames.plain(frames.EVERYBODY, frames.mac(ME), "all")
    await world.me.send(to_you("lost"))
    await world.me.send(loud)
    assert await world.third.receive() == loud
    await world.you.send(back)
    assert await world.me.receive() == back
    assert await world.switch.impaired("net") == {FORTH: Impairment(cut=True)}
    usage = world.switch.way_usage("net")[FORTH]
    assert (usage.passed, usage.lost) == (0, 2)
    for _ in range(2):
        await world.switch.mend("net", [FORTH])
    assert await world.switch.impaired("net") == {}
    await world.me.send(to_you("healed"))
    assert await world.you.receive() == to_you("healed")


async def test_a_delay_holds_each_frame_for_its_time_and_only_on_its_way(world: World) -> None:
    await world.impair(FORTH, Impairment(delay_s=0.1))
    for number in range(5):
        await world.me.send(to_you(str(number)))
    await world.heard_all()
    assert world.switch.way_usage("net")[FORTH].waiting == 5
    world.pass_time(0.0999)
    assert world.switch.way_usage("net")[FORTH].passed == 0
    world.pass_time(0.1001)
    assert [await world.you.receive() for _ in range(5)] == [to_you(str(n)) for n in range(5)]


async def test_a_rate_counts_what_machines_send_and_not_how_it_travels(world: World) -> None:
    await world.impair(FORTH, Impairment(rate_bytes=10_000))
    for number in range(5):
        await world.me.send(to_you(str(number)).ljust(1000, b"\0"))
    await world.heard_all()
    world.pass_time(0.5 - 1e-6)
    assert world.switch.way_usage("net")[FORTH].passed == 4
    world.pass_time(0.5 + 1e-6)
    assert world.switch.way_usage("net")[FORTH].passed == 5


async def test_what_machines_get_is_what_was_asked_for(world: World) -> None:
    await world.impair(FORTH, Impairment(loss=0.3))
    came = await numbers_that_come(world)
    assert abs(1 - len(came) / COUNT - 0.3) < 0.3 * CLOSE
    await world.impair(FORTH, Impairment(duplicate=0.3))
    came = await numbers_that_come(world)
    assert abs(len(came) / COUNT - 1 - 0.3) < 0.3 * CLOSE
    await world.impair(FORTH, Impairment(reorder=0.3))
    came = await numbers_that_come(world)
    assert sorted(came) == list(range(COUNT))
    # The last of a hundred may find nobody to overtake it.
    assert abs(overtaken(came) / COUNT - 0.3) < 0.3 * CLOSE


async def test_a_corrupted_frame_comes_to_who_it_is_for(world: World) -> None:
    await world.impair(FORTH, Impairment(corrupt=1.0))
    for _ in range(20):
        sent = to_you("x" * 100)
        await world.me.send(sent)
        came = await world.you.receive()
        assert came[:14] == sent[:14]
        assert (int.from_bytes(came) ^ int.from_bytes(sent)).bit_count() == 1
    assert world.switch.way_usage("net")[FORTH].corrupted == 20


async def test_a_seeded_run_repeats_its_loss_pattern_exactly(tmp_path: Path) -> None:
    patterns: list[list[int]] = []
    for seed in ("one", "one", "two"):
        async with opened(tmp_path) as world:
            await world.impair(FORTH, Impairment(loss=0.5, reorder=0.1, seed=seed))
            patterns.append(await numbers_that_come(world, 500))
    assert patterns[0] == patterns[1] != patterns[2]
    assert 200 < len(patterns[0]) < 300


async def test_what_was_late_is_lost_when_the_way_is_mended(world: World) -> None:
    await world.impair(FORTH, Impairment(delay_s=2.0))
    await world.me.send(to_you("late"))
    await world.heard_all()
    await world.switch.mend("net", [FORTH])
    world.pass_time(10.0)
    await world.me.send(to_you("now"))
    assert await world.you.receive() == to_you("now")


async def test_what_is_wrong_with_a_way_outlives_the_ports_at_its_ends(world: World) -> None:
    await world.impair(FORTH, Impairment(cut=True))
    await world.impair(BACK, Impairment(delay_s=1.0))
    back = frames.plain(frames.mac(ME), frames.mac(YOU), "back")
    await world.you.send(back)
    while not world.switch.way_usage("net")[BACK].waiting:
        await anyio.lowlevel.checkpoint()
    for port in (YOU, ME):
        await world.switch.release(port)
    # It was on its way to a machine that is no more.
    assert world.switch.way_usage("net")[BACK].waiting == 0
    assert set(await world.switch.impaired("net")) == {FORTH, BACK}
    for port in (ME, YOU):
        await world.switch.prepare(port)
        await world.switch.connect(port, world.stage.path(port))
    await world.me.send(to_you("lost"))
    await world.heard_all()
    assert world.switch.way_usage("net")[FORTH].lost == 1
    await world.switch.mend("net", [FORTH, BACK])
    await world.me.send(to_you("healed"))
    assert await world.you.receive() == to_you("healed")


async def test_what_is_to_be_as_it_should_is_mended(world: World) -> None:
    ways = {FORTH: Impairment(cut=True), AWAY: Impairment(loss=0.5)}
    await world.switch.impair("net", ways)
    assert await world.switch.impaired("net") == ways
    await world.switch.impair("net", {FORTH: Impairment()})
    assert await world.switch.impaired("net") == {AWAY: Impairment(loss=0.5)}


async def test_a_network_that_is_removed_takes_what_is_wrong_along(world: World) -> None:
    await world.impair(FORTH, Impairment(cut=True))
    await world.switch.remove("net")
    assert await world.switch.impaired("net") == {}
    await world.switch.mend("net", [FORTH])
    with pytest.raises(errors.NotFound, match="no network net"):
        await world.impair(FORTH, Impairment(cut=True))
    await world.switch.make(NETWORK)
    assert await world.switch.impaired("net") == {}


async def test_everything_can_be_done_here() -> None:
    async with open_switch() as switch:
        assert (await switch.abilities()).can == frozenset(Behaviour)
