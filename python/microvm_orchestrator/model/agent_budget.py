"""What an agent may take in its life, alone and with all that belong to it, and what was taken.

What is taken of models was measured by the host, which also counts the turns and their time.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from microvm_orchestrator.model.run import Dollars, Seconds, Tokens

# When somebody is told, if nothing else was said: there is still time to give more.
USUAL_WARN_AT = 0.8

_Turns = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
_Share = Annotated[float, Field(strict=True, gt=0, lt=1)]


class AgentMeasure(StrEnum):
    """What an agent has a limit of."""

    TOKENS = "tokens"
    COST_USD = "cost_usd"
    # Messages that it heard.
    TURNS = "turns"
    # In turns; what it waits for a message counts for nothing.
    WALL_S = "wall_s"


class AtLimit(StrEnum):
    """What becomes of an agent at a limit of its budget."""

    # It stays, and hears nothing more until it may take more.
    PAUSE = "pause"
    # It ends with its machine, and all that belong to it with it.
    END = "end"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Taken(_Part):
    """What was taken of all that there are limits of."""

    tokens: int = 0
    cost_usd: float = 0.0
    turns: int = 0
    wall_s: float = 0.0

    def of(self, measure: AgentMeasure) -> float:
        taken: float = getattr(self, measure)
        return taken

    def __add__(self, other: Taken) -> Taken:
        return Taken(
            tokens=self.tokens + other.tokens,
            cost_usd=self.cost_usd + other.cost_usd,
            turns=self.turns + other.turns,
            wall_s=round(self.wall_s + other.wall_s, 3),
        )

    def __or__(self, other: Taken) -> Taken:
        """The greater of each: what was taken once is never given back."""
        return Taken(
            tokens=max(self.tokens, other.tokens),
            cost_usd=max(self.cost_usd, other.cost_usd),
            turns=max(self.turns, other.turns),
            wall_s=max(self.wall_s, other.wall_s),
        )


class AgentBudget(_Part):
    """What an agent may take in its life; a limit that is not given is none."""

    tokens: Tokens | None = Field(
        default=None, description="of model APIs, those read from caches too"
    )
    cost_usd: Dollars | None = Field(default=None, description="of model APIs, at list prices")
    turns: _Turns | None = Field(default=None, description="how many messages it may hear")
    wall_s: Seconds | None = Field(default=None, description="how long its turns may take in all")
    tree_tokens: Tokens | None = Field(
        default=None, description="of model APIs, by it and all below it together"
    )
    tree_cost_usd: Dollars | None = Field(
        default=None, description="of model APIs, by it and all below it together"
    )
    tree_turns: _Turns | None = Field(
        default=None, description="how many messages it and all below it may hear together"
    )
    tree_wall_s: Seconds | None = Field(
        default=None, description="how long the turns of it and all below it may take together"
    )
    at_limit: AtLimit = Field(
        default=AtLimit.PAUSE,
        description="at a limit it hears nothing until it may take more, or ends with all below it",
    )
    warn_at: Annotated[list[_Share], Field(max_length=8)] = Field(
        default=[USUAL_WARN_AT],
        description="shares of each limit at which the event agent.budget_warning tells of it",
    )

    def of(self, measure: AgentMeasure, *, tree: bool) -> float | None:
        limit: float | None = getattr(self, field_of(measure, tree=tree))
        return limit


def field_of(measure: AgentMeasure, *, tree: bool) -> str:
    """How a limit is called in a budget."""
    return f"tree_{measure}" if tree else str(measure)
