"""What a job has said: the last window of it, in order, and how much of it was sent.

A window is all that can be on its way to a host, so whatever a host may have missed is here. A host
names what it has by an offset, counted over both channels in the order in which they were read.
"""

from __future__ import annotations

import wire


class Output:
    """Chunks of output, the oldest first."""

    def __init__(self) -> None:
        self.chunks: list[tuple[int, bytes]] = []
        self.start = 0  # offset of the first byte that is kept
        self.end = 0  # offset behind the last
        self._next = 0  # the first chunk that was not sent
        self._cost = 0
        self._unsent = 0

    @property
    def waits(self) -> bool:
        return self._next < len(self.chunks)

    @property
    def full(self) -> bool:
        return self._unsent >= wire.WINDOW

    def add(self, channel: int, payload: bytes) -> None:
        self.chunks.append((channel, payload))
        self.end += len(payload)
        self._cost += wire.cost(payload)
        self._unsent += wire.cost(payload)

    def peek(self) -> tuple[int, bytes]:
        return self.chunks[self._next]

    def sent(self) -> None:
        """Go on to the next chunk, and let go of what no host can miss."""
        self._unsent -= wire.cost(self.chunks[self._next][1])
        self._next += 1
        # Only what was sent counts: all of a window of it may still be on its way.
        while (
            self._next and self._cost - self._unsent - wire.cost(self.chunks[0][1]) >= wire.WINDOW
        ):
            _, first = self.chunks.pop(0)
            self.start += len(first)
            self._cost -= wire.cost(first)
            self._next -= 1

    def skip(self) -> None:
        """Let go of all that waits."""
        self._next = len(self.chunks)
        self._unsent = 0

    def rewind(self, offset: int) -> int:
        """Go back to an offset, or to the oldest byte that is kept; return where that is."""
        offset = min(max(offset, self.start), self.end)
        at, self._next = self.start, 0
        while self.waits and at + len(self.peek()[1]) <= offset:
            at += len(self.peek()[1])
            self._next += 1
        if at < offset:  # the host has the beginning of this chunk
            channel, payload = self.peek()
            head, tail = payload[: offset - at], payload[offset - at :]
            self.chunks[self._next : self._next + 1] = [(channel, head), (channel, tail)]
            self._cost += wire.cost(b"")
            self._next += 1
        self._unsent = sum(wire.cost(payload) for _, payload in self.chunks[self._next :])
        return offset
