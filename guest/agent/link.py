"""The guest's end of the channel: one byte stream, many streams, a new host at any moment.

A host may come in the middle of a frame of the one before it. So all that arrives is searched for
the marker that begins a connection; until one is found after a mistake, nothing is acted upon.
What goes out is a short queue that streams fill in turns, so none starves another and none grows.
"""

from __future__ import annotations

import os

import wire
from engine import GONE, READ, WRITE
from outgoing import Outgoing
from stream import Cancelled, Refused, Stream, refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from engine import Engine

    # Makes the stream of a request; None when the request is answered already.
    Opener = Callable[["Link", int, wire.Fields], Stream | None]

# What is read before other descriptors are looked after.
_BURST_BYTES = 256 * 1024
_READ_BYTES = 64 * 1024
# A virtio port hands out a page at the most, so a full page means that there may be more.
_PAGE_BYTES = 4096
_MAX_EVENTS = 32


class Link:
    """A transport and the streams on it."""

    def __init__(
        self,
        engine: Engine,
        find_opener: Callable[[str], Opener],
        hello: Callable[[], wire.Fields],
    ) -> None:
        self.engine = engine
        self.streams: dict[int, Stream] = {}
        # What is told when the transport has ended, or seems to; the port decides what that means.
        self.on_gone: Callable[[], None] = lambda: None
        self.on_forget: Callable[[str], None] = lambda _: None
        self._find_opener = find_opener
        self._hello = hello
        self._fd = -1
        self._synced = False  # a host has begun this connection
        self._unheard = False  # it has closed its end for what we write
        self._reader = wire.FrameReader()
        self._out = Outgoing()
        self._blocked = False
        self._paused = False  # nobody seems to be there
        self._ready: dict[Stream, None] = {}
        self._highest = 0  # the last stream that the host has opened
        self._own = 0  # the last stream that we have opened
        self._events: list[bytes] = []
        engine.between.append(self._pump)

    # The transport.

    def connect(self, fd: int) -> None:
        """Take a descriptor that does not block; what was said on another one is over."""
        self._fd = fd
        self._blocked = self._paused = False
        self.forget()
        self._watch()

    def beacon(self) -> None:
        """Tell a host that still talks to an agent before this one that it has to begin anew."""
        self._out.add(wire.preamble(bytes(wire.NONCE_BYTES), 0, wire.VERSION))

    def disconnect(self) -> None:
        if self._fd >= 0:
            self.engine.unwatch(self._fd)
        self._fd = -1
        self._blocked = False
        self.forget()

    def pause(self) -> None:
        """Neither hear nor speak until `resume`, and forget nothing."""
        self.engine.unwatch(self._fd)
        self._blocked = False
        self._paused = True

    def resume(self) -> None:
        """Go on; a new host may have said something first, and that makes the old one's void."""
        self._paused = False
        self.receive()
        if not self._paused:
            self.flush()
            self._watch()

    def flush(self) -> None:
        """Write what waits, as far as the transport takes it."""
        if self._blocked or self._paused or self._fd < 0:
            return
        try:
            self._out.write(self._fd)
        except BlockingIOError:
            self._blocked = True
            self._watch()
        except OSError:  # the host hears no more, but its last words may still be unread
            self._out.clear()
            self._unheard = True

    def _watch(self) -> None:
        events = 0 if self._out.full else READ
        if self._blocked:
            events |= WRITE
        self.engine.watch(self._fd, events, self._on_ready)

    def _on_ready(self, events: int) -> None:
        if events & WRITE and self._blocked:
            self._blocked = False
            self.flush()
            self._watch()
        if events & READ:
            self.receive()
            if self._blocked:  # there may be too much to say by now to hear more
                self._watch()
        elif events & GONE:
            self.on_gone()

    # What comes in.

    def receive(self) -> None:
        """Take in what the transport has, as far as a burst goes."""
        buffer, before = self._reader.buffer, len(self._reader.buffer)
        ended = False
        while len(buffer) - before < _BURST_BYTES:
            try:
                data = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            buffer += data
            if len(data) < _PAGE_BYTES:
                ended = not data
                break
        self._read(before)
        if ended:
            self.on_gone()

    def _read(self, before: int) -> None:
        buffer = self._reader.buffer
        begin = max(0, before - len(wire.MARKER)) if self._synced else 0
        while (at := buffer.find(wire.MARKER, begin)) >= 0:
            rest = buffer[at:]
            del buffer[at:]
            self._obey()  # the last words of the host before
            buffer[:] = rest
            if not self._begin():
                return
            begin = 0
        self._obey()

    def _obey(self) -> None:
        """Act on the frames that are whole; without a host, keep what may begin a marker."""
        if not self._synced:
            del self._reader.buffer[: -len(wire.MARKER)]
            return
        try:
            for kind, number, channel, payload in self._reader.frames():
                self._act(kind, number, channel, payload)
        except wire.Broken as error:
            self.give_up(str(error))

    def give_up(self, reason: str) -> None:
        """Act on nothing more until a host begins a connection."""
        self.tell({"event": b"broken", "text": reason.encode(errors="replace")[:1024]})
        self._drop_streams()
        self._synced = False

    def _begin(self) -> bool:
        """Start over with the host whose preamble the buffer begins with, if it is all there."""
        buffer = self._reader.buffer
        self._forget_host()
        if len(buffer) < wire.PREAMBLE_BYTES:
            return False
        nonce, oldest, newest = wire.read_preamble(buffer)
        del buffer[: wire.PREAMBLE_BYTES]
        version = wire.VERSION if oldest <= wire.VERSION <= newest else 0
        self._out.add(wire.preamble(nonce, version, wire.VERSION))
        if version:
            self._synced = True
            self.send(wire.HELLO, 0, wire.encode(self._hello()))
            for event in self._events:
                self.send(wire.EVENT, 0, event)
            self._events.clear()
        return True

    def _act(self, kind: int, number: int, channel: int, payload: bytes) -> None:
        if kind == wire.OPEN:
            self._open(number, payload)
        elif kind == wire.FORGET:
            self.on_forget(payload.decode("ascii", "replace"))
        elif stream := self.streams.get(number):
            self._hand(stream, kind, channel, payload)
        elif number > (self._highest if number % 2 else self._own):
            raise wire.Broken(f"a {wire.NAMES[kind]} frame on stream {number}, which is not open")

    def _hand(self, stream: Stream, kind: int, channel: int, payload: bytes) -> None:
        if kind in (wire.DATA, wire.NOTE):
            stream.allowed -= wire.cost(payload)
            if stream.allowed < 0 or stream.ended:
                raise wire.Broken(f"stream {stream.number} was sent more than it may be")
            if kind == wire.DATA:
                stream.on_data(channel, payload)
            else:
                stream.consumed(payload)
                stream.on_note(wire.decode(payload))
        elif kind == wire.CREDIT:
            stream.credit += wire.read_credit(payload)
            if stream.credit > wire.WINDOW:
                raise wire.Broken(f"stream {stream.number} was granted more than a window")
            stream.on_credit()
        elif kind == wire.END:
            if stream.ended:
                raise wire.Broken(f"stream {stream.number} has ended twice")
            stream.ended = True
            stream.on_end()
        elif kind == wire.CANCEL and stream.number % 2:
            stream.on_cancel()
        elif kind in (wire.RESULT, wire.ERROR) and not stream.number % 2:
            self.close(stream)
        else:
            raise wire.Broken(f"a {wire.NAMES[kind]} frame on stream {stream.number}")

    def _open(self, number: int, payload: bytes) -> None:
        if not number % 2 or number <= self._highest:
            raise wire.Broken(f"stream {number} cannot be opened")
        self._highest = number
        try:
            stream = self._make(number, wire.decode(payload))
        except wire.Broken as error:
            Stream(self, number).fail("invalid", str(error))
        except Refused as error:
            Stream(self, number).fail(error.code, error.message)
        except OSError as error:
            found = refusal(error)
            Stream(self, number).fail(found.code, found.message)
        else:
            if stream is not None:
                self.streams[number] = stream
                self.enqueue(stream)

    def _make(self, number: int, fields: wire.Fields) -> Stream | None:
        verb = wire.blob(fields, "verb", 32).decode("ascii", "replace")
        if sum(1 for other in self.streams if other % 2) >= wire.MAX_STREAMS:
            raise Refused("busy", f"{wire.MAX_STREAMS} streams are open")
        return self._find_opener(verb)(self, number, fields)

    # What goes out.

    def open(self, make: Callable[[Link, int], Stream], fields: wire.Fields) -> Stream | None:
        """Open a stream to the host; None when there are too many, or no host."""
        open_now = sum(1 for other in self.streams if not other % 2)
        if not self._synced or open_now >= wire.MAX_STREAMS:
            return None
        self._own += 2
        stream = self.streams[self._own] = make(self, self._own)
        self.send(wire.OPEN, stream.number, wire.encode(fields))
        return stream

    def send(self, kind: int, number: int = 0, payload: bytes = b"", channel: int = 0) -> None:
        if self._synced and not self._unheard:
            self._out.add(wire.frame(kind, number, payload, channel))

    def tell(self, fields: wire.Fields) -> None:
        """Report something that happened; what happens without a host is told to the next."""
        event = wire.encode(fields)
        heard = self._synced and not self._unheard and not self._paused
        if heard and self._out.has_room:
            self.send(wire.EVENT, 0, event)
        else:
            self._events = [*self._events[1 - _MAX_EVENTS :], event]

    def enqueue(self, stream: Stream) -> None:
        """Let a stream produce when its turn comes."""
        self._ready[stream] = None

    def close(self, stream: Stream) -> None:
        """Take a stream out whose last frame was sent or received."""
        self._ready.pop(stream, None)
        if self.streams.pop(stream.number, None) is not None:
            stream.on_over()

    def retire(self, stream: Stream) -> None:
        """Cancel a stream of our own; its number is free when the host has answered."""
        self._ready.pop(stream, None)
        self.streams[stream.number] = Cancelled(self, stream.number, stream.allowed)
        self.send(wire.CANCEL, stream.number)
        stream.on_over()

    def _pump(self) -> bool:
        while self._ready and self._out.has_room:
            stream = next(iter(self._ready))
            del self._ready[stream]
            stream.produce()
        self.flush()
        return bool(self._ready) and self._out.has_room

    def forget(self) -> None:
        """End all that was begun with the host; the next one begins with its marker."""
        self._reader.buffer.clear()
        self._forget_host()

    def _forget_host(self) -> None:
        self._synced = self._unheard = False
        self._out.clear()
        self._highest = self._own = 0
        self._drop_streams()

    def _drop_streams(self) -> None:
        self._ready.clear()
        streams = list(self.streams.values())
        self.streams.clear()
        for stream in streams:
            stream.on_over()
