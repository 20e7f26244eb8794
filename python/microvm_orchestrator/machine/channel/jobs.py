"""Commands in a guest: started once under an id, followed, found again after a break."""

from __future__ import annotations

import os
import re
import secrets
from collections import deque
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.machine import wire
from microvm_orchestrator.machine.channel.requests import ANSWER_S, opened
from microvm_orchestrator.machine.channel.stream import Data, Over
from microvm_orchestrator.machine.shell import (
    Channel,
    Command,
    Exit,
    Finished,
    Given,
    Job,
    Output,
    Process,
    Terminal,
)
from microvm_orchestrator.together import beside

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from microvm_orchestrator.machine.channel.link import Link
    from microvm_orchestrator.machine.channel.stream import Item, Stream

# From asking until the program runs: its file may come from a slow disk.
_START_S = 60.0
# A guest ends a command at its timeout and by force two seconds later; this is for a busy host.
_LATE_S = 15.0
_MAX_JOBS = 1024
_MAX_OFFSET = 2**62
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_OFFSET = re.compile(r"[0-9]{1,19}")
_CHANNELS = {wire.STDOUT: Channel.STDOUT, wire.STDERR: Channel.STDERR}
_OUTPUT = frozenset(_CHANNELS)


class _Process:
    """A command that was started, and the stream that follows it."""

    def __init__(self, stream: Stream, exec_id: str) -> None:
        self._stream = stream
        self._exec_id = exec_id
        self._offset = 0
        self._next = 0
        self._given: Given | None = None
        self._items: deque[Item] = deque()

    @property
    def exec_id(self) -> str:
        return self._exec_id

    @property
    def offset(self) -> int:
        return self._offset

    @property
    def given(self) -> Given | None:
        return self._given

    async def begin(self, offset: int) -> None:
        """Wait until the program runs, or raise why it does not."""
        with self._may_have_happened():
            fields = await self._stream.note(_START_S)
            try:
                self._offset = self._next = wire.integer(fields, "offset", offset, _MAX_OFFSET)
                self._given = _given(fields)
            except wire.Broken as error:
                self._stream.broken(str(error))

    def __aiter__(self) -> _Process:
        return self

    async def __anext__(self) -> Output:
        if not self._items:
            with self._may_have_happened():
                self._items.extend(await self._stream.receive())
        if not self._items:
            raise StopAsyncIteration
        item = self._items.popleft()
        if not isinstance(item, Data):
            with self._may_have_happened():
                self._stream.broken("something between the output of a command")
        output = Output(_CHANNELS[item.channel], item.payload, self._next)
        self._next += len(item.payload)
        return output

    async def send(self, data: bytes) -> None:
        with self._may_have_happened(), suppress(Over):
            await self._stream.send(data)

    async def end_input(self) -> None:
        if not self._stream.over:
            self._stream.end()

    async def signal(self, number: int) -> None:
        with self._may_have_happened(), suppress(Over):
            await self._stream.send_note({"signal": number}, ANSWER_S)

    async def resize(self, terminal: Terminal) -> None:
        with self._may_have_happened(), suppress(Over):
            size = {"rows": terminal.rows, "columns": terminal.columns}
            await self._stream.send_note(size, ANSWER_S)

    async def wait(self) -> Exit:
        async for _ in self:
            pass
        with self._may_have_happened():
            answer = await self._stream.answer()
            try:
                return self._exit(answer)
            except wire.Broken as error:
                self._stream.broken(f"an end that cannot be: {error}")

    def _exit(self, answer: wire.Fields) -> Exit:
        code = wire.integer(answer, "code", 0, 255)
        signal = wire.integer(answer, "signal", 0, 64)
        why = wire.blob(answer, "why", 16)
        wire.integer(answer, "offset", self._next, self._next)
        return Exit(None if signal else code, signal or None, why == b"timeout")

    @contextmanager
    def _may_have_happened(self) -> Generator[None]:
        try:
            yield
        except errors.MachineFailed as failed:
            raise errors.UnknownOutcome(
                f"what became of the command {self._exec_id} is not known: {failed}",
                hint="attach to it by its id once the machine can be reached",
            ) from failed


@asynccontextmanager
async def started(
    link: Link, command: Command, exec_id: str | None, *, stdin: bool, keep: bool
) -> AsyncGenerator[Process]:
    """Start a command and follow it until the block is left."""
    exec_id = checked_id(exec_id or secrets.token_hex(8))
    stream = await link.open(_request(command, exec_id, stdin=stdin, keep=keep), _OUTPUT)
    process = _Process(stream, exec_id)
    forget = True
    try:
        try:
            await process.begin(0)
        except (errors.AlreadyExists, errors.UnknownOutcome):
            forget = False  # it is another's, or to be found again
            raise
        forget = not keep
        yield process
    finally:
        stream.leave(lambda: link.forget(exec_id) if forget else None)


@asynccontextmanager
async def attached(link: Link, exec_id: str, offset: int, *, keep: bool) -> AsyncGenerator[Process]:
    """Follow a command that was started before until the block is left."""
    request = {"verb": b"attach", "id": checked_id(exec_id).encode("ascii")}
    stream = await link.open({**request, "offset": offset, "keep": int(keep)}, _OUTPUT)
    process = _Process(stream, exec_id)
    forget = False
    try:
        await process.begin(offset)
        forget = not keep
        yield process
    finally:
        stream.leave(lambda: link.forget(exec_id) if forget else None)


async def run(
    link: Link, command: Command, stdin: bytes, exec_id: str | None, output_cap: int
) -> Finished:
    """Run a command to its end. Cancelled, the guest ends it."""
    limit_s = None if command.timeout_s is None else command.timeout_s + _LATE_S
    exec_id = checked_id(exec_id or secrets.token_hex(8))
    try:
        with anyio.fail_after(limit_s):
            async with started(link, command, exec_id, stdin=bool(stdin), keep=False) as process:

                async def feed() -> None:
                    try:
                        await process.send(stdin)
                        await process.end_input()
                    except errors.OrchestratorError:
                        pass  # whoever reads meets it too

                async with beside(*([feed] if stdin else [])):
                    return await collect(process, output_cap)
    except TimeoutError:
        raise errors.UnknownOutcome(
            f"the guest did not say within {limit_s:g} s what became of the command {exec_id}",
            hint="attach to it by its id",
        ) from None


async def listed(link: Link) -> list[Job]:
    async with opened(link, {"verb": b"jobs"}) as stream:
        answer = await stream.answer(ANSWER_S)
        try:
            return [_job(line) for line in wire.blobs(answer, "jobs", _MAX_JOBS)]
        except (wire.Broken, ValueError) as error:
            stream.broken(f"a list of jobs that is none: {error}")


def checked_id(exec_id: str) -> str:
    if not _ID.fullmatch(exec_id):
        raise errors.InvalidInput(f"{exec_id!r} is no id: 1 to 64 of A-Z a-z 0-9 . _ -")
    return exec_id


def words_of(command: Command) -> tuple[list[bytes], list[bytes]]:
    """Return the words and the variables of a command. Raises: InvalidInput."""
    argv = [os.fsencode(word) for word in command.argv]
    env = [os.fsencode(f"{name}={value}") for name, value in command.env.items()]
    if not argv or not argv[0] or any(b"\0" in word for word in (*argv, *env)):
        raise errors.InvalidInput("a command needs a name, and no word of it may hold a NUL")
    if any(not name or "=" in name for name in command.env):
        raise errors.InvalidInput("the name of a variable is not empty and without =")
    return argv, env


async def collect(process: Process, cap: int) -> Finished:
    kept = {Channel.STDOUT: bytearray(), Channel.STDERR: bytearray()}
    truncated = False
    async for output in process:
        into = kept[output.channel]
        room = cap - len(into)
        into += output.data[:room]
        truncated = truncated or len(output.data) > room
    ended = await process.wait()
    out, err = (bytes(kept[channel]) for channel in Channel)
    return Finished(process.exec_id, ended, out, err, truncated)


def _request(
    command: Command, exec_id: str, *, stdin: bool, keep: bool
) -> dict[str, int | bytes | list[bytes]]:
    argv, env = words_of(command)
    request: dict[str, int | bytes | list[bytes]] = {
        "verb": b"exec",
        "id": exec_id.encode("ascii"),
        "argv": argv,
        "env": env,
        "stdin": int(stdin),
        "keep": int(keep),
    }
    if command.cwd is not None:
        request["cwd"] = os.fsencode(command.cwd)
    if command.user is not None:
        request["user"] = os.fsencode(command.user)
    if command.terminal is not None:
        size = command.terminal
        request |= {"tty": 1, "rows": size.rows, "columns": size.columns}
    if command.timeout_s is not None:
        request["timeout_ms"] = max(1, round(command.timeout_s * 1000))
    return request


def _given(fields: wire.Fields) -> Given | None:
    if "input" not in fields:
        return None  # an agent that was made before it was asked for
    over = wire.integer(fields, "input_over", 0, 1)
    return Given(wire.integer(fields, "input", 0, _MAX_OFFSET), bool(over))


def _job(line: bytes) -> Job:
    name, offset, state = line.decode("ascii").split(" ")
    known = state in ("running", "ended") and _ID.fullmatch(name) and _OFFSET.fullmatch(offset)
    if not known or int(offset) > _MAX_OFFSET:
        raise ValueError(line)
    return Job(name, state == "running", int(offset))
