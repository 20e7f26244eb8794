"""Where the words of a script begin, behind what an image says at every login.

Each channel has a line of the script's own: what comes before it is noise, which is told only when
the script never begins. Above is `jobs`; the lines are written by `script`.
"""

from __future__ import annotations

import re

from microvm_orchestrator import errors
from microvm_orchestrator.machine.channel.stream import printable
from microvm_orchestrator.machine.shell import Channel

# What an image may print at every login.
_MAX_NOISE = 64 * 1024
_MAX_COMPLAINT = 2048


class Beginning:
    """What both channels have said until the script began."""

    def __init__(self, nonce: bytes) -> None:
        # Whether it goes ahead, and what it said then or why not.
        self.verdict: tuple[bool, bytes] | None = None
        # How much was said that is not the command's.
        self.skipped = 0
        self._noise = {channel: bytearray() for channel in Channel}
        self._marks = {
            Channel.STDOUT: re.compile(nonce + rb" (ok|no) ([^\r\n]*)\r?\n"),
            Channel.STDERR: re.compile(nonce + rb"\n"),
        }

    def sift(self, channel: Channel, data: bytes) -> bytes:
        """Return what the command said of a piece. Raises: ProtocolBroken."""
        if channel not in self._marks:
            return data
        noise = self._noise[channel]
        noise += data
        mark = self._marks[channel].search(noise)
        if not mark:
            self._bound(channel)
            return b""
        if channel is Channel.STDOUT:
            self.verdict = mark[1] == b"ok", bytes(mark[2])
        del self._marks[channel]
        self.skipped += mark.end()
        return bytes(noise[mark.end() :])

    def complaint(self) -> str:
        """Return what was said instead."""
        said = self._noise[Channel.STDERR] or self._noise[Channel.STDOUT]
        return printable(bytes(said[-_MAX_COMPLAINT:]))

    def _bound(self, channel: Channel) -> None:
        noise = self._noise[channel]
        if len(noise) <= _MAX_NOISE:
            return
        if channel is Channel.STDOUT:
            raise errors.ProtocolBroken(f"the guest said {_MAX_NOISE} bytes before the command")
        self.skipped += len(noise) - _MAX_COMPLAINT
        del noise[:-_MAX_COMPLAINT]
