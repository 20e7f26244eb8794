"""Empty disks in QEMU's format, so that no program of QEMU's is needed to make one.

A new one is three clusters of bookkeeping and an empty first table. It does not name what lies
below it: whoever attaches it says so (`disks.py`), and nobody can be led elsewhere by a file.
"""

from __future__ import annotations

import struct
from pathlib import Path

from microvm_orchestrator import errors

_CLUSTER = 1 << 16
_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
# What one entry of the first table covers: a table of clusters.
_L1_COVERS = _CLUSTER * (_CLUSTER // 8)
_REFCOUNTS, _REFCOUNT_BLOCK, _L1 = _CLUSTER, 2 * _CLUSTER, 3 * _CLUSTER
_SIZE_AT = 24
_FEATURES_AT = 72
# Left open when its writer was killed, another way to pack clusters, and tables of small parts.
# What is not here: found corrupt by QEMU itself, and data in another file.
_FEATURES = 1 | 8 | 16
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


def check_alone(path: Path) -> None:
    """See that a disk names no other file, which QEMU would open and show to the guest.

    Raises: InvalidInput, also for what is no qcow2.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER.size).ljust(_HEADER.size, b"\0")
    magic, version, backing, *_ = _HEADER.unpack(head)
    if magic != _MAGIC or version not in (2, 3):
        raise errors.InvalidInput(f"{path.name} is no qcow2")
    features = int.from_bytes(head[_FEATURES_AT : _FEATURES_AT + 8], "big") if version > 2 else 0
    if backing or features & ~_FEATURES:
        raise errors.InvalidInput(
            f"the disk {path.name} wants another file, or what we do not know",
            hint="make it one file: qemu-img convert -O qcow2",
        )


def size_of(path: Path) -> int:
    """Return how large the disk is that a guest sees."""
    with path.open("rb") as file:
        head = file.read(_SIZE_AT + 8)
    if head[:4] != _MAGIC:
        raise errors.InvalidInput(f"{path.name} is no qcow2")
    return int.from_bytes(head[_SIZE_AT:], "big")
