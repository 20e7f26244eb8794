"""What agents are told in a coordination, in words.

What somebody wrote stands between two lines with a mark that its author did not know: an answer has
the id of the message that it answers, and what was there before all answers that of the
coordination. A reason, or why there is no answer, is within one line that begins with a name. So
none can speak for another. Pure; above are the kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from microvm_orchestrator.model.coordination import (
    Coordination,
    CoordinationKind,
    Participant,
    Step,
    StepState,
)

# Of all answers that are told in one message; far below what a message may have.
QUOTED_MOST = 100_000

_DO = "Do your part, and answer with what came of it."
_VOTE_FORM = """\
Answer with your vote as JSON between two lines of three backticks, and nothing behind it:

```json
{"vote": "agree", "reason": "one or two sentences"}
```

`vote` is `agree`, `disagree` or `abstain`; who disagrees has to say what would have to change."""

_PLAN_FORM = """\
Answer with a plan as JSON between two lines of three backticks, and nothing behind it:

```json
{"parts": [{"agent": "NAME", "task": "all that this agent has to know"}]}
```

Each of them has at most one part. They work at the same time, hear their own part and nothing else,
and you will hear their answers."""


def _opening(here: Coordination, agent: Participant) -> str:
    """Say to somebody who takes part what this is."""
    others = [each for each in here.participants if each != agent]
    beside = f" Others who take part: {_listed(others)}." if others else ""
    return (
        f"You are {agent.name}, and take part in a task that {here.coordinator.name} coordinates."
        f"{beside}\n\n{_task(here)}"
    )


def _for_coordinator(here: Coordination) -> str:
    return f"You coordinate a task that {_listed(here.participants)} work on.\n\n{_task(here)}"


def _task(here: Coordination) -> str:
    return _quoted("The task", here.task, here.coordination_id)


def turn_of(here: Coordination, agent: Participant, before: Sequence[Step]) -> str:
    """Ask somebody for its part of a sequence."""
    if not before:
        return f"{_opening(here, agent)}\n\nYou are the first. {_DO}"
    return (
        f"{_opening(here, agent)}\n\nThose before you have answered:\n\n{answers(before)}\n\n"
        f"Now it is your turn. {_DO}"
    )


def at_once(here: Coordination, agent: Participant) -> str:
    return f"{_opening(here, agent)}\n\nAll work at the same time. {_DO}"


def sum_up(here: Coordination, steps: Sequence[Step]) -> str:
    """Tell the coordinator all that was answered, and ask for the whole."""
    how = {
        CoordinationKind.SEQUENTIAL: "one after the other",
        CoordinationKind.PARALLEL: "at the same time",
        CoordinationKind.HIERARCHICAL: "each on its part",
    }[here.rules.kind]
    return (
        f"{_for_coordinator(here)}\n\nThey have worked on it {how}, and answered:\n\n"
        f"{answers(steps)}\n\nMake one result of it, and answer with that. Say what is missing "
        "where somebody gave no answer."
    )


def divide(here: Coordination, wrong: str | None) -> str:
    """Ask the coordinator for a plan; `wrong` is what was wrong with the one before."""
    if wrong is not None:
        return f"Your plan could not be read: {wrong}.\n\n{_PLAN_FORM}"
    return f"{_for_coordinator(here)}\n\nDivide it among them.\n\n{_PLAN_FORM}"


def part_of(here: Coordination, agent: Participant, task: str, mark: str) -> str:
    """Tell somebody its part of a plan, whose author did not know the mark."""
    return (
        f"You are {agent.name}, and take part in a task that {here.coordinator.name} coordinates. "
        f"This is your part; answer with what came of it.\n\n{_quoted('Your part', task, mark)}"
    )


@dataclass(frozen=True, slots=True)
class Proposal:
    """What is voted on."""

    text: str
    # Who wrote it did not know this.
    mark: str


def propose(here: Coordination, reasons: str, *, again: bool) -> str:
    """Ask the coordinator for a proposal, or for a better one."""
    if not again:
        return (
            f"{_for_coordinator(here)}\n\nThey will vote on a proposal of yours. Answer with the "
            "proposal, and nothing else."
        )
    return (
        f"Your proposal did not find the {here.rules.needed} votes that it needs.\n\n{reasons}\n\n"
        "Answer with the proposal that is voted on next, and nothing else."
    )


def vote(
    here: Coordination,
    agent: Participant,
    number: int,
    proposal: Proposal,
    *,
    reasons: str,
    unread: str | None,
) -> str:
    """Ask for a vote; `unread` is why the one before could not be read."""
    mended = (
        f"\n\nYour vote in the round before could not be read, and did not count: {unread}."
        if unread
        else ""
    )
    heard = f"\n\n{reasons}" if reasons else ""
    return (
        f"{_opening(here, agent)}\n\n"
        f"{agent.name}, this is round {number} of at most {here.rules.rounds}; "
        f"{here.rules.needed} of {len(here.participants)} have to agree.{heard}{mended}\n\n"
        f"{_quoted('The proposal', proposal.text, proposal.mark)}\n\n{_VOTE_FORM}"
    )


def reasons_of(votes: Sequence[Step]) -> str:
    """Tell how a round was voted, and why."""
    most = QUOTED_MOST // max(1, len(votes))
    lines = [
        f"- {step.agent}: {step.vote.vote}. {cut(_line(step.vote.reason), most)}".rstrip()
        if step.vote
        else f"- {step.agent}: no vote"
        for step in votes
    ]
    return "\n".join(["In the round before they have voted:", "", *lines])


def answers(steps: Sequence[Step]) -> str:
    """Quote what was answered, or say why it was not."""
    most = QUOTED_MOST // max(1, len(steps))
    return "\n\n".join(_answer(step, most) for step in steps)


def _answer(step: Step, most: int) -> str:
    if step.state is not StepState.ANSWERED or step.answer is None:
        why = f": {_line(step.error.message)[:1000]}" if step.error else ""
        return f"{step.agent} gave no answer{why}"
    return _quoted(f"{step.agent} answers", cut(step.answer, most), step.message_id)


def _quoted(what: str, text: str, mark: str) -> str:
    """Put a text between two lines, of which its author did not know the mark."""
    return f"[{what}, until {mark}]\n{text}\n[{mark}]"


def cut(text: str, most: int) -> str:
    """Give the beginning of a text that is too long, and say how much is left out."""
    if len(text) <= most:
        return text
    return f"{text[:most]}\n[... {len(text) - most} characters more were left out]"


def _line(text: str) -> str:
    return " ".join(text.split())


def _listed(participants: Sequence[Participant]) -> str:
    return ", ".join(each.name for each in participants)
