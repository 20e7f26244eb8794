"""One direction between two machines in userspace, where frames meet what is wrong with it.

Its chances come from a seed, a fixed number of them for each frame whatever is wrong, so the same
frames meet the same luck again. What is late waits here: no more than a bounded number of frames
and bytes for each way. Above stands the switch; below, what can be wrong.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

import anyio

from microvm_orchestrator.network.guard import ETHERNET_BYTES
from microvm_orchestrator.network.impairment import HOLD_S, Impairment, aside
from microvm_orchestrator.network.questions import asks_for_a_name
from microvm_orchestrator.network.segment import LENGTH_BYTES

# On one way; as many as netem holds.
_MOST_WAITING = 1000
# A thousand frames of full size, twice over; a machine may send much larger ones.
_MOST_WAITING_BYTES = 4 << 20
# What a corrupted frame keeps, so that it comes to who it is for.
_HEADER_BYTES = LENGTH_BYTES + ETHERNET_BYTES


@dataclass(frozen=True, slots=True)
class WayUsage:
    """What has befallen frames so far."""

    # Delivered, each counted once.
    passed: int
    # By what is wrong with the way, and because too many waited already.
    lost: int
    crowded_out: int
    corrupted: int
    duplicated: int
    waiting: int


class Late:
    """What is on its way, by when it is due."""

    def __init__(self, now: Callable[[], float] = anyio.current_time) -> None:
        self.now = now
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._sooner = anyio.Event()

    def add(self, due: float, act: Callable[[], None]) -> None:
        self._count += 1  # what is due together stays in order
        heapq.heappush(self._due, (due, self._count, act))
        if self._due[0][1] == self._count:
            self._sooner.set()

    @property
    def next_at(self) -> float | None:
        return self._due[0][0] if self._due else None

    def let_go(self) -> None:
        """Do all that is due."""
        while self._due and self._due[0][0] <= self.now():
            heapq.heappop(self._due)[2]()

    async def deliver(self) -> None:
        """Do each when it is due; for ever."""
        while True:
            self._sooner = anyio.Event()
            until = self.next_at
            with anyio.CancelScope(deadline=until if until is not None else float("inf")):
                await self._sooner.wait()
            self.let_go()


class Way:
    """One direction between two machines."""

    def __init__(
        self, impairment: Impairment, ends: str, late: Late, send: Callable[[bytes], None]
    ) -> None:
        """`ends` tells ways apart where no seed was named."""
        self._ends = ends
        self._late = late
        self._send = send
        self._free_at = 0.0
        self._bad: bool | None = None
        # Frames that wait for another one to overtake them, and how many were let go ever.
        self._held: list[tuple[bytes, int]] = []
        self._let_go = 0
        self._passed = self._lost = self._crowded = self._corrupted = self._duplicated = 0
        self._waiting = self._waiting_bytes = 0
        # Counts how often all that waited was forgotten.
        self._age = 0
        self._begin(impairment)

    def change(self, impairment: Impairment) -> None:
        """Let frames meet this from now on; those on their way come as they would have."""
        if impairment.seed != self.impairment.seed:
            self._begin(impairment)
        elif impairment != self.impairment:
            self.impairment = impairment
            self._chain = impairment.chain

    def _begin(self, impairment: Impairment) -> None:
        self.impairment = impairment
        # Worked out once: it is looked at for each frame.
        self._chain = impairment.chain
        self._chances = random.Random(impairment.seed or self._ends)  # noqa: S311 # to be repeated is its point
        self._bad = None

    def take(self, frame: bytes) -> None:
        """Decide about a frame with its length in front."""
        its = self.impairment
        chance = self._chances.random
        turns, loses, spoils, where = chance(), chance(), chance(), chance()
        doubles, overtakes, wanders = chance(), chance(), chance()
        # Whatever becomes of it, it has its turn in a way's good and bad times.
        if self._is_lost(turns, loses) or self._is_swallowed(frame):
            self._lost += 1
            return
        if self._waiting >= _MOST_WAITING or self._waiting_bytes + len(frame) > _MOST_WAITING_BYTES:
            self._crowded += 1
            return
        if spoils < its.corrupt and len(frame) > _HEADER_BYTES:
            frame = _spoiled(frame, where)
            self._corrupted += 1
        copies = 2 if doubles < its.duplicate else 1
        due = now = self._late.now()
        if its.rate_bytes is not None:
            size = copies * (len(frame) - LENGTH_BYTES)
            due = self._free_at = max(now, self._free_at) + size / its.rate_bytes
        steps_aside = overtakes < its.reorder
        if its.delay_s and not steps_aside:
            off = its.jitter_s * aside(its.spread, wanders) if its.jitter_s else 0.0
            due += max(0.0, its.delay_s + off)
        self._send_at(due, now, frame, copies, held=steps_aside and not its.delay_s)

    def forget(self) -> None:
        """Lose all that is on its way; its luck goes on."""
        self._age += 1
        self._held.clear()
        self._waiting = self._waiting_bytes = 0

    def usage(self) -> WayUsage:
        return WayUsage(
            self._passed,
            self._lost,
            self._crowded,
            self._corrupted,
            self._duplicated,
            self._waiting + len(self._held),
        )

    def _is_lost(self, turns: float, loses: float) -> bool:
        its, chain = self.impairment, self._chain
        if its.cut:
            return True
        if chain is None:
            return loses < its.loss
        if self._bad is None:
            self._bad = turns < chain.bad_share
        elif self._bad:
            self._bad = turns >= chain.recovers
        else:
            self._bad = turns < chain.worsens
        return loses < (chain.loss_bad if self._bad else chain.loss_good)

    def _is_swallowed(self, frame: bytes) -> bool:
        """Tell whether what it is, and no luck, keeps a frame from coming."""
        its = self.impairment
        if its.mtu is not None and len(frame) - _HEADER_BYTES > its.mtu:
            return True
        return its.dns and asks_for_a_name(frame[LENGTH_BYTES:])

    def _send_at(self, due: float, now: float, frame: bytes, copies: int, *, held: bool) -> None:
        if due <= now:
            self._arrive(frame, copies, held=held)
            return
        age = self._age
        self._waiting += 1
        self._waiting_bytes += len(frame)

        def arrive() -> None:
            if age == self._age:
                self._waiting -= 1
                self._waiting_bytes -= len(frame)
                self._arrive(frame, copies, held=held)

        self._late.add(due, arrive)

    def _arrive(self, frame: bytes, copies: int, *, held: bool) -> None:
        if held:
            self._hold(frame, copies)
            return
        self._deliver(frame, copies)
        self._let_held_go()

    def _hold(self, frame: bytes, copies: int) -> None:
        self._held.append((frame, copies))
        age, number = self._age, self._let_go + len(self._held)

        def enough() -> None:
            # Nobody has overtaken it.
            if age == self._age and number > self._let_go:
                self._let_held_go()

        self._late.add(self._late.now() + HOLD_S, enough)

    def _let_held_go(self) -> None:
        held, self._held = self._held, []
        self._let_go += len(held)
        for frame, copies in held:
            self._deliver(frame, copies)

    def _deliver(self, frame: bytes, copies: int) -> None:
        self._passed += 1
        self._duplicated += copies - 1
        for _ in range(copies):
            self._send(frame)


def _spoiled(frame: bytes, where: float) -> bytes:
    """Change the bit of a frame's payload that is so far into it."""
    bit = int(where * 8 * (len(frame) - _HEADER_BYTES))
    spoiled = bytearray(frame)
    spoiled[_HEADER_BYTES + bit // 8] ^= 1 << bit % 8
    return bytes(spoiled)
