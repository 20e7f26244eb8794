"""A webhook's receiver: a real HTTP server that says what it got and answers as it is told."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSListener

from calling import PATIENCE_S

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator

    from anyio.abc import ByteStream
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

PREFIX = "x-microvm-orchestrator-"
SECRET = "0123456789abcdef"
# An answer that never comes.
SILENCE = b""


def answer(status: int, *headers: str, body: str = "") -> bytes:
    head = [f"HTTP/1.1 {status} -", f"Content-Length: {len(body)}", *headers, "", body]
    return "\r\n".join(head).encode()


OK = answer(200, body="thanks")


@dataclass(frozen=True)
class Received:
    """One request."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        return json.loads(self.body)["event"]

    @property
    def told(self) -> tuple[str, str]:
        return self.event["kind"], self.event["subject"]

    @property
    def attempt(self) -> int:
        return int(self.headers[f"{PREFIX}attempt"])

    def signed_with(self, secret: str) -> bool:
        """Check the signature as a receiver would, with nothing of ours."""
        at, _, digest = self.headers[f"{PREFIX}signature"].partition(",")
        signed = at.removeprefix("t=").encode() + b"." + self.body
        wanted = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
        return digest == f"v1={wanted}"


@dataclass
class Receiver:
    port: int
    _heard: MemoryObjectReceiveStream[Received]
    _hear: MemoryObjectSendStream[Received]
    # What the next requests are answered, then `otherwise`.
    answers: list[bytes] = field(default_factory=list[bytes])
    otherwise: bytes = OK
    # Sent after the answer again and again, as long as somebody reads it.
    endless: bytes = b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?a=b"

    async def next(self) -> Received:
        with anyio.fail_after(PATIENCE_S):
            return await self._heard.receive()

    @property
    def silent(self) -> bool:
        return self._heard.statistics().current_buffer_used == 0

    async def serve(self, stream: ByteStream) -> None:
        async with stream:
            incoming = BufferedByteReceiveStream(stream)
            try:
                head = (await incoming.receive_until(b"\r\n\r\n", 65_536)).decode()
            except (anyio.IncompleteRead, anyio.BrokenResourceError):
                return
            line, *pairs = head.split("\r\n")
            headers = {
                name.lower(): value for name, _, value in (pair.partition(": ") for pair in pairs)
            }
            body = await incoming.receive_exactly(int(headers["content-length"]))
            said = self.answers.pop(0) if self.answers else self.otherwise
            await self._hear.send(Received(line, headers, body))
            if said is SILENCE:
                await anyio.sleep_forever()
            try:
                await stream.send(said)
                while self.endless:
                    await stream.send(self.endless)
            except anyio.BrokenResourceError:
                return


@asynccontextmanager
async def receiver(tls: ssl.SSLContext | None = None) -> AsyncGenerator[Receiver]:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.listeners[0].extra(SocketAttribute.local_port)  # noqa: S610 - not Django's
    send, receive = anyio.create_memory_object_stream[Received](math.inf)
    found = Receiver(port, receive, send)
    serving = listener if tls is None else TLSListener(listener, tls, standard_compatible=False)
    async with send, receive, serving, anyio.create_task_group() as group:
        group.start_soon(serving.serve, found.serve)
        yield found
        group.cancel_scope.cancel()
