"""How far a run is from its limits, and which limits it may be given when it is paused."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.lifecycle.budget import refuse_reached, taken, wall_s
from microvm_orchestrator.model.run import Budget, Measure, Pause, RunRecord, Usage

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
USED = Usage(
    wall_s=60, cpu_s=30, tokens_in=700, tokens_out=50, tokens_cached=250, cost_usd=0.5, requests=9
)


def record(**more: Any) -> RunRecord:
    return RunRecord(run_id="t.1", task_id="t", owner="me", started_at=BEGAN, **more)


def paused_after(seconds: float) -> Pause:
    at = BEGAN + timedelta(seconds=seconds)
    return Pause(measure=Measure.TOKENS, used=1000, limit=900, at=at)


def test_a_program_that_was_not_started_has_run_for_no_time() -> None:
    assert wall_s(record()) == 0


def test_pauses_are_no_time_that_a_program_ran() -> None:
    assert wall_s(record(began_at=BEGAN, paused=paused_after(90))) == 90
    assert wall_s(record(began_at=BEGAN, paused=paused_after(90), paused_s=25.5)) == 64.5


def test_a_program_that_runs_has_run_until_now_be_the_daemon_another() -> None:
    before = time.time() - BEGAN.timestamp()
    found = wall_s(record(began_at=BEGAN, paused_s=10))
    assert before - 10 - 0.001 <= found <= time.time() - BEGAN.timestamp() - 10 + 0.001


def test_what_is_taken_of_each_thing_is_what_its_limit_counts() -> None:
    assert {measure: taken(USED, measure) for measure in Measure} == {
        "wall_s": 60,
        "cpu_s": 30,
        "tokens": 1000,
        "cost_usd": 0.5,
    }
    assert taken(Usage(), Measure.CPU_S) == taken(Usage(), Measure.COST_USD) == 0


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"tokens": 1000}, "1000 tokens are used up already, and the limit would be 1000"),
        ({"cost_usd": 0.25}, "0.5 cost_usd are used up already"),
        ({"wall_s": 60.0, "cpu_s": 99.0}, "60 wall_s are used up already"),
        ({"wall_s": 1.0, "cpu_s": 1.0}, "30 cpu_s are used up already"),
    ],
)
def test_a_limit_that_is_not_above_what_is_used_up_is_refused_with_that(
    limits: dict[str, Any], said: str
) -> None:
    with pytest.raises(errors.InvalidInput) as refused:
        refuse_reached(record(usage=USED), Budget(**limits))
    assert said in refused.value.message


def test_limits_above_what_is_used_up_and_none_at_all_are_fine() -> None:
    refuse_reached(record(usage=USED), Budget(tokens=1001, cost_usd=0.51, wall_s=61.0, cpu_s=31.0))
    refuse_reached(record(usage=USED), Budget())
