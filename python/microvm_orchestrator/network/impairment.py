"""Ways between two machines that are not as they should be: slow, narrow, lossy, or cut.

A way is one direction between two machines and decides for each frame by itself. Its chances come
from a seed, a fixed number of them for each frame, so the same frames meet the same luck again.
What is late waits here, and no more than a bounded number of frames for each way. Above stands the
switch.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

import anyio

from microvm_orchestrator import errors

# On one way; as many as netem holds.
_MOST_WAITING = 1000


@dataclass(frozen=True, slots=True)
class Impairment:
    """What befalls the frames that go from one machine to another."""

    # Nothing passes.
    cut: bool = False
    # How many of all are lost, from 0 to 1.
    loss: float = 0.0
    delay_s: float = 0.0
    # How far the delay of a frame may be from that, either way; so frames overtake each other.
    jitter_s: float = 0.0
    # How many of all are not delayed, from 0 to 1, and so overtake those that are.
    reorder: float = 0.0
    # What passes in a second; the rest queues up.
    rate_bytes: int | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.loss <= 1 and 0 <= self.reorder <= 1):
            raise errors.InvalidInput("how many frames are lost or reordered is between 0 and 1")
        if not 0 <= self.jitter_s <= self.delay_s:
            raise errors.InvalidInput("a delay is not negative, and its jitter not larger than it")
        if self.rate_bytes is not None and self.rate_bytes <= 0:
            raise errors.InvalidInput("a rate is more than nothing; to let nothing pass, cut")


@dataclass(frozen=True, slots=True)
class WayUsage:
    """What has befallen frames so far."""

    passed: int
    lost: int
    waiting: int


class Late:
    """What is on its way, by when it is due."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Way, bytes]] = []
        self._count = 0
        self._sooner = anyio.Event()

    def add(self, due: float, way: Way, frame: bytes) -> None:
        self._count += 1  # frames that are due together stay in order
        heapq.heappush(self._due, (due, self._count, way, frame))
        if self._due[0][1] == self._count:
            self._sooner.set()

    async def deliver(self) -> None:
        """Send each when it is due; for ever."""
        while True:
            self._sooner = anyio.Event()
            until = self._due[0][0] if self._due else None
            with anyio.CancelScope(deadline=until if until is not None else float("inf")):
                await self._sooner.wait()
            while self._due and self._due[0][0] <= anyio.current_time():
                _, _, way, frame = heapq.heappop(self._due)
                way.arrive(frame)


class Way:
    """One direction between two machines."""

    def __init__(
        self,
        impairment: Impairment,
        seed: str,
        late: Late,
        send: Callable[[bytes], None],
        now: Callable[[], float] = anyio.current_time,
    ) -> None:
        self.impairment = impairment
        self._chances = random.Random(seed)  # noqa: S311 # to be repeated is its point
        self._late = late
        self._send = send
        self._now = now
        self._free_at = 0.0
        self._passed = self._lost = self._waiting = 0
        self._open = True

    def take(self, frame: bytes) -> None:
        """Decide about a frame with its length in front."""
        its = self.impairment
        lost, overtakes, aside = (self._chances.random() for _ in range(3))
        if its.cut or lost < its.loss or self._waiting >= _MOST_WAITING:
            self._lost += 1
            return
        now = self._now()
        due = now
        if its.rate_bytes is not None:
            due = self._free_at = max(now, self._free_at) + len(frame) / its.rate_bytes
        if overtakes >= its.reorder:
            due += its.delay_s + its.jitter_s * (2 * aside - 1)
        if due <= now:
            self._deliver(frame)
        else:
            self._waiting += 1
            self._late.add(due, self, frame)

    def arrive(self, frame: bytes) -> None:
        """Deliver what has waited, unless the way is no more."""
        self._waiting -= 1
        if self._open:
            self._deliver(frame)

    def close(self) -> None:
        self._open = False

    def usage(self) -> WayUsage:
        return WayUsage(self._passed, self._lost, self._waiting)

    def _deliver(self, frame: bytes) -> None:
        self._passed += 1
        self._send(frame)
