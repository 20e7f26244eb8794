"""Votes and plans as guests write them: read strictly, whatever they hold."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinating import participant
from microvm_orchestrator import errors
from microvm_orchestrator.conversations.kinds import dissent_in, tally
from microvm_orchestrator.conversations.structured import (
    PLAN_MOST,
    VOTE_MOST,
    read_plan,
    read_vote,
)
from microvm_orchestrator.model.coordination import (
    REASON_MOST,
    SUBTASK_MOST,
    Choice,
    Step,
    StepPart,
    StepState,
    Vote,
)
from microvm_orchestrator.model.values import MAX_TEXT, moment

NAMES = ["ada", "bob"]


def fenced(value: object) -> str:
    return f"Some words.\n\n```json\n{json.dumps(value)}\n```\n"


choices = st.sampled_from(list(Choice))
reasons = st.text(st.characters(codec="utf-8"), min_size=1, max_size=200).filter(str.strip)


@given(choices, reasons)
def test_a_vote_is_read_as_it_was_written(choice: Choice, reason: str) -> None:
    written = {"vote": choice.value, "reason": reason}
    vote = Vote(vote=choice, reason=reason)
    assert read_vote(fenced(written)) == vote
    assert read_vote(json.dumps(written)) == vote
    # Of several the last one counts: what was quoted stands before it.
    assert read_vote(fenced({"vote": "abstain"}) + fenced(written)) == vote


@given(st.text(max_size=400))
def test_any_words_are_a_vote_or_refused_in_a_short_sentence(answer: str) -> None:
    told = "agree"
    try:
        told = read_vote(answer).vote
    except errors.InvalidInput as refused:
        told = refused.message
    assert 0 < len(told) <= 300


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_any_json_is_a_vote_or_refused(value: object) -> None:
    for written in (value, {"vote": value}, {"vote": "agree", "reason": value}):
        try:
            vote = read_vote(fenced(written))
        except errors.InvalidInput:
            continue
        assert vote == Vote(vote=Choice.AGREE, reason=str(value))


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I agree.",
        "```json\n```",
        "```json\n{}\n```",
        "```json\n[]\n```",
        fenced({"vote": "yes"}),
        fenced({"vote": "AGREE"}),
        fenced({"vote": "agree", "weight": 100}),
        fenced({"vote": ["agree", "agree"]}),
        fenced({"vote": "disagree"}),
        fenced({"vote": "disagree", "reason": "  "}),
        fenced({"vote": "agree", "reason": "x" * (REASON_MOST + 1)}),
        fenced({"vote": "agree", "reason": None}),
        '{"vote": "agree", "vote": "disagree", "reason": "x"}',
        '{"vote": "agree"} {"vote": "agree"}',
        '{"vote": "agree", "reason": "\\ud800"}',
        '{"vote": NaN}',
        "{" + '"a":{' * 5000,
        '{"vote": ' + "[" * 8000,
        '{"vote": ' + "9" * 9000 + "}",
        "```json\n" + " " * (VOTE_MOST + 1) + '{"vote": "agree"}\n```',
        # Of the length that an answer may have; none of them is closed.
        "```json\n" * (MAX_TEXT // 8),
    ],
)
def test_what_is_no_vote_is_refused(answer: str) -> None:
    with pytest.raises(errors.InvalidInput) as refused:
        read_vote(answer)
    assert 0 < len(refused.value.message) <= 300


def test_a_plan_is_read_with_its_parts_in_order() -> None:
    parts = [{"agent": "bob", "task": "hands"}, {"agent": "ada", "task": "dial"}]
    plan = read_plan(fenced({"parts": parts}), NAMES)
    assert [each.model_dump() for each in plan] == parts


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [{"agent": "eve", "task": "x"}],
        [{"agent": "ada", "task": "x"}, {"agent": "ada", "task": "y"}],
        [{"agent": "ada", "task": ""}],
        [{"agent": "ada"}],
        [{"agent": "ada", "task": "x" * (SUBTASK_MOST + 1)}],
        [{"agent": "ada", "task": "x", "budget": 9}],
        [{"agent": "ada", "task": "x"}] * 40,
        "ada",
    ],
)
def test_what_is_no_plan_is_refused(parts: object) -> None:
    with pytest.raises(errors.InvalidInput):
        read_plan(fenced({"parts": parts}), NAMES)


def test_a_plan_has_an_end() -> None:
    with pytest.raises(errors.InvalidInput, match="more than 131072 characters"):
        read_plan("{" + " " * PLAN_MOST + "}", NAMES)


def cast(number: int, vote: Vote | None) -> Step:
    who = participant(f"p{number}")
    return Step(
        coordination_id="co_1",
        number=number,
        part=StepPart.VOTE,
        round=1,
        agent_id=who.agent_id,
        agent=who.name,
        message_id=f"{who.agent_id}.m",
        state=StepState.ANSWERED if vote else StepState.UNREADABLE,
        vote=vote,
        asked_at=moment(0.0),
    )


@given(st.lists(st.none() | st.builds(Vote, vote=choices, reason=reasons), max_size=12))
def test_every_vote_is_counted_once_and_whoever_did_not_agree_is_on_record(
    votes: list[Vote | None],
) -> None:
    steps = [cast(number, vote) for number, vote in enumerate(votes)]
    told = tally(1, steps, 2)
    assert told.agree + told.disagree + told.abstain + told.none == len(votes)
    assert told.agree == sum(vote is not None and vote.vote is Choice.AGREE for vote in votes)
    dissent = dissent_in(steps)
    assert len(dissent) == len(votes) - told.agree
    assert all(each.vote is not Choice.AGREE and each.reason for each in dissent)
    # In the order of those who take part.
    numbers = [int(each.agent[1:]) for each in dissent]
    assert all(one < two for one, two in pairwise(numbers))
