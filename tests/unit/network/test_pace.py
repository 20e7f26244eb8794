"""How much of the daemon's time machines' frames may take."""

from __future__ import annotations

import pytest

from microvm_orchestrator.network.pace import SHARE, Pace


def run(took_s: float, pause_s: float, others: int) -> tuple[float, float]:
    """Send for a minute; how much time it took, and how much was waited."""
    pace, now, taken, waited = Pace(), 100.0, 0.0, 0.0
    while now < 160:
        now += took_s
        taken += took_s
        wait_s = pace.wait_s(now, took_s, others)
        now += wait_s + pause_s
        waited += wait_s
    return taken / 60, waited


@pytest.mark.parametrize("others", [0, 1, 5])
def test_one_that_floods_gets_its_part_of_the_share_and_no_more(others: int) -> None:
    taken, waited = run(0.001, 0.0, others)
    assert taken == pytest.approx(SHARE / (1 + others), rel=0.1)
    assert waited > 25


def test_one_that_stays_below_its_share_never_waits() -> None:
    taken, waited = run(0.001, 0.0015, 0)
    assert taken == pytest.approx(0.4, rel=0.01)
    assert waited == 0


def test_a_burst_does_not_wait() -> None:
    pace = Pace()
    assert [pace.wait_s(100.0, 0.004, 0) for _ in range(4)] == [0.0] * 4
    assert pace.wait_s(101.0, 0.015, 0) == 0.0
