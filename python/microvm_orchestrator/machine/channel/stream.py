"""One exchange with a guest: a request, data both ways, one answer that ends it.

The task that reads puts what arrives here and never waits; whoever owns the stream takes it out and
so grants the guest more. The guest is held to its window, to the order of frames, and to the limits
of the verb: whatever else it says breaks the connection.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeAlias

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.machine import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from microvm_orchestrator.machine.channel.link import Link

# Credit is given back in pieces of this size, so that few frames do it: one for two full frames,
# each of which interrupts a guest for half a millisecond. The sender can still pay for two more.
_GRANT_BYTES = wire.WINDOW // 3
_MAX_TEXT = 2048

_REFUSALS: dict[str, type[errors.OrchestratorError]] = {
    "not-found": errors.NotFound,
    "exists": errors.AlreadyExists,
    "invalid": errors.InvalidInput,
    "too-large": errors.TooLarge,
    "busy": errors.Unavailable,
}


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes on one channel."""

    channel: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """A record about what follows."""

    fields: wire.Fields
    cost: int


@dataclass(frozen=True, slots=True)
class End:
    """The guest sends no more data."""


Item: TypeAlias = Data | Note | End


class Over(Exception):
    """The stream is over, so nothing can be sent; `answer` says how it ended."""


class Stream:
    """A stream that is open, seen from the host."""

    def __init__(self, link: Link, number: int, channels: frozenset[int]) -> None:
        self.link = link
        self.number = number
        self._channels = channels
        self._credit = wire.WINDOW  # what we may send
        self._allowed = wire.WINDOW  # what the guest may send
        self._owed = 0
        self._items: deque[Item] = deque()
        self._ended = False
        self._answer: wire.Fields | errors.OrchestratorError | None = None
        self._on_answer: Callable[[], None] | None = None  # once nobody takes what arrives
        self._arrived = anyio.Event()
        self._granted = anyio.Event()

    # What the owner does.

    async def receive(self, patience_s: float | None = None) -> list[Item]:
        """Return all that has arrived, in order; nothing when the stream is over.

        What was returned before counts as dealt with. Raises: what broke the connection, after
        everything that came before it; MachineUnreachable when nothing comes in `patience_s`.
        """
        if self._owed >= _GRANT_BYTES and not self.over:
            self._allowed += self._owed
            self.link.outbox.grant(self.number, self._owed)
            self._owed = 0
        while not self._items:
            if self.over:
                return []
            self.link.check()
            self._arrived = anyio.Event()
            await self._wait(self._arrived, patience_s)
        items = list(self._items)
        self._items.clear()
        self._owed += sum(_cost(item) for item in items)
        return items

    async def answer(self, within_s: float | None = None) -> wire.Fields:
        """Wait for the end, dropping what comes before it, and return what the guest answered.

        Raises: what the guest refused it with; what broke the connection; MachineUnreachable when
            the end does not come in time, whatever else comes.
        """
        try:
            with anyio.fail_after(within_s):
                while await self.receive():
                    pass
        except TimeoutError:
            raise _too_slow(within_s) from None
        if isinstance(self._answer, errors.OrchestratorError):
            raise self._answer
        return self._answer or {}

    async def note(self, patience_s: float | None = None) -> wire.Fields:
        """Wait for the record that a verb begins with; what else came with it is put back."""
        items = await self.receive(patience_s)
        if not items:
            await self.answer()
            self.broken("an answer before the record that comes first")
        first = items[0]
        if not isinstance(first, Note):
            self.broken("something before the record that comes first")
        self._owed -= sum(_cost(item) for item in items[1:])
        self._items.extendleft(reversed(items[1:]))
        return first.fields

    async def send(self, data: bytes, patience_s: float | None = None) -> None:
        """Send bytes as fast as the guest takes them. Raises: Over; what broke the connection."""
        for at in range(0, len(data), wire.MAX_DATA):
            for piece in wire.without_marker(data[at : at + wire.MAX_DATA]):
                if piece:
                    await self._send(wire.DATA, piece, patience_s)

    async def send_note(
        self, fields: Mapping[str, int | bytes | list[bytes]], patience_s: float | None = None
    ) -> None:
        """Send a record. Raises: InvalidInput, Over, what broke the connection."""
        await self._send(wire.NOTE, pack(wire.NOTE, fields), patience_s)

    def end(self) -> None:
        """Say that nothing more is sent."""
        self.link.outbox.push(wire.frame(wire.END, self.number))

    def finish(self, problem: str = "") -> None:
        """Answer a stream that the guest has opened."""
        if problem:
            fields = wire.encode({"code": b"failed", "text": problem.encode()[:_MAX_TEXT]})
            self.link.outbox.push(wire.frame(wire.ERROR, self.number, fields))
        else:
            self.link.outbox.push(wire.frame(wire.RESULT, self.number, wire.encode({})))
        self.link.remove(self)

    def leave(self, on_answer: Callable[[], None] = lambda: None) -> None:
        """Cancel what is not over, and do not wait; `on_answer` is called when it has ended."""
        self._items.clear()
        if self.over:
            on_answer()
        elif self.link.alive:
            self._on_answer = on_answer
            self.link.outbox.push(wire.frame(wire.CANCEL, self.number))

    def broken(self, rule: str) -> NoReturn:
        """Refuse to go on with a guest that broke a rule of this verb."""
        self.link.fail(errors.ProtocolBroken(f"the guest sent {rule}"))
        self.link.check()
        raise AssertionError

    @property
    def over(self) -> bool:
        return self._answer is not None

    @property
    def ended(self) -> bool:
        """Whether the guest has said that it sends no more."""
        return self._ended or self.over

    # What the task that reads does.

    def take(self, kind: int, channel: int, payload: bytes) -> None:
        """Take a frame from the guest. Raises: wire.Broken."""
        if kind in (wire.DATA, wire.NOTE):
            self._take_item(kind, channel, payload)
        elif kind == wire.CREDIT:
            amount = wire.read_credit(payload)
            self._credit += amount
            if not amount or self._credit > wire.WINDOW:
                raise wire.Broken("a grant of nothing, or of more than a window")
            self._granted = renewed(self._granted)
        elif kind == wire.END and not self._ended:
            self._ended = True
            self._put(End())
        elif kind in (wire.RESULT, wire.ERROR) and self.number % 2:
            fields = wire.decode(payload)
            self._answer = fields if kind == wire.RESULT else _refusal(fields)
            self._close()
        elif kind == wire.CANCEL and not self.number % 2 and not self.over:
            self._answer = errors.GuestRefused("the guest has closed the connection")
            self.wake()
        else:
            raise wire.Broken(f"a {wire.NAMES[kind]} frame where it has no place")

    def wake(self) -> None:
        """Let the owner look again."""
        self._arrived.set()
        self._granted = renewed(self._granted)

    def _take_item(self, kind: int, channel: int, payload: bytes) -> None:
        cost = wire.cost(payload)
        self._allowed -= cost
        if self._allowed < 0:
            raise wire.Broken("more than it was granted")
        if self._ended:
            raise wire.Broken("data behind its END")
        if kind == wire.NOTE:
            self._put(Note(wire.decode(payload), cost))
        elif channel in self._channels:
            self._put(Data(channel, payload))
        else:
            raise wire.Broken(f"data on channel {channel} of a stream that has none")

    def _put(self, item: Item) -> None:
        if not self._on_answer:
            self._items.append(item)
            self._arrived.set()

    def _close(self) -> None:
        self.link.remove(self)
        self.wake()
        if self._on_answer:
            self._on_answer()

    # Waiting.

    async def _send(self, kind: int, payload: bytes, patience_s: float | None) -> None:
        cost = wire.cost(payload)
        while self._credit < cost or self.over or not self.link.alive:
            self.link.check()
            if self.over:
                raise Over
            await self._wait(self._granted, patience_s)
        self._credit -= cost
        await self.link.outbox.send(wire.frame(kind, self.number, payload))

    async def _wait(self, event: anyio.Event, patience_s: float | None) -> None:
        if patience_s is None:
            await event.wait()
            return
        try:
            with anyio.fail_after(patience_s):
                await event.wait()
        except TimeoutError:
            raise _too_slow(patience_s) from None


def _too_slow(within_s: float | None) -> errors.MachineUnreachable:
    return errors.MachineUnreachable(f"the guest did not go on within {within_s:g} s")


def renewed(event: anyio.Event) -> anyio.Event:
    """Wake all who wait for an event, and return the one to wait for from now on."""
    event.set()
    return anyio.Event()


def pack(kind: int, fields: Mapping[str, int | bytes | list[bytes]]) -> bytes:
    """Write a record that a frame of this kind can carry. Raises: TooLarge, InvalidInput."""
    payload = wire.encode(fields)
    most = wire.LIMITS[kind][1]
    if len(payload) > most:
        raise errors.TooLarge(f"the request has {len(payload)} bytes; a guest takes {most}")
    if wire.MARKER in payload:
        raise errors.InvalidInput("the request holds the marker that begins a connection")
    return payload


def _cost(item: Item) -> int:
    if isinstance(item, Data):
        return wire.cost(item.payload)
    return item.cost if isinstance(item, Note) else 0


def _refusal(fields: wire.Fields) -> errors.OrchestratorError:
    code = wire.blob(fields, "code", 32).decode("ascii", "replace")
    text = printable(wire.blob(fields, "text", _MAX_TEXT))
    return _REFUSALS.get(code, errors.GuestRefused)(f"the guest refused: {text}")


def printable(text: bytes) -> str:
    """Return what a guest said as one line that harms no terminal and no log."""
    return "".join(
        char if char.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for char in text.decode(errors="replace")
    )
