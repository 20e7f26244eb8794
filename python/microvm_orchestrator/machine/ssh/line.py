"""One SSH channel: what the guest says on it, in order, and what it may still be told.

asyncssh calls; whoever owns the line takes out what has come, and a guest that says more than is
taken out must wait: only a window of it is ever held. A line is over when its channel or its
connection is.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NoReturn, cast

import anyio
import asyncssh
from asyncssh.constants import EXTENDED_DATA_STDERR

from microvm_orchestrator import errors
from microvm_orchestrator.machine import wire
from microvm_orchestrator.machine.channel.stream import Data, End, Item, Over, renewed
from microvm_orchestrator.machine.shell import Channel, Exit

if TYPE_CHECKING:
    from asyncssh.channel import SSHChannel

    from microvm_orchestrator.machine.ssh.carrier import Carrier

# What a guest may say ahead. It may come byte by byte, and each byte on its own costs a hundred.
WINDOW = 128 * 1024
# What is held here before the rest waits in asyncssh.
_HELD = 64 * 1024
_PIECE = 64 * 1024
_NUMBERS = {
    "HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "BUS": 7, "FPE": 8, "KILL": 9,
    "USR1": 10, "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15, "XCPU": 24,
    "XFSZ": 25, "SYS": 31,
}  # fmt: skip


class Line(
    asyncssh.SSHClientSession[bytes], asyncssh.SSHTCPSession[bytes], asyncssh.SSHUNIXSession[bytes]
):
    """A channel that is open, or that is being opened."""

    def __init__(self, carrier: Carrier) -> None:
        # Whether the guest has agreed to the channel: from then on a command may have started.
        self.agreed = False
        # The guest says no more on it; it may still listen.
        self.ended = False
        self.over = False
        # It did not end, but broke off.
        self.lost = False
        # How its command ended; no other says so.
        self.exit: Exit | None = None
        # How many bytes have come.
        self.heard = 0
        self.changed = anyio.Event()
        self._carrier = carrier
        self._chan: SSHChannel[bytes] | None = None
        self._pieces: deque[tuple[Channel, bytearray]] = deque()
        self._held = 0
        self._paused = False
        self._full = False
        self._deaf = False

    # What the owner does.

    def take(self) -> tuple[Channel, bytes] | None:
        """Take out what came first, if there is anything."""
        if not self._pieces:
            return None
        channel, data = self._pieces.popleft()
        self._held -= len(data)
        if self._paused and self._held <= _HELD // 2 and self._chan:
            self._paused = False
            self._chan.resume_reading()
        if not self._pieces:
            self.wake()
        return channel, bytes(data)

    async def receive(self) -> list[Item]:
        """Wait for a piece, or for the end of what is said; nothing when the line is over."""
        while True:
            if piece := self.take():
                return [Data(wire.MAIN, piece[1])]
            if self.over:
                return []
            if self.ended:
                return [End()]
            await self.changed.wait()

    async def answer(self) -> None:
        """Raises: MachineUnreachable when the line did not end, but broke off."""
        if self.lost:
            raise errors.MachineUnreachable("the guest has broken off the connection")

    def broken(self, rule: str) -> NoReturn:
        raise errors.ProtocolBroken(f"the guest sent {rule}")

    @property
    def empty(self) -> bool:
        """Whether all that has come was taken out."""
        return not self._pieces

    async def send(self, data: bytes) -> None:
        """Say something as fast as the guest takes it. Raises: Over."""
        for at in range(0, len(data), _PIECE):
            await self._carrier.room()
            while self._full and not self._mute:
                await self.changed.wait()
            if self._mute or not self._chan:
                raise Over
            self._chan.write(data[at : at + _PIECE])

    def end(self) -> None:
        """Say that nothing more is said."""
        if self._chan and not self._mute:
            self._chan.write_eof()

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of the terminal of a session that has one."""
        if not self._mute:
            chan = cast("asyncssh.SSHClientChannel[bytes]", self._chan)
            chan.change_terminal_size(columns, rows)

    def ignore(self) -> None:
        """Drop what has come and what still comes."""
        self._deaf = True
        self._pieces.clear()
        self._held = 0
        if self._paused and self._chan:
            self._paused = False
            self._chan.resume_reading()

    def close(self) -> None:
        """Hang up, once all that was said is sent."""
        if self._chan and not self.over:
            self._chan.close()

    def wake(self) -> None:
        """Let everybody look again."""
        self.changed = renewed(self.changed)

    @property
    def _mute(self) -> bool:
        return self.over or self.exit is not None or not self._chan or self._chan.is_closing()

    # What asyncssh calls.

    def connection_made(self, chan: SSHChannel[bytes]) -> None:
        self._chan = chan
        self.agreed = not chan.is_closing()
        self.ended = self.over = self.lost = False
        self.wake()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self.heard += len(data)
        if self._deaf:
            return
        channel = Channel.STDERR if datatype == EXTENDED_DATA_STDERR else Channel.STDOUT
        if self._pieces and self._pieces[-1][0] is channel:
            self._pieces[-1][1].extend(data)
        else:
            self._pieces.append((channel, bytearray(data)))
        self._held += len(data)
        if self._held > _HELD and not self._paused and self._chan:
            self._paused = True
            self._chan.pause_reading()
        self.wake()

    def eof_received(self) -> bool:
        self.ended = True
        self.wake()
        return True  # the guest may still listen

    def exit_status_received(self, status: int) -> None:
        self.exit = Exit(status)
        self.wake()

    def exit_signal_received(
        self,
        signal: str,
        core_dumped: bool,  # noqa: FBT001  # asyncssh calls it by position
        msg: str,
        lang: str,
    ) -> None:
        # OpenSSH has no name for some, and says that.
        self.exit = Exit(None, _NUMBERS.get(signal))
        self.wake()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = exc is not None or not self.ended
        self.over = self.ended = True
        self.wake()
