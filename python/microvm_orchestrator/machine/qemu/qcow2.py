"""Empty disks in QEMU's format, so that no program of QEMU's is needed to make one.

A new one is three clusters of bookkeeping and an empty first table. It does not name what lies
below it: whoever attaches it says so (`disks.py`), and nobody can be led elsewhere by a file.
"""

from __future__ import annotations

import struct
from pathlib import Path

_CLUSTER = 1 << 16
_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
# What one entry of the first table covers: a table of clusters.
_L1_COVERS = _CLUSTER * (_CLUSTER // 8)
_REFCOUNTS, _REFCOUNT_BLOCK, _L1 = _CLUSTER, 2 * _CLUSTER, 3 * _CLUSTER
_SIZE_AT = 24
# The largest that the one cluster of the first table covers.
MAX_BYTES = _L1_COVERS * (_CLUSTER // 8)


def create(path: Path, size: int) -> None:
    """Write an empty disk; there must be nothing yet."""
    header = _HEADER.pack(
        _MAGIC,
        3,  # version
        *(0, 0),  # nothing below
        _CLUSTER.bit_length() - 1,
        size,
        0,  # not encrypted
        -(-size // _L1_COVERS),
        _L1,
        _REFCOUNTS,
        1,  # cluster of them
        *(0, 0),  # no snapshots inside
        *(0, 0, 0),  # no features
        4,  # reference counts of 16 bits
        _HEADER.size,
    )
    with path.open("xb") as file:
        file.truncate(_L1 + _CLUSTER)
        file.write(header)
        file.seek(_REFCOUNTS)
        file.write(struct.pack(">Q", _REFCOUNT_BLOCK))
        file.seek(_REFCOUNT_BLOCK)
        file.write(struct.pack(">4H", 1, 1, 1, 1))


def size_of(path: Path) -> int:
    """Return how large the disk is that a guest sees."""
    with path.open("rb") as file:
        head = file.read(_SIZE_AT + 8)
    if head[:4] != _MAGIC:
        raise ValueError(f"{path.name} is no qcow2")
    return int.from_bytes(head[_SIZE_AT:], "big")
