"""How agents get on, as callers read it: what became of what was said to them, how fast, how well.

Figures are those of messages, which the host wrote down. How well an agent does is no more than a
figure made of them; the formula is `health` in the room of conversations.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from microvm_orchestrator.model.agent import AgentState
from microvm_orchestrator.model.agent_budget import Taken


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True)


class ResponseTimes(_Report):
    """How long answers took, from when a message was heard; of the last two hundred."""

    count: int = 0
    last_s: float | None = None
    median_s: float | None = None
    p95_s: float | None = None


class AgentMetrics(_Report):
    """What became of what was said to one agent."""

    agent_id: str
    name: str
    role: str | None
    state: AgentState
    health: int | None = Field(description="from 0 to 100; null for one that has ended")
    answered: int
    failed: int = Field(description="those that somebody broke off are not among them")
    interrupted: int
    cancelled: int = Field(description="never heard, as it had ended or they were withdrawn")
    waiting: int = Field(description="that one too which it hears at this moment")
    success_rate: float | None = Field(
        description="of those answered or failed; null where there are none"
    )
    response: ResponseTimes
    errors: dict[str, int] = Field(description="how often messages failed, by code")
    taken: Taken
    tree_taken: Taken


class AgentTotals(_Report):
    """All agents together that are known."""

    known: int
    states: dict[AgentState, int]
    active: int = Field(description="those that have neither ended nor failed")
    taken: Taken
    answered: int = Field(
        description="of those that live or have ended since the daemon came up, as the two below"
    )
    failed: int
    interrupted: int


class AgentFigures(_Report):
    """Figures of agents."""

    totals: AgentTotals
    agents: list[AgentMetrics]
