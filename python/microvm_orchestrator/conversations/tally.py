"""What became of what was said to an agent, added up as it is written down.

Above are figures and whoever looks after agents; below, the records of messages.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from microvm_orchestrator.agents.drivers.base import Cause
from microvm_orchestrator.model.agent import MessageState
from microvm_orchestrator.model.agent_health import ResponseTimes
from microvm_orchestrator.model.records import SYSTEM

if TYPE_CHECKING:
    from collections.abc import Iterable

    from microvm_orchestrator.model.agent import Message

# How many answers a figure of times is made of, and how many messages one of health.
_TIMES_MOST = 200
RECENT_MOST = 20
# Codes are few; whatever a program comes to say, so are the figures of them.
_CODES_MOST = 32
OTHER = "other"
# What is lost of 100 when all of the last failed; for each failure since the last answer, of which
# three count; and while something is seen that needs somebody.
_FAILED_COST = 40
_ROW_COST, _ROW_MOST = 10, 3
SEEN_COST = 30
# The end of an answer says what it wants of whoever reads it.
_END_MOST = 400
_ASKS = re.compile(
    r"\?\W*$"
    r"|\b(?:waiting (?:for|on)|let me know|please (?:tell|confirm|provide|advise|clarify|send)"
    r"|need (?:your|more) (?:input|information|answer|decision|approval)|awaiting)\b",
    re.IGNORECASE,
)


@dataclass(slots=True)
class Tally:
    """What became of the messages of one agent."""

    answered: int = 0
    failed: int = 0
    interrupted: int = 0
    cancelled: int = 0
    errors: Counter[str] = field(default_factory=Counter[str])
    times: deque[float] = field(default_factory=lambda: deque[float](maxlen=_TIMES_MOST))
    # The last that were answered or failed: the code of the error, or nothing.
    recent: deque[str] = field(default_factory=lambda: deque[str](maxlen=RECENT_MOST))

    # The error that the last failed with, how many in a row, and since when.
    row_code: str = ""
    row: int = 0
    row_since: float = 0.0
    # When it last had to do with a message, and when somebody but this host last spoke to it.
    last_at: float | None = None
    spoken_to_at: float | None = None
    # Whether its last answer asks for something.
    asks: bool = False

    def note(self, message: Message) -> None:
        """Take in a message, settled or not."""
        at = (message.ended_at or message.began_at or message.created_at).timestamp()
        self.last_at = max(at, self.last_at or 0.0)
        if message.sender != SYSTEM.name:
            spoken = message.created_at.timestamp()
            self.spoken_to_at = max(spoken, self.spoken_to_at or 0.0)
        if message.settled:
            self._add(message)

    def _note_row(self, code: str, message: Message) -> None:
        if not code or code != self.row_code:
            self.row_code, self.row = code, 0
            ended_at = message.ended_at or message.created_at
            self.row_since = ended_at.timestamp()
        self.row += bool(code)

    def _add(self, message: Message) -> None:
        """Take in a message that is settled."""
        code = message.error.code if message.error else ""
        if message.state is MessageState.CANCELLED:
            self.cancelled += 1
        elif code == Cause.INTERRUPTED:
            self.interrupted += 1
        elif message.state is MessageState.FAILED:
            self.failed += 1
            known = code in self.errors or len(self.errors) < _CODES_MOST
            self.errors[code if known else OTHER] += 1
            self.recent.append(code)
            self.asks = False
            self._note_row(code, message)
        elif message.state is MessageState.ANSWERED:
            self.answered += 1
            self.recent.append("")
            self.asks = asks(message.answer or "")
            self._note_row("", message)
            if message.began_at and message.ended_at:
                took = (message.ended_at - message.began_at).total_seconds()
                self.times.append(round(max(0.0, took), 3))

    @property
    def success_rate(self) -> float | None:
        heard = self.answered + self.failed
        return round(self.answered / heard, 4) if heard else None

    @property
    def failed_in_a_row(self) -> int:
        """How many failed since it last answered, as far as that is kept."""
        row = 0
        for code in reversed(self.recent):
            if not code:
                break
            row += 1
        return row

    def response(self) -> ResponseTimes:
        if not self.times:
            return ResponseTimes()
        ordered = sorted(self.times)
        return ResponseTimes(
            count=len(ordered),
            last_s=self.times[-1],
            median_s=round(statistics.median(ordered), 3),
            p95_s=ordered[math.ceil(0.95 * len(ordered)) - 1],
        )


def asks(answer: str) -> bool:
    """Tell whether an answer asks for something, by its last words."""
    return bool(_ASKS.search(answer[-_END_MOST:].rstrip()))


def tally_of(messages: Iterable[Message]) -> Tally:
    tally = Tally()
    for message in messages:
        tally.note(message)
    return tally


def health(tally: Tally, *, seen: int = 0) -> int:
    """Say in one figure from 0 to 100 how an agent gets on.

    From 100 is taken: 40 times the share of failures among the last 20 that were answered or
    failed; 10 for each failure since the last answer, of which three count; 30 for each thing that
    is seen of it and needs somebody.
    """
    recent = tally.recent
    share = sum(1 for code in recent if code) / len(recent) if recent else 0.0
    lost = _FAILED_COST * share
    lost += _ROW_COST * min(tally.failed_in_a_row, _ROW_MOST)
    lost += SEEN_COST * seen
    return max(0, round(100 - lost))


class Tallies:
    """The tallies of all agents of which a daemon has heard; of others there is none."""

    def __init__(self) -> None:
        self._tallies: dict[str, Tally] = {}

    def learn(self, agent_id: str, messages: Iterable[Message]) -> None:
        """Begin with what was written down before."""
        self._tallies[agent_id] = tally_of(messages)

    def note(self, message: Message) -> None:
        """Take in a message as it is written down."""
        self._tallies.setdefault(message.agent_id, Tally()).note(message)

    def find(self, agent_id: str) -> Tally | None:
        return self._tallies.get(agent_id)

    def forget(self, agent_id: str) -> None:
        self._tallies.pop(agent_id, None)
