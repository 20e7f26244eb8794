"""What a guest wrote to its console: a file that only ever grows, and whose beginning is let go.

The hypervisor appends to it, whether a daemon runs or not. So that a guest which floods it takes no
more than a few megabytes of the disk, the blocks of its older part are given back now and then; the
offsets of what is left stay as they were. While no daemon runs, the limit on the size of the
hypervisor's files bounds it. Above stand the machines.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import BinaryIO

# What is kept for those who come later: a few thousand lines.
KEPT = 1 << 20
# How much more there may be before the older part is let go.
_SLACK = 1 << 20
# What may be added while nobody lets go of anything: no daemon runs.
ROOM = 64 << 20
# In a message of an error: what fits on a screen.
TAIL = 2000

# A multiple of the blocks of any file system in use.
_BLOCK = 1 << 16
_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02


def read(path: Path, offset: int, most: int) -> tuple[int, bytes]:
    """Return what stands there from an offset on, and where that begins: later if it is gone."""
    try:
        with path.open("rb") as file:
            begin = max(offset, _beginning(file))
            if begin >= os.fstat(file.fileno()).st_size:  # further than a file can be, perhaps
                return begin, b""
            file.seek(begin)
            return begin, file.read(most)
    except FileNotFoundError:
        return offset, b""


def size(path: Path) -> int:
    """Return the offset behind the last byte."""
    return path.stat().st_size if path.exists() else 0


def tail(path: Path, since: int = 0, most: int = TAIL) -> str:
    """Return the last lines, for a person: without what a terminal would obey."""
    _, data = read(path, max(since, size(path) - most), most)
    text = data.decode(errors="replace").replace("\r\n", "\n")
    return "".join(char for char in text if char == "\n" or char.isprintable()).strip()


def let_go(path: Path) -> int:
    """Give back the blocks of the older part when there are too many, and return the size."""
    try:
        with path.open("r+b") as file:
            end = os.fstat(file.fileno()).st_size
            if end - _beginning(file) > KEPT + _SLACK:
                # Whole blocks only: of one that is cut, the beginning would read as zeros.
                _punch(file, (end - KEPT) // _BLOCK * _BLOCK)
            return end
    except FileNotFoundError:
        return 0


def _beginning(file: BinaryIO) -> int:
    """Return where the file's content begins, behind what was let go."""
    try:
        return os.lseek(file.fileno(), 0, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:  # nothing but a hole, or empty
            raise
        return os.fstat(file.fileno()).st_size


def _punch(file: BinaryIO, end: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    mode = _KEEP_SIZE | _PUNCH_HOLE
    if libc.fallocate(file.fileno(), mode, ctypes.c_int64(0), ctypes.c_int64(end)):
        number = ctypes.get_errno()
        # Without holes on this file system, the limit on the file's size is the only bound.
        if number != errno.EOPNOTSUPP:
            raise OSError(number, os.strerror(number), file.name)
