"""What waits for the transport: whole frames in order, the first perhaps written in part."""

from __future__ import annotations

import os

# What streams may let wait. Enough that the transport never waits for us.
_ROOM_BYTES = 256 * 1024
# Above this nothing more is read either: a host that does not read gets no more answers.
_FULL_BYTES = 1024 * 1024
# Pieces that one call may write. A virtio port takes them one by one anyway.
_IOVECS = 16


class Outgoing:
    """A queue of frames."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self._at = 0  # how much of the first piece is written

    @property
    def has_room(self) -> bool:
        return self._size < _ROOM_BYTES

    @property
    def full(self) -> bool:
        return self._size >= _FULL_BYTES

    def add(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)

    def clear(self) -> None:
        self._pieces.clear()
        self._size = self._at = 0

    def write(self, fd: int) -> None:
        """Write all that waits. Raises: BlockingIOError and others of `os.writev`."""
        while self._pieces:
            pieces: list[bytes | memoryview] = [memoryview(self._pieces[0])[self._at :]]
            pieces += self._pieces[1:_IOVECS]
            self._written(os.writev(fd, pieces))

    def _written(self, count: int) -> None:
        self._size -= count
        count += self._at
        done = 0
        while done < len(self._pieces) and count >= len(self._pieces[done]):
            count -= len(self._pieces[done])
            done += 1
        del self._pieces[:done]
        self._at = count
