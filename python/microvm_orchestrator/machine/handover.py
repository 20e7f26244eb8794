"""Files and sockets that are opened here and given to a QEMU, so that it opens no path of ours.

So its user needs no right in the state directory, and its sandbox may forbid it the rest. The files
are held until the process has been started, then let go of. Above stand the machine and the saving.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from microvm_orchestrator.machine import sockets


class Handover:
    """What one process inherits, and by which words it names it."""

    def __init__(self) -> None:
        self._held = ExitStack()
        self.fds: list[int] = []
        # For the command line: which inherited files stand in which set.
        self.words: list[str] = []
        self._sets = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def inherit(self, fd: int) -> int:
        """Give away an open file; it is closed here once the process has it."""
        self._held.callback(os.close, fd)
        self.fds.append(fd)
        return fd

    def listen(self, path: Path) -> int:
        """Listen at a unix socket, so that QEMU answers who connects from now on."""
        return self.inherit(sockets.listen(path).detach())

    def open(self, path: Path, *flags: int) -> str:
        """Open a file, once for each way that QEMU may want it, and return its name in QEMU."""
        self._sets += 1
        for mode in flags or (os.O_RDONLY,):
            fd = self.inherit(os.open(path, mode | os.O_CLOEXEC, 0o600))
            self.words += ["-add-fd", f"fd={fd},set={self._sets}"]
        return f"/dev/fdset/{self._sets}"

    def open_again(self, path: Path, flags: int = os.O_RDONLY) -> str:
        """Open a file for what knows no sets of files: QEMU opens it again by its number."""
        return self.again(os.open(path, flags | os.O_CLOEXEC))

    def again(self, fd: int) -> str:
        """Give away an open file that QEMU opens again by its number."""
        return f"/proc/self/fd/{self.inherit(fd)}"
