"""Secrets that can be told from everything else, and a search that finds them wherever they are.

All secrets of a `Planted` have one marker in common, which is nowhere else in the world; so what
holds it holds one of them, also in base64, in hexadecimal, or as a wide text. Which one it is
stands behind the marker.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE = 8 << 20
# A pipe, or a process that goes away while it is read.
_UNREADABLE = (OSError, ValueError)


@dataclass(frozen=True, slots=True)
class Planted:
    """Secrets, by what each is planted in."""

    marker: str = field(default_factory=lambda: f"Zq{secrets.token_hex(8)}x")
    names: dict[str, str] = field(default_factory=dict[str, str])

    def secret(self, place: str, beginning: str = "") -> str:
        """Make a secret for a place."""
        number = f"{len(self.names):02d}"
        self.names[number] = place
        return f"{beginning}{self.marker}{number}{secrets.token_hex(8)}"

    def found(self, data: bytes) -> set[str]:
        """Name the secrets that these bytes hold."""
        names: set[str] = set()
        for form, needle in self._needles().items():
            at = data.find(needle)
            while at >= 0:
                names.add(self._name(form, data[at + len(needle) :]))
                at = data.find(needle, at + 1)
        return names

    def in_file(self, path: Path) -> set[str]:
        """Name what a file holds; a large one is read in pieces that overlap."""
        names: set[str] = set()
        with contextlib.suppress(*_UNREADABLE), path.open("rb", buffering=0) as file:
            for piece in _pieces(file.fileno(), 0, os.fstat(file.fileno()).st_size):
                names |= self.found(piece)
        return names

    def in_tree(self, top: Path) -> dict[str, set[str]]:
        """Name what the files below a folder hold, and their names, by their paths."""
        hits: dict[str, set[str]] = {}
        for folder, _, files in os.walk(top):
            for name in files:
                path = Path(folder, name)
                held = self.found(os.fsencode(path))
                if path.is_symlink():
                    held |= self.found(os.fsencode(path.readlink()))
                elif path.is_file():
                    held |= self.in_file(path)
                if held:
                    hits[str(path.relative_to(top))] = held
        return hits

    def in_memory(self, pid: int) -> set[str]:
        """Name what a process has in its memory: of a QEMU, all of its guest's as well."""
        names: set[str] = set()
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            for line in maps:
                span = re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line)
                if span is None:
                    continue
                begin, end = (int(number, 16) for number in span.groups())
                # Pages of the kernel's own cannot be read.
                with contextlib.suppress(*_UNREADABLE):
                    for piece in _pieces(memory.fileno(), begin, end):
                        names |= self.found(piece)
        return names

    def _needles(self) -> dict[str, bytes]:
        marker = self.marker.encode()
        return {
            "": marker,
            "in capitals": marker.upper(),
            "in small letters": marker.lower(),
            "in UTF-16": self.marker.encode("utf-16-le"),
            "in hexadecimal": marker.hex().encode(),
            "in base64, first": _in_base64(marker, 0),
            "in base64, second": _in_base64(marker, 1),
            "in base64, third": _in_base64(marker, 2),
        }

    def _name(self, form: str, behind: bytes) -> str:
        if form:
            return f"one {form}"
        return self.names.get(behind[:2].decode(errors="replace"), "one that was cut off")


def _in_base64(text: bytes, before: int) -> bytes:
    """The characters of base64 that a text decides alone when so many bytes stand before it."""
    encoded = base64.b64encode(bytes(before) + text)
    return encoded[-(-before * 8 // 6) : (before + len(text)) * 8 // 6]


def _pieces(fd: int, begin: int, end: int) -> Iterator[bytes]:
    """Read what is between, holes left out where the file system tells of them."""
    while begin < end:
        piece = os.pread(fd, min(_PIECE, end - begin), begin)
        if not piece:
            return
        yield piece
        # What is cut in two here is whole in the next one.
        begin += len(piece) if len(piece) < 4096 else len(piece) - 256 * (begin + len(piece) < end)
