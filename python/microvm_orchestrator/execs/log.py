"""What a command said, as much of it as is kept: the last of each channel, at offsets that stay.

Bounded in bytes and in pieces, whatever a guest sends. Above, a job keeps one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from microvm_orchestrator.machine.shell import Channel, Output

# What is kept of each channel.
KEPT = 1 << 20
# Pieces that follow each other are put together up to this size.
_PIECE_BYTES = 1 << 16
# A guest may say one byte at a time, on two channels in turn; a piece costs more than its bytes.
_PIECE_COST = 256
_FEW_PIECES = 64


@dataclass(slots=True)
class _Piece:
    offset: int
    data: bytearray

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


class _Side:
    """The last of one channel."""

    def __init__(self, channel: Channel, cap: int) -> None:
        self.channel = channel
        self.pieces: deque[_Piece] = deque()
        self.size = 0
        self.cut = False
        self._cap = cap
        self._most = cap // _PIECE_COST + _FEW_PIECES

    @property
    def cost(self) -> int:
        return self.size + len(self.pieces) * _PIECE_COST

    @property
    def crowded(self) -> bool:
        return len(self.pieces) > self._most // 2

    def add(self, offset: int, data: bytes) -> None:
        last = self.pieces[-1] if self.pieces else None
        if last is not None and last.end == offset and len(last.data) < _PIECE_BYTES:
            last.data += data
        else:
            self.pieces.append(_Piece(offset, bytearray(data)))
        self.size += len(data)
        while len(self.pieces) > self._most:
            self.drop(len(self.pieces[0].data))
        if self.size > self._cap:
            self.drop(self.size - self._cap)

    def drop(self, size: int) -> None:
        """Let go of the oldest so many bytes."""
        while size > 0 and self.pieces:
            first = self.pieces[0]
            gone = min(size, len(first.data))
            if gone == len(first.data):
                self.pieces.popleft()
            else:
                del first.data[:gone]
                first.offset += gone
            size -= gone
            self.size -= gone
            self.cut = True

    def since(self, offset: int) -> list[Output]:
        found: list[Output] = []
        for piece in reversed(self.pieces):
            if piece.end <= offset:
                break
            skipped = max(0, offset - piece.offset)
            found.append(Output(self.channel, bytes(piece.data[skipped:]), piece.offset + skipped))
        return found


class Log:
    """The last `cap` bytes of each channel."""

    def __init__(self, cap: int = KEPT) -> None:
        self.end = 0
        self._sides = {channel: _Side(channel, cap) for channel in Channel}

    @property
    def cost(self) -> int:
        """What it takes of the daemon's memory, roughly."""
        return sum(side.cost for side in self._sides.values())

    @property
    def crowded(self) -> bool:
        """Whether pieces are so many that the oldest may have to go for their number."""
        return any(side.crowded for side in self._sides.values())

    @property
    def cut(self) -> bool:
        """Whether something that was said is not kept any more."""
        return any(side.cut for side in self._sides.values())

    def begin(self, offset: int) -> None:
        """Go on at an offset; what lies between is gone."""
        if offset > self.end:
            self.end = offset
            for side in self._sides.values():
                side.cut = True

    def add(self, output: Output) -> None:
        self._sides[output.channel].add(output.offset, output.data)
        self.end = output.offset + len(output.data)

    def clear(self) -> None:
        for side in self._sides.values():
            side.drop(side.size)

    def whole(self, channel: Channel) -> bytes:
        return b"".join(piece.data for piece in self._sides[channel].pieces)

    def cut_off(self, channel: Channel) -> bool:
        """Whether the beginning of a channel is gone."""
        return self._sides[channel].cut

    def since(self, offset: int, limit: int) -> tuple[list[Output], int]:
        """Give what is kept from an offset on, at most so many bytes, and where to go on."""
        found = [output for side in self._sides.values() for output in side.since(offset)]
        found.sort(key=lambda output: output.offset)
        picked: list[Output] = []
        for output in found:
            data = output.data[:limit]
            picked.append(Output(output.channel, data, output.offset))
            offset = output.offset + len(data)
            limit -= len(data)
            if limit == 0:
                return picked, offset
        return picked, max(offset, self.end)
