"""What the kernel's netem does to frames, measured by frames; where the kernel has netem."""

from __future__ import annotations

import statistics
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

import frames
from lanes import overtaken
from microvm_orchestrator.machine.tap import within
from microvm_orchestrator.network import queues
from microvm_orchestrator.network.addresses import assign
from microvm_orchestrator.network.base import Ends, Network, Networks
from microvm_orchestrator.network.impairment import Behaviour, Impairment, Spread, aside
from networking import End, kernel_stage, wired

LONG_S = 120.0
NETWORK = Network("net")
PORTS = [assign(NETWORK, name) for name in ("a", "b", "c")]
FORTH = Ends("a", "b")
# In groups, because a card of the kernel lets no more than some hundreds wait.
COUNT, AT_ONCE = 6000, 100
CLOSE = 0.1


class World:
    def __init__(self, networks: Networks, ends: list[End]) -> None:
        self.networks = networks
        self.a, self.b, self.c = ends

    async def impair(self, impairment: Impairment) -> None:
        ways = {FORTH: impairment}
        await self.networks.impair("net", ways)
        assert await self.networks.impaired("net") == ways

    async def came(self) -> list[bytes]:
        """Send numbered frames, and give those that come, in their order."""
        came: list[bytes] = []

        async def read() -> None:
            while (frame := await self.b.receive()) != END:
                came.append(frame)

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            for begin in range(0, COUNT, AT_ONCE):
                for number in range(begin, begin + AT_ONCE):
                    await self.a.send(frame("a", f"{number:06}"))
                # Longer than anything is held or delayed here.
                await anyio.sleep(0.03)
            await self.networks.mend("net", [FORTH])
            await self.a.send(END)
        return came


def frame(source: str, text: str) -> bytes:
    by = PORTS["abc".index(source)]
    return frames.plain(frames.mac(PORTS[1]), frames.mac(by), text)


END = frame("a", "end")


def numbers(came: list[bytes]) -> list[int]:
    return [int(each[14:20]) for each in came]


def close(measured: float, asked: float) -> bool:
    return abs(measured - asked) <= CLOSE * asked


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[World]:
    with anyio.fail_after(LONG_S):
        async with kernel_stage(tmp_path) as stage, AsyncExitStack() as stack:
            if within(stage.netns, lambda: queues.lacks("netem")):
                pytest.skip("this kernel has no netem")
            async with stage.open() as networks:
                await networks.make(NETWORK)
                yield World(networks, await wired(networks, stage, PORTS, stack))


async def test_everything_is_offered_where_there_is_netem(world: World) -> None:
    abilities = await world.networks.abilities()
    assert (abilities.can, abilities.reason) == (frozenset(Behaviour), "")


async def test_frames_are_as_late_as_asked_on_their_way_and_on_no_other(world: World) -> None:
    await world.impair(Impairment(delay_s=0.1))
    took_s: list[float] = []
    for number in range(20):
        began = anyio.current_time()
        await world.a.send(frame("a", str(number)))
        free = frame("c", str(number))
        await world.c.send(free)
        assert await world.b.receive() == free
        assert anyio.current_time() - began < 0.1
        assert await world.b.receive() == frame("a", str(number))
        took_s.append(anyio.current_time() - began)
    assert min(took_s) >= 0.0999
    assert close(statistics.median(took_s), 0.1)
    back = frames.plain(frames.mac(PORTS[0]), frames.mac(PORTS[1]), "back")
    began = anyio.current_time()
    await world.b.send(back)
    assert await world.a.receive() == back
    assert anyio.current_time() - began < 0.1


@pytest.mark.parametrize("spread", Spread)
async def test_jitter_spreads_delays_as_asked(world: World, spread: Spread) -> None:
    await world.impair(Impairment(delay_s=0.1, jitter_s=0.02, spread=spread))
    sent_at: list[float] = []
    took_s: list[float] = []

    async def read() -> None:
        while len(took_s) < 1000:
            payload = (await world.b.receive())[14:]
            took_s.append(anyio.current_time() - sent_at[int(payload[:6])])

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        for number in range(1000):
            sent_at.append(anyio.current_time())
            await world.a.send(frame("a", f"{number:06}"))
            await anyio.sleep(0.002)
    # By quarters, and rather late than early: whoever reads here may not have had its turn.
    for measured, quarter in zip(statistics.quantiles(took_s, n=4), (0.25, 0.5, 0.75), strict=True):
        assert 0.96 < measured / (0.1 + 0.02 * aside(spread, quarter)) < 1.15


async def test_a_correlated_loss_has_the_share_and_the_correlation_asked_for(world: World) -> None:
    await world.impair(Impairment(loss=0.5, loss_correlation=0.5))
    came = set(numbers(await world.came()))
    lost = [number not in came for number in range(COUNT)]
    assert close(statistics.fmean(lost), 0.5)
    assert close(statistics.correlation(lost[:-1], lost[1:]), 0.5)


async def test_as_many_come_twice_as_asked(world: World) -> None:
    await world.impair(Impairment(duplicate=0.3))
    came = numbers(await world.came())
    assert set(came) == set(range(COUNT))
    assert close(len(came) / COUNT - 1, 0.3)


async def test_as_many_are_overtaken_as_asked_without_any_delay(world: World) -> None:
    await world.impair(Impairment(reorder=0.3))
    came = numbers(await world.came())
    assert sorted(came) == list(range(COUNT))
    # Of each group the last may find nobody to overtake it.
    assert close(overtaken(came) / COUNT, 0.3)


async def test_as_many_have_one_bit_changed_as_asked(world: World) -> None:
    await world.impair(Impairment(corrupt=0.3))
    came = await world.came()
    sent = {frame("a", f"{number:06}") for number in range(COUNT)}
    # Anywhere in it, also in its header; nobody looks at that between a tap and its end.
    assert len(came) == COUNT
    assert close(1 - sum(each in sent for each in came) / COUNT, 0.3)


async def test_a_rate_and_a_delay_are_met_together(world: World) -> None:
    await world.impair(Impairment(delay_s=0.1, rate_bytes=20_000))
    began = anyio.current_time()
    for _ in range(20):
        await world.a.send(frame("a", "x" * 986))
    for _ in range(20):
        await world.b.receive()
    assert 0.85 < anyio.current_time() - began < 1.3
