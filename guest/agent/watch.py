"""What happens in the guest unasked: out of memory, disk or processes. Told once for each time."""

from __future__ import annotations

import os

from usage import read_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from engine import Engine
    from link import Link

# A file system is full below the one and has room again above the other.
_FULL = 0.01
_ROOM = 0.03

# Of mlockall: what is mapped now, each page from when it is first used.
_CURRENT, _ON_FAULT = 1, 4


def stay_in_memory() -> None:
    """Let the kernel keep what is used of this program, and of the interpreter's code.

    A kernel short of memory takes the code of programs first, which then is read from the disk
    again at once: a guest does nothing but that for minutes before a program is ended for its
    memory, and nobody is answered meanwhile.
    """
    try:
        from ctypes import CDLL
    except ImportError:  # a smaller Python: without it
        return
    CDLL(None).mlockall(_CURRENT | _ON_FAULT)  # where that is not allowed, without it too


class Watch:
    """Looks now and then at what the kernel counts."""

    def __init__(self, engine: Engine, link: Link, disk: str, look_s: float, group: str) -> None:
        self.engine = engine
        self.link = link
        self.disk = disk
        self.look_s = look_s
        self.group = group
        self.full = False
        self.oom_kills = self._oom_kills()
        self.refused = self._refused()
        self._later()

    def look_at_memory(self) -> None:
        kills = self._oom_kills()
        if kills > self.oom_kills:
            self.link.tell({"event": b"oom", "kills": kills - self.oom_kills})
        self.oom_kills = kills

    def _look(self) -> None:
        self.look_at_memory()
        self._look_at_pids()
        self._look_at_disk()
        self._later()

    def _later(self) -> None:
        self.engine.after(self.look_s, self._look)

    def _look_at_disk(self) -> None:
        disk = os.statvfs(self.disk)
        free = disk.f_bavail / disk.f_blocks if disk.f_blocks else 1.0
        if free < _FULL and not self.full:
            self.full = True
            available = disk.f_bavail * disk.f_frsize // 1024
            self.link.tell(
                {"event": b"disk_full", "path": os.fsencode(self.disk), "available_kib": available}
            )
        elif free > _ROOM:
            self.full = False

    def _look_at_pids(self) -> None:
        refused = self._refused()
        if refused > self.refused:
            self.link.tell({"event": b"pids_full", "refused": refused - self.refused})
        self.refused = refused

    def _refused(self) -> int:
        """Return how many processes commands have asked for beyond what they may have."""
        if not self.group:
            return 0
        return read_table(self.group + "/pids.events").get("max", 0)

    def _oom_kills(self) -> int:
        return read_table("/proc/vmstat").get("oom_kill", 0)
