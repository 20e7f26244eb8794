"""The way to git and package hosts: `CONNECT`, and requests for `http://` addresses.

A host must be on the list, its name is looked up here, and the connection is made to the very
address that was judged. What goes through a `CONNECT` is between the guest and the host; we see
how much it is. Above stands the endpoint; below, the policy and the way upstream.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio

from microvm_orchestrator.egress.exchange import Draft
from microvm_orchestrator.egress.http import Connection, Head, Refusal
from microvm_orchestrator.egress.policy import Policy, read_authority
from microvm_orchestrator.egress.upstream import Headers, Outgoing, Upstream, forward
from microvm_orchestrator.splice import GONE

if TYPE_CHECKING:
    from anyio.abc import ByteStream

    from microvm_orchestrator.egress.addresses import Address, Resolver

LOOK_UP_S = 20.0
CONNECT_S = 20.0
# A connection over which nothing went for so long is taken to be dead.
TUNNEL_IDLE_S = 600.0
# A push over plain http; what is larger goes over https, which is not counted so.
BODY_MOST = 1 << 30
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# About one connection, not about the message; see RFC 9110, section 7.6.1.
_HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding"),
        *("upgrade", "proxy-authorization", "proxy-authenticate", "http2-settings", "expect"),
    }
)
_CHUNK = 65_536


class Proxy:
    """The hosts that one run may reach."""

    def __init__(self, policy: Policy, resolver: Resolver, upstream: Upstream) -> None:
        self._policy = policy
        self._resolver = resolver
        self._upstream = upstream

    async def serve(self, connection: Connection, head: Head, draft: Draft) -> None:
        """Answer a `CONNECT` or a request in absolute form. Raises: as `forward`."""
        if head.method == "CONNECT":
            await self._tunnel(connection, head, draft)
        else:
            await self._fetch(connection, head, draft)

    async def _tunnel(self, connection: Connection, head: Head, draft: Draft) -> None:
        draft.host, draft.path = head.target, ""
        asked = read_authority(head.target)
        if asked is None or asked[1] is None:
            raise Refusal(400, "CONNECT names a host and a port, as in example.com:443")
        host, port = asked[0], asked[1]
        draft.host = f"{_bracketed(host)}:{port}"
        async for _ in connection.body(0):
            pass
        addresses = await self._addresses(host, port)
        far = await _connect(host, addresses, port)
        async with far:
            draft.status = 200
            await connection.begin(200, [])
            await _carry(connection, far)

    async def _fetch(self, connection: Connection, head: Head, draft: Draft) -> None:
        draft.path = ""
        if head.method not in METHODS:
            raise Refusal(405, f"{head.method} is no method that is passed on")
        target = _read_url(head.target)
        draft.host, draft.path = target.authority, target.path.partition("?")[0]
        addresses = await self._addresses(target.host, target.port)
        out = Outgoing(
            head.method,
            f"http://{_bracketed(str(addresses[0]))}:{target.port}{target.path}",
            [("host", target.authority), *end_to_end(head.headers)],
            BODY_MOST,
            target.authority,
        )
        await forward(connection, head, out, self._upstream, _Plain(draft))

    async def _addresses(self, host: str, port: int) -> list[Address]:
        """Look a host up that is on the list. Raises: Refusal."""
        if not self._policy.allows(host, port):
            name = _bracketed(host)
            raise Refusal(
                403,
                f"{name}:{port} is not on the list of hosts that this run may reach; add "
                f'"{name}:{port}" to the egress list of its repository or of the run, or to the '
                "setting egress.hosts",
            )
        try:
            with anyio.fail_after(LOOK_UP_S):
                found = list(await self._resolver(host, port))
        except TimeoutError:
            raise Refusal(504, f"the name {host} could not be looked up in time") from None
        except OSError:
            raise Refusal(502, f"no address of {host} is known") from None
        if not found:
            raise Refusal(502, f"no address of {host} is known")
        refused = self._policy.refused_address(found)
        if refused is not None:
            raise Refusal(
                403,
                f"{host} is at {refused}, which is not a public address; the setting "
                "egress.private_networks allows such addresses",
            )
        return found


async def _connect(host: str, addresses: list[Address], port: int) -> ByteStream:
    """Connect to the first address that answers. Raises: Refusal."""
    for address in addresses:
        # A black hole among the addresses must leave time for the next.
        with anyio.move_on_after(CONNECT_S / len(addresses)):
            try:
                return await anyio.connect_tcp(str(address), port)
            except OSError:
                continue
    raise Refusal(502, f"{host}:{port} does not answer")


@dataclass(slots=True)
class _Idle:
    """Ends a tunnel over which nothing goes."""

    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    def beat(self) -> None:
        self.scope.deadline = anyio.current_time() + TUNNEL_IDLE_S


async def _carry(connection: Connection, far: ByteStream) -> None:
    """Carry both ways until both have ended, or nothing goes any more."""
    near, first = connection.unwrap()
    idle = _Idle()
    idle.beat()

    async def outwards() -> None:
        try:
            await far.send(first)
            connection.taken += len(first)
            while True:
                data = await near.receive(_CHUNK)
                idle.beat()
                connection.taken += len(data)
                await far.send(data)
        except anyio.EndOfStream:
            await _end(far)
        except GONE:
            group.cancel_scope.cancel()

    async def inwards() -> None:
        try:
            while True:
                data = await far.receive(_CHUNK)
                idle.beat()
                connection.given += len(data)
                await near.send(data)
        except anyio.EndOfStream:
            await _end(near)
        except GONE:
            group.cancel_scope.cancel()

    with idle.scope:
        async with anyio.create_task_group() as group:
            group.start_soon(outwards)
            group.start_soon(inwards)


async def _end(stream: ByteStream) -> None:
    with suppress(*GONE):  # it has ended already
        await stream.send_eof()


@dataclass(frozen=True, slots=True)
class _Url:
    host: str
    port: int
    # As it was written, which is what virtual hosts go by.
    authority: str
    path: str


def _read_url(target: str) -> _Url:
    """Read `http://host[:port]/path`. Raises: Refusal."""
    try:
        found = urlsplit(target)
    except ValueError:
        raise Refusal(400, "the address that is asked for cannot be read") from None
    asked = read_authority(found.netloc)
    if found.scheme != "http" or asked is None or "#" in target:
        raise Refusal(400, "a proxy is asked for http://host/path; https goes by CONNECT")
    path = target.split("://", 1)[1][len(found.netloc) :]
    host, port = asked[0], asked[1] or 80
    authority = _bracketed(host) if asked[1] is None else f"{_bracketed(host)}:{port}"
    return _Url(host, port, authority, path if path.startswith("/") else f"/{path}")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def end_to_end(headers: Iterable[tuple[str, str]]) -> Headers:
    """Leave out what is about the connection, and what it names as such; and the host."""
    told = list(headers)
    named = {
        name.strip().lower()
        for key, value in told
        if key.lower() == "connection"
        for name in value.split(",")
    }
    # Where a body ends must not be up for discussion.
    dropped = (_HOP_BY_HOP | named | {"host"}) - {"content-length"}
    return [(name, value) for name, value in told if name.lower() not in dropped]


class _Plain:
    """An answer that passes as it is."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def begin(self, status: int, headers: Iterable[tuple[str, str]]) -> Headers:
        self._draft.status = status
        return end_to_end(headers)

    def feed(self, data: bytes) -> bytes:
        return data

    def rest(self) -> bytes:
        return b""
