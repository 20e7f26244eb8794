"""One request of a guest and what became of it, as the owner of a run is told."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime

from microvm_orchestrator.egress.usage import Tokens
from microvm_orchestrator.model.values import moment

# What a guest writes as path or host may be long, and hold anything printable.
_TEXT_MOST = 500


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request, without what it held: no query, no header, no body."""

    at: datetime
    method: str
    host: str
    path: str
    # None when the guest left before there was an answer.
    status: int | None
    # Lengths of bodies: from the guest, and to it.
    bytes_in: int
    bytes_out: int
    duration_s: float
    model: str | None = None
    tokens: Tokens | None = None
    # None when nothing was metered, or the price of the model is not known.
    cost_usd: float | None = None
    # Why it was not let through, or not answered.
    refused: str | None = None


OnExchange = Callable[[Exchange], Awaitable[None]]


@dataclass(slots=True)
class Draft:
    """What is known of an exchange so far."""

    method: str = "-"
    host: str = ""
    path: str = ""
    status: int | None = None
    model: str | None = None
    tokens: Tokens | None = None
    cost_usd: float | None = None
    refused: str | None = None
    at: float = field(default_factory=time.time)
    _began: float = field(default_factory=time.monotonic)

    def done(self, bytes_in: int, bytes_out: int) -> Exchange:
        return Exchange(
            at=moment(self.at),
            method=self.method[:_TEXT_MOST],
            host=self.host[:_TEXT_MOST],
            path=self.path[:_TEXT_MOST],
            status=self.status,
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            duration_s=round(time.monotonic() - self._began, 6),
            model=self.model,
            tokens=self.tokens,
            cost_usd=self.cost_usd,
            refused=self.refused,
        )
