"""A digest of a large sparse file: over what is not zero, and where it stands.

How much of a file is holes differs from one file system and one copy to the next; its content does
not. So zeros do not count, whether they are written or holes, and the digest costs what there is.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 1 << 16
_ZEROS = bytearray(_BLOCK)
_HEAD = struct.Struct(">Q")


def sparse_sha256(path: Path) -> str:
    """Read a file once; not for the event loop."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(_HEAD.pack(size))
        buffer = bytearray(_BLOCK)
        view = memoryview(buffer)
        for start, end in _extents(file.fileno(), size):
            file.seek(start)
            for at in range(start, end, _BLOCK):
                count = file.readinto(view)
                if buffer[:count] != _ZEROS[:count]:
                    digest.update(_HEAD.pack(at))
                    digest.update(view[:count])
    return digest.hexdigest()


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Give the parts that may hold something, each from the beginning to the end of a block."""
    at = 0
    while at < size:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                return
            raise
        hole = os.lseek(fd, data, os.SEEK_HOLE)
        start = max(at, data - data % _BLOCK)
        at = min(size, hole + -hole % _BLOCK)
        yield start, at
