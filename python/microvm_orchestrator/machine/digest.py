"""Large sparse files: copied without their zeros, and a digest over what is not zero.

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
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(_HEAD.pack(size))
        for at, block in _blocks(file.fileno(), size):
            digest.update(_HEAD.pack(at))
            digest.update(block)
    return digest.hexdigest()


def copy_sparse(source: int, path: Path) -> str:
    """Copy an open file into a new one and return its digest; not for the event loop."""
    with path.open("xb", buffering=0) as target:
        size = os.fstat(source).st_size
        target.truncate(size)
        digest = hashlib.sha256(_HEAD.pack(size))
        for at, block in _blocks(source, size):
            digest.update(_HEAD.pack(at))
            digest.update(block)
            os.pwrite(target.fileno(), block, at)
    return digest.hexdigest()


def _blocks(fd: int, size: int) -> Iterator[tuple[int, bytearray]]:
    """Give each block that is not zero, and its place."""
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    for start, end in _extents(fd, size):
        for at in range(start, end, _BLOCK):
            count = os.preadv(fd, [view], at)
            block = buffer if count == _BLOCK else buffer[:count]
            if block != _ZEROS[:count]:
                yield at, block


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
