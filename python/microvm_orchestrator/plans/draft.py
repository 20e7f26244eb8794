"""A task as it was read, before anybody knows which tasks its names mean.

Below the readers of this room; lives as long as one plan is made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from microvm_orchestrator import errors
from microvm_orchestrator.model.plan import PlanTask

# A thousand bad lines of one file help nobody.
_PROBLEMS_TOLD = 8
_CUT = 80


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands: a line of a document, or a task of a list that was given."""

    document: str | None
    line: int | None
    number: int = 0

    def __str__(self) -> str:
        if self.document is None or self.line is None:
            return f"task {self.number}"
        return f"{self.document} line {self.line}"


@dataclass(frozen=True, slots=True)
class Reference:
    """A task that comes first, as it was named."""

    name: str
    place: Place
    because: str = ""


@dataclass(frozen=True, slots=True)
class Draft:
    """A task that was read; `task` has all of it but the dependencies."""

    place: Place
    task: PlanTask
    # The whole of its first line, by which others may name it.
    title: str
    # What it is called after a `#`.
    number: str | None
    after: tuple[Reference, ...]
    done: bool = False


@dataclass(slots=True)
class Problems:
    """What is wrong with what was read, told all at once."""

    told: list[str] = field(default_factory=list[str])
    count: int = 0
    hint: str | None = None

    @property
    def full(self) -> bool:
        """No more of them will be told."""
        return self.count >= _PROBLEMS_TOLD

    def add(self, place: Place, sentence: str, *, hint: str | None = None) -> None:
        if not self.full:
            self.told.append(f"{place}: {sentence}")
            self.hint = self.hint or hint
        self.count += 1

    def refuse(self) -> None:
        """Raises: InvalidInput, if there are any."""
        if not self.told:
            return
        rest = self.count - len(self.told)
        more = f" (and {rest} more)" if rest else ""
        raise errors.InvalidInput("; ".join(self.told) + more, hint=self.hint)


def cut(text: str, length: int = _CUT) -> str:
    """Shorten a text for a message or a table."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def listed(words: Iterable[str], most: int = 3) -> str:
    """Name a few of several things, and how many more there are."""
    found = list(words)
    rest = len(found) - most
    return ", ".join(found[:most]) + (f" and {rest} more" if rest > 0 else "")
