"""Commands in machines: run, waited for, followed, spoken to.

Each goes on whoever leaves; its id finds it again. Above are the front ends; below, the commands of
this host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import anyio
from pydantic import Field

from microvm_orchestrator import errors
from microvm_orchestrator.execs.execs import Wish
from microvm_orchestrator.machine.shell import Channel, Command, Terminal
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.exec import EXEC, Exec, ExecState, KeptExec
from microvm_orchestrator.model.values import MAX_TEXT, Flag, Line, Moment
from microvm_orchestrator.service import octets
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.content import digest_of
from microvm_orchestrator.service.machines import MachineRef, NamedMachine
from microvm_orchestrator.service.operations import USUAL_WAIT_S
from microvm_orchestrator.service.page import ListRequest, PageOf
from microvm_orchestrator.service.records import page_of
from microvm_orchestrator.service.service import Service, actor
from microvm_orchestrator.service.unless import unless
from microvm_orchestrator.service.waiting import PROGRESS_EVERY_S, Wait
from microvm_orchestrator.store.base import Match

if TYPE_CHECKING:
    from microvm_orchestrator.execs.job import Job
    from microvm_orchestrator.model.records import Actor, Record

# Long enough for a build, short enough that a mistake does not hold a machine for ever.
USUAL_TIMEOUT_S = 600.0
# 30 days: what a guest takes.
_MAX_TIMEOUT_S = 2_592_000.0
_USUAL_CAP = 1 << 16
# For a guest to begin a command; one that takes longer is answered as it is.
_BEGIN_S = 5.0
MAX_OUTPUT = 1 << 20
MAX_INPUT = 1 << 20
_MAX_ENCODED = MAX_INPUT * 4 // 3 + 4
_MAX_WORDS = 4096

# By their names and without `SIG`: those that have the same number everywhere.
SIGNALS = {
    "HUP": 1,
    "INT": 2,
    "QUIT": 3,
    "KILL": 9,
    "USR1": 10,
    "USR2": 12,
    "TERM": 15,
    "CONT": 18,
    "STOP": 19,
    "TSTP": 20,
    "WINCH": 28,
}
SignalName = Literal[
    "TERM", "INT", "KILL", "HUP", "QUIT", "USR1", "USR2", "CONT", "STOP", "TSTP", "WINCH"
]

# How it is asked for, and by whom; the rest is the command.
_NOT_OF_THE_COMMAND = {"machine", "wait_s", "output_cap", "offset", "terminal"}

ExecId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Word = Annotated[str, Field(max_length=MAX_TEXT)]
VariableName = Annotated[str, Field(pattern=r"^[^=\x00]{1,200}$")]
Side = Annotated[int, Field(strict=True, ge=1, le=10_000)]
Encoded = Annotated[str, Field(max_length=_MAX_ENCODED)]


class TerminalSize(Request):
    """The size of a terminal."""

    rows: Side = 24
    columns: Side = 80


class RunCommand(NamedMachine):
    """A command to run in a machine."""

    argv: Annotated[list[Word], Field(min_length=1, max_length=_MAX_WORDS)] | None = Field(
        default=None, description="a program and its words, as they are: no shell reads them"
    )
    script: Word | None = Field(
        default=None, description="instead of argv: run by /bin/sh -c, byte for byte"
    )
    stdin: Word | None = Field(default=None, description="its whole input; without it, none")
    stdin_base64: Encoded | None = Field(default=None, description="the same, in base64")
    stdin_open: Flag = Field(
        default=False, description="whether more input follows, by `exec_input`"
    )
    env: Annotated[dict[VariableName, Word], Field(max_length=256)] = Field(
        default={}, description="beside PATH, HOME, USER, LOGNAME and LANG"
    )
    cwd: Line | None = Field(default=None, description="by default the user's home")
    user: Line | None = Field(
        default=None, description="a name, a number or uid:gid of the guest; by default root"
    )
    terminal: TerminalSize | None = Field(
        default=None, description="gives it a terminal, where all it says is stdout"
    )
    timeout_s: Annotated[float, Field(strict=True, gt=0, le=_MAX_TIMEOUT_S)] = Field(
        default=USUAL_TIMEOUT_S,
        description="after so long it is ended with all of its session: TERM, 2 s later KILL",
    )
    output_cap: Annotated[int, Field(strict=True, ge=0, le=MAX_OUTPUT)] = Field(
        default=_USUAL_CAP,
        description="how many bytes of stdout and of stderr the answer holds: the last ones",
    )
    wait_s: Wait = Field(
        default=USUAL_WAIT_S,
        description="how long to wait for its end before it is answered as it is; it goes on all "
        "the same, and `exec_wait` waits on",
    )
    exec_id: ExecId | None = Field(
        default=None,
        description="an id of your own: the command is begun at most once, however often it is "
        "asked for",
    )


class ExecRef(Request):
    """A command."""

    exec_id: ExecId


class WaitForExec(ExecRef):
    """A command, and how long to wait for its end."""

    timeout_s: Wait = USUAL_WAIT_S


class ReadOutput(ExecRef):
    """Which part of what a command said."""

    offset: Annotated[int, Field(strict=True, ge=0)] = Field(
        default=0, description="`next` of the answer before"
    )
    limit: Annotated[int, Field(strict=True, ge=1, le=MAX_OUTPUT)] = Field(
        default=65_536, description="at most so many bytes"
    )
    timeout_s: Wait = Field(default=0.0, description="how long to wait where there is nothing yet")


class GiveInput(ExecRef):
    """Input for a command that was begun with `stdin_open`."""

    data: Word | None = None
    data_base64: Encoded | None = Field(default=None, description="the same, in base64")
    end: Flag = Field(default=False, description="nothing follows; ^D on a terminal")


class SignalExec(ExecRef):
    """A signal for a command."""

    signal: SignalName | Annotated[int, Field(strict=True, ge=1, le=64)] = Field(
        default="TERM", description="its name without SIG, or its number"
    )


class ExecListRequest(ListRequest):
    """Which commands."""

    machine: MachineRef | None = Field(default=None, description="only of this one: a name or id")
    state: ExecState | None = None


class ExecAnswer(Answer):
    """How a command stood, and the last of what it had said."""

    exec_id: str
    machine_id: str
    state: ExecState
    exit_code: int | None = Field(description="null unless it exited by itself")
    signal: int | None = Field(description="the signal that ended it")
    timed_out: bool
    stdout: str
    stdout_base64: str | None = Field(default=None, description="when stdout is not UTF-8")
    stderr: str
    stderr_base64: str | None = Field(default=None, description="when stderr is not UTF-8")
    truncated: bool = Field(description="it said more before what is shown here")
    next: int = Field(description="where `exec_output` goes on: behind all it had said")
    started_at: Moment
    ended_at: Moment | None


class OutputPiece(Answer):
    """Something a command said."""

    channel: Channel
    offset: int = Field(description="of its first byte, counted over both channels")
    text: str
    base64: str | None = Field(default=None, description="when it is not UTF-8")


class ExecOutput(Answer):
    """A stretch of what a command said, in order."""

    exec_id: str
    pieces: list[OutputPiece]
    next: int = Field(description="where to go on reading")
    missed: bool = Field(description="part of what was asked for is not kept any more")
    state: ExecState
    ended: bool = Field(description="the command is over, and this is the last of it")


class InputTaken(Answer):
    """How much of the input was taken."""

    exec_id: str
    taken: int = Field(description="bytes; fewer than were given when it does not read on")


@declare("machine_exec", "POST /v1/machines/{machine}/exec", role=Role.OPERATOR, waits=True)
async def machine_exec(service: Service, caller: Caller, request: RunCommand) -> ExecAnswer:
    """Run a command in a machine, and tell how it ended and the last of what it said.

    It goes on whoever leaves, until its timeout. One that runs longer than `wait_s` is answered as
    `running`; `exec_wait` and `exec_output` go on from there. When its machine is lost meanwhile
    the error is unknown-outcome: it may have taken effect.
    """
    return await perform(service, caller, request, actor(caller, "machine_exec"))


async def perform(service: Service, caller: Caller, request: RunCommand, by: Actor) -> ExecAnswer:
    """Run a command as somebody. Raises: UnknownOutcome for one that is lost, and as `Execs`."""
    job = await service.host.execs.start(request.machine, wish_of(request), by)
    until = anyio.current_time() + request.wait_s
    with anyio.move_on_after(max(request.wait_s, _BEGIN_S)):
        await job.started.wait()
    told_why(job)
    left_s = max(0.0, until - anyio.current_time())
    return await _awaited(service, caller, job, left_s, request.output_cap)


def told_why(job: Job) -> None:
    """Raise why a command never ran, to each who asked for it."""
    if job.failure is not None:
        raise type(job.failure)(job.failure.message, hint=job.failure.hint)


def wish_of(request: RunCommand) -> Wish:
    """Raises: InvalidInput, TooLarge."""
    if (request.argv is None) == (request.script is None):
        raise errors.InvalidInput("a command is given by argv, or by script")
    words = request.argv or ["/bin/sh", "-c", request.script or ""]
    terminal = request.terminal
    stdin = octets.given(request.stdin, request.stdin_base64, "stdin", MAX_INPUT)
    return Wish(
        command=Command(
            argv=[octets.given(word, None, "argv", MAX_TEXT * 4) or b"" for word in words],
            env=request.env,
            cwd=request.cwd,
            user=request.user,
            terminal=None if terminal is None else Terminal(terminal.rows, terminal.columns),
            timeout_s=request.timeout_s,
        ),
        digest=digest_of("machine_exec", request.model_dump(exclude=_NOT_OF_THE_COMMAND)),
        timeout_s=request.timeout_s,
        output_cap=request.output_cap,
        exec_id=request.exec_id,
        stdin=stdin or b"",
        takes_input=request.stdin_open,
    )


async def _awaited(
    service: Service, caller: Caller, job: Job, timeout_s: float, cap: int
) -> ExecAnswer:
    with service.journal.listen(Match(subjects=(job.exec.exec_id,))) as listener:
        with anyio.move_on_after(timeout_s) as patience:
            while not job.over:
                service.journal.refuse_when_stopping()
                with anyio.move_on_after(PROGRESS_EVERY_S):
                    await unless(listener.wait, job.ended.wait())
                waited = timeout_s - (patience.deadline - anyio.current_time())
                await caller.progress(waited, timeout_s, f"has said {job.log.end} bytes")
    return _answer(job, cap)


def _answer(job: Job, cap: int) -> ExecAnswer:
    """Raises: UnknownOutcome for one that is lost."""
    told = job.exec
    if told.state is ExecState.LOST:
        raise errors.UnknownOutcome(
            f"what became of command {told.exec_id} is not known: {told.reason}",
            hint="exec_output shows what it had said; it is not run again by itself",
        )
    said: dict[Channel, tuple[str, str | None]] = {}
    truncated = False
    for channel in Channel:
        kept = job.log.whole(channel)
        data = kept[max(0, len(kept) - cap) :]
        cut = job.log.cut_off(channel) or len(data) < len(kept)
        said[channel] = octets.told(octets.from_a_character(data) if cut else data)
        truncated = truncated or cut
    return ExecAnswer(
        exec_id=told.exec_id,
        machine_id=told.machine_id,
        state=told.state,
        exit_code=told.exit_code,
        signal=told.signal,
        timed_out=told.timed_out,
        stdout=said[Channel.STDOUT][0],
        stdout_base64=said[Channel.STDOUT][1],
        stderr=said[Channel.STDERR][0],
        stderr_base64=said[Channel.STDERR][1],
        truncated=truncated,
        next=job.log.end,
        started_at=told.started_at,
        ended_at=told.ended_at,
    )


@declare(
    "exec_wait",
    "GET /v1/execs/{exec_id}/wait",
    role=Role.VIEWER,
    effect=Effect.READ,
    waits=True,
)
async def exec_wait(service: Service, caller: Caller, request: WaitForExec) -> ExecAnswer:
    """Wait until a command has ended, or the time is up; then tell how it stands.

    Waiting is all this does: the command goes on whether or not anybody waits.
    """
    job = service.host.execs.find(request.exec_id, actor(caller, "exec_wait"))
    return await _awaited(service, caller, job, request.timeout_s, job.output_cap)


@declare(
    "exec_output",
    "GET /v1/execs/{exec_id}/output",
    role=Role.VIEWER,
    effect=Effect.READ,
    waits=True,
)
async def exec_output(service: Service, caller: Caller, request: ReadOutput) -> ExecOutput:
    """Read what a command said on both channels, in order, from an offset on; or wait for more.

    To follow it, ask again with `next` as `offset` and a `timeout_s`. Of each channel the last
    megabyte is kept.
    """
    job = service.host.execs.find(request.exec_id, actor(caller, "exec_output"))
    with service.journal.listen(Match(subjects=(request.exec_id,))) as listener:
        with anyio.move_on_after(request.timeout_s):
            while job.log.end <= request.offset and not job.over:
                service.journal.refuse_when_stopping()
                await unless(listener.wait, job.changed())
    pieces, end = job.log.since(request.offset, request.limit)
    said = sum(len(piece.data) for piece in pieces)
    told = [
        OutputPiece(channel=piece.channel, offset=piece.offset, text=text, base64=encoded)
        for piece in pieces
        for text, encoded in [octets.told(piece.data)]
    ]
    return ExecOutput(
        exec_id=request.exec_id,
        pieces=told,
        next=end,
        missed=end - request.offset > said,
        state=job.exec.state,
        ended=job.over and end >= job.log.end,
    )


@declare("exec_input", "POST /v1/execs/{exec_id}/input", role=Role.OPERATOR, waits=True)
async def exec_input(service: Service, caller: Caller, request: GiveInput) -> InputTaken:
    """Give input to a command that was begun with `stdin_open`, or end its input.

    One that does not read takes only so much; the answer says how much, and the rest was not sent.
    """
    by = actor(caller, "exec_input")
    job = service.host.execs.find(request.exec_id, by)
    data = octets.given(request.data, request.data_base64, "data", MAX_INPUT)
    await job.running()
    await service.host.execs.note(job, by)
    taken = await job.type(data or b"", end=request.end)
    return InputTaken(exec_id=request.exec_id, taken=taken)


@declare("exec_signal", "POST /v1/execs/{exec_id}/signal", role=Role.OPERATOR)
async def exec_signal(service: Service, caller: Caller, request: SignalExec) -> Exec:
    """Send a signal to a command and all of its session."""
    by = actor(caller, "exec_signal")
    job = service.host.execs.find(request.exec_id, by)
    number = request.signal
    process = await job.running()
    await service.host.execs.note(job, by)
    await process.signal(number if isinstance(number, int) else SIGNALS[number])
    return job.exec


@declare("exec_list", "GET /v1/execs", role=Role.VIEWER, effect=Effect.READ)
async def exec_list(service: Service, caller: Caller, request: ExecListRequest) -> PageOf[Exec]:
    """List the commands of machines: those you began, or all if you see everything.

    All that run, and of those that ended the last hundred of each machine.
    """
    by = actor(caller, "exec_list")
    machine_id = None
    if request.machine is not None:
        machine_id = (await service.host.machines.get(request.machine, by)).machine_id

    async def shown(record: Record) -> Exec | None:
        told = KeptExec.model_validate(record.body).exec
        fits = (
            by.sees_of(told.owner)
            and machine_id in {None, told.machine_id}
            and request.state in {None, told.state}
        )
        return told if fits else None

    items, cursor = await page_of(service.store, EXEC, request, by, shown)
    return PageOf[Exec](items=items, next_cursor=cursor)


CALLS: tuple[Call, ...] = (
    machine_exec,
    exec_wait,
    exec_output,
    exec_input,
    exec_signal,
    exec_list,
)
