"""Requests that go on from a guest to whom they are for, and the answers that come back.

Both ways as they come, piece by piece: nothing waits for the end of anything. When the guest hangs
up, the request ends where it is. Nothing is remembered between requests but open connections: no
cookies, no redirects, no proxies of the environment. Above stand the model APIs and the proxy;
below, a connection of the guest and httpx2.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Protocol, cast

import anyio
import anyio.to_thread
import httpx2

from microvm_orchestrator.egress.http import Connection, Head, Refusal
from microvm_orchestrator.splice import GONE

# Models think for minutes before they say the first word, if they are not asked to stream.
_READ_S = 900.0
_CONNECT_S = 20.0
_WRITE_S = 60.0
_CLOSE_S = 5.0
_LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=60.0)
_TIMEOUT = httpx2.Timeout(_READ_S, connect=_CONNECT_S, write=_WRITE_S, pool=_CONNECT_S)

Headers = list[tuple[str, str]]


class Upstream:
    """Connections to the outside, shared by all runs."""

    def __init__(self, transport: httpx2.AsyncHTTPTransport) -> None:
        self._transport = transport

    async def ask(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and give the beginning of its answer. Raises: httpx2.HTTPError."""
        return await self._transport.handle_async_request(request)


@asynccontextmanager
async def open_upstream() -> AsyncGenerator[Upstream]:
    """Keep connections open for the next request until the block ends."""
    tls = await anyio.to_thread.run_sync(httpx2.create_ssl_context)
    async with httpx2.AsyncHTTPTransport(verify=tls, trust_env=False, limits=_LIMITS) as transport:
        yield Upstream(transport)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request as it leaves."""

    method: str
    url: str
    headers: Headers
    # The largest body that is let through.
    body_most: int
    # Whom it is for, as a refusal names it.
    host: str
    # Sees each piece of the body before it leaves. Raises: Refusal.
    see: Callable[[bytes], None] | None = None


class Tap(Protocol):
    """Sees an answer pass, and may change it as long as its length stays."""

    def begin(self, status: int, headers: Iterable[tuple[str, str]]) -> Headers:
        """Give the headers that the guest may see. Raises: Refusal."""
        ...

    def feed(self, data: bytes) -> bytes: ...

    def rest(self) -> bytes: ...


def refuse_compressed(headers: Iterable[tuple[str, str]], host: str) -> None:
    """Raises: Refusal for an answer in which nothing could be found, and nobody asked for that."""
    told = {name.lower(): value for name, value in headers}
    if told.get("content-encoding", "identity") != "identity":
        raise Refusal(502, f"{host} compresses its answer though nobody asked")


async def forward(
    connection: Connection, head: Head, out: Outgoing, upstream: Upstream, tap: Tap
) -> None:
    """Carry one request there and its answer back.

    Raises: Refusal, also after the answer has begun; what is in `GONE` when the guest has left.
    """
    failure: Exception | None = None
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            nonlocal failure
            await connection.gone()
            failure = anyio.EndOfStream()
            group.cancel_scope.cancel()

        group.start_soon(watch)
        try:
            await _exchange(connection, head, out, upstream, tap)
        except (Refusal, *GONE) as error:
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _exchange(
    connection: Connection, head: Head, out: Outgoing, upstream: Upstream, tap: Tap
) -> None:
    taken = connection.body(out.body_most)
    async with aclosing(taken if out.see is None else _seen(taken, out.see)) as body:
        content: AsyncIterator[bytes] | None = body
        if not head.has_body:
            async for _ in body:
                pass
            content = None
        try:
            request = httpx2.Request(
                out.method,
                out.url,
                headers=[(name.encode(), value.encode("latin-1")) for name, value in out.headers],
                content=content,
                extensions={"timeout": _TIMEOUT.as_dict()},
            )
        except httpx2.InvalidURL:
            raise Refusal(400, "the address that is asked for cannot be read") from None
        with _failures(out.host):
            response = await upstream.ask(request)
        try:
            await _give_back(connection, response, out, tap)
        finally:
            with anyio.move_on_after(_CLOSE_S, shield=True):
                await response.aclose()


async def _seen(
    taken: AsyncGenerator[bytes], see: Callable[[bytes], None]
) -> AsyncGenerator[bytes]:
    async with aclosing(taken) as body:
        async for piece in body:
            see(piece)
            yield piece


async def _give_back(
    connection: Connection, response: httpx2.Response, out: Outgoing, tap: Tap
) -> None:
    told = [
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers.raw
    ]
    await connection.begin(response.status_code, tap.begin(response.status_code, told))
    stream = cast("AsyncIterator[bytes]", response.stream)
    with _failures(out.host):
        async for data in stream:
            await connection.give(tap.feed(data))
    await connection.give(tap.rest())
    await connection.end()


@contextmanager
def _failures(host: str) -> Generator[None]:
    """Turn what goes wrong outside into a refusal that says so, without the words of others."""
    try:
        yield
    except httpx2.TimeoutException:
        raise Refusal(504, f"{host} did not answer in time") from None
    except httpx2.HTTPError as error:
        raise Refusal(502, f"{host} did not answer: {type(error).__name__}") from None
