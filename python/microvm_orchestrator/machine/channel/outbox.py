"""What waits to be sent to a guest, and whose turn it is.

Frames that steer go first and wait for nobody: each stream has a few of them at the most, and what
it grants is added up. Data goes in turns, one frame for each sender that waits; so neither a flood
nor a guest that does not read makes this grow, and the task that reads never waits for a write.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator.machine import wire

if TYPE_CHECKING:
    from anyio.abc import ByteSendStream

# Written at once. More saves calls, less lets a steering frame overtake sooner.
_BATCH_BYTES = 256 * 1024


@dataclass(slots=True)
class _Waiting:
    """A sender and its frame."""

    frame: bytes
    taken: anyio.Event = field(default_factory=anyio.Event)


class Outbox:
    """The way out of a connection."""

    def __init__(self) -> None:
        self._steering: deque[bytes] = deque()
        self._grants: dict[int, int] = {}
        self._senders: deque[_Waiting] = deque()
        self._wake = anyio.Event()
        self._closed = False
        self._writing = False
        self._idle = anyio.Event()

    @property
    def unread(self) -> int:
        """How many frames that steer the guest has not taken."""
        return len(self._steering)

    def push(self, frame: bytes) -> None:
        """Send a steering frame before any data that waits."""
        if not self._closed:
            self._steering.append(frame)
            self._wake.set()

    def grant(self, stream: int, amount: int) -> None:
        self._grants[stream] = self._grants.get(stream, 0) + amount
        self._wake.set()

    def drop_grants(self, stream: int) -> None:
        """Grant nothing more to a stream that is over."""
        self._grants.pop(stream, None)

    async def send(self, frame: bytes) -> None:
        """Wait until a frame of data is on its way, or until nothing is any more."""
        if self._closed:
            return
        waiting = _Waiting(frame)
        self._senders.append(waiting)
        self._wake.set()
        try:
            await waiting.taken.wait()
        finally:
            if not waiting.taken.is_set():
                self._senders.remove(waiting)

    def close(self) -> None:
        """Let every sender go."""
        self._closed = True
        for waiting in self._senders:
            waiting.taken.set()
        self._senders.clear()
        self._wake.set()
        self._idle.set()

    async def drained(self) -> None:
        """Wait until everything is written, or until nothing is any more."""
        waiting = self._steering or self._grants or self._senders or self._writing
        if waiting and not self._closed:
            self._idle = anyio.Event()
            await self._idle.wait()

    async def pump(self, transport: ByteSendStream) -> None:
        """Write what waits until closed. Raises: what the transport raises."""
        while not self._closed:
            batch = self._take()
            if batch:
                self._writing = True
                await transport.send(batch)
            else:
                self._writing = False
                self._idle.set()
                self._wake = anyio.Event()
                await self._wake.wait()

    def _take(self) -> bytes:
        frames = [*self._steering]
        self._steering.clear()
        for stream, amount in self._grants.items():
            frames.append(wire.frame(wire.CREDIT, stream, wire.credit(amount)))
        self._grants.clear()
        size = sum(map(len, frames))
        while self._senders and size < _BATCH_BYTES:
            waiting = self._senders.popleft()
            waiting.taken.set()
            frames.append(waiting.frame)
            size += len(waiting.frame)
        return b"".join(frames)
