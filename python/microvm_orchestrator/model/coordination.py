"""Coordinations as callers know them: a task that several agents work on, step by step.

What an agent answers is a guest's own word: a vote or a plan is read strictly, and within bounds.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from microvm_orchestrator.model.task import TaskError
from microvm_orchestrator.model.values import Moment, Text

# The kinds of record they are stored as.
COORDINATION = "coordination"
STEP = "coordination-step"

PARTICIPANTS_MOST = 32
ROUNDS_MOST = 20
REASON_MOST = 4000
SUBTASK_MOST = 32_000
PROPOSAL_MOST = 32_000
# With what others answered it still has to fit into a message.
TASK_MOST = 64_000


class CoordinationKind(StrEnum):
    """How agents work together on a task."""

    # One after the other; each hears what those before have answered.
    SEQUENTIAL = "sequential"
    # All at once.
    PARALLEL = "parallel"
    # They vote on a proposal, in rounds.
    CONSENSUS = "consensus"
    # The coordinator divides the task among them.
    HIERARCHICAL = "hierarchical"


class CoordinationState(StrEnum):
    """Where a coordination stands."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    # It came to no result; its steps say why.
    FAILED = "failed"
    CANCELLED = "cancelled"


class Outcome(StrEnum):
    """What came of the votes."""

    CONSENSUS = "consensus"
    # The rounds were over before the quorum was reached.
    NO_CONSENSUS = "no_consensus"


class StepPart(StrEnum):
    """What a step is for."""

    WORK = "work"
    DIVIDE = "divide"
    PROPOSE = "propose"
    VOTE = "vote"
    SUM_UP = "sum_up"


class StepState(StrEnum):
    """Where a step stands."""

    # Its message has an id, and is said, or will be.
    ASKED = "asked"
    ANSWERED = "answered"
    # It was answered, and not in the form that was asked for.
    UNREADABLE = "unreadable"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self is not StepState.ASKED


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Participant(_Part):
    """An agent in a coordination."""

    agent_id: str
    name: str


class Choice(StrEnum):
    """How somebody votes."""

    AGREE = "agree"
    DISAGREE = "disagree"
    ABSTAIN = "abstain"


class Vote(_Part):
    """A vote on a proposal."""

    vote: Choice
    reason: Annotated[str, Field(max_length=REASON_MOST)] = ""


class Subtask(_Part):
    """A part of a task."""

    agent: Annotated[str, Field(min_length=1, max_length=100, description="its name")]
    task: Annotated[str, Field(min_length=1, max_length=SUBTASK_MOST)]


class Step(_Part):
    """What one agent was asked, and what it answered."""

    coordination_id: str
    number: int
    part: StepPart
    round: int | None = Field(default=None, description="of votes")
    agent_id: str
    agent: str = Field(description="its name")
    message_id: str = Field(description="in which it was asked: `agent_output` has the words")
    state: StepState = StepState.ASKED
    answer: Text | None = None
    vote: Vote | None = Field(default=None, description="as it was read")
    plan: list[Subtask] | None = Field(default=None, description="as it was read")
    error: TaskError | None = Field(default=None, description="why there is no answer, or no vote")
    asked_at: Moment
    ended_at: Moment | None = None


class Tally(_Part):
    """The votes of a round."""

    round: int
    agree: int
    disagree: int
    abstain: int
    none: int = Field(description="who gave no vote: no answer, or none that could be read")
    needed: int


class Dissent(_Part):
    """Somebody who did not agree, at the end."""

    agent: str
    vote: Choice | None = Field(description="null where there was none")
    reason: str


class Rules(_Part):
    """How a coordination is carried out."""

    kind: CoordinationKind
    proposal: Annotated[str, Field(min_length=1, max_length=PROPOSAL_MOST)] | None = Field(
        default=None,
        description="for a consensus: what is voted on first; else the coordinator is asked for it",
    )
    rounds: int = Field(description="of votes, at most")
    needed: int = Field(description="votes that have to agree")
    ask_coordinator: bool
    step_timeout_s: float


class Coordination(_Part):
    """A task that several agents work on."""

    coordination_id: str
    owner: str
    coordinator: Participant
    participants: list[Participant]
    task: Text
    rules: Rules
    state: CoordinationState
    reason: str = Field(default="", description="why it failed")
    outcome: Outcome | None = Field(default=None, description="of a consensus")
    result: Text | None = Field(
        default=None, description="what the coordinator made of the answers; or what was agreed on"
    )
    tallies: list[Tally] = []
    dissent: list[Dissent] = Field(default=[], description="in the last round")
    begun_by: str
    created_at: Moment
    ended_at: Moment | None = None

    @property
    def ended(self) -> bool:
        return self.state is not CoordinationState.RUNNING
