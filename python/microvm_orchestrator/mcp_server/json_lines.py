"""JSON-RPC messages as lines of a byte stream, in the two halves that the SDK reads and writes.

A line that is no message is answered here and the stream goes on; so is one that is too long. There
are no tasks: reading happens in whoever wants a message, writing in whoever has something to say.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, NoReturn, cast

import anyio
from mcp.shared.message import ServerMessageMetadata, SessionMessage
from mcp.types import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCNotification,
    JSONRPCRequest,
    jsonrpc_message_adapter,
)
from pydantic import ValidationError
from pydantic_core import from_json

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from anyio.abc import ByteStream
    from mcp.types import RequestId

    from microvm_orchestrator.mcp_server.callers import Peer

# As much as the HTTP door takes; a larger thing belongs in a file, not in a model's context.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
# Far more than a client has use for; each costs a task and its memory.
MAX_UNANSWERED = 1000
# A client that reads nothing for this long has hung; its connection is ended.
WRITE_TIMEOUT_S = 20.0
# A client may close its side right after its last request and still read the answers.
LINGER_S = 0.5
_CHUNK_BYTES = 65_536

# Where the id of a message too long to parse may stand so that it is surely the message's own:
# as the first member, after the version, or as the last one.
_ID = rb'"id"\s*:\s*(-?\d{1,18}|"[^"\\\x00-\x1f]{0,200}")'
_ID_FIRST = re.compile(rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?' + _ID + rb"\s*,")
_ID_LAST = re.compile(rb",\s*" + _ID + rb"\s*\}\s*$")
_ID_ROOM = 1024
_HEARD_BEFORE = 8


class _Out:
    """The writing half: one message at a time, whole or not at all."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._turn = anyio.Lock(fast_acquire=True)
        self._broken = False
        self.unanswered = 0
        self.quiet = anyio.Event()

    async def send(self, item: SessionMessage, /) -> None:
        message = item.message
        line = message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n"
        async with self._turn:
            await self._write(line)
        if not hasattr(message, "method"):
            await self.settled()

    async def settled(self) -> None:
        """Count a request as done with: it was answered, or cancelled and never will be."""
        self.unanswered -= 1
        if self.unanswered <= 0:
            self.quiet.set()

    async def _write(self, line: bytes) -> None:
        if self._broken:
            raise anyio.BrokenResourceError
        # Half a line would garble every later one, so a started write is not cancelled.
        with anyio.move_on_after(WRITE_TIMEOUT_S, shield=True):
            await self._stream.send(line)
            return
        self._broken = True
        await anyio.aclose_forcefully(self._stream)
        raise anyio.BrokenResourceError

    async def refuse(self, request_id: RequestId | None, code: int, message: str) -> None:
        error = JSONRPCError(
            jsonrpc="2.0", id=request_id, error=ErrorData(code=code, message=message)
        )
        self.unanswered += 1
        await self.send(SessionMessage(error))

    async def aclose(self) -> None:
        """Leave the stream to whoever opened it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.aclose()


class JsonLines:
    """The reading half: gives the messages among the lines, and answers those that are none."""

    def __init__(self, stream: ByteStream, peer: Peer) -> None:
        self.out = _Out(stream)
        self._stream = stream
        self._metadata = ServerMessageMetadata(
            request_context=peer, on_request_unanswered=self.out.settled
        )
        self._buffer = bytearray()
        self._searched = 0
        # What was heard up to the first request, to be given again.
        self._heard: deque[SessionMessage] = deque()

    async def opening(self) -> JSONRPCRequest | None:
        """Look at the first request; None if the client leaves without one."""
        while True:
            try:
                item = await self._next()
            except anyio.EndOfStream:
                return None
            # Nothing but a late greeting comes before a request; a flood of those is not kept.
            if len(self._heard) < _HEARD_BEFORE or isinstance(item.message, JSONRPCRequest):
                self._heard.append(item)
            if isinstance(item.message, JSONRPCRequest):
                return item.message

    async def receive(self) -> SessionMessage:
        return self._heard.popleft() if self._heard else await self._next()

    async def _next(self) -> SessionMessage:
        while True:
            line = await self._line()
            if not line.strip():
                continue
            try:
                message = jsonrpc_message_adapter.validate_json(line, by_name=False)
            except ValidationError:
                await self._complain(line)
                continue
            if isinstance(message, JSONRPCRequest):
                if self.out.unanswered >= MAX_UNANSWERED:
                    await self.out.refuse(
                        message.id,
                        INTERNAL_ERROR,
                        f"unavailable: {MAX_UNANSWERED} requests of this connection are unanswered",
                    )
                    continue
                self.out.unanswered += 1
            elif isinstance(message, JSONRPCNotification) and "id" in from_json(line):
                # A request whose id is of no use: the SDK would take it for a notification.
                await self._complain(line)
                continue
            return SessionMessage(message, self._metadata)

    async def _line(self) -> bytes:
        while True:
            end = self._buffer.find(b"\n", self._searched)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                self._searched = 0
                if len(line) <= MAX_MESSAGE_BYTES:
                    return line
                await self._complain_of_length(line[:_ID_ROOM], line[-_ID_ROOM:])
                continue
            self._searched = len(self._buffer)
            if self._searched > MAX_MESSAGE_BYTES:
                await self._skip_line()
                continue
            await self._more()

    async def _more(self) -> None:
        try:
            self._buffer += await self._stream.receive(_CHUNK_BYTES)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self._end()

    async def _end(self) -> NoReturn:
        if self.out.unanswered > 0:
            self.out.quiet = anyio.Event()
            with anyio.move_on_after(LINGER_S):
                await self.out.quiet.wait()
        raise anyio.EndOfStream

    async def _skip_line(self) -> None:
        """Read on to the end of a line that is too long, keeping only where its id may be."""
        head = bytes(self._buffer[:_ID_ROOM])
        while True:
            end = self._buffer.find(b"\n")
            if end >= 0:
                tail = bytes(self._buffer[max(0, end - _ID_ROOM) : end])
                del self._buffer[: end + 1]
                self._searched = 0
                return await self._complain_of_length(head, tail)
            del self._buffer[:-_ID_ROOM]
            await self._more()

    async def _complain_of_length(self, head: bytes, tail: bytes) -> None:
        found = _ID_FIRST.match(head) or _ID_LAST.search(tail)
        request_id = cast("RequestId", from_json(found[1])) if found else None
        message = f"too-large: a message may have {MAX_MESSAGE_BYTES} bytes"
        await self.out.refuse(request_id, INVALID_REQUEST, message)

    async def _complain(self, line: bytes) -> None:
        try:
            told: object = from_json(line)
        except ValueError:
            await self.out.refuse(None, PARSE_ERROR, "Parse error: the line is not JSON")
            return
        request_id: RequestId | None = None
        match told:
            case {"id": str() | int() as given} if not isinstance(given, bool):
                request_id = given
            case _:
                pass
        await self.out.refuse(
            request_id, INVALID_REQUEST, "Invalid request: the line is not one JSON-RPC message"
        )

    def __aiter__(self) -> JsonLines:
        return self

    async def __anext__(self) -> SessionMessage:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        """Leave the stream to whoever opened it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.aclose()
