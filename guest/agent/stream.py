"""One stream of a connection, as the guest sees it: what either side may still send, and the end.

A verb is a subclass: it answers `on_*`, calls `data`, `note`, `result` and `fail`, and is asked to
`produce` when it has put itself into the link's queue and its turn has come.
"""

from __future__ import annotations

import errno
import os

import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from link import Link

# Credit is given back in pieces of this size, so that few frames do it: one for two full frames.
# The sender can still pay for two more.
_GRANT_BYTES = wire.WINDOW // 3

_CODES = {
    errno.ENOENT: "not-found",
    errno.ENOTDIR: "not-found",
    errno.ESRCH: "not-found",
    errno.EACCES: "denied",
    errno.EPERM: "denied",
    errno.EEXIST: "exists",
    errno.EINVAL: "invalid",
    errno.ECONNREFUSED: "refused",
}


class Refused(Exception):
    """The request cannot be served; the host is told why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def refusal(error: OSError, about: str = "") -> Refused:
    """Put an error of the system into the words of the protocol."""
    number = error.errno or 0
    text = f"{errno.errorcode.get(number, number)}: {os.strerror(number)}"
    return Refused(_CODES.get(number, "failed"), f"{about}: {text}" if about else text)


class Stream:
    """A stream that is open."""

    def __init__(self, link: Link, number: int) -> None:
        self.link = link
        self.number = number
        self.credit = wire.WINDOW  # what we may send
        self.allowed = wire.WINDOW  # what the host may send
        self.ended = False  # the host has sent its END
        self._owed = 0

    # What the host sends; a verb that does not expect it refuses.

    def on_data(self, channel: int, payload: bytes) -> None:
        raise wire.Broken(f"nothing is read on stream {self.number}")

    def on_note(self, fields: wire.Fields) -> None:
        raise wire.Broken(f"nothing is noted on stream {self.number}")

    def on_end(self) -> None:
        """Learn that the host sends no more."""

    def on_cancel(self) -> None:
        self.fail("cancelled", "cancelled by the host")

    def on_credit(self) -> None:
        """Learn that more may be sent."""
        self.link.enqueue(self)

    def on_over(self) -> None:
        """Learn that the stream is over, whoever ended it; the connection may be gone."""

    def produce(self) -> None:
        """Send about one frame, and enqueue again if there is more."""

    # What we send.

    def affords(self, payload: bytes) -> bool:
        return self.credit >= wire.cost(payload)

    def data(self, payload: bytes, channel: int = wire.MAIN) -> None:
        self.credit -= wire.cost(payload)
        self.link.send(wire.DATA, self.number, payload, channel)

    def note(self, fields: wire.Fields) -> None:
        payload = wire.encode(fields)
        self.credit -= wire.cost(payload)
        self.link.send(wire.NOTE, self.number, payload)

    def end(self) -> None:
        self.link.send(wire.END, self.number)

    def consumed(self, payload: bytes) -> None:
        """Give back what a frame took from the host's window."""
        self._owed += wire.cost(payload)
        if self._owed >= _GRANT_BYTES:
            self.allowed += self._owed
            self.link.send(wire.CREDIT, self.number, wire.credit(self._owed))
            self._owed = 0

    def result(self, fields: wire.Fields) -> None:
        self.link.send(wire.RESULT, self.number, wire.encode(fields))
        self.link.close(self)

    def fail(self, code: str, message: str) -> None:
        text = message.encode(errors="replace")[:2048]
        self.link.send(wire.ERROR, self.number, wire.encode({"code": code.encode(), "text": text}))
        self.link.close(self)


class Cancelled(Stream):
    """A stream of ours that we have cancelled; what the host had sent before it knew is dropped."""

    def __init__(self, link: Link, number: int, allowed: int) -> None:
        super().__init__(link, number)
        self.allowed = allowed

    def on_data(self, channel: int, payload: bytes) -> None:
        pass
