"""When frames pass a card, as the kernel saw it: whoever reads them may not have had its turn.

A frame is stamped when it comes in from a machine's card, and when it has left all queues on its
way to one. So what a queue did is told from how busy the host was for everybody else.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from microvm_orchestrator.machine.tap import within

# Of Linux, and not in the module `socket`.
_SO_TIMESTAMPNS = 35
_SO_RCVBUFFORCE = 33
_TIME = struct.Struct("@qq")
_OUTGOING = 4
_EVERYTHING = 0x0003
_ROOM = 64 << 20
_FRAME = 1 << 16


class Stamps:
    """What has passed one card, since this was opened."""

    def __init__(self, ear: socket.socket) -> None:
        self._ear = ear
        # By what each frame says: when the machine sent it, and when it came to the machine.
        self.sent_at: dict[bytes, float] = {}
        self.came_at: dict[bytes, float] = {}

    def read(self) -> None:
        """Take up what was stamped so far; of the same frame, the first."""
        while True:
            try:
                frame, told, _, sender = self._ear.recvmsg(_FRAME, socket.CMSG_SPACE(_TIME.size))
            except BlockingIOError:
                return
            [(_, _, data)] = told
            seconds, nanoseconds = _TIME.unpack(data)
            at = self.came_at if sender[2] == _OUTGOING else self.sent_at
            at.setdefault(frame, seconds + nanoseconds / 1e9)


@contextmanager
def stamped(netns: Path, card: str) -> Generator[Stamps]:
    """Stamp what passes a card until the block is left."""

    def listen() -> socket.socket:
        ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        ear.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        ear.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
        ear.bind((card, _EVERYTHING))
        ear.setblocking(False)
        return ear

    with within(netns, listen) as ear:
        yield Stamps(ear)


def took_s(source: Stamps, target: Stamps) -> list[float]:
    """Tell how long each frame was on its way between two cards, of those that came."""
    source.read()
    target.read()
    both = source.sent_at.keys() & target.came_at.keys()
    return [target.came_at[frame] - source.sent_at[frame] for frame in sorted(both)]
