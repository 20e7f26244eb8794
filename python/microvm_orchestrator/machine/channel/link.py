"""A connection to the agent of a guest: one task reads, another writes.

A link is alive until something breaks it; what did is kept, and everybody who waits is told. It is
never repaired: whoever owns the machine connects anew, and the agent starts over with the new one.
Above is `connection`; below are the streams and the frames.
"""

from __future__ import annotations

import secrets
import socket
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import anyio.lowlevel

from microvm_orchestrator import errors
from microvm_orchestrator.machine import wire
from microvm_orchestrator.machine.channel.outbox import Outbox
from microvm_orchestrator.machine.channel.stream import Stream, pack, printable, renewed

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from anyio.abc import ByteStream

_READ_BYTES = 128 * 1024
# The rest of an older connection that may lie before the agent's answer: what its queue, the port
# and the hypervisor hold is a tenth of this.
_MAX_SKIP = 16 << 20
# A guest that sends tiny frames must not keep the loop from everybody else.
_FRAMES_AT_ONCE = 256
_MAX_EVENTS = 256
# What a guest may say that nobody has granted it (reports, streams of its own, what belongs to a
# stream that is over): so much at once and so much a second, each frame at a cost beside its bytes.
# A guest that says more is read no faster.
_UNASKED_AT_ONCE = 4 << 20
_UNASKED_A_SECOND = 2 << 20
_UNASKED_FRAME = 1024
# Answers to streams of a guest that it has not read yet; it has fewer streams.
_MAX_UNREAD = 1024
# How long a request waits for one of the others to end.
_ROOM_S = 15.0
_ONLY_MAIN = frozenset((wire.MAIN,))


class Link:
    """One connection, and what became of it."""

    def __init__(self, transport: ByteStream) -> None:
        self.outbox = Outbox()
        # By the number of a stream that listens: who takes those that the guest opens.
        self.listeners: dict[int, Callable[[Stream], None]] = {}
        self.events: deque[wire.Fields] = deque(maxlen=_MAX_EVENTS)
        self.happened = anyio.Event()
        self.gone = anyio.Event()
        self._transport = transport
        self._nonce = secrets.token_bytes(wire.NONCE_BYTES)
        self._hello: wire.Fields = {}
        self._greeted = anyio.Event()
        self._reader = wire.FrameReader()
        self._streams: dict[int, Stream] = {}
        self._room = anyio.Event()
        self._last = -1  # the last stream that we have opened
        self._last_of_guest = 0
        # Of what it said unasked, up to which moment it is used up.
        self._unasked = 0.0
        self._unasked_at = anyio.current_time()
        self._failure: errors.OrchestratorError | None = None

    @property
    def alive(self) -> bool:
        return self._failure is None

    @property
    def greeted(self) -> bool:
        return bool(self._hello)

    def check(self) -> None:
        """Raise what broke the link, if it is broken."""
        if self._failure:
            raise type(self._failure)(self._failure.message, hint=self._failure.hint)

    def fail(self, failure: errors.OrchestratorError) -> None:
        """Break the link and tell everybody; the first reason counts."""
        if self._failure:
            return
        self._failure = failure
        self.gone.set()
        self._greeted.set()
        self.happened.set()
        self.outbox.close()
        self._room.set()
        for stream in self._streams.values():
            stream.wake()

    # Its life.

    async def run(self) -> None:
        """Read and write until the link is broken, and close the transport then.

        Neither is ever cancelled: half a frame that was written cannot be taken back, and a
        cancelled read of anyio's loses a race with what arrives.
        """
        with anyio.CancelScope(shield=True):
            async with self._transport, anyio.create_task_group() as tasks:
                tasks.start_soon(self._read)
                tasks.start_soon(self._write)
                await self.gone.wait()
                if not shut_down(self._transport):
                    await self._transport.aclose()

    async def greeting(self) -> wire.Fields:
        """Wait for the agent's HELLO. Raises: ProtocolBroken, MachineUnreachable."""
        await self._greeted.wait()
        self.check()
        return self._hello

    async def _read(self) -> None:
        with self._broken_by_transport(), self._broken_by_guest():
            version, newest = await self._find_answer()
            if version != wire.VERSION:
                raise wire.Broken(f"version {newest} of the protocol; we speak {wire.VERSION}")
            while self.alive:
                for count, frame in enumerate(self._reader.frames(), 1):
                    self._act(*frame)
                    if count % _FRAMES_AT_ONCE == 0:
                        await anyio.lowlevel.checkpoint()
                await self._slow_down()
                await self._receive()

    async def _write(self) -> None:
        with self._broken_by_transport():
            await self._transport.send(wire.preamble(self._nonce, wire.VERSION, wire.VERSION))
            await self.outbox.pump(self._transport)

    async def _receive(self) -> None:
        self._reader.buffer += await self._transport.receive(_READ_BYTES)

    async def _slow_down(self) -> None:
        """Let a guest that says much unasked wait until it may have said it."""
        now = anyio.current_time()
        used = self._unasked - (now - self._unasked_at) * _UNASKED_A_SECOND
        self._unasked, self._unasked_at = max(0.0, used), now
        if self._unasked > _UNASKED_AT_ONCE:
            with anyio.move_on_after((self._unasked - _UNASKED_AT_ONCE) / _UNASKED_A_SECOND):
                await self.gone.wait()

    # Streams.

    async def open(
        self,
        fields: Mapping[str, int | bytes | list[bytes]],
        channels: frozenset[int] = _ONLY_MAIN,
    ) -> Stream:
        """Open a stream, when one of those that a guest takes is free. The caller must leave it.

        Raises: what broke the link; TooLarge or InvalidInput for a request that cannot travel.
        """
        payload = pack(wire.OPEN, fields)
        try:
            with anyio.fail_after(_ROOM_S):
                while self.alive and sum(n % 2 for n in self._streams) >= wire.MAX_STREAMS:
                    await self._room.wait()
        except TimeoutError:
            raise errors.Unavailable(
                f"{wire.MAX_STREAMS} streams into the guest are open; none has ended"
            ) from None
        self.check()
        self._last += 2
        if self._last > wire.MAX_STREAM:
            self.fail(errors.MachineUnreachable("the connection has used up its streams"))
            self.check()
        stream = self._streams[self._last] = Stream(self, self._last, channels)
        self.outbox.push(wire.frame(wire.OPEN, stream.number, payload))
        return stream

    def remove(self, stream: Stream) -> None:
        """Forget a stream that has been answered."""
        self._streams.pop(stream.number, None)
        self.outbox.drop_grants(stream.number)
        self._room = renewed(self._room)

    def forget(self, exec_id: str) -> None:
        """Let the agent let go of a command."""
        if self.alive:
            self.outbox.push(wire.frame(wire.FORGET, 0, exec_id.encode("ascii")))

    # What the guest sends.

    def _act(self, kind: int, number: int, channel: int, payload: bytes) -> None:
        if not self._greeted.is_set():
            if kind != wire.HELLO:
                raise wire.Broken("something before its HELLO")
            self._hello = wire.decode(payload)
            self._greeted.set()
        elif stream := self._streams.get(number):
            try:
                stream.take(kind, channel, payload)
            except wire.Broken as error:
                raise wire.Broken(f"on stream {number}: {error}") from None
        else:
            self._unasked += len(payload) + _UNASKED_FRAME
            self._act_unasked(kind, number, payload)

    def _act_unasked(self, kind: int, number: int, payload: bytes) -> None:
        if kind == wire.EVENT:
            self._on_event(wire.decode(payload))
        elif kind == wire.OPEN:
            self._on_open(number, wire.decode(payload))
        elif number % 2 or not number or number > self._last_of_guest:
            raise wire.Broken(f"a {wire.NAMES[kind]} frame on stream {number}, which is not open")

    def _on_event(self, fields: wire.Fields) -> None:
        if fields.get("event") == b"broken":
            text = printable(wire.blob(fields, "text", 1024, b""))
            raise wire.Broken(f"that we broke a rule: {text}")
        self.events.append(fields)
        self.happened = renewed(self.happened)

    def _on_open(self, number: int, fields: wire.Fields) -> None:
        if number % 2 or number <= self._last_of_guest:
            raise wire.Broken(f"an OPEN frame for stream {number}, which is not the next")
        if sum(1 for other in self._streams if not other % 2) >= wire.MAX_STREAMS:
            raise wire.Broken(f"more than {wire.MAX_STREAMS} OPEN frames for streams of its own")
        if self.outbox.unread > _MAX_UNREAD:
            raise wire.Broken("OPEN frames without end, and reads no answer to them")
        self._last_of_guest = number
        stream = self._streams[number] = Stream(self, number, _ONLY_MAIN)
        serve = self.listeners.get(wire.integer(fields, "listener", 1, wire.MAX_STREAM))
        if serve:
            serve(stream)
        else:  # cancelled while the guest accepted it
            stream.finish("nobody listens any more")

    # How it breaks.

    @contextmanager
    def _broken_by_guest(self) -> Generator[None]:
        try:
            yield
        except wire.Broken as error:
            if self.greeted and wire.MARKER in self._reader.buffer:
                self.fail(errors.MachineUnreachable("another agent has started in the guest"))
            else:
                self.fail(errors.ProtocolBroken(f"the guest sent {error}"))

    @contextmanager
    def _broken_by_transport(self) -> Generator[None]:
        try:
            yield
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            self.fail(errors.MachineUnreachable("the connection to the guest has ended"))

    async def _find_answer(self) -> tuple[int, int]:
        """Skip what was meant for an older connection, up to the answer to this one."""
        buffer, wanted, skipped = self._reader.buffer, wire.MARKER + self._nonce, 0
        while (at := buffer.find(wanted)) < 0 or len(buffer) - at < wire.PREAMBLE_BYTES:
            rest = max(0, len(buffer) - wire.PREAMBLE_BYTES) if at < 0 else at
            skipped += rest
            del buffer[:rest]
            if skipped > _MAX_SKIP:
                raise wire.Broken(f"{skipped} bytes that answer nothing")
            await self._receive()
        _, version, newest = wire.read_preamble(buffer[at : at + wire.PREAMBLE_BYTES])
        del buffer[: at + wire.PREAMBLE_BYTES]
        return version, newest


def shut_down(transport: ByteStream) -> bool:
    """Let whoever waits for a socket go on, and find it ended; tell whether it is one.

    anyio does not like a socket to be closed, or a task to be cancelled, that is waited for.
    """
    raw_socket = anyio.abc.SocketAttribute.raw_socket
    connection = transport.extra(raw_socket, None)  # noqa: S610 # no query of Django's
    if connection is not None:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
    return connection is not None
