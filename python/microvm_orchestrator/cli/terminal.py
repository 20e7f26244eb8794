"""The terminal this program runs on: raw while something remote has it, and itself again after.

Above sits what talks both ways; below, the standard library.
"""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import tty
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from types import FrameType

# What ends a program that does not look; the terminal has to be put right first.
_ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def raw(fd: int) -> Generator[None]:
    """Pass every key on as it is, until the block ends in whatever way."""
    before = termios.tcgetattr(fd)
    handlers = {number: signal.signal(number, _leave) for number in _ENDING}
    try:
        # What was typed before is for the other side too.
        tty.setraw(fd, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


@dataclass(frozen=True, slots=True)
class Wake:
    """Tells of signals by a file descriptor that becomes readable."""

    fd: int

    def signals(self) -> list[int]:
        with contextlib.suppress(BlockingIOError):
            return list(os.read(self.fd, 256))
        return []


@contextlib.contextmanager
def woken(by: Iterable[signal.Signals]) -> Generator[Wake]:
    """Let signals only be told of, until the block ends."""
    reading, writing = os.pipe()
    for fd in (reading, writing):
        os.set_blocking(fd, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, lambda _number, _frame: None) for number in by}
    try:
        yield Wake(reading)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)
