"""A read-only file system of a few large files, as it is: squashfs 4.0 without compression.

For what the host gives to guests as a disk and what is compressed already. What is put in lies in
one piece each, so writing one costs as much as copying the files. Above stands who has something to
give; nothing below.

    superblock | the files, in blocks | inodes | folders | owners

Numbers are little-endian. What stands for an inode is where its stretch of 8 KiB begins among the
inodes, and how far into it the inode lies.
"""

from __future__ import annotations

import shutil
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MAGIC = 0x73717368
_VERSION = (4, 0)
_SUPERBLOCK = struct.Struct("<5I6H8Q")
# What guests' kernels have for their own root; nothing here is compressed by it.
_ZSTD = 6
_BLOCK_LOG = 17
_BLOCK = 1 << _BLOCK_LOG
# Inodes, data, fragments and owners are as they are; there are no fragments and no attributes.
_FLAGS = 0x0001 | 0x0002 | 0x0008 | 0x0010 | 0x0200 | 0x0800
_AS_IT_IS = 1 << 24
_STRETCH = 8192
_STRETCH_AS_IT_IS = 0x8000
_NONE = 0xFFFF_FFFF
_NOWHERE = 0xFFFF_FFFF_FFFF_FFFF
_FOLDER, _FILE, _LARGE_FILE = 1, 2, 9
_FOLDER_MODE, _FILE_MODE = 0o755, 0o444
# The kernel adds them to the size of every folder, for `.` and `..`.
_DOTS = 3
_ALIGN = 4096


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    kind: int
    number: int
    # Where its inode lies.
    stretch: int
    offset: int


class _Stretches:
    """What is written in stretches, none of them compressed."""

    def __init__(self) -> None:
        self._content = bytearray()

    def add(self, content: bytes) -> tuple[int, int]:
        """Tell where it lies: the stretch, and how far into it."""
        full, offset = divmod(len(self._content), _STRETCH)
        self._content += content
        return full * (_STRETCH + 2), offset

    def write(self) -> bytes:
        parts = [self._content[at : at + _STRETCH] for at in range(0, len(self._content), _STRETCH)]
        return b"".join(struct.pack("<H", len(part) | _STRETCH_AS_IT_IS) + part for part in parts)


class _Writer:
    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._inodes = _Stretches()
        self._folders = _Stretches()
        self._count = 0

    def write(self, files: Mapping[str, Path]) -> None:
        self._out.write(bytes(_SUPERBLOCK.size))
        root = self._folder(
            {tuple(path.split("/")): source for path, source in files.items()}, "", _NONE
        )
        inodes_at = self._out.tell()
        self._out.write(self._inodes.write())
        folders_at = self._out.tell()
        self._out.write(self._folders.write())
        owner_at = self._out.tell()
        owner = struct.pack("<I", 0)
        self._out.write(struct.pack("<H", len(owner) | _STRETCH_AS_IT_IS) + owner)
        owners_at = self._out.tell()
        self._out.write(struct.pack("<Q", owner_at))
        end = self._out.tell()
        self._out.write(bytes(-end % _ALIGN))
        self._out.seek(0)
        head = (_MAGIC, self._count, 0, _BLOCK, 0, _ZSTD, _BLOCK_LOG, _FLAGS, 1, *_VERSION)
        places = (end, owners_at, _NOWHERE, inodes_at, folders_at, _NOWHERE, _NOWHERE)
        where = root.stretch << 16 | root.offset
        self._out.write(_SUPERBLOCK.pack(*head, where, *places))

    def _folder(self, files: Mapping[tuple[str, ...], Path], name: str, above: int) -> _Entry:
        number = self._number()
        names = sorted({path[0] for path in files})
        entries: list[_Entry] = []
        for each in names:
            within = {path[1:]: source for path, source in files.items() if path[0] == each}
            plain = within.get(())
            entries.append(
                self._folder(within, each, number) if plain is None else self._file(plain, each)
            )
        listing = b"".join(map(_listed, entries))
        stretch, offset = self._folders.add(listing)
        folders = sum(entry.kind == _FOLDER for entry in entries)
        # The root's parent is a number that no inode has.
        parent = self._count + 1 if above == _NONE else above
        body = struct.pack("<IIHHI", stretch, 2 + folders, len(listing) + _DOTS, offset, parent)
        return self._inode(name, _FOLDER, _FOLDER, _FOLDER_MODE, number, body)

    def _file(self, source: Path, name: str) -> _Entry:
        start = self._out.tell()
        with source.open("rb") as file:
            shutil.copyfileobj(file, self._out, 1 << 20)
        size = self._out.tell() - start
        sizes = [min(_BLOCK, size - at) | _AS_IT_IS for at in range(0, size, _BLOCK)]
        body = struct.pack("<QQQIIII", start, size, 0, 1, _NONE, 0, _NONE)
        body += struct.pack(f"<{len(sizes)}I", *sizes)
        return self._inode(name, _FILE, _LARGE_FILE, _FILE_MODE, self._number(), body)

    def _number(self) -> int:
        self._count += 1
        return self._count

    def _inode(
        self, name: str, kind: int, written_as: int, mode: int, number: int, body: bytes
    ) -> _Entry:
        head = struct.pack("<HHHHII", written_as, mode, 0, 0, 0, number)
        return _Entry(name, kind, number, *self._inodes.add(head + body))


def _listed(entry: _Entry) -> bytes:
    # Each with a head of its own: there are few.
    name = entry.name.encode()
    head = struct.pack("<III", 0, entry.stretch, entry.number)
    return head + struct.pack("<HhHH", entry.offset, 0, entry.kind, len(name) - 1) + name


def write_squashfs(out: BinaryIO, files: Mapping[str, Path]) -> None:
    """Write a file system with copies of these files, by their paths in it; for a fresh file.

    Not for the event loop. Folders are made as they are needed; all of it is root's, and readable.
    """
    _Writer(out).write(files)
