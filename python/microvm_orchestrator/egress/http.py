"""One connection of a guest: requests that are read with suspicion, and their answers.

Everything that comes is from an attacker: heads, bodies and the time for each are bounded, and what
two readers could understand in two ways is refused. A guest that hangs up, in whole or in half,
is taken to have left. Above stands the endpoint; below, h11 and a stream of bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from http.client import responses

import anyio
import h11
from anyio.abc import ByteStream

from microvm_orchestrator.splice import GONE

HEAD_MOST = 65_536
HEADERS_MOST = 128
# What is read of the next request while one is being answered.
_AHEAD_MOST = 65_536
# How much of a body that nobody wants is read, so that its sender reads the refusal.
_DRAIN_MOST = 1 << 20
_DRAIN_S = 2.0
_CHUNK = 65_536
# Each chunk costs the daemon a moment, however small it is.
_PIECES_FREE = 1000
_PIECE_LEAST = 64
_PLAIN = {431: "its head is too large", 501: "its transfer encoding is not known"}


@dataclass(frozen=True, slots=True)
class Patience:
    """For how long a guest is waited for, in seconds."""

    # Clients keep connections for later; the pools of none hold them longer.
    idle: float = 330.0
    # A head is a few packets.
    head: float = 30.0
    # Between two pieces of a body, and for all of it.
    piece: float = 60.0
    body: float = 900.0
    # Until it takes its answer; its machine may be paused.
    send: float = 300.0


class Refusal(Exception):
    """A request that is not let through; the guest is told why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of a request."""

    method: str
    target: str
    # Names in lower case.
    headers: tuple[tuple[str, str], ...]

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def length(self) -> int | None:
        """The length of the body, where it was told before."""
        told = self.get("content-length")
        return None if told is None else int(told)

    @property
    def has_body(self) -> bool:
        return self.length not in {None, 0} or self.get("transfer-encoding") is not None

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)


class Connection:
    """Requests of one guest, one after the other."""

    def __init__(self, stream: ByteStream, patience: Patience) -> None:
        self._stream = stream
        self._patience = patience
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MOST)
        self._whole = anyio.Event()
        self._method = b""
        self._begun = False
        # Lengths of bodies, of the request that is read or answered now.
        self.taken = 0
        self.given = 0

    @property
    def answered(self) -> bool:
        """Whether an answer has begun."""
        return self._begun

    async def request(self) -> Head | None:
        """Wait for the next request; None when there is none. Raises: Refusal."""
        self._whole = anyio.Event()
        self._begun = False
        self.taken = self.given = 0
        event = self._next()
        if event is h11.NEED_DATA:
            with anyio.move_on_after(self._patience.idle) as idle:
                await self._take()
            if idle.cancelled_caught:
                return None
            event = self._next()
        with anyio.move_on_after(self._patience.head) as slow:
            while event is h11.NEED_DATA:
                await self._take()
                event = self._next()
        if slow.cancelled_caught:
            raise Refusal(408, f"the head of a request took longer than {self._patience.head:g} s")
        if not isinstance(event, h11.Request):
            return None
        self._method = event.method
        return _head(event)

    async def body(self, most: int) -> AsyncGenerator[bytes]:
        """Read the body, of at most so many bytes. Raises: Refusal."""
        too_large = Refusal(413, f"the body is larger than {most} bytes")
        if self._h11.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        deadline = anyio.current_time() + self._patience.body
        pieces = 0
        while True:
            event = self._next()
            if event is h11.NEED_DATA:
                left = min(self._patience.piece, deadline - anyio.current_time())
                with anyio.move_on_after(left) as patience:
                    await self._take()
                if patience.cancelled_caught:
                    raise Refusal(408, "the body of the request did not come in time")
            elif isinstance(event, h11.Data):
                self.taken += len(event.data)
                pieces += 1
                if self.taken > most:
                    raise too_large
                if pieces > _PIECES_FREE and self.taken < pieces * _PIECE_LEAST:
                    raise Refusal(400, "the body of the request comes in chunks that are too small")
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self._whole.set()
                return
            else:
                raise Refusal(400, "the body of the request ended early")

    async def gone(self) -> None:
        """Return once the guest has hung up. What it sends meanwhile is kept, up to a limit."""
        await self._whole.wait()
        ahead = 0
        while ahead < _AHEAD_MOST:
            try:
                data = await self._stream.receive(_CHUNK)
            except GONE:
                return
            ahead += len(data)
            self._h11.receive_data(data)
        await anyio.sleep_forever()

    async def begin(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Begin an answer."""
        self._begun = True
        phrase = responses.get(status, "")
        fields = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]
        await self._send(
            h11.Response(status_code=status, headers=fields, reason=phrase.encode("ascii"))
        )

    async def give(self, data: bytes) -> None:
        """Send a piece of the answer."""
        if data:
            self.given += len(data)
            await self._send(h11.Data(data=data))

    async def end(self) -> None:
        await self._send(h11.EndOfMessage())

    async def answer(
        self,
        status: int,
        body: bytes,
        kind: str,
        headers: Iterable[tuple[str, str]] = (),
        *,
        last: bool = False,
    ) -> None:
        """Answer in one piece; after the `last` one the connection ends."""
        fields = [("content-type", kind), ("content-length", str(len(body))), *headers]
        # A body that was not read may hold what looks like another request, or never end.
        drained = await self._drained()
        fields += [] if drained and not last else [("connection", "close")]
        await self.begin(status, fields)
        # Of what is only asked for its head, h11 sends no more.
        if self._method != b"HEAD":
            await self.give(body)
        await self.end()

    def abort(self) -> None:
        """Give up an answer that has begun: its reader sees that it is not whole."""
        self._h11.send_failed()

    def next_cycle(self) -> bool:
        """Get ready for the next request, if there may be one."""
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
            return True
        return False

    def unwrap(self) -> tuple[ByteStream, bytes]:
        """Give the stream, and what came behind the request, once HTTP is over."""
        return self._stream, self._h11.trailing_data[0]

    async def _drained(self) -> bool:
        """Read the rest of a body that nobody wants; False when it does not end soon."""
        if self._whole.is_set():
            return True
        if self._h11.they_are_waiting_for_100_continue or self._h11.their_state is h11.ERROR:
            return False
        with anyio.move_on_after(_DRAIN_S), contextlib.suppress(Refusal, *GONE):
            async for _ in self.body(self.taken + _DRAIN_MOST):
                pass
            return True
        return False

    def _next(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        try:
            return self._h11.next_event()
        except h11.RemoteProtocolError as error:
            hint = error.error_status_hint
            why = _PLAIN.get(hint, "it is malformed, or ended early")
            raise Refusal(hint, f"this is not HTTP/1.1 as it should be: {why}") from None

    async def _take(self) -> None:
        try:
            data = await self._stream.receive(_CHUNK)
        except anyio.EndOfStream:
            data = b""
        self._h11.receive_data(data)

    async def _send(self, event: h11.Event) -> None:
        data = self._h11.send(event)
        if data:
            try:
                with anyio.fail_after(self._patience.send):
                    await self._stream.send(data)
            except TimeoutError as error:
                raise anyio.BrokenResourceError from error


def _head(event: h11.Request) -> Head:
    """Take over the head of a request. Raises: Refusal when it can be read in two ways."""
    headers = tuple(
        (name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers
    )
    if len(headers) > HEADERS_MOST:
        raise Refusal(431, f"the request has more than {HEADERS_MOST} headers")
    size = len(event.method) + len(event.target) + sum(len(n) + len(v) for n, v in event.headers)
    if size > HEAD_MOST:
        raise Refusal(431, f"the head of the request is larger than {HEAD_MOST} bytes")
    if event.http_version not in {b"1.0", b"1.1"}:
        raise Refusal(505, "only HTTP/1.1 is spoken here")
    names = {name for name, _ in headers}
    if {"content-length", "transfer-encoding"} <= names:
        raise Refusal(400, "the request tells the length of its body in two ways")
    return Head(event.method.decode("ascii"), event.target.decode("ascii"), headers)
