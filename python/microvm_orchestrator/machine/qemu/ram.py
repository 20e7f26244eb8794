"""The memory of a guest as a file that is nowhere but in this host's memory.

Who has it open can read the guest's memory without asking its QEMU. Above stand the hypervisor and
the saving.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager

# Whoever has it open, a QEMU that somebody broke into among them, leaves it as large as it is.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@contextmanager
def opened(mib: int) -> Generator[int]:
    """Make one of nothing but zeros; it is there for as long as anybody has it open."""
    fd = os.memfd_create("ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.truncate(fd, mib << 20)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        yield fd
    finally:
        os.close(fd)
