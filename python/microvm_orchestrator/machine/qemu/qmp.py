"""One connection to the monitor of a QEMU: commands, their answers, and events.

A monitor serves one client at a time, and this is it for as long as the daemon lives. What comes in
is bounded and checked, since a guest that broke out of its machine speaks with QEMU's voice. Above
stand the machine and its saving; below, a unix socket that we were listening on before QEMU began,
so there is nothing to wait for or to try again. Why not the package `qemu.qmp`: decision 6.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream
from pydantic import BaseModel, Field, JsonValue, ValidationError

from microvm_orchestrator import errors
from microvm_orchestrator.machine import sockets
from microvm_orchestrator.together import beside

if TYPE_CHECKING:
    from anyio.abc import UNIXSocketStream
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

# The monitor answers within milliseconds, unless the host is out of memory or the disk hangs.
ANSWER_S = 15.0
# The longest message seen, of a machine with many devices, had 20 KB.
_MAX_MESSAGE = 1 << 20
# Of why it refused something, in messages and logs.
_MAX_TOLD = 500
# Events that may wait for one listener; each tells of a change of state, so they are few.
_MAX_EVENTS = 1024
_GONE = (
    anyio.EndOfStream,
    anyio.IncompleteRead,
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
)
_NONSENSE = (anyio.DelimiterNotFound, anyio.WouldBlock, ValidationError)


class Event(BaseModel, frozen=True):
    """Something that happened in QEMU."""

    name: str = Field(alias="event")
    data: dict[str, JsonValue] = {}
    timestamp: dict[str, Annotated[int, Field(ge=-(1 << 53), le=1 << 53)]]

    @property
    def at(self) -> float:
        """Return when, by QEMU's clock."""
        return self.timestamp.get("seconds", 0) + self.timestamp.get("microseconds", 0) / 1e6


class _Refusal(BaseModel):
    desc: str

    def __str__(self) -> str:
        return "".join(char for char in self.desc[:_MAX_TOLD] if char.isprintable())


class _Reply(BaseModel):
    """What a monitor says when it was told something."""

    answer: JsonValue = Field(default=None, alias="return")
    error: _Refusal | None = None

    def read(self, name: str, command: str) -> JsonValue:
        if self.error is not None:
            raise Refused(f"{name} refused {command}: {self.error}")
        return self.answer


class _Message(_Reply):
    """Whatever the monitor says; which fields are there tells what it is."""

    id: int | None = None
    event: str | None = None


@dataclass(slots=True)
class _Asked:
    done: anyio.Event = field(default_factory=anyio.Event)
    message: _Message | None = None


class Refused(errors.MachineFailed):
    """QEMU understood a command and would not do it."""


class Monitor(Protocol):
    """Whoever brings commands to a QEMU, and their answers."""

    async def execute(
        self, command: str, arguments: Mapping[str, JsonValue] | None = None
    ) -> JsonValue:
        """Raises: Refused; MachineUnreachable when the answer does not come."""
        ...


class Qmp:
    """An open monitor."""

    def __init__(self, name: str, stream: UNIXSocketStream) -> None:
        # Who is meant in messages.
        self._name = name
        self._stream = stream
        self._source = BufferedByteReceiveStream(stream)
        self._numbers = itertools.count(1)
        self._asked: dict[int, _Asked] = {}
        self._writing = anyio.Lock()
        self._listeners: set[MemoryObjectSendStream[Event]] = set()
        # Set once nothing will come any more.
        self.over = anyio.Event()
        self._why_over: str | None = None

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, JsonValue] | None = None,
        *,
        fds: Sequence[int] = (),
        within_s: float = ANSWER_S,
    ) -> JsonValue:
        """Send a command, with open files if it takes any, and return its answer.

        Raises: Refused; MachineUnreachable when the answer does not come.
        """
        number = next(self._numbers)
        request = {"execute": command, "arguments": dict(arguments or {}), "id": number}
        asked = self._asked[number] = _Asked()
        try:
            with anyio.move_on_after(within_s):
                await self._send(json.dumps(request).encode() + b"\n", fds)
                if not self.over.is_set():
                    await asked.done.wait()
        finally:
            del self._asked[number]
        if asked.message is None:
            why = self._why_over or f"no answer within {within_s:g} s"
            raise errors.MachineUnreachable(f"{self._name} did not answer {command}: {why}")
        return asked.message.read(self._name, command)

    @contextmanager
    def listen(self) -> Generator[MemoryObjectReceiveStream[Event]]:
        """Collect the events from now on; the stream ends with the connection."""
        sender, receiver = anyio.create_memory_object_stream[Event](_MAX_EVENTS)
        if not self.over.is_set():
            self._listeners.add(sender)
        else:
            sender.close()
        try:
            yield receiver
        finally:
            self._listeners.discard(sender)
            sender.close()
            receiver.close()

    async def greet(self) -> None:
        """Take the greeting and switch the monitor to commands."""
        await self._read_message()
        await self._stream.send(b'{"execute":"qmp_capabilities"}\n')
        await self._read_message()

    async def attend(self) -> None:
        """Read until one side hangs up; needs a task of its own.

        It is never cancelled: a cancelled read of anyio's loses a race with what arrives.
        """
        try:
            with anyio.CancelScope(shield=True):
                while True:
                    await self._read_message()
        except _GONE:
            self._end("its monitor is closed")
        except _NONSENSE as error:
            self._end(f"its monitor talks nonsense ({type(error).__name__})")
            self.hang_up()

    def hang_up(self) -> None:
        """Let go of the monitor; whoever waits is told."""
        sockets.hang_up(self._stream)

    async def _send(self, data: bytes, fds: Sequence[int]) -> None:
        if self.over.is_set():
            return
        async with self._writing:
            try:
                if fds:
                    await self._stream.send_fds(data, list(fds))
                else:
                    await self._stream.send(data)
            except _GONE:
                self._end("its monitor is closed")

    async def _read_message(self) -> None:
        line = await self._source.receive_until(b"\n", _MAX_MESSAGE)
        message = _Message.model_validate_json(line)
        if message.event is not None:
            event = Event.model_validate_json(line)
            for listener in self._listeners:
                listener.send_nowait(event)
        elif message.id is not None and (asked := self._asked.get(message.id)):
            asked.message = message
            asked.done.set()

    def _end(self, why: str) -> None:
        if self._why_over is None:
            self._why_over = why
        self.over.set()
        for asked in self._asked.values():
            asked.done.set()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()


def read_reply(name: str, command: str, text: str) -> JsonValue:
    """Read what a monitor has answered to somebody else. Raises: Refused, ProtocolBroken."""
    try:
        if len(text) > _MAX_MESSAGE:
            raise ValueError("it is too long")  # noqa: TRY301 # what is wrong is told in one place
        reply = _Reply.model_validate_json(text)
    except ValueError as error:
        raise errors.ProtocolBroken(f"{name} answers nonsense to {command}") from error
    return reply.read(name, command)


@asynccontextmanager
async def open_qmp(name: str, path: Path, *, within_s: float = ANSWER_S) -> AsyncGenerator[Qmp]:
    """Hold the monitor at a socket, which somebody is listening on, for as long as the block.

    Raises: MachineUnreachable when it does not greet.
    """
    try:
        stream = await sockets.connect(path)
    except OSError as error:
        why = error.strerror or str(error)
        raise errors.MachineUnreachable(f"{name} has no monitor: {why}") from error
    async with stream:
        qmp = Qmp(name, stream)
        try:
            with anyio.fail_after(within_s):
                await qmp.greet()
        except (TimeoutError, *_GONE, *_NONSENSE) as error:
            raise errors.MachineUnreachable(f"{name} did not greet at its monitor") from error
        async with beside(qmp.attend):
            try:
                yield qmp
            finally:
                qmp.hang_up()
