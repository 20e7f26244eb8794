"""Streams of frames on the daemon's socket, for what talks both ways at once.

Behind the preface `{"stream": {"call": "...", "token": "..."}}` comes one line of JSON with the
arguments. The daemon answers one line, `{"opened": ...}` or `{"error": ...}`; then frames go both
ways: a byte of kind, four of length, the payload. Nothing is buffered but what a socket holds, so
who is slow holds up who is fast. Above sits the listener; below, the service's streams.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, cast

import anyio
from anyio import DelimiterNotFound, EndOfStream, IncompleteRead

from microvm_orchestrator import errors, log
from microvm_orchestrator.service.agent_streams import STREAMS
from microvm_orchestrator.service.calls import Caller
from microvm_orchestrator.service.talk import ClientGone, Kind, Stream
from microvm_orchestrator.web.body import parse

if TYPE_CHECKING:
    from anyio.abc import ByteStream
    from anyio.streams.buffered import BufferedByteStream

    from microvm_orchestrator.model.access import Principal
    from microvm_orchestrator.service.service import Service
    from microvm_orchestrator.web.terms import Terms

_log = log.get(__name__)

VIA = "stream"
HEADER = struct.Struct(">BI")
MAX_PAYLOAD = 1 << 16
# A client looks for an error before each piece that it sends.
_HEAR_OUT_S = 5.0
_GONE = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError)
_ENDED = (EndOfStream, IncompleteRead, *_GONE)


class _SocketTalk:
    """A client's end of a stream over a socket."""

    def __init__(self, stream: BufferedByteStream, raw: ByteStream) -> None:
        self.opened = False
        self._stream = stream
        self._raw = raw
        self._writing = anyio.Lock()

    async def begin(self, told: dict[str, object]) -> None:
        await self._write(json.dumps({"opened": told}).encode() + b"\n")
        self.opened = True

    async def send(self, kind: Kind, payload: bytes) -> None:
        for begin in range(0, len(payload) or 1, MAX_PAYLOAD):
            piece = payload[begin : begin + MAX_PAYLOAD]
            await self._write(HEADER.pack(kind, len(piece)) + piece)

    async def receive(self) -> tuple[int, bytes] | None:
        try:
            kind, length = HEADER.unpack(await self._stream.receive_exactly(HEADER.size))
            if length > MAX_PAYLOAD:
                raise errors.TooLarge(f"a frame of {length} bytes; {MAX_PAYLOAD} is the limit")
            return kind, await self._stream.receive_exactly(length) if length else b""
        except _ENDED:
            return None

    async def refuse(self, error: errors.OrchestratorError) -> None:
        told = json.dumps({"code": error.code, "message": error.message, "hint": error.hint})
        if self.opened:
            await self.send(Kind.ERROR, told.encode())
            await self._hear_out()
        else:
            await self._write(b'{"error": ' + told.encode() + b"}\n")

    async def _hear_out(self) -> None:
        """Let a client that sends finish, so that it reads why it should not have."""
        with anyio.move_on_after(_HEAR_OUT_S):
            while (frame := await self.receive()) is not None and frame[0] != Kind.END:
                pass

    async def _write(self, data: bytes) -> None:
        async with self._writing:
            try:
                await self._raw.send(data)
            except _GONE as error:
                raise ClientGone from error


async def serve_duplex(
    service: Service,
    terms: Terms,
    stream: BufferedByteStream,
    raw: ByteStream,
    principal: Principal,
    name: str,
) -> None:
    """Serve one stream until either side has had enough."""
    talk = _SocketTalk(stream, raw)
    try:
        try:
            known = _known(name)
            arguments = await _arguments(stream, terms)
            await service.perform(known.call(talk), Caller(principal, VIA, _silent), arguments)
        except errors.OrchestratorError as error:
            await talk.refuse(error)
        except anyio.get_cancelled_exc_class():
            raise
        except ClientGone:
            raise
        except Exception as error:  # noqa: BLE001 - the edge where every error becomes an answer
            _log.error("stream_failed", stream=name, exc_info=error)
            unplanned = "this should not have happened; the daemon's log tells more"
            await talk.refuse(errors.OrchestratorError(unplanned))
    except ClientGone:
        pass


def _known(name: str) -> Stream:
    if name not in STREAMS:
        raise errors.NotFound(f"no stream is named {name}")
    return STREAMS[name]


async def _arguments(stream: BufferedByteStream, terms: Terms) -> dict[str, object]:
    limits = terms.limits
    try:
        with anyio.fail_after(limits.request_timeout_s):
            line = await stream.receive_until(b"\n", limits.max_request_bytes)
    except (DelimiterNotFound, TimeoutError) as error:
        raise errors.InvalidInput("the arguments are no line of JSON") from error
    except _ENDED as error:
        raise ClientGone from error
    value = parse(line)
    if not isinstance(value, dict):
        raise errors.InvalidInput("the arguments are no JSON object")
    return cast("dict[str, object]", value)


async def _silent(done: float, total: float | None, message: str) -> None:
    """A stream has its frames for what it says."""
