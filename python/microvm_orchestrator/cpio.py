"""The archive that a kernel unpacks into its first root (cpio, format `newc`).

Several may follow one another; what comes later replaces what came before. Above stand the images,
which write whole trees, and the machines, which add to an image's what one start is about.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

_MAGIC = b"070701"
ALIGN = 4
_END = "TRAILER!!!"


class CpioWriter:
    """Writes one archive. Parents come before what is in them."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        # The kernel takes inode 0 with several links for a hard link; none of ours has several.
        self._inode = 0

    def add(
        self, path: str, mode: int, size: int, chunks: Iterable[bytes], uid: int = 0, gid: int = 0
    ) -> None:
        """Add a file, a folder or a link; `mode` says which, as `stat` does."""
        self._inode += 1
        self._write_head(path, self._inode, mode, uid, gid, size)
        self._out.writelines(chunks)
        self._out.write(bytes(-size % ALIGN))

    def end(self) -> None:
        self._write_head(_END, 0, 0, 0, 0, 0)

    def _write_head(self, path: str, inode: int, mode: int, uid: int, gid: int, size: int) -> None:
        name = path.encode() + b"\0"
        links, time, device = 1, 0, 0
        numbers = (inode, mode, uid, gid, links, time, size, device, device, device, device)
        head = _MAGIC + b"".join(b"%08X" % number for number in (*numbers, len(name), 0)) + name
        self._out.write(head + bytes(-len(head) % ALIGN))
