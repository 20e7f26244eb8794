"""What the userspace switch does with connections: bad ones, broken ones, and new ones."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

import frames
from microvm_orchestrator import errors
from microvm_orchestrator.network.addresses import assign
from microvm_orchestrator.network.base import Network, Port, PortChange, PortEvent
from microvm_orchestrator.network.segment import MAX_FRAME
from microvm_orchestrator.network.switch import Switch, open_switch
from networking import SocketEnd, SwitchStage

LONG_S = 60.0
NETWORK = Network("net")
ME, YOU = assign(NETWORK, "me"), assign(NETWORK, "you")
HELLO = frames.plain(frames.mac(YOU), frames.mac(ME))


class World:
    """Two machines on a switch, and what it tells."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.stage = SwitchStage(folder)
        self._stack = stack
        self.told, self._events = anyio.create_memory_object_stream[PortEvent](10)
        self.switch: Switch
        self.me: SocketEnd
        self.you: SocketEnd

    async def begin(self) -> None:
        stack = self._stack
        await stack.enter_async_context(self.told)
        await stack.enter_async_context(self._events)
        self.switch = await stack.enter_async_context(open_switch(self.told.send))
        await self.switch.make(NETWORK)
        self.me = await self._machine(ME)
        self.you = await self._machine(YOU)

    async def _machine(self, port: Port) -> SocketEnd:
        link = await self.switch.prepare(port)
        end = await self._stack.enter_async_context(self.stage.machine(port, link))
        await self.switch.connect(port, self.stage.path(port))
        await end.accept()
        return end

    async def next_event(self) -> PortEvent:
        return await self._events.receive()

    async def passes(self) -> None:
        await self.me.send(HELLO)
        assert await self.you.receive() == HELLO


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[World]:
    with anyio.fail_after(LONG_S):
        async with AsyncExitStack() as stack:
            world = World(tmp_path, stack)
            await world.begin()
            yield world


@pytest.mark.parametrize("length", [0, 13, MAX_FRAME + 1, 2**32 - 1])
async def test_a_machine_that_lies_about_a_length_is_cut_off_and_may_be_connected_again(
    world: World, length: int
) -> None:
    await world.passes()
    await world.me.send_raw(length.to_bytes(4) + b"x" * 100)
    await world.me.receive_end()
    event = await world.next_event()
    assert (event.network_id, event.machine_id) == ("net", "me")
    assert event.change is PortChange.CUT_OFF
    assert event.reason == f"a frame of {length} bytes was announced"
    await world.you.send(frames.plain(frames.mac(ME), frames.mac(YOU), "to nobody"))
    await world.switch.connect(ME, world.stage.path(ME))
    await world.me.accept()
    await world.passes()


async def test_a_connection_that_begins_inside_a_frame_is_made_anew(world: World) -> None:
    await world.switch.connect(ME, world.stage.path(ME))
    await world.me.accept()
    await world.me.send_raw(b"\xff" * 40)
    await world.me.accept()
    await world.passes()


async def test_a_machine_that_never_makes_sense_is_cut_off(world: World) -> None:
    await world.me.send_raw(b"\xff" * 40)
    await world.me.accept()
    await world.me.send_raw(b"\xff" * 40)
    assert (await world.next_event()).change is PortChange.CUT_OFF
    await world.me.receive_end()


async def test_a_machine_that_hangs_up_is_told_of_and_the_others_go_on(world: World) -> None:
    world.you.hang_up()
    event = await world.next_event()
    assert (event.machine_id, event.change) == ("you", PortChange.HUNG_UP)
    await world.me.send(HELLO)
    await world.switch.connect(YOU, world.stage.path(YOU))
    await world.you.accept()
    again = frames.plain(frames.mac(YOU), frames.mac(ME), "again")
    await world.me.send(again)
    assert await world.you.receive() in {HELLO, again}


async def test_what_we_hang_up_ourselves_is_not_told(world: World) -> None:
    await world.switch.disconnect(ME)
    await world.me.receive_end()
    world.you.hang_up()
    assert (await world.next_event()).machine_id == "you"


async def test_a_machine_that_does_not_answer_is_an_error_and_no_line(world: World) -> None:
    with pytest.raises(errors.MachineUnreachable, match="me does not answer on its link"):
        await world.switch.connect(ME, world.stage.path(ME).with_name("nowhere"))
    await world.switch.connect(ME, world.stage.path(ME))
    await world.me.accept()
    await world.passes()


async def test_machines_that_talk_both_ways_at_once_lose_nothing_they_take(world: World) -> None:
    """Each writes more than waits anywhere while the other reads it."""
    count = 5000
    back = frames.plain(frames.mac(ME), frames.mac(YOU), "x" * 1000)
    forth = frames.plain(frames.mac(YOU), frames.mac(ME), "x" * 1000)
    seen: dict[str, int] = {}

    async def write(end: SocketEnd, frame: bytes) -> None:
        for _ in range(count // 100):
            await end.send_raw((len(frame).to_bytes(4) + frame) * 100)

    async def read(name: str, end: SocketEnd, frame: bytes, port: Port) -> None:
        while seen.get(name, 0) + (await world.switch.usage(port)).dropped < count:
            assert await end.receive() == frame
            seen[name] = seen.get(name, 0) + 1

    async with anyio.create_task_group() as group:
        group.start_soon(write, world.me, forth)
        group.start_soon(write, world.you, back)
        group.start_soon(read, "you", world.you, forth, YOU)
        group.start_soon(read, "me", world.me, back, ME)
    usage = await world.switch.usage(YOU)
    assert usage.rx_packets + usage.dropped == usage.tx_packets == count
