"""`exec`: commands in machines that were begun: waited for, followed, spoken to."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

import typer

from microvm_orchestrator.cli import failure, output
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.options import Cursor, Limit, OnlyMachine, complete_exec
from microvm_orchestrator.cli.values import octets_at

app = typer.Typer(help="Commands in machines; `machine exec` begins one.")

BRIEF = ("exec_id", "machine_id", "argv", "state", "exit_code", "signal", "owner", "started_at")
_SLICE_S = 10.0
# As a shell tells of a program that a signal ended.
_BY_SIGNAL = 128

ExecId = Annotated[
    str,
    typer.Argument(
        metavar="EXEC",
        help="The command's id.",
        autocompletion=complete_exec,
        show_default=False,
    ),
]


def status_of(told: dict[str, Any]) -> int:
    """Return the exit status of a command as a shell would give it."""
    if told["timed_out"]:
        return failure.TIMED_OUT
    if told["signal"] is not None:
        return _BY_SIGNAL + int(told["signal"])
    return failure.TIMED_OUT if told["exit_code"] is None else int(told["exit_code"])


def write(channel: str, text: str, encoded: str | None) -> None:
    """Pass on what a command said: its bytes as they were, and to a terminal what it can show.

    Whoever wants a terminal to obey what runs in a machine gives that a terminal of its own.
    """
    stream = sys.stderr if channel == "stderr" else sys.stdout
    stream.flush()
    if stream.isatty():
        stream.write(output.said(text))
        stream.flush()
    else:
        stream.buffer.write(octets_at(text, encoded))
        stream.buffer.flush()


def show(told: dict[str, Any]) -> None:
    """Show how a command stands, each channel where it belongs."""
    for channel in ("stdout", "stderr"):
        write(channel, told[channel], told.get(f"{channel}_base64"))
    if told["state"] == "running":
        failure.say(f"it goes on as {told['exec_id']}")


@command(app, "wait", example="exec wait x_01k6vq... --timeout-s 60")
def wait(
    here: Session,
    exec_id: ExecId,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout-s", metavar="SECONDS", help="How long to wait; by default for ever."
        ),
    ] = None,
) -> int:
    """Wait until a command has ended, show the last it said, and exit as it did.

    With 124 where the wait was too short.
    """
    given = {"exec_id": exec_id, "timeout_s": _SLICE_S if timeout_s is None else timeout_s}
    answer = here.client.call_through_restarts("exec_wait", given)
    while timeout_s is None and answer.value["state"] == "running":
        answer = here.client.call_through_restarts("exec_wait", given)
    here.give(answer, show)
    return status_of(answer.value)


@command(app, "output", example="exec output x_01k6vq... --offset 4096")
def read(
    here: Session,
    exec_id: ExecId,
    offset: Annotated[
        int | None, typer.Option("--offset", metavar="N", help="Where to begin; 0 by default.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="BYTES", help="At most so many bytes.")
    ] = None,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout-s", metavar="SECONDS", help="How long to wait where there is nothing yet."
        ),
    ] = None,
) -> None:
    """Read a part of what a command said, both channels where they belong."""
    given = {"exec_id": exec_id, "offset": offset, "limit": limit, "timeout_s": timeout_s}
    here.tell("exec_output", given, _write_pieces)


def _write_pieces(answer: dict[str, Any]) -> None:
    for piece in answer["pieces"]:
        write(piece["channel"], piece["text"], piece.get("base64"))


@command(app, "input", example="exec input x_01k6vq... --data 'yes'")
def give(
    here: Session,
    exec_id: ExecId,
    data: Annotated[
        str | None, typer.Option("--data", metavar="TEXT", help="What to write to its input.")
    ] = None,
    data_base64: Annotated[
        str | None, typer.Option("--data-base64", metavar="BASE64", help="The same, in base64.")
    ] = None,
    end: Annotated[
        bool | None, typer.Option("--end", help="Nothing follows.", show_default=False)
    ] = None,
) -> None:
    """Give input to a command that was begun with --stdin-open."""
    given = {"exec_id": exec_id, "data": data, "data_base64": data_base64, "end": end}
    here.tell("exec_input", given)


@command(app, "signal", example="exec signal x_01k6vq... INT")
def signal(
    here: Session,
    exec_id: ExecId,
    signal: Annotated[
        Literal["TERM", "INT", "KILL", "HUP", "QUIT", "USR1", "USR2", "CONT", "STOP", "TSTP"],
        typer.Argument(metavar="[SIGNAL]", help="Its name; TERM by default."),
    ] = "TERM",
) -> None:
    """Send a signal to a command and all of its session."""
    here.tell("exec_signal", {"exec_id": exec_id, "signal": signal}, output.record)


@command(app, "list", example="exec list --machine box --state running")
def list_(
    here: Session,
    machine: OnlyMachine = None,
    state: Annotated[
        Literal["running", "exited", "lost"] | None,
        typer.Option("--state", help="Only in this state."),
    ] = None,
    limit: Limit = None,
    cursor: Cursor = None,
) -> None:
    """List the commands of machines: those you began, or all if you see everything."""
    given = {"machine": machine, "state": state, "limit": limit, "cursor": cursor}
    here.tell("exec_list", given, lambda answer: output.page(answer, BRIEF, "no commands"))
