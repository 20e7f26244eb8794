"""What the kernel's netem does to frames, measured by frames; where the kernel has netem.

Times are those that the kernel stamps on frames: how long they were on their way, and not when
somebody here had its turn to look.
"""

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
from microvm_orchestrator.network.base import Ends, Network, Networks, Port
from microvm_orchestrator.network.impairment import Behaviour, Impairment, Spread, aside
from networking import End, KernelStage, kernel_stage, wired
from stamps import Stamps, stamped, took_s

LONG_S = 120.0
NETWORK = Network("net")
PORTS = [assign(NETWORK, name) for name in ("a", "b", "c")]
FORTH = Ends("a", "b")
# In groups, because a card of the kernel lets no more than some hundreds wait.
COUNT, AT_ONCE = 6000, 100
CLOSE = 0.1
# So many delays that their quarters are where they should be.
SPREAD = 2000
# Almost as long as a frame is held for others to overtake it.
HELD_S = 0.0099


class World:
    def __init__(self, networks: Networks, ends: list[End], cards: list[Stamps]) -> None:
        self.networks = networks
        self.a, self.b, self.c = ends
        self.at_a, self.at_b, self.at_c = cards

    async def impair(self, impairment: Impairment, **others: Impairment) -> None:
        """Let frames for b meet something: from a, and from others by their names."""
        ways = {FORTH: impairment} | {Ends(name, "b"): its for name, its in others.items()}
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


async def stamps_of(
    networks: Networks, stage: KernelStage, port: Port, stack: AsyncExitStack
) -> Stamps:
    link = await networks.prepare(port)
    assert link.tap is not None
    return stack.enter_context(stamped(stage.netns, link.tap.name))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[World]:
    with anyio.fail_after(LONG_S):
        async with kernel_stage(tmp_path) as stage, AsyncExitStack() as stack:
            if within(stage.netns, lambda: queues.lacks("netem")):
                pytest.skip("this kernel has no netem")
            async with stage.open() as networks:
                await networks.make(NETWORK)
                ends = await wired(networks, stage, PORTS, stack)
                cards = [await stamps_of(networks, stage, port, stack) for port in PORTS]
                yield World(networks, ends, cards)


async def test_everything_is_offered_where_there_is_netem(world: World) -> None:
    abilities = await world.networks.abilities()
    assert (abilities.can, abilities.reason) == (frozenset(Behaviour), "")


async def test_frames_are_as_late_as_asked_on_their_way_and_on_no_other(world: World) -> None:
    await world.impair(Impairment(delay_s=0.1))
    back = [frames.plain(frames.mac(PORTS[0]), frames.mac(PORTS[1]), str(n)) for n in range(20)]
    for number in range(20):
        await world.a.send(frame("a", str(number)))
        await world.c.send(frame("c", str(number)))
        await world.b.send(back[number])
    came = [await world.b.receive() for _ in range(40)]
    assert [each for each in came if each[6:12] == frames.mac(PORTS[0])] == [
        frame("a", str(number)) for number in range(20)
    ]
    assert [await world.a.receive() for _ in range(20)] == back
    late = took_s(world.at_a, world.at_b)
    assert len(late) == 20
    assert min(late) >= 0.0999
    assert close(statistics.median(late), 0.1)
    for free in (took_s(world.at_c, world.at_b), took_s(world.at_b, world.at_a)):
        assert len(free) == 20
        assert statistics.median(free) < CLOSE * 0.1


@pytest.mark.parametrize("spread", Spread)
async def test_jitter_spreads_delays_as_asked(world: World, spread: Spread) -> None:
    jittery = Impairment(delay_s=0.1, jitter_s=0.02, spread=spread)
    await world.impair(jittery, c=Impairment(delay_s=0.1))

    async def read() -> None:
        for _ in range(SPREAD + SPREAD // 5):
            await world.b.receive()

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        for number in range(SPREAD):
            await world.a.send(frame("a", f"{number:06}"))
            if number % 5 == 0:
                await world.c.send(frame("c", f"{number:06}"))
            await anyio.sleep(0.002)
    late, even = took_s(world.at_a, world.at_b), took_s(world.at_c, world.at_b)
    assert (len(late), len(even)) == (SPREAD, SPREAD // 5)
    quarters = statistics.quantiles(late, n=4)
    wanted = [0.1 + 0.02 * aside(spread, each) for each in (0.25, 0.5, 0.75)]
    # What a busy host does to those that are to be late by the same is no jitter of ours.
    least, _, most = statistics.quantiles(even, n=4)
    said = f"{quarters} of {wanted}, without jitter {least} to {most}"
    print(said)
    for quarter, its in zip(quarters, wanted, strict=True):
        assert (1 - CLOSE) * its < quarter < (1 + CLOSE) * its + most - 0.1, said
    # Nearer to each other than that, or farther, is another jitter.
    apart, its = quarters[2] - quarters[0], wanted[2] - wanted[0]
    assert (1 - CLOSE) * its < apart < (1 + CLOSE) * its + most - least, said


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
    held = [each for each in took_s(world.at_a, world.at_b) if each > HELD_S]
    assert close(len(held) / COUNT, 0.3)
    # Of each group the last may find nobody to overtake it, and of a busy sender some others.
    assert 0.15 < overtaken(came) / COUNT < 0.33


async def test_as_many_have_one_bit_changed_as_asked(world: World) -> None:
    await world.impair(Impairment(corrupt=0.3))
    came = await world.came()
    sent = {frame("a", f"{number:06}") for number in range(COUNT)}
    # Anywhere in it, also in its header; nobody looks at that between a tap and its end.
    assert len(came) == COUNT
    assert close(1 - sum(each in sent for each in came) / COUNT, 0.3)


async def test_a_rate_and_a_delay_are_met_together(world: World) -> None:
    await world.impair(Impairment(delay_s=0.1, rate_bytes=20_000))
    for number in range(20):
        await world.a.send(frame("a", f"{number:06}" + "x" * 980))
    for _ in range(20):
        await world.b.receive()
    late = took_s(world.at_a, world.at_b)
    came_at = sorted(world.at_b.came_at.values())
    assert min(late) >= 0.0999
    # The first ones may pass at once; from then on each waits for the one before it.
    took = came_at[-1] - came_at[4]
    print(f"15 kB in {took:.3f} s")
    assert close(took, 15 * 1000 / 20_000), late
