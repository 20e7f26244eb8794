"""Who waits for whose answer among agents, so that no two wait for each other for ever.

An agent that waits is in a turn, and hears nothing before the turn is over. So one that would wait
for somebody who waits for it, directly or over others, is told so at once; what it said stays said,
and is heard later. A coordination waits as well, for those whom it has asked. Above are the
coordinations, and what agents ask from their machines.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator


class Waits:
    """All that wait at this moment."""

    def __init__(self) -> None:
        # For each that waits, those that it waits for: a turn may do so several times at once.
        self._for: dict[str, list[str]] = {}

    def find_ring(self, waiter: str, other: str) -> list[str]:
        """Those who wait for each other if one waits for another; nobody if that does no harm."""
        ways = [[other]]
        known = {other}
        while ways:
            way = ways.pop()
            if way[-1] == waiter:
                return way
            for each in self._for.get(way[-1], []):
                if each not in known or each == waiter:
                    known.add(each)
                    ways.append([*way, each])
        return []

    @contextmanager
    def waiting(self, waiter: str, other: str) -> Generator[None]:
        """Have it known that one waits for another, until the block ends."""
        mine = self._for.setdefault(waiter, [])
        mine.append(other)
        try:
            yield
        finally:
            mine.remove(other)
            if not mine:
                self._for.pop(waiter, None)
