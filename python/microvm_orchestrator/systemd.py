"""What the daemon tells systemd of itself; nothing is said where systemd does not listen.

Above sits the daemon; below, sdnotify and the environment systemd starts us with.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sdnotify import SystemdNotifier

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping


class Systemd:
    """The socket systemd listens on for this service, if there is one."""

    def __init__(self, notifier: Any, watchdog_s: float | None) -> None:
        self._notifier = notifier
        # How long systemd waits for a sign of life before it starts us anew.
        self.watchdog_s = watchdog_s

    def ready(self) -> None:
        self._say("READY=1")

    def reloading(self) -> None:
        # systemd wants the time too, to tell this reload from one before.
        self._say(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._say("STOPPING=1")

    def alive(self) -> None:
        self._say("WATCHDOG=1")

    def _say(self, message: str) -> None:
        if self._notifier is not None:
            self._notifier.notify(message)


@contextmanager
def open_systemd(env: Mapping[str, str]) -> Generator[Systemd]:
    """Hold the line to systemd for as long as the daemon lives."""
    if not env.get("NOTIFY_SOCKET"):
        yield Systemd(None, None)
        return
    notifier: Any = SystemdNotifier()
    try:
        yield Systemd(notifier, _watchdog_s(env))
    finally:
        if notifier.socket is not None:
            notifier.socket.close()


def _watchdog_s(env: Mapping[str, str]) -> float | None:
    ours = env.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    microseconds = env.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 or None if ours and microseconds.isdecimal() else None
