"""Small file systems for reading, as a guest finds them on a disk: ISO 9660, one folder.

    sector 16   the volume, by its label
    sector 17   the end of such descriptions
    18, 19      where the folder is, in both orders of bytes
    20          the folder
    21...       the files, one after the other

Names are written as they are, upper case: Linux shows them in lower case. The same files give the
same bytes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from microvm_orchestrator import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

_SECTOR = 2048
_VOLUME, _PATHS_LITTLE, _PATHS_BIG, _FOLDER, _FILES = 16, 18, 19, 20, 21
_MAX_NAME = 30
# 2000-01-01, at midnight; who reads asks for nothing of the kind.
_WHEN = bytes([100, 1, 1, 0, 0, 0, 0])
_NEVER = b"0" * 16 + b"\0"
_IS_FOLDER = 2


def write(label: str, files: Mapping[str, bytes]) -> bytes:
    """Raises: TooLarge when a name, or all names together, have no room."""
    entries = [_entry(b"\0", _FOLDER, _SECTOR, _IS_FOLDER), _entry(b"\1", _FOLDER, _SECTOR, 2)]
    contents = bytearray()
    for name in sorted(files):
        if len(name) > _MAX_NAME:
            raise errors.TooLarge(f"{name!r} is longer than {_MAX_NAME} letters")
        at = _FILES + len(contents) // _SECTOR
        entries.append(_entry(f"{name.upper()};1".encode("ascii"), at, len(files[name]), 0))
        contents += _padded(files[name])
    folder = b"".join(entries)
    if len(folder) > _SECTOR:
        raise errors.TooLarge(f"{len(files)} files are more than one folder holds here")
    sectors = _FILES + len(contents) // _SECTOR
    return b"".join(
        (
            bytes(_VOLUME * _SECTOR),
            _padded(_volume(label, sectors)),
            _padded(b"\xffCD001\x01"),
            _padded(struct.pack("<BBIH2s", 1, 0, _FOLDER, 1, b"")),
            _padded(struct.pack(">BBIH2s", 1, 0, _FOLDER, 1, b"")),
            _padded(folder),
            contents,
        )
    )


def _volume(label: str, sectors: int) -> bytes:
    root = _entry(b"\0", _FOLDER, _SECTOR, _IS_FOLDER)
    texts = b" " * (4 * 128 + 3 * 37)
    return b"".join(
        (
            b"\x01CD001\x01\0",
            b" " * 32,
            label.encode("ascii").ljust(32),
            bytes(8),
            _both(sectors),
            bytes(32),
            *(_both_short(1), _both_short(1), _both_short(_SECTOR)),
            _both(10),  # the size of what says where the folder is
            struct.pack("<II", _PATHS_LITTLE, 0),
            struct.pack(">II", _PATHS_BIG, 0),
            root,
            texts,
            *(_NEVER for _ in range(4)),
            b"\x01",
        )
    )


def _entry(name: bytes, sector: int, size: int, flags: int) -> bytes:
    body = b"".join(
        (
            _both(sector),
            _both(size),
            _WHEN,
            bytes([flags, 0, 0]),
            _both_short(1),
            bytes([len(name)]),
            name,
            b"" if len(name) % 2 else b"\0",
        )
    )
    return bytes([len(body) + 2, 0]) + body


def _both(number: int) -> bytes:
    return struct.pack("<I", number) + struct.pack(">I", number)


def _both_short(number: int) -> bytes:
    return struct.pack("<H", number) + struct.pack(">H", number)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _SECTOR)
