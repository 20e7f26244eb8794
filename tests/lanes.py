"""A way of the userspace switch with a clock that is moved by hand, and what came out of it."""

from __future__ import annotations

from microvm_orchestrator.network.guard import ETHERNET_BYTES
from microvm_orchestrator.network.impairment import Impairment
from microvm_orchestrator.network.segment import LENGTH_BYTES
from microvm_orchestrator.network.way import Late, Way

HEADER = LENGTH_BYTES + ETHERNET_BYTES
NUMBER_BYTES = 4


class HandClock:
    """Stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return self.at


class Lane:
    """Sends numbered frames, and keeps which came when."""

    def __init__(self, impairment: Impairment, seed: str = "one") -> None:
        self.clock = HandClock()
        self.late = Late(self.clock.now)
        self.way = Way(impairment, seed, self.late, self._arrive)
        self.sent_at: list[float] = []
        self.frames: list[bytes] = []
        self.came: list[bytes] = []
        self.came_at: list[float] = []

    def send(self, count: int, every_s: float = 0.0, size: int = 100) -> None:
        for _ in range(count):
            number = len(self.frames).to_bytes(NUMBER_BYTES)
            frame = bytes(HEADER) + number + bytes(size - HEADER - NUMBER_BYTES)
            self.frames.append(frame)
            self.sent_at.append(self.clock.at)
            self.way.take(frame)
            self.wait(every_s)

    def wait(self, for_s: float) -> None:
        """Let time pass, from one thing that is due to the next."""
        until = self.clock.at + for_s
        while (due := self.late.next_at) is not None and due <= until:
            self.clock.at = max(self.clock.at, due)
            self.late.let_go()
        self.clock.at = until

    @property
    def numbers(self) -> list[int]:
        """Which frames came, in that order."""
        return [int.from_bytes(frame[HEADER : HEADER + NUMBER_BYTES]) for frame in self.came]

    @property
    def took_s(self) -> list[float]:
        """How long each was on its way, of those that came."""
        return [
            at - self.sent_at[number] for at, number in zip(self.came_at, self.numbers, strict=True)
        ]

    def _arrive(self, frame: bytes) -> None:
        self.came.append(frame)
        self.came_at.append(self.clock.at)


def overtaken(numbers: list[int]) -> int:
    """Count those that came after one which was sent later."""
    latest, count = -1, 0
    for number in numbers:
        count += number < latest
        latest = max(latest, number)
    return count


def runs_of(lost: list[bool]) -> list[int]:
    """Tell how long each stretch of lost frames was."""
    lengths: list[int] = []
    for now, before in zip(lost, [False, *lost], strict=False):
        if now and before:
            lengths[-1] += 1
        elif now:
            lengths.append(1)
    return lengths
