"""The one loop of the agent: file descriptors that are waited for, and what is due when.

Single-threaded; nothing in the agent waits anywhere else. A callback that is called may watch,
unwatch and schedule as it likes.
"""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ = select.POLLIN
WRITE = select.POLLOUT
# Reported whether asked for or not: somebody should read and find out.
GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL

# How long the loop sleeps when nothing at all is due. Children wake it by themselves.
_IDLE_S = 5.0


class Timer:
    """Something that is due at a time."""

    __slots__ = ("act", "at")

    def __init__(self, at: float, act: Callable[[], None]) -> None:
        self.at = at
        self.act = act


class Engine:
    """Waits for descriptors and times, and calls back."""

    def __init__(self) -> None:
        self.running = True
        # Asked on each round: what can go on without waiting for anything. True: ask again soon.
        self.between: list[Callable[[], bool]] = []
        self._poll = select.poll()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []

    def watch(self, fd: int, events: int, act: Callable[[int], None]) -> None:
        """Call `act(events)` whenever one of them holds, until `unwatch` or another `watch`."""
        self._watched[fd] = act
        self._poll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def after(self, seconds: float, act: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + seconds, act)
        self._timers.append(timer)
        return timer

    def cancel(self, timer: Timer | None) -> None:
        if timer in self._timers:
            self._timers.remove(timer)

    def run(self) -> None:
        while self.running:
            busy = False
            for step in self.between:
                busy = step() or busy
            for fd, events in self._poll.poll(0 if busy else self._patience_ms()):
                act = self._watched.get(fd)
                if act is not None:  # an earlier callback of this round may have unwatched it
                    act(events)
            self._ring()

    def _patience_ms(self) -> int:
        due = min((timer.at for timer in self._timers), default=None)
        if due is None:
            return int(_IDLE_S * 1000)
        # Rounded up, so that a wake-up is never a moment early and then sleeps for nothing.
        return max(0, min(int(_IDLE_S * 1000), int((due - time.monotonic()) * 1000) + 1))

    def _ring(self) -> None:
        if not self._timers:
            return
        now = time.monotonic()
        for timer in [timer for timer in self._timers if timer.at <= now]:
            if timer in self._timers:
                self._timers.remove(timer)
                timer.act()
