"""The kinds of coordination: what is asked of whom, in which order, and what comes of it.

Each is a plain function that asks and goes on with the answers, and decides by nothing else. So it
can be begun again from the top after the daemon was killed: what was answered before is answered at
once, and it comes to where it was. Above are the coordinations of this host; below, the words, and
how votes and plans are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from microvm_orchestrator import errors
from microvm_orchestrator.conversations import words
from microvm_orchestrator.conversations.structured import read_plan, read_vote
from microvm_orchestrator.model.coordination import (
    PROPOSAL_MOST,
    Choice,
    Coordination,
    CoordinationKind,
    Dissent,
    Outcome,
    Participant,
    Step,
    StepPart,
    StepState,
    Subtask,
    Tally,
    Vote,
)

# How often a coordinator may send a plan that cannot be read.
_PLANS_MOST = 3
# Of somebody who was asked for a vote and said something.
_HEARD = {StepState.ANSWERED, StepState.UNREADABLE}

# What was read in an answer, by the field of the step that has it.
Reading = Mapping[str, Vote | list[Subtask]]


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be asked of an agent."""

    agent: Participant
    part: StepPart
    text: str
    round: int | None = None
    # Reads the answer; raises InvalidInput when it cannot be read.
    read: Callable[[str], Reading] | None = None


class Ask(Protocol):
    """Asks several agents at once; each answers, or it is known why not."""

    async def __call__(self, *questions: Question) -> list[Step]: ...


@dataclass(frozen=True, slots=True)
class End:
    """What came of a coordination."""

    result: str | None = None
    outcome: Outcome | None = None
    tallies: list[Tally] = field(default_factory=list[Tally])
    dissent: list[Dissent] = field(default_factory=list[Dissent])


async def coordinate(here: Coordination, ask: Ask) -> End:
    """Take a coordination through. Raises: CoordinationFailed."""
    match here.rules.kind:
        case CoordinationKind.SEQUENTIAL:
            return await _sequential(here, ask)
        case CoordinationKind.PARALLEL:
            return await _parallel(here, ask)
        case CoordinationKind.CONSENSUS:
            return await _consensus(here, ask)
        case CoordinationKind.HIERARCHICAL:
            return await _hierarchical(here, ask)


async def _sequential(here: Coordination, ask: Ask) -> End:
    steps: list[Step] = []
    for each in here.participants:
        steps += await ask(Question(each, StepPart.WORK, words.turn_of(here, each, steps)))
    return await _joined(here, ask, steps)


async def _parallel(here: Coordination, ask: Ask) -> End:
    steps = await ask(
        *(Question(each, StepPart.WORK, words.at_once(here, each)) for each in here.participants)
    )
    return await _joined(here, ask, steps)


async def _hierarchical(here: Coordination, ask: Ask) -> End:
    by_name = {each.name: each for each in here.participants}

    def read(answer: str) -> Reading:
        return {"plan": read_plan(answer, list(by_name))}

    wrong: str | None = None
    for _ in range(_PLANS_MOST):
        text = words.divide(here, wrong)
        [step] = await ask(Question(here.coordinator, StepPart.DIVIDE, text, read=read))
        wrong = _why(step)
        if step.state is not StepState.UNREADABLE:
            break
    else:
        raise _failed(f"{here.coordinator.name} made no plan that can be read: {wrong}")
    if step.plan is None:
        raise _failed(f"{here.coordinator.name} made no plan: {wrong}")
    parts = [(by_name[part.agent], part.task) for part in step.plan]
    steps = await ask(
        *(
            Question(agent, StepPart.WORK, words.part_of(here, agent, task, step.message_id))
            for agent, task in parts
        )
    )
    return await _joined(here, ask, steps)


async def _joined(here: Coordination, ask: Ask, steps: Sequence[Step]) -> End:
    """Have the coordinator make one result of all answers, if there are any."""
    if not any(step.state is StepState.ANSWERED for step in steps):
        raise _failed(f"nobody gave an answer: {_why(steps[0])}")
    if not here.rules.ask_coordinator:
        return End()
    text = words.sum_up(here, steps)
    [whole] = await ask(Question(here.coordinator, StepPart.SUM_UP, text))
    if whole.state is not StepState.ANSWERED:
        raise _failed(f"{here.coordinator.name} did not sum up: {_why(whole)}")
    return End(result=whole.answer)


async def _consensus(here: Coordination, ask: Ask) -> End:
    given = here.rules.proposal
    proposal = None if given is None else words.Proposal(given, here.coordination_id)
    votes: list[Step] = []
    tallies: list[Tally] = []
    for number in range(1, here.rules.rounds + 1):
        reasons = words.reasons_of(votes) if votes else ""
        if here.rules.ask_coordinator and (votes or proposal is None):
            proposal = await _proposal(here, ask, number, proposal, reasons)
        if proposal is None:
            raise _failed("there is no proposal")
        votes = await ask(
            *(
                Question(
                    each,
                    StepPart.VOTE,
                    words.vote(
                        here,
                        each,
                        number,
                        proposal,
                        reasons=reasons,
                        unread=_unread(votes, each),
                    ),
                    number,
                    _read_vote,
                )
                for each in here.participants
            )
        )
        tallies.append(tally(number, votes, here.rules.needed))
        if tallies[-1].agree >= here.rules.needed:
            return End(proposal.text, Outcome.CONSENSUS, tallies, dissent_in(votes))
        if not any(step.state in _HEARD for step in votes):
            raise _failed(f"nobody could be asked for a vote: {_why(votes[0])}")
    return End(proposal and proposal.text, Outcome.NO_CONSENSUS, tallies, dissent_in(votes))


async def _proposal(
    here: Coordination, ask: Ask, number: int, before: words.Proposal | None, reasons: str
) -> words.Proposal:
    """Ask for a proposal; without an answer the one before is voted on once more."""
    text = words.propose(here, reasons, again=before is not None)
    question = Question(here.coordinator, StepPart.PROPOSE, text, number, _read_proposal)
    [step] = await ask(question)
    if step.state is StepState.ANSWERED and step.answer is not None:
        return words.Proposal(step.answer, step.message_id)
    if before is None:
        raise _failed(f"{here.coordinator.name} proposed nothing: {_why(step)}")
    return before


def _read_proposal(answer: str) -> Reading:
    if not answer.strip() or len(answer) > PROPOSAL_MOST:
        raise errors.InvalidInput(f"a proposal has 1 to {PROPOSAL_MOST} characters")
    return {}


def _read_vote(answer: str) -> Reading:
    return {"vote": read_vote(answer)}


def _unread(votes: Sequence[Step], agent: Participant) -> str | None:
    """Tell why the vote that somebody gave before could not be read, if so it was."""
    for step in votes:
        if step.agent_id == agent.agent_id and step.state is StepState.UNREADABLE:
            return step.error and step.error.message
    return None


def tally(number: int, votes: Sequence[Step], needed: int) -> Tally:
    """Count the votes of a round; what was not read is none."""
    cast = [step.vote.vote if step.vote else None for step in votes]
    return Tally(
        round=number,
        agree=cast.count(Choice.AGREE),
        disagree=cast.count(Choice.DISAGREE),
        abstain=cast.count(Choice.ABSTAIN),
        none=cast.count(None),
        needed=needed,
    )


def dissent_in(votes: Sequence[Step]) -> list[Dissent]:
    """Tell who did not agree in a round, and why."""
    return [
        Dissent(
            agent=step.agent,
            vote=step.vote and step.vote.vote,
            reason=step.vote.reason if step.vote else _why(step),
        )
        for step in votes
        if step.vote is None or step.vote.vote is not Choice.AGREE
    ]


def _why(step: Step) -> str:
    return step.error.message if step.error else f"it was {step.state}"


def _failed(why: str) -> errors.CoordinationFailed:
    return errors.CoordinationFailed(why)
