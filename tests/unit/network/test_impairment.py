"""What befalls frames on an impaired way: as asked, and the same again by the same seed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

import frames
from microvm_orchestrator import errors
from microvm_orchestrator.network.addresses import assign
from microvm_orchestrator.network.base import Network
from microvm_orchestrator.network.impairment import Impairment, Late, Way
from microvm_orchestrator.network.switch import Switch, open_switch
from networking import End, SwitchStage, wired

LONG_S = 60.0
NETWORK = Network("net")
ME, YOU, THIRD = (assign(NETWORK, name) for name in ("me", "you", "third"))


class World:
    def __init__(self, switch: Switch, ends: list[End]) -> None:
        self.switch = switch
        self.me, self.you, self.third = ends


@pytest.fixture
async def world(tmp_path: Path) -> AsyncGenerator[World]:
    with anyio.fail_after(LONG_S):
        async with open_switch() as switch, AsyncExitStack() as stack:
            await switch.make(NETWORK)
            ends = await wired(switch, SwitchStage(tmp_path), [ME, YOU, THIRD], stack)
            yield World(switch, ends)


def to_you(text: str) -> bytes:
    return frames.plain(frames.mac(YOU), frames.mac(ME), text)


async def test_a_cut_way_lets_nothing_pass_and_all_others_do(world: World) -> None:
    world.switch.impair(ME, YOU, Impairment(cut=True), seed=1)
    back = frames.plain(frames.mac(ME), frames.mac(YOU), "back")
    loud = frames.plain(frames.EVERYBODY, frames.mac(ME), "all")
    await world.me.send(to_you("lost"))
    await world.me.send(loud)
    assert await world.third.receive() == loud
    await world.you.send(back)
    assert await world.me.receive() == back
    ((way, (impairment, usage)),) = world.switch.impaired("net").items()
    assert (way, impairment.cut) == (("me", "you"), True)
    assert (usage.passed, usage.lost) == (0, 2)
    world.switch.mend(ME, YOU)
    world.switch.mend(ME, YOU)
    assert world.switch.impaired("net") == {}
    await world.me.send(to_you("healed"))
    assert await world.you.receive() == to_you("healed")


async def test_a_delay_holds_each_frame_and_keeps_their_order(world: World) -> None:
    world.switch.impair(ME, YOU, Impairment(delay_s=0.2), seed=1)
    began = anyio.current_time()
    for number in range(5):
        await world.me.send(to_you(str(number)))
    assert [await world.you.receive() for _ in range(5)] == [to_you(str(n)) for n in range(5)]
    assert anyio.current_time() - began >= 0.2


async def test_a_rate_lets_no_more_pass_than_it_says(world: World) -> None:
    world.switch.impair(ME, YOU, Impairment(rate_bytes=10_000), seed=1)
    began = anyio.current_time()
    for number in range(5):
        await world.me.send(to_you(str(number)).ljust(996, b"\0"))
    for _ in range(5):
        await world.you.receive()
    assert anyio.current_time() - began >= 0.5


async def test_what_was_late_is_lost_when_the_way_is_mended(world: World) -> None:
    world.switch.impair(ME, YOU, Impairment(delay_s=2.0), seed=1)
    await world.me.send(to_you("late"))
    onward = frames.plain(frames.mac(THIRD), frames.mac(ME), "taken in after it")
    await world.me.send(onward)
    assert await world.third.receive() == onward
    assert world.switch.impaired("net")["me", "you"][1].waiting == 1
    # On its way for longer than the one that was late.
    world.switch.impair(YOU, ME, Impairment(delay_s=2.2), seed=1)
    world.switch.mend(ME, YOU)
    await world.you.send(frames.plain(frames.mac(ME), frames.mac(YOU), "later"))
    await world.me.receive()
    await world.me.send(to_you("now"))
    assert await world.you.receive() == to_you("now")


async def test_a_port_that_is_released_takes_its_impairments_along(world: World) -> None:
    world.switch.impair(ME, YOU, Impairment(loss=0.5), seed=1)
    world.switch.impair(YOU, ME, Impairment(loss=0.5), seed=1)
    world.switch.impair(ME, THIRD, Impairment(loss=0.5), seed=1)
    await world.switch.release(YOU)
    assert set(world.switch.impaired("net")) == {("me", "third")}
    with pytest.raises(errors.NotFound):
        world.switch.impair(ME, YOU, Impairment(), seed=1)


def passed_by(impairment: Impairment, seed: str, count: int = 1000) -> list[int]:
    """Send numbered frames down a way whose clock stands, and tell which came through at once."""
    came: list[int] = []
    way = Way(
        impairment, seed, Late(), lambda frame: came.append(int.from_bytes(frame)), now=lambda: 0.0
    )
    for number in range(count):
        way.take(number.to_bytes(4))
    return came


def test_the_same_seed_loses_the_same_frames_and_another_one_others() -> None:
    lossy = Impairment(loss=0.3)
    assert passed_by(lossy, "one") == passed_by(lossy, "one")
    assert passed_by(lossy, "one") != passed_by(lossy, "two")
    assert 600 < len(passed_by(lossy, "one")) < 800
    assert passed_by(Impairment(), "one") == list(range(1000))
    assert passed_by(Impairment(loss=1.0), "one") == []


def test_some_overtake_those_that_are_delayed() -> None:
    # A delayed one waits; those that overtake pass at once.
    overtaking = passed_by(Impairment(delay_s=1.0, reorder=0.2), "one", 500)
    assert 50 < len(overtaking) < 150
    assert overtaking == sorted(overtaking)


async def test_jitter_spreads_frames_around_their_delay_and_no_further() -> None:
    with anyio.fail_after(LONG_S):
        came: list[float] = []
        last = anyio.Event()
        late = Late()
        began = anyio.current_time()

        def arrive(_: bytes) -> None:
            came.append(anyio.current_time())
            if len(came) == 50:
                last.set()

        way = Way(Impairment(delay_s=0.2, jitter_s=0.1), "one", late, arrive, now=lambda: began)
        for _ in range(50):
            way.take(b"frame")
        async with anyio.create_task_group() as group:
            group.start_soon(late.deliver)
            await last.wait()
            group.cancel_scope.cancel()
    assert came[0] - began >= 0.1
    assert came[-1] - began >= 0.2


def test_what_waits_on_a_way_is_bounded() -> None:
    late = Late()
    way = Way(Impairment(delay_s=1.0), "one", late, lambda _: None, now=lambda: 0.0)
    for _ in range(5000):
        way.take(b"frame")
    usage = way.usage()
    assert (usage.passed, usage.lost, usage.waiting) == (0, 4000, 1000)


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss": 1.1},
        {"loss": -0.1},
        {"reorder": 2},
        {"delay_s": -1},
        {"delay_s": 1, "jitter_s": 2},
        {"rate_bytes": 0},
    ],
)
def test_an_impairment_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(errors.InvalidInput):
        Impairment(**wrong)  # type: ignore[arg-type]  # wrong on purpose
