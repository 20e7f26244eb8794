"""How much may wait for an agent: all of it is kept in memory until it is heard.

Above is the life of an agent; below, what a message is.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from microvm_orchestrator import errors
from microvm_orchestrator.model.values import MAX_TEXT

if TYPE_CHECKING:
    from collections.abc import Collection, Generator

    from microvm_orchestrator.model.agent import Message

# As many may wait to be heard.
QUEUE_MOST = 1000
# So many characters may they have together: those of 64 of the longest.
TEXT_MOST = 64 * MAX_TEXT


class Room:
    """The room that one agent has for what waits for it."""

    def __init__(self, name: str, waiting: Collection[Message]) -> None:
        self._name = name
        self._waiting = waiting
        # What is being written down, and waits then.
        self._coming: list[str] = []

    @contextmanager
    def kept(self, text: str) -> Generator[None]:
        """Keep room for a message until it waits. Raises: Unavailable when too much waits."""
        texts = [*(each.text for each in self._waiting), *self._coming]
        if len(texts) >= QUEUE_MOST:
            raise self._full(f"{len(texts)} messages wait")
        length = sum(map(len, texts))
        if length + len(text) > TEXT_MOST:
            raise self._full(f"{len(texts)} messages with {length} characters wait")
        self._coming.append(text)
        try:
            yield
        finally:
            self._coming.remove(text)

    def _full(self, what: str) -> errors.Unavailable:
        return errors.Unavailable(
            f"{what} for agent {self._name} already", hint="it hears them in order: say it later"
        )
