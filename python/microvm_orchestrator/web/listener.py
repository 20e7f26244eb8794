"""Lets clients in: one socket speaks three protocols, and its beginning says which.

`{"stream":` begins frames both ways, another `{` JSON-RPC lines, anything else is HTTP. Every
connection is one task of one group, from the accept to the end. Above sits the daemon, which makes
the sockets and says when to stop; below are the HTTP application and whoever serves streams. Lives
as long as the daemon.
"""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.lowlevel
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteStream
from uvicorn.config import Config
from uvicorn.server import ServerState

from microvm_orchestrator import errors, log
from microvm_orchestrator.service.identity import peer_of
from microvm_orchestrator.splice import splice
from microvm_orchestrator.together import beside
from microvm_orchestrator.web.guests import OnlyForAgents
from microvm_orchestrator.web.http import MAX_HEAD_BYTES, Http
from microvm_orchestrator.web.identity import GUEST, PEER
from microvm_orchestrator.web.preface import StreamWish, read_preface

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anyio.abc import ByteStream, TaskGroup
    from starlette.types import ASGIApp

    from microvm_orchestrator.model.access import Principal
    from microvm_orchestrator.service.identity import Peer
    from microvm_orchestrator.web.identity import Identity
    from microvm_orchestrator.web.terms import Terms

_log = log.get(__name__)

# After a failed accept (no descriptors left) the next would fail at once.
_ACCEPT_PAUSE_S = 0.1
# A cancelled handler waits at most for its transaction, which goes on without it.
HANDLER_END_S = 5.0
# What reading and writing say when the client is no longer there.
_GONE = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError)
# "Invalid request" of JSON-RPC: the connection, not a message, is refused.
_REFUSED = -32600


class Streams(Protocol):
    """Serves one connection of JSON-RPC lines until it ends."""

    async def __call__(
        self, stream: ByteStream, principal: Principal, profile: str, settings: Mapping[str, str]
    ) -> None: ...


class Frames(Protocol):
    """Serves one connection of frames until it ends."""

    async def __call__(
        self, stream: BufferedByteStream, raw: ByteStream, principal: Principal, name: str
    ) -> None: ...


class Listener:
    """All connections of the daemon."""

    def __init__(
        self,
        application: ASGIApp,
        streams: Streams,
        frames: Frames,
        identity: Identity,
        terms: Terms,
    ) -> None:
        self._config = _config(application)
        self._for_guests = _config(OnlyForAgents(application))
        self._http = ServerState()
        self._serve_stream = streams
        self._serve_frames = frames
        self._identity = identity
        self._terms = terms
        self._accepting = anyio.CancelScope()
        self._open = 0
        # Connections nothing was heard from, oldest first: the ones to give up when it gets full.
        self._silent: dict[socket.socket, anyio.CancelScope] = {}
        self._streaming: set[socket.socket] = set()

    async def serve(self, listening: Sequence[socket.socket]) -> None:
        """Let clients in until `close`, and return when the last of them is gone."""
        try:
            async with anyio.create_task_group() as connections:
                with self._accepting:
                    async with anyio.create_task_group() as doors:
                        for each in listening:
                            doors.start_soon(self._accept, each, connections)
                for each in listening:
                    # Refused is a clear answer; waiting in a queue that nobody empties is none.
                    each.close()
                self._see_off()
            await self._requests_ended()
        finally:
            for request in self._http.tasks:
                request.cancel()
            with anyio.move_on_after(HANDLER_END_S, shield=True):
                await self._requests_ended()

    async def serve_guest(self, agent_id: str, stream: ByteStream) -> None:
        """Serve one connection out of an agent's machine: HTTP, for that agent with its token.

        Nobody is known only by where it comes from, and nothing is served but what agents are
        offered.
        """
        ours, theirs = socket.socketpair()
        for each in (ours, theirs):
            each.settimeout(0)
        with closing(ours):
            serve = partial(self._serve_http, ours, None, agent_id)
            async with stream, await SocketStream.from_socket(theirs) as inner, beside(serve):
                await splice(stream, inner)

    def close(self) -> None:
        """Let nobody in any more; those inside may finish the request they are at."""
        self._accepting.cancel()

    def _see_off(self) -> None:
        for scope in self._silent.values():
            scope.cancel()
        for each in list(self._http.connections):
            if isinstance(each, Http):
                each.shutdown()
        for connection in self._streaming:
            # The reader finds the end of its input, and answers what it has read.
            with suppress(OSError):  # it may be closing already
                connection.shutdown(socket.SHUT_RD)

    async def _requests_ended(self) -> None:
        """Wait for the handlers: they may outlive the connection they were asked over."""
        while self._http.tasks:
            await asyncio.wait(self._http.tasks)

    async def _accept(self, listening: socket.socket, connections: TaskGroup) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except BlockingIOError:
                await anyio.wait_readable(listening)
            except OSError as error:
                _log.warning("accept_failed", error=str(error))
                self._give_one_up()
                await anyio.sleep(_ACCEPT_PAUSE_S)
            else:
                self._admit(connection, connections)
                await anyio.lowlevel.checkpoint()

    def _admit(self, connection: socket.socket, connections: TaskGroup) -> None:
        limit = self._terms.limits.max_connections
        if self._open >= limit and not self._give_one_up():
            _log.warning("connection_refused", limit=limit)
            connection.close()
            return
        connection.settimeout(0)
        self._open += 1
        connections.start_soon(self._serve, connection)

    def _give_one_up(self) -> bool:
        oldest = next(iter(self._silent), None)
        if oldest is None:
            return False
        self._silent.pop(oldest).cancel()
        return True

    async def _serve(self, connection: socket.socket) -> None:
        try:
            with suppress(*_GONE), closing(connection):
                first = await self._first_byte(connection)
                if first == b"{":
                    await self._serve_lines(connection, peer_of(connection))
                elif first:
                    await self._serve_http(connection, peer_of(connection))
        except Exception as error:  # noqa: BLE001 - one connection must not end the others
            _log.error("connection_failed", exc_info=error)
        finally:
            self._open -= 1

    async def _first_byte(self, connection: socket.socket) -> bytes:
        """Look at the first byte without taking it; nothing when none came."""
        with anyio.move_on_after(self._terms.limits.request_timeout_s) as patience:
            self._silent[connection] = patience
            try:
                await anyio.wait_readable(connection)
                return connection.recv(1, socket.MSG_PEEK)
            finally:
                self._silent.pop(connection, None)
        return b""

    async def _serve_http(
        self, connection: socket.socket, peer: Peer | None, guest: str | None = None
    ) -> None:
        config = self._config if guest is None else self._for_guests
        state = {PEER: peer, GUEST: guest}
        http = Http(config, self._http, state, self._terms.limits.request_timeout_s)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(lambda: http, connection)
        try:
            await http.gone.wait()
        finally:
            transport.abort()

    async def _serve_lines(self, connection: socket.socket, peer: Peer | None) -> None:
        async with await SocketStream.from_socket(connection) as raw:
            stream = BufferedByteStream(raw)
            try:
                with anyio.fail_after(self._terms.limits.request_timeout_s):
                    wish = await read_preface(stream)
                token = None if wish.token is None else wish.token.get_secret_value()
                principal = await self._identity.named(token, peer)
            except errors.OrchestratorError as error:
                await raw.send(_refusal(error))
                return
            self._streaming.add(connection)
            try:
                async with anyio.create_task_group() as group:
                    if principal.token_id is not None:
                        group.start_soon(self._cut_off, principal.token_id, group.cancel_scope)
                    with suppress(*_GONE):
                        if isinstance(wish, StreamWish):
                            await self._serve_frames(stream, raw, principal, wish.call)
                        else:
                            await self._serve_stream(stream, principal, wish.profile, wish.settings)
                    group.cancel_scope.cancel()
            finally:
                self._streaming.discard(connection)

    async def _cut_off(self, token_id: str, stream: anyio.CancelScope) -> None:
        """End a stream whose token ended: not all that goes over it is a call."""
        await self._identity.ended(token_id)
        stream.cancel()


def _config(application: ASGIApp) -> Config:
    config = Config(
        application,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
    config.load()
    return config


def _refusal(error: errors.OrchestratorError) -> bytes:
    hint = f"\n\nhint: {error.hint}" if error.hint else ""
    refusal = {"code": _REFUSED, "message": f"{error.code}: {error.message}{hint}"}
    return json.dumps({"jsonrpc": "2.0", "id": None, "error": refusal}).encode() + b"\n"
