"""What the program of a run said, on this host's disk: it outlives the machine and the daemon.

A file of frames, each a byte for the channel, four for the length, and the bytes; where a frame
begins is a cursor. Written by one follower, read by anybody at any time. Bounded: past the cap what
is said is counted, not kept. Above are the steps and the service; below, files.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from microvm_orchestrator.machine.shell import Channel

_HEAD = struct.Struct(">BI")
# Of one run: enough for the log of a long build, little enough for a thousand runs on a disk.
CAP = 64 << 20
_FRAME_MOST = 1 << 16
_CHANNELS = (Channel.STDOUT, Channel.STDERR)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of what was said; `next` is where to go on."""

    channel: Channel
    data: bytes
    next: int


def texts(path: Path, most: int) -> tuple[str, str]:
    """Give what was said on standard output and on standard error, each up to a bound."""
    said = {channel: bytearray() for channel in _CHANNELS}
    for piece in read(path, 0):
        kept = said[piece.channel]
        kept += piece.data[: most - len(kept)]
        if min(map(len, said.values())) >= most:
            break
    stdout, stderr = (said[channel].decode(errors="replace") for channel in _CHANNELS)
    return stdout, stderr


class OutputFile:
    """The log of one run, while it is written."""

    def __init__(self, path: Path, cap: int = CAP) -> None:
        """What a writer that was cut off left of a last frame is cut off too."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._cap = path, cap
        # How much of what was said is kept: where a follower goes on.
        self.kept = 0
        end = 0
        if path.exists():
            for piece in read(path, 0):
                self.kept += len(piece.data)
                end = piece.next
            os.truncate(path, end)
        self._file: IO[bytes] = path.open("ab", buffering=0)
        self._size = end
        self.dropped = 0

    def before(self) -> Iterator[Piece]:
        """What an earlier daemon had written; to be read before anything is added."""
        return read(self._path, 0)

    def add(self, channel: Channel, data: bytes) -> None:
        for start in range(0, len(data), _FRAME_MOST):
            part = data[start : start + _FRAME_MOST]
            if self._size + _HEAD.size + len(part) > self._cap:
                self.dropped += len(part)
                continue
            frame = _HEAD.pack(_CHANNELS.index(channel), len(part)) + part
            self._file.write(frame)
            self._size += len(frame)
            self.kept += len(part)

    def close(self) -> None:
        self._file.close()


def read(path: Path, begin: int, most: int = 1 << 62) -> Iterator[Piece]:
    """Give what stands behind a cursor, about `most` bytes of it; nothing where nothing is yet."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(begin)
        while most > 0:
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                return
            number, length = cast("tuple[int, int]", _HEAD.unpack(head))
            if number >= len(_CHANNELS) or length > _FRAME_MOST:
                return  # no cursor of ours
            data = file.read(length)
            if len(data) < length:
                return
            begin += _HEAD.size + length
            most -= length
            yield Piece(_CHANNELS[number], data, begin)
