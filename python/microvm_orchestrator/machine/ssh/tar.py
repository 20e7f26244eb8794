"""Folders as `tar` writes and reads them: what it sends, in the entries that `beneath` takes.

The program in the guest is any tar; what it says is hostile. So only the header of one entry is
ever held, names that come apart from it are short, and the limits count before anything is written.
"""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING

from microvm_orchestrator import errors
from microvm_orchestrator.machine import wire
from microvm_orchestrator.machine.channel.stream import Data, Item, Note, printable

if TYPE_CHECKING:
    from microvm_orchestrator.machine.shell import TreeLimits

_BLOCK = 512
# A name that has a place of its own, and the records of an extended header.
_MAX_APART = 64 * 1024
# Behind the end: tars fill up what they write to some round size.
_MAX_REST = 1 << 20
_MAX_SKIPS = 16
_MAX_PATH = 4096
_MAX_DEPTH = 64
_MAX_SIZE = 2**62
_LONG_NAME, _LONG_LINK, _EXTENDED, _GLOBAL = b"L", b"K", b"x", b"g"
# Whatever size such an entry names, nothing stands behind it.
_EMPTY = (tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)
END = bytes(2 * _BLOCK)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


class TarReader:
    """An archive that arrives, in pieces of any size."""

    def __init__(self, limits: TreeLimits) -> None:
        # Another name of a file that came before: path, that file's path, mode.
        self.links: list[tuple[bytes, bytes, int]] = []
        self.skipped = 0
        self.skips: list[str] = []
        self.ended = False
        self._limits = limits
        self._entries = 0
        self._size = 0
        self._buffer = bytearray()
        self._left = 0  # of the file that arrives
        self._padding = 0  # behind it, or behind something that is left out
        self._apart = b""  # the type of what describes the next entry, while that arrives
        self._apart_left = 0
        self._name: bytes | None = None
        self._link: bytes | None = None
        self._true_size: int | None = None
        self._rest = 0

    def feed(self, data: bytes) -> list[Item]:
        """Take what has come, and return what it says. Raises: wire.Broken, TooLarge."""
        self._buffer += data
        items: list[Item] = []
        while self._step(items):
            pass
        return items

    def finish(self) -> None:
        if not self.ended:
            raise wire.Broken("a part of an archive")

    def count(self, size: int) -> None:
        """Count one more entry. Raises: TooLarge."""
        self._entries += 1
        self._size += size
        if self._entries > self._limits.entries or self._size > self._limits.size:
            raise errors.TooLarge(
                "the folder holds more than is allowed:"
                f" {self._limits.entries} entries, {self._limits.size} bytes"
            )

    def _step(self, items: list[Item]) -> bool:
        """Take the next part out of the buffer, if enough of it is there."""
        if self.ended:
            self._rest += len(self._buffer)
            self._buffer.clear()
            if self._rest > _MAX_REST:
                raise wire.Broken(f"more than {_MAX_REST} bytes behind the end of an archive")
            return False
        if self._left:
            piece = bytes(self._buffer[: self._left])
            del self._buffer[: len(piece)]
            self._left -= len(piece)
            if piece:
                items.append(Data(wire.MAIN, piece))
            return bool(piece)
        if self._padding:
            dropped = min(self._padding, len(self._buffer))
            del self._buffer[:dropped]
            self._padding -= dropped
            return bool(dropped)
        if self._apart:
            return self._take_apart()
        if len(self._buffer) < _BLOCK:
            return False
        block = bytes(self._buffer[:_BLOCK])
        del self._buffer[:_BLOCK]
        self._begin(block, items)
        return True

    def _begin(self, block: bytes, items: list[Item]) -> None:
        """Read the header of an entry, or the end."""
        if not any(block):
            self.ended = True
            return
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise wire.Broken(f"an archive that is none: {error}") from error
        if not 0 <= header.size <= _MAX_SIZE:
            raise wire.Broken(f"an entry of {header.size} bytes")
        if header.type in (_LONG_NAME, _LONG_LINK, _EXTENDED, _GLOBAL):
            if header.size > _MAX_APART:
                raise wire.Broken(f"{header.size} bytes about an entry")
            self._apart, self._apart_left = header.type, header.size
            return
        self._entry(header, items)

    def _entry(self, header: tarfile.TarInfo, items: list[Item]) -> None:
        size = header.size if self._true_size is None else self._true_size
        path = _below(self._name or header.name.encode("utf-8", "surrogateescape"))
        if len(path) > _MAX_PATH or path.count(b"/") > _MAX_DEPTH:
            raise errors.TooLarge(f"folders are deeper than {_MAX_DEPTH}: {printable(path[:200])}")
        target = self._link or header.linkname.encode("utf-8", "surrogateescape")
        self._name = self._link = self._true_size = None
        about: dict[str, int | bytes | list[bytes]] = {"path": path, "mode": header.mode & 0o7777}
        if header.type == tarfile.DIRTYPE:
            self._padding = 0
            if path:  # the root is there already
                self.count(0)
                items.append(Note({**about, "type": b"folder"}, 0))
        elif header.type in _FILES:
            self.count(size)
            self._left, self._padding = size, -size % _BLOCK
            items.append(Note({**about, "type": b"file", "size": size}, 0))
        elif header.type == tarfile.LNKTYPE:
            self.count(0)
            self.links.append((path, _below(target), header.mode & 0o7777))
        else:
            self.count(0)  # a guest could name them for ever
            self._padding = 0 if header.type in _EMPTY else size + -size % _BLOCK
            self.skipped += 1
            if len(self.skips) < _MAX_SKIPS:
                self.skips.append(printable(path[:512]))

    def _take_apart(self) -> bool:
        """Take what describes the next entry."""
        whole = self._apart_left + -self._apart_left % _BLOCK
        if len(self._buffer) < whole:
            return False
        said = bytes(self._buffer[: self._apart_left])
        del self._buffer[:whole]
        kind, self._apart = self._apart, b""
        if kind == _LONG_NAME:
            self._name = said.rstrip(b"\0")
        elif kind == _LONG_LINK:
            self._link = said.rstrip(b"\0")
        elif kind == _EXTENDED:
            records = _records(said)
            self._name = records.get(b"path", self._name)
            self._link = records.get(b"linkpath", self._link)
            if b"size" in records:
                if not records[b"size"].isdigit() or len(records[b"size"]) > 18:
                    raise wire.Broken("an entry whose size is no number")
                self._true_size = int(records[b"size"])
        return True


def header(path: bytes, mode: int, size: int | None, owner: tuple[int, int] | None) -> bytes:
    """Return what stands before a file, or the whole of a folder when there is no size."""
    info = tarfile.TarInfo(path.decode("utf-8", "surrogateescape"))
    info.mode = mode
    info.type = tarfile.DIRTYPE if size is None else tarfile.REGTYPE
    info.size = size or 0
    if owner:
        info.uid, info.gid = owner
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _below(path: bytes) -> bytes:
    """Return a path as it is below the root: tar writes ./a, and folders with a slash behind."""
    while path.startswith(b"./"):
        path = path[2:]
    path = path.rstrip(b"/")
    return b"" if path == b"." else path


def _records(said: bytes) -> dict[bytes, bytes]:
    """Read `length key=value` lines. Raises: wire.Broken."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(said):
        digits, space, _ = said[at : at + 20].partition(b" ")
        if not space or not digits.isdigit() or not len(digits) + 1 < int(digits) <= len(said) - at:
            raise wire.Broken("an extended header that cannot be read")
        record = said[at + len(digits) + 1 : at + int(digits)]
        key, _, value = record.removesuffix(b"\n").partition(b"=")
        records[key] = value
        at += int(digits)
    return records
