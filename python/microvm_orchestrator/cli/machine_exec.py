"""`machine exec`, `machine shell` and the two `attach`: programs of a machine as if here.

Above sits the program; below, the streams of frames. When the daemon is started anew in the middle
a command goes on, and so does showing what it says.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from microvm_orchestrator import errors, places
from microvm_orchestrator.cli import execs, failure, terminal
from microvm_orchestrator.cli.client import RESTART_S
from microvm_orchestrator.cli.command import Session, command, interactive_command
from microvm_orchestrator.cli.duplex import ESCAPE, Cut, Duplex, Talk, open_duplex
from microvm_orchestrator.cli.machine import MachineRef, app
from microvm_orchestrator.cli.values import pairs

if TYPE_CHECKING:
    from microvm_orchestrator.cli.client import Client

# A person may leave it open for the weekend.
SHELL_S = 7 * 24 * 3600.0
SHELL = "if command -v bash >/dev/null; then exec bash -l; fi; exec sh -l"
_RETRY_S = 0.3

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[-- COMMAND...]", help="A program and its words, behind --.", show_default=False
    ),
]
Env = Annotated[
    list[str] | None,
    typer.Option("--env", "-e", metavar="K=V", help="A variable for it; may be repeated."),
]
Cwd = Annotated[
    str | None, typer.Option("--cwd", metavar="PATH", help="Where it runs; by default at home.")
]
User = Annotated[
    str | None, typer.Option("--user", metavar="USER", help="Who it runs as; by default root.")
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout-s", metavar="SECONDS", help="When it is ended; 600 seconds by default."
    ),
]


@command(
    app,
    "exec",
    example="machine exec box -- ls -l /\n"
    "machine exec box -- tar c /src > src.tar\n"
    "machine exec box --script 'make && make test' --wait-s 0",
)
def exec_(
    here: Session,
    machine: MachineRef,
    argv: Words = None,
    script: Annotated[
        str | None,
        typer.Option("--script", metavar="TEXT", help="Instead of words: run by /bin/sh -c."),
    ] = None,
    env: Env = None,
    cwd: Cwd = None,
    user: User = None,
    timeout_s: Timeout = None,
    tty: Annotated[
        bool | None,
        typer.Option("--tty", "-t", help="Give it this terminal.", show_default=False),
    ] = None,
    no_stdin: Annotated[
        bool | None,
        typer.Option("--no-stdin", "-n", help="Give it no input.", show_default=False),
    ] = None,
    output_cap: Annotated[
        int | None,
        typer.Option(
            "--output-cap", metavar="BYTES", help="With --wait-s: how much of each channel to show."
        ),
    ] = None,
    wait_s: Annotated[
        float | None,
        typer.Option(
            "--wait-s",
            metavar="SECONDS",
            help="Do not stay with it: wait at most so long, then let it go on without us.",
        ),
    ] = None,
    exec_id: Annotated[
        str | None,
        typer.Option("--exec-id", metavar="ID", help="Its id: begun at most once under it."),
    ] = None,
) -> int:
    """Run a command in a machine as if here, and exit as it did.

    That is with 128+N after signal N, and with 124 when its time was up. Standard input goes to
    it, Ctrl-C too, and it ends when this program does. With --wait-s or --json it goes on by
    itself, without input.
    """
    given: dict[str, object] = {
        "machine": machine,
        "argv": argv or None,
        "script": script,
        "env": pairs(env, "--env"),
        "cwd": cwd,
        "user": user,
        "timeout_s": timeout_s,
        "exec_id": exec_id,
    }
    if here.json or wait_s is not None or output_cap is not None:
        answer = here.client.call(
            "machine_exec", {**given, "wait_s": wait_s, "output_cap": output_cap}
        )
        here.give(answer, execs.show)
        return execs.status_of(answer.value)
    if tty:
        return on_terminal(here, "machine_exec", given | {"env": with_term(env)})
    return _beside(here, given, stdin=None if no_stdin else 0)


@interactive_command(app, "shell", example="machine shell box\nmachine shell box -- htop")
def shell(
    here: Session,
    machine: MachineRef,
    argv: Words = None,
    env: Env = None,
    cwd: Cwd = None,
    user: User = None,
) -> int:
    """Have a shell, or another program, of a machine on this terminal; exit as it does.

    Ctrl-] leaves it running; `exec attach` comes back to it.
    """
    given: dict[str, object] = {
        "machine": machine,
        "argv": argv or None,
        "script": None if argv else SHELL,
        "env": with_term(env),
        "cwd": cwd,
        "user": user,
        "timeout_s": SHELL_S,
    }
    return on_terminal(here, "machine_exec", given)


@interactive_command(app, "attach", example="machine attach box")
def attach(here: Session, machine: MachineRef) -> int:
    """Have the console of a machine on this terminal: the last it said, then both ways.

    Ctrl-] leaves. One at a time can have it.
    """
    on_terminal = sys.stdin.isatty()
    try:
        duplex = open_duplex(here.client, "machine_attach", {"machine": machine})
        talk = Talk(tty=None, stdin=0, escape=ESCAPE)
        told = _raw(talk, duplex) if on_terminal else talk.run(duplex)
    except Cut as cut:
        raise errors.Unavailable("the daemon went away", hint="attach again") from cut
    failure.say("" if told is None else "the machine has ended")
    return failure.OK


@interactive_command(execs.app, "attach", example="exec attach x_01k6vq...")
def attach_exec(
    here: Session,
    exec_id: execs.ExecId,
    offset: Annotated[
        int | None, typer.Option("--offset", metavar="N", help="Where to begin; 0 by default.")
    ] = None,
) -> int:
    """Follow a command that was begun, from its first byte on that is kept, and exit as it does.

    Several can follow one; what is typed goes to it. It goes on when this ends; Ctrl-] leaves.
    """
    return _Run(here.client, "exec_attach", {"exec_id": exec_id}, offset or 0).to_the_end()


def on_terminal(here: Session, call: str, given: dict[str, object]) -> int:
    """Have a program there on this terminal, and exit as it does. Raises: InvalidInput."""
    if not sys.stdin.isatty():
        raise errors.InvalidInput(
            "standard input is no terminal", hint="use `machine exec` without --tty"
        )
    size = os.get_terminal_size(0)
    asked: dict[str, object] = {
        **given,
        "stdin_open": True,
        "terminal": {"rows": max(1, size.lines), "columns": max(1, size.columns)},
        "exec_id": given.get("exec_id") or _new_id(),
    }
    return _Run(here.client, call, asked).to_the_end()


def with_term(env: list[str] | None) -> dict[str, str]:
    """Give variables as words have them, and which terminal this is."""
    return {"TERM": os.environ.get("TERM", "dumb"), **(pairs(env, "--env") or {})}


def _beside(here: Session, given: dict[str, object], stdin: int | None) -> int:
    asked: dict[str, object] = {
        **given,
        "stdin_open": stdin is not None,
        "exec_id": given["exec_id"] or _new_id(),
    }
    return _Run(here.client, "machine_exec", asked, stdin=stdin).to_the_end()


def _new_id() -> str:
    return f"cli-{uuid.uuid4().hex}"


@dataclass(slots=True)
class _Run:
    """A command that is seen through, whatever becomes of the daemon meanwhile."""

    client: Client
    call: str
    asked: dict[str, object]
    offset: int = 0
    stdin: int | None = 0

    def to_the_end(self) -> int:
        talk = Talk(stdin=self.stdin, on_interrupt=self._interrupt)
        duplex = self._opened(again=False)
        while True:
            try:
                told = _raw(talk, duplex) if duplex.told["terminal"] else talk.run(duplex)
            except Cut:
                self.offset = duplex.offset
                duplex = self._continued(talk)
            else:
                return self._ended(told)

    def _ended(self, told: dict[str, Any] | None) -> int:
        name = self.asked["exec_id"]
        if told is None:
            failure.say(f"\nit goes on; to come back: {places.NAME} exec attach {name}")
            return failure.OK
        if told["state"] == "lost":
            raise errors.UnknownOutcome(
                f"what became of command {name} is not known: {told['reason']}"
            )
        return execs.status_of(told)

    def _continued(self, talk: Talk) -> Duplex:
        name = self.asked["exec_id"]
        if talk.fed and talk.tty is None and not talk.input_over:
            raise errors.UnknownOutcome(
                f"the connection broke; how much of its input command {name} got is not known",
                hint=f"`{places.NAME} exec wait {name}` shows what became of it",
            )
        failure.say("the daemon went away; waiting for it to come back")
        duplex = self._opened(again=True)
        if duplex.offset > self.offset:
            failure.say(f"{duplex.offset - self.offset} bytes of its output were lost")
        return duplex

    def _opened(self, *, again: bool) -> Duplex:
        """Open the stream; a daemon that was there may be away for a while."""
        deadline = time.monotonic() + RESTART_S
        while True:
            try:
                return open_duplex(self.client, self.call, {**self.asked, "offset": self.offset})
            except Cut as cut:
                # Asking again is safe: under its id a command is begun once.
                if time.monotonic() >= deadline:
                    raise errors.UnknownOutcome("the daemon went away, and stays away") from cut
            except errors.Unavailable as away:
                known = type(away) in {errors.Unavailable, errors.Stopping}
                if not again or not known or time.monotonic() >= deadline:
                    raise
            time.sleep(_RETRY_S)

    def _interrupt(self) -> None:
        given = {"exec_id": self.asked["exec_id"], "signal": "INT"}
        try:
            self.client.call("exec_signal", given)
        except errors.OrchestratorError as error:
            failure.tell(error)


def _raw(talk: Talk, duplex: Duplex) -> dict[str, Any] | None:
    """Talk with this terminal in raw mode, if there is one."""
    if not sys.stdin.isatty():
        return talk.run(duplex)
    talk.escape = ESCAPE
    talk.tty = 0
    with terminal.raw(0):
        return talk.run(duplex)
