"""What is seen of an agent from outside, and who may wait for whom."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from microvm_orchestrator.conversations.tally import asks
from microvm_orchestrator.conversations.waits import Waits
from microvm_orchestrator.conversations.watching import Glance, Policy, look
from microvm_orchestrator.model.agent import AgentState
from microvm_orchestrator.model.supervision import Sight, Supervise

POLICY = Policy(
    supervise=Supervise.WATCH,
    stuck_after_s=300,
    waiting_after_s=120,
    idle_after_s=3600,
    looping_after=3,
    interventions_most=3,
    intervene_every_s=60,
    look_every_s=10,
    ends=False,
    roles=Path("/nowhere"),
)
WELL = Glance(
    state=AgentState.IDLE,
    reason="",
    last_sign=None,
    waiting=0,
    last_heard=1000.0,
    asks=False,
    error="",
    row=0,
    row_since=0.0,
    at_limit=False,
)
BUSY = replace(WELL, state=AgentState.BUSY, last_sign=1000.0, waiting=1)


def sights(glance: Glance, now: float) -> list[Sight]:
    return [each.sight for each in look(glance, POLICY, now)]


def test_one_in_a_turn_is_stuck_once_it_is_silent_for_long() -> None:
    assert sights(BUSY, 1299) == []
    assert sights(BUSY, 1300) == [Sight.STUCK]
    # Each word begins the time anew.
    assert sights(replace(BUSY, last_sign=1200.0), 1499) == []


def test_one_whose_answer_asks_waits_and_another_is_idle() -> None:
    asking = replace(WELL, asks=True)
    assert sights(asking, 1119) == []
    assert sights(asking, 1120) == [Sight.WAITING]
    assert sights(asking, 9000) == [Sight.WAITING]
    assert sights(WELL, 4599) == []
    assert sights(WELL, 4600) == [Sight.IDLE]
    assert sights(replace(WELL, waiting=1), 9000) == []


def test_one_that_fails_the_same_way_again_and_again_loops() -> None:
    failing = replace(WELL, error="model-failed", row=2)
    assert sights(failing, 1001) == []
    [seen] = look(replace(failing, row=3), POLICY, 1001)
    assert (seen.sight, seen.what) == (
        Sight.LOOPING,
        "its last 3 messages failed with model-failed",
    )


def test_one_is_dead_whose_machine_ended_and_not_one_that_was_suspended() -> None:
    suspended = replace(WELL, state=AgentState.SUSPENDED)
    assert sights(suspended, 9000) == []
    [seen] = look(replace(suspended, reason="its machine is\ncrashed"), POLICY, 1001)
    assert (seen.sight, seen.what) == (Sight.DEAD, "its machine is crashed")


def test_one_at_a_limit_stands_as_it_should() -> None:
    limited = replace(WELL, state=AgentState.SUSPENDED, reason="used up", at_limit=True)
    assert sights(limited, 9000) == []


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("Shall I delete it?", True),
        ("Which of them?**\n", True),
        ("I am waiting for bob's answer.", True),
        ("Please confirm the plan.", True),
        ("Done. All tests pass.", False),
        ("Why did it fail? Because of a typo, which I mended.", False),
        ("Shall I? " + "x" * 500, False),
        ("", False),
    ],
)
def test_an_answer_asks_by_its_last_words(answer: str, wanted: bool) -> None:  # one of two
    assert asks(answer) is wanted


def test_who_waits_for_each_other_is_a_ring_of_any_length() -> None:
    waits = Waits()
    with waits.waiting("a", "b"), waits.waiting("b", "c"):
        assert waits.find_ring("c", "a") == ["a", "b", "c"]
        assert waits.find_ring("b", "a") == ["a", "b"]
        assert waits.find_ring("d", "a") == []
        assert waits.find_ring("c", "d") == []
        # A turn may wait for several, and for one several times.
        with waits.waiting("b", "a"), waits.waiting("b", "c"):
            assert waits.find_ring("a", "b") == ["b", "a"]
        assert waits.find_ring("c", "b") == ["b", "c"]
    assert waits.find_ring("b", "a") == []
