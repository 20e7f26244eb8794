"""The seam of what is talked about both ways: frames, the client's end, and a kind of stream.

Above is the front end that carries the frames; below it, what is talked about.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any, Protocol

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request

# A client that is gone is found out by writing to it, where reading waits for a command that does
# not read.
_BEAT_S = 10.0


class Kind(IntEnum):
    """What a frame carries."""

    # To the daemon: input; from it: stdout, or what a console shows.
    DATA = 1
    STDERR = 2
    # To the daemon: the end of the input; from it, the last frame: how the command ended, as JSON.
    END = 3
    # From the daemon, the last frame: code, message and hint of an error.
    ERROR = 4
    # To the daemon: the size of the terminal, as JSON.
    SIZE = 5
    # To the daemon: the client leaves, and what it talked to goes on.
    LEAVE = 6
    # Either way: a file or folder of a tree, as JSON; what a file holds follows as DATA.
    ENTRY = 7


class Talk(Protocol):
    """The client's end of a stream."""

    async def begin(self, told: dict[str, object]) -> None:
        """Say that it was opened; frames follow."""
        ...

    async def send(self, kind: Kind, payload: bytes) -> None:
        """Raises: ClientGone."""
        ...

    async def receive(self) -> tuple[int, bytes] | None:
        """Give the next frame; None when the client is gone."""
        ...


class ClientGone(Exception):
    """The client of a stream does not listen any more."""


@dataclass(frozen=True, slots=True)
class Stream:
    """One kind of stream, and who may open it."""

    name: str
    request: type[Request]
    handler: Callable[[Any, Caller, Any, Talk], Awaitable[Answer]]

    def call(self, talk: Talk) -> Call:
        """Make what the service checks and answers as it does every call."""
        return Call(
            name=self.name,
            title=self.name,
            description="",
            request=self.request,
            answer=Answer,
            role=Role.OPERATOR,
            effect=Effect.WRITE,
            idempotent=False,
            method="",
            path="",
            waits=True,
            audited=True,
            handler=partial(_bound, self.handler, talk),
        )


async def _bound(
    handler: Callable[[Any, Caller, Any, Talk], Awaitable[Answer]],
    talk: Talk,
    service: Any,
    caller: Caller,
    request: Request,
) -> Answer:
    return await handler(service, caller, request, talk)


async def both_ways(
    talk: Talk, take: Callable[[int, bytes], Awaitable[None]], say: Callable[[], Awaitable[None]]
) -> bool:
    """Say and take until either ends; tell whether that was meant, and not that a client is gone.

    Raises: what either raises of ours.
    """
    left = False
    failure: errors.OrchestratorError | None = None

    async def listen() -> None:
        nonlocal left, failure
        try:
            while (frame := await talk.receive()) is not None:
                if frame[0] == Kind.LEAVE:
                    left = True
                    break
                await take(*frame)
        except errors.OrchestratorError as error:
            failure = error
        group.cancel_scope.cancel()

    async def beat() -> None:
        with contextlib.suppress(ClientGone):
            while True:
                await anyio.sleep(_BEAT_S)
                await talk.send(Kind.DATA, b"")
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(listen)
        group.start_soon(beat)
        try:
            await say()
            left = True
        except ClientGone:
            pass
        except errors.OrchestratorError as error:
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return left
