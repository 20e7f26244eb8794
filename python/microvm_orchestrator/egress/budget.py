"""What a run may take of model APIs, and what it has taken.

A request that has begun is seen through; once a limit is reached none begins any more. Requests
that run beside each other can so pass a limit by what each of them takes. Above stands the
endpoint; below, the reading of answers and the prices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from microvm_orchestrator.egress.prices import Prices
from microvm_orchestrator.egress.usage import Tokens

Measure = Literal["tokens", "cost_usd", "requests"]


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits; None is no limit. Tokens are all of them, those of caches too."""

    tokens: int | None = None
    cost_usd: float | None = None
    requests: int | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """What a run has taken."""

    requests: int = 0
    tokens: Tokens = field(default_factory=Tokens)
    # Of the models whose price is known.
    cost_usd: float = 0.0
    # What the others took, and what the budget counts for it: as if they were the dearest known.
    unpriced_tokens: int = 0
    unpriced_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Which limit was reached, and how far it was passed."""

    measure: Measure
    used: float
    limit: float
    whose: str = "the budget"

    def __str__(self) -> str:
        return f"{self.whose} is used up: {self.used:.10g} of {self.limit:.10g} {self.measure}"


# Tells of a limit of others that this one's requests count for too, once it is reached.
Shared = Callable[[], Exhausted | None]


class Account:
    """The budget of one run, and what it has spent of it."""

    def __init__(
        self,
        budget: Budget,
        prices: Prices,
        spent: Spent | None = None,
        shared: Shared | None = None,
    ) -> None:
        """`spent` is what an earlier endpoint of the same run has counted."""
        self.budget = budget
        self.spent = spent or Spent()
        self._prices = prices
        self._shared = shared

    def exhausted(self) -> Exhausted | None:
        """Name a limit that is reached."""
        spent, budget = self.spent, self.budget
        measures: tuple[tuple[Measure, float, float | None], ...] = (
            ("tokens", spent.tokens.total, budget.tokens),
            ("cost_usd", spent.cost_usd + spent.unpriced_usd, budget.cost_usd),
            ("requests", spent.requests, budget.requests),
        )
        for measure, used, limit in measures:
            if limit is not None and used >= limit:
                return Exhausted(measure, used, limit)
        return None if self._shared is None else self._shared()

    def begin(self) -> None:
        """Count a request that goes out."""
        self.spent = replace(self.spent, requests=self.spent.requests + 1)

    def charge(self, model: str | None, tokens: Tokens) -> float | None:
        """Count what a request took; give its cost, if the price of its model is known."""
        cost = self._prices.cost_usd(model, tokens)
        spent = self.spent
        if cost is None:
            unpriced = spent.unpriced_usd + self._prices.at_most_usd(tokens)
            spent = replace(
                spent,
                unpriced_tokens=spent.unpriced_tokens + tokens.total,
                unpriced_usd=unpriced,
            )
        else:
            spent = replace(spent, cost_usd=spent.cost_usd + cost)
        self.spent = replace(spent, tokens=spent.tokens + tokens)
        return cost
