"""What befalls frames on an impaired way: as much as asked, and the same again by the same seed."""

from __future__ import annotations

import statistics
from dataclasses import replace

import anyio
import pytest

from lanes import HEADER, Lane, overtaken, runs_of
from microvm_orchestrator.network.impairment import (
    HOLD_S,
    MOST_ASIDE,
    Bursts,
    Impairment,
    Spread,
)
from microvm_orchestrator.network.way import Late, Way

COUNT = 20_000
# What is measured may be off by a tenth of what was asked.
CLOSE = 0.1


def close(measured: float, asked: float) -> bool:
    return abs(measured - asked) <= CLOSE * asked


def lost_by(impairment: Impairment, seed: str = "one", count: int = COUNT) -> list[bool]:
    lane = Lane(impairment, seed)
    lane.send(count)
    came = set(lane.numbers)
    return [number not in came for number in range(count)]


@pytest.mark.parametrize("delay_s", [0.005, 0.1, 2.0])
def test_each_frame_is_as_late_as_asked_and_their_order_stays(delay_s: float) -> None:
    lane = Lane(Impairment(delay_s=delay_s))
    lane.send(500, every_s=0.01)
    lane.wait(delay_s)
    assert lane.numbers == list(range(500))
    assert lane.took_s == pytest.approx([delay_s] * 500)


@pytest.mark.parametrize("spread", Spread)
def test_jitter_spreads_delays_as_asked(spread: Spread) -> None:
    lane = Lane(Impairment(delay_s=0.1, jitter_s=0.02, spread=spread))
    lane.send(COUNT, every_s=0.001)
    lane.wait(1.0)
    took_s = lane.took_s
    assert len(took_s) == COUNT
    assert close(statistics.fmean(took_s), 0.1)
    furthest = 0.02 * (1 if spread is Spread.UNIFORM else MOST_ASIDE)
    assert 0.1 - furthest - 1e-9 <= min(took_s) < max(took_s) <= 0.1 + furthest + 1e-9
    asked = 0.02 * (3**-0.5 if spread is Spread.UNIFORM else 1)
    assert close(statistics.pstdev(took_s), asked)
    assert overtaken(lane.numbers) > 0


@pytest.mark.parametrize("loss", [0.01, 0.1, 0.5, 0.9])
def test_as_many_are_lost_as_asked(loss: float) -> None:
    assert close(statistics.fmean(lost_by(Impairment(loss=loss))), loss)


@pytest.mark.parametrize("correlation", [0.25, 0.8])
def test_a_correlated_loss_has_the_share_and_the_correlation_asked_for(correlation: float) -> None:
    lost = lost_by(Impairment(loss=0.2, loss_correlation=correlation), count=5 * COUNT)
    assert close(statistics.fmean(lost), 0.2)
    assert close(statistics.correlation(lost[:-1], lost[1:]), correlation)


def test_bursts_are_as_frequent_and_as_long_as_asked() -> None:
    lost = lost_by(Impairment(bursts=Bursts(0.02, 0.25)), count=5 * COUNT)
    assert close(statistics.fmean(runs_of(lost)), 1 / 0.25)
    assert close(statistics.fmean(lost), 0.02 / 0.27)
    both = Bursts(0.02, 0.25, loss_bad=0.5, loss_good=0.1)
    assert close(statistics.fmean(lost_by(Impairment(bursts=both), count=5 * COUNT)), both.loss)


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_as_many_have_one_bit_changed_behind_their_header_as_asked(share: float) -> None:
    lane = Lane(Impairment(corrupt=share))
    lane.send(COUNT)
    changed = [
        int.from_bytes(one) ^ int.from_bytes(two)
        for one, two in zip(lane.frames, lane.came, strict=True)
    ]
    assert {each.bit_count() for each in changed} == {0, 1}
    assert close(sum(map(bool, changed)) / COUNT, share)
    assert lane.way.usage().corrupted == sum(map(bool, changed))
    assert all(
        one[:HEADER] == two[:HEADER] for one, two in zip(lane.frames, lane.came, strict=True)
    )
    # Anywhere behind it.
    assert len(set(changed)) > (sum(map(bool, changed)) / 10)


def test_a_frame_of_nothing_but_a_header_has_no_bit_to_change() -> None:
    came: list[bytes] = []
    Way(Impairment(corrupt=1.0), "one", Late(lambda: 0.0), came.append).take(bytes(HEADER))
    assert came == [bytes(HEADER)]


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_as_many_come_twice_as_asked(share: float) -> None:
    lane = Lane(Impairment(duplicate=share, delay_s=0.1))
    lane.send(COUNT, every_s=0.001)
    lane.wait(0.1)
    assert sorted(set(lane.numbers)) == list(range(COUNT))
    assert close(len(lane.came) / COUNT - 1, share)
    assert lane.way.usage().duplicated == len(lane.came) - COUNT
    assert lane.way.usage().passed == COUNT


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_as_many_are_overtaken_as_asked_without_any_delay(share: float) -> None:
    lane = Lane(Impairment(reorder=share))
    lane.send(COUNT, every_s=HOLD_S / 100)
    lane.wait(HOLD_S)
    assert sorted(lane.numbers) == list(range(COUNT))
    assert close(overtaken(lane.numbers) / COUNT, share)


def test_one_that_nobody_overtakes_comes_all_the_same() -> None:
    lane = Lane(Impairment(reorder=0.9))
    lane.send(50, every_s=1.0)
    assert lane.numbers == list(range(50))
    assert max(lane.took_s) == pytest.approx(HOLD_S)
    assert min(lane.took_s) == 0


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_as_many_overtake_those_that_are_delayed_as_asked(share: float) -> None:
    lane = Lane(Impairment(delay_s=0.1, reorder=share))
    lane.send(COUNT, every_s=0.001)
    lane.wait(0.1)
    at_once = sum(took == 0 for took in lane.took_s)
    assert close(at_once / COUNT, share)
    assert at_once + sum(took > 0.0999 for took in lane.took_s) == COUNT


@pytest.mark.parametrize("rate_bytes", [1000, 125_000])
def test_no_more_passes_than_a_rate_says_and_no_less(rate_bytes: int) -> None:
    lane = Lane(Impairment(rate_bytes=rate_bytes))
    # On the wire, a frame has no length in front.
    lane.send(100, size=504)
    lane.wait(1000)
    assert lane.numbers == list(range(100))
    assert close(100 * 500 / lane.came_at[-1], rate_bytes)
    # Who has waited has no credit for it.
    lane.send(2, size=504)
    lane.wait(1000)
    assert lane.took_s[-2:] == pytest.approx([500 / rate_bytes, 1000 / rate_bytes])


def test_a_rate_and_a_delay_add_up() -> None:
    lane = Lane(Impairment(rate_bytes=1000, delay_s=0.5))
    lane.send(2, size=104)
    lane.wait(10)
    assert lane.took_s == pytest.approx([0.6, 0.7])


ALL = Impairment(
    loss=0.1, corrupt=0.1, duplicate=0.1, reorder=0.1, delay_s=0.1, jitter_s=0.05, rate_bytes=10**6
)


def test_the_same_seed_brings_the_same_frames_at_the_same_times_and_another_one_others() -> None:
    def brought(seed: str) -> tuple[list[float], list[bytes]]:
        lane = Lane(ALL, seed)
        lane.send(1000, every_s=0.001)
        lane.wait(1)
        return lane.came_at, lane.came

    assert brought("one") == brought("one")
    assert brought("one") != brought("two")


def test_the_chances_of_a_frame_are_the_same_whatever_befalls_others() -> None:
    lossy = Impairment(loss=0.3)
    wanted = lost_by(lossy, count=1000)
    for more in (replace(lossy, reorder=0.5), replace(lossy, duplicate=1.0)):
        lane = Lane(more)
        lane.send(1000)
        lane.wait(1)
        came = set(lane.numbers)
        assert [number not in came for number in range(1000)] == wanted


def test_a_seed_of_its_own_tells_the_luck_and_not_the_ends() -> None:
    seeded = Impairment(loss=0.3, seed="seven")
    assert lost_by(seeded, "a -> b") == lost_by(seeded, "c -> d")
    assert lost_by(Impairment(loss=0.3), "a -> b") != lost_by(Impairment(loss=0.3), "c -> d")


def test_what_is_said_again_goes_on_and_what_changes_keeps_its_luck() -> None:
    lossy = Impairment(loss=0.3, seed="one")
    wanted = lost_by(lossy, count=300)
    lane = Lane(lossy)
    lane.send(100)
    lane.way.change(lossy)
    lane.send(100)
    lane.way.change(Impairment(loss=0.3, duplicate=1.0, seed="one"))
    lane.send(100)
    came = set(lane.numbers)
    assert [number not in came for number in range(300)] == wanted


def test_what_was_on_its_way_comes_although_the_way_has_changed() -> None:
    lane = Lane(Impairment(delay_s=0.1))
    lane.send(5)
    lane.way.change(Impairment(cut=True))
    lane.send(5)
    lane.wait(1)
    assert lane.numbers == list(range(5))
    lane.way.change(Impairment(delay_s=0.1, reorder=0.5))
    lane.send(5)
    lane.way.forget()
    lane.wait(1)
    assert lane.way.usage().waiting == 0
    assert all(took in {0.0, 0.1} for took in lane.took_s)


def test_what_waits_on_a_way_is_bounded_in_frames_and_bytes() -> None:
    lane = Lane(Impairment(delay_s=1.0))
    lane.send(5000)
    usage = lane.way.usage()
    assert (usage.passed, usage.crowded_out, usage.waiting) == (0, 4000, 1000)
    lane.wait(2)
    lane.send(200, size=60_000)
    assert lane.way.usage().waiting == (4 << 20) // 60_000
    lane.wait(2)
    assert lane.way.usage().waiting == 0


async def test_frames_come_by_the_loops_own_clock_too() -> None:
    came = anyio.Event()
    late = Late()
    way = Way(Impairment(delay_s=0.05), "one", late, lambda _: came.set())
    began = anyio.current_time()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(late.deliver)
            way.take(bytes(HEADER + 1))
            await came.wait()
            group.cancel_scope.cancel()
    assert anyio.current_time() - began >= 0.05
