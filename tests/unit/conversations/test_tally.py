"""What becomes of messages to agents, added up, and the figure of health that is made of it."""

from __future__ import annotations

from datetime import timedelta

from microvm_orchestrator.conversations.tally import OTHER, Tallies, Tally, health, tally_of
from microvm_orchestrator.model.agent import Message, MessageState
from microvm_orchestrator.model.agent_health import ResponseTimes
from microvm_orchestrator.model.task import TaskError
from microvm_orchestrator.model.values import moment


def message(state: MessageState, code: str | None = None, took_s: float = 1.0) -> Message:
    return Message(
        message_id="ada.1",
        agent_id="ada",
        owner="alice",
        sender="alice",
        text="x",
        state=state,
        error=None if code is None else TaskError(code=code, message="x"),
        created_at=moment(0.0),
        began_at=moment(10.0),
        ended_at=moment(10.0) + timedelta(seconds=took_s),
    )


def answered(took_s: float = 1.0) -> Message:
    return message(MessageState.ANSWERED, took_s=took_s)


def failed(code: str = "model-failed") -> Message:
    return message(MessageState.FAILED, code)


def test_answers_and_failures_are_counted_and_what_was_broken_off_is_neither() -> None:
    cancelled = message(MessageState.CANCELLED)
    tally = tally_of([answered(), failed(), failed("interrupted"), cancelled, answered(), failed()])
    counted = (tally.answered, tally.failed, tally.interrupted, tally.cancelled)
    assert counted == (2, 2, 1, 1)
    assert tally.success_rate == 0.5
    assert tally.errors == {"model-failed": 2}
    assert tally.failed_in_a_row == 1


def test_times_are_those_from_hearing_to_answering() -> None:
    tally = tally_of([answered(float(number)) for number in range(1, 101)])
    assert tally.response() == ResponseTimes(count=100, last_s=100.0, median_s=50.5, p95_s=95.0)
    assert Tally().response() == ResponseTimes()
    assert Tally().success_rate is None


def test_codes_are_few_whatever_programs_say() -> None:
    tally = tally_of([failed(f"code-{number}") for number in range(100)])
    assert len(tally.errors) == 33
    assert tally.errors[OTHER] == 68


def test_health_is_what_the_formula_says() -> None:
    assert health(Tally()) == 100
    assert health(tally_of([answered()] * 50)) == 100
    # 40 for all that failed, 30 for three in a row.
    assert health(tally_of([failed()] * 50)) == 30
    # 2 of 4 failed, and since then it answered.
    assert health(tally_of([failed(), failed(), answered(), answered()])) == 80
    assert health(tally_of([answered(), failed()])) == 70
    # What is longer ago than 20 messages is forgotten.
    assert health(tally_of([*[failed()] * 9, *[answered()] * 20])) == 100
    assert health(Tally(), seen=1) == 70
    assert health(tally_of([failed()] * 9), seen=2) == 0


def test_what_was_settled_before_and_what_is_settled_now_are_one_tally() -> None:
    tallies = Tallies()
    tallies.learn("ada", [answered()])
    tallies.note(message(MessageState.QUEUED))
    tallies.note(failed())
    found = tallies.find("ada")
    assert found is not None
    assert (found.answered, found.failed) == (1, 1)
    tallies.forget("ada")
    assert tallies.find("ada") is None
