"""Agents as callers know them: who lives in which machine, and what was said to them.

An answer and a transcript are the guest's own words; what an agent used was measured by the host.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from microvm_orchestrator.model.agent_budget import AgentBudget, Taken
from microvm_orchestrator.model.agent_claims import Works
from microvm_orchestrator.model.agent_work import AgentWork, Brought
from microvm_orchestrator.model.run import CredentialNames, DriverName, Usage
from microvm_orchestrator.model.supervision import Observation, Supervise
from microvm_orchestrator.model.task import TaskError
from microvm_orchestrator.model.values import MAX_TEXT, Json, Line, Moment, Name, Text

# The kinds of record agents, and what is said to them, are stored as.
AGENT = "agent"
MESSAGE = "message"

# A home, the conversation and what the agent writes: lost with the machine if it were memory.
USUAL_DISK_MIB = 1024

Said = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]


class AgentState(StrEnum):
    """Where an agent stands."""

    # Its machine is being made ready.
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    # Its machine does not run. The next message starts it, and the agent knows what was said.
    SUSPENDED = "suspended"
    ENDED = "ended"
    # It never came up.
    FAILED = "failed"


# From here on nothing is said to it any more.
OVER = frozenset({AgentState.ENDED, AgentState.FAILED})


class MessageState(StrEnum):
    """Where a message stands."""

    # The agent hears it when it has answered those before.
    QUEUED = "queued"
    # The agent works on it.
    DELIVERED = "delivered"
    ANSWERED = "answered"
    FAILED = "failed"
    # It was never heard.
    CANCELLED = "cancelled"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Program(_Part):
    """Which program an agent is, and with what it is started."""

    driver: DriverName = Field(default="claude", description="which program it is")
    model: Line | None = Field(default=None, description="as the program names it")
    mcp_servers: Annotated[dict[Name, Json], Field(max_length=32)] = Field(
        default={}, description="further MCP servers, as in the program's own configuration"
    )
    max_turns: Annotated[int, Field(strict=True, ge=1, le=10_000)] | None = Field(
        default=None, description="of its model, for one message"
    )


class Character(Program):
    """Who an agent is."""

    role: Line | None = Field(
        default=None,
        description="what it is, by a name of `role_list` or an alias; its prompt comes first",
    )
    system_prompt: Text | None = Field(default=None, description="added to the program's own")


class Home(_Part):
    """Where an agent lives, and what it may reach from there."""

    image: Line | None = Field(default=None, description="by default this host's usual one")
    memory_mib: Annotated[int, Field(strict=True, ge=64, le=1 << 20)] | None = None
    vcpus: Annotated[int, Field(strict=True, ge=1, le=256)] | None = None
    disk_mib: Annotated[int, Field(strict=True, ge=16, le=1 << 24)] = Field(
        default=USUAL_DISK_MIB, description="for its home and all it writes"
    )
    egress: Annotated[list[Line], Field(max_length=256)] = Field(
        default=[], description="hosts it may reach, as host, host:port or *.domain"
    )
    credentials: CredentialNames = []


class Agent(_Part):
    """An agent that lives in a machine of its own, and can be talked to."""

    agent_id: str
    name: str
    title: Line | None = Field(
        default=None, description="what people call it, where a profile lets them use any words"
    )
    owner: str
    parent: str | None = Field(default=None, description="id of the agent that it belongs to")
    ephemeral: bool = Field(
        default=False, description="whether it ends by itself, once it has done what it was told"
    )
    state: AgentState
    reason: str = Field(default="", description="why it stands so, where it was not asked to")
    branched_from: str | None = Field(
        default=None,
        description="id of the agent that it is a copy of",
    )
    snapshot_id: str | None = Field(
        default=None, description="while it starts: what its machine is started from"
    )
    machine_id: str
    character: Character
    role_prompt: Text | None = Field(
        default=None, description="of its role, as that was when it was spawned"
    )
    home: Home
    work: AgentWork | None = Field(
        default=None, description="where it works on a repository, and what came of that"
    )
    works: Works | None = Field(
        default=None, description="which tasks of the graph it may claim, if any"
    )
    budget: AgentBudget
    usage: Usage = Field(default=Usage(), description="`wall_s` is the time of its turns")
    turns: int = Field(default=0, description="how many messages it has heard")
    gone: Taken = Field(
        default=Taken(), description="what those below it took who were deleted since"
    )
    counted: list[str] = Field(
        default=[], description="ids of children whose part is in `gone` by now"
    )
    warned: list[Line] = Field(
        default=[], description="of which limits, and at which share, was warned"
    )
    supervise: Supervise | None = Field(
        default=None, description="what is done if it does not get on; none is as the host has it"
    )
    watched: list[Observation] = Field(
        default=[], description="what was last seen of it and done about it, oldest first"
    )
    session_id: Line | None = Field(
        default=None, description="of its conversation, in the words of its program"
    )
    created_at: Moment
    ended_at: Moment | None = None

    @property
    def over(self) -> bool:
        return self.state in OVER


class Message(_Part):
    """Something that was said to an agent, and what came of it."""

    message_id: str
    agent_id: str
    owner: str = Field(description="of the agent")
    sender: str = Field(description="who said it, as the daemon knows them")
    sender_agent: str | None = Field(
        default=None, description="the name of the agent who said it, where one did"
    )
    text: Text
    state: MessageState
    answer: Text | None = Field(
        default=None, description="there may be one while the turn in which it was heard goes on"
    )
    answered_by: Line | None = Field(
        default=None, description="who answered in the agent's place, where somebody did"
    )
    error: TaskError | None = Field(default=None, description="why there is no answer")
    brought: Brought | None = Field(
        default=None, description="what it committed meanwhile, where it works on a repository"
    )
    exec_id: str | None = Field(default=None, description="the command in which it is heard")
    tell_back: bool = Field(
        default=False, description="whether the agent who said it hears the answer as a message"
    )
    told_back: str | None = Field(default=None, description="the id of that message")
    created_at: Moment
    began_at: Moment | None = None
    replied_at: Moment | None = Field(
        default=None, description="since when whoever said it need not wait for the answer"
    )
    ended_at: Moment | None = None

    @property
    def settled(self) -> bool:
        return self.state not in {MessageState.QUEUED, MessageState.DELIVERED}

    @property
    def failure(self) -> str:
        """Why it was not answered, if it was not."""
        return self.error.message if self.error else "it was never heard"

    @property
    def replied(self) -> bool:
        """Whether whoever said it need not wait any more."""
        return self.replied_at is not None
