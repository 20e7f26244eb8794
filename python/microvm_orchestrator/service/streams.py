"""Every kind of stream, and two of them: a command's input and output, a machine's console.

Opened as a call is made, with the same checks of role, sight and token; then frames go both ways
until either side has had enough. Above is the front end that carries the frames; below, commands
and machines.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Annotated

import anyio.to_thread
from pydantic import Field, ValidationError

from microvm_orchestrator import errors
from microvm_orchestrator.machine import console
from microvm_orchestrator.machine.shell import Channel, Terminal
from microvm_orchestrator.service import kernel_watch, transfers
from microvm_orchestrator.service.calls import Answer, Caller
from microvm_orchestrator.service.execs import (
    USUAL_TIMEOUT_S,
    ExecRef,
    RunCommand,
    TerminalSize,
    told_why,
    wish_of,
)
from microvm_orchestrator.service.machines import NamedMachine
from microvm_orchestrator.service.service import Service, actor
from microvm_orchestrator.service.talk import Kind, Stream, Talk, both_ways

if TYPE_CHECKING:
    from microvm_orchestrator.execs.job import Job, Tap

# What somebody who attaches to a console sees first.
_SCROLLBACK_BYTES = 1 << 14
Offset = Annotated[int, Field(strict=True, ge=0)]


class RunStream(RunCommand):
    """A command to run, or one that was begun by this id; it is ended when its client goes."""

    offset: Offset = Field(default=0, description="how much of what it says is known already")
    timeout_s: Annotated[float, Field(strict=True, gt=0, le=2_592_000.0)] = USUAL_TIMEOUT_S


class AttachExec(ExecRef):
    """A command to follow; it goes on when its client goes."""

    offset: Offset = 0


async def _run(service: Service, caller: Caller, request: RunStream, talk: Talk) -> Answer:
    by = actor(caller, "machine_exec")
    job = await service.host.execs.start(request.machine, wish_of(request), by)
    with job.tap(request.offset) as tap:
        await job.started.wait()
        told_why(job)
        left = False
        try:
            left = await _converse(job, tap, talk)
        finally:
            if not left and not job.over and not _stopping(service):
                service.host.execs.end_soon(job)
    return Answer()


async def _attach(service: Service, caller: Caller, request: AttachExec, talk: Talk) -> Answer:
    by = actor(caller, "exec_attach")
    job = service.host.execs.find(request.exec_id, by)
    await service.host.execs.note(job, by)
    with job.tap(request.offset) as tap:
        await _converse(job, tap, talk)
    return Answer()


def _stopping(service: Service) -> bool:
    try:
        service.journal.refuse_when_stopping()
    except errors.Stopping:
        return True
    return False


async def _converse(job: Job, tap: Tap, talk: Talk) -> bool:
    """Carry frames both ways until one side has had enough; tell whether it was meant to end."""
    pieces, _ = job.log.since(tap.at, 1)
    tap.at = pieces[0].offset if pieces else tap.at
    await talk.begin({"exec_id": job.exec.exec_id, "offset": tap.at, "terminal": job.exec.terminal})

    async def say() -> None:
        async for piece in tap.pieces():
            out = piece.channel is Channel.STDOUT
            await talk.send(Kind.DATA if out else Kind.STDERR, piece.data)
        await talk.send(Kind.END, job.exec.model_dump_json().encode())

    return await both_ways(talk, partial(_take, job), say)


async def _take(job: Job, kind: int, payload: bytes) -> None:
    try:
        if kind == Kind.DATA:
            await job.type_all(payload)
        elif kind == Kind.END:
            await job.type(b"", end=True)
        elif kind == Kind.SIZE:
            size = _size(payload)
            await (await job.running()).resize(size)
    except (errors.StateForbids, errors.Unavailable):
        # It has ended, or its guest is not reached now: the client hears how it ends.
        return


def _size(payload: bytes) -> Terminal:
    try:
        size = TerminalSize.model_validate_json(payload)
    except ValidationError as error:
        raise errors.InvalidInput("a terminal has from 1 to 10000 rows and columns") from error
    return Terminal(size.rows, size.columns)


async def _console(service: Service, caller: Caller, request: NamedMachine, talk: Talk) -> Answer:
    by = actor(caller, "machine_attach")
    machine = await service.host.machines.get(request.machine, by)
    running = service.host.machines.live(machine)
    await service.store.note(by, machine.machine_id, "ok")
    async with running.attach() as terminal:
        path = running.console
        size = await anyio.to_thread.run_sync(console.size, path)
        _, before = await anyio.to_thread.run_sync(
            console.read, path, max(0, size - _SCROLLBACK_BYTES), _SCROLLBACK_BYTES
        )

        async def say() -> None:
            await talk.send(Kind.DATA, before)
            async for data in terminal:
                await talk.send(Kind.DATA, data)
            await talk.send(Kind.END, json.dumps({"machine_id": machine.machine_id}).encode())

        async def take(kind: int, payload: bytes) -> None:
            if kind == Kind.DATA:
                await terminal.type(payload)

        await talk.begin({"machine_id": machine.machine_id})
        await both_ways(talk, take, say)
    return Answer()


STREAMS = {
    stream.name: stream
    for stream in (
        Stream("machine_exec", RunStream, _run),
        Stream("exec_attach", AttachExec, _attach),
        Stream("machine_attach", NamedMachine, _console),
        *transfers.STREAMS,
        *kernel_watch.STREAMS,
    )
}
