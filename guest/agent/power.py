"""The end of the guest: programs are told, then ended, disks are written, and power goes."""

from __future__ import annotations

import os

import wire
from spawn import signal_session
from stream import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from jobs import Jobs
    from link import Link

_SIGTERM = 15
_SIGKILL = 9
# How often is looked whether all jobs have ended.
_LOOK_S = 0.05
# What the agent exits with where init does the rest.
EXIT_POWEROFF = 0
EXIT_REBOOT = 64


class Power:
    """Ends the guest by the kernel's own hand (`sysrq`) or by leaving (`exit`)."""

    def __init__(self, jobs: Jobs, way: str) -> None:
        self.jobs = jobs
        self.way = way
        self.exit_code = EXIT_POWEROFF
        self.going = False

    def open_shutdown(self, link: Link, number: int, fields: wire.Fields) -> None:
        reboot = bool(wire.integer(fields, "reboot", 0, 1, 0))
        grace_ms = wire.integer(fields, "grace_ms", 0, 600_000, 5000)
        link.tell({"event": b"shutting_down", "reboot": int(reboot)})
        Stream(link, number).result({})
        if not self.going:
            self.going = True
            self._signal(_SIGTERM)
            self._wait(link, grace_ms / 1000, reboot=reboot)

    def _wait(self, link: Link, left_s: float, *, reboot: bool) -> None:
        running = any(job.status is None for job in self.jobs.by_name.values())
        if running and left_s > 0:
            self.jobs.engine.after(
                _LOOK_S, lambda: self._wait(link, left_s - _LOOK_S, reboot=reboot)
            )
            return
        self._signal(_SIGKILL)
        link.flush()
        os.sync()
        self.exit_code = EXIT_REBOOT if reboot else EXIT_POWEROFF
        self.jobs.engine.running = False
        if self.way == "sysrq":
            _press("u")
            _press("b" if reboot else "o")

    def _signal(self, number: int) -> None:
        if self.way == "sysrq":  # the whole guest is ours
            try:
                os.kill(-1, number)
            except ProcessLookupError:
                pass
        for job in self.jobs.by_name.values():
            if job.status is None:
                signal_session(job.pid, number)


def _press(key: str) -> None:
    with open("/proc/sysrq-trigger", "w", encoding="ascii") as trigger:
        trigger.write(key)
