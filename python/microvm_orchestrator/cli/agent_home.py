"""`agent`, where it lives: its files, a terminal beside it, and what it says as it says it.

Above sits the program; below, what does the same with machines.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from microvm_orchestrator.cli import failure, output
from microvm_orchestrator.cli.agent import AgentRef, app
from microvm_orchestrator.cli.command import Session, command, interactive_command
from microvm_orchestrator.cli.copy import Parents, Recursive, copied, place
from microvm_orchestrator.cli.file import Content, ContentBase64, MaxSize, Mode, write
from microvm_orchestrator.cli.machine_exec import (
    SHELL,
    SHELL_S,
    Env,
    Words,
    on_terminal,
    with_term,
)

# How long one request of a follower waits.
_FOLLOW_S = 30.0

_Path = Annotated[
    str,
    typer.Argument(
        metavar="PATH", help="Below its workspace, or an absolute one.", show_default=False
    ),
]


@command(app, "file-list", example="agent file-list ada\nagent file-list ada --path src")
def file_list(
    here: Session,
    agent: AgentRef,
    path: Annotated[
        str | None,
        typer.Option("--path", metavar="PATH", help="A folder; its workspace by default."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="At most so many; 1000 by default.")
    ] = None,
) -> None:
    """List the files below an agent's workspace; one that was suspended is started for it."""

    def show(answer: dict[str, Any]) -> None:
        for file in answer["files"]:
            output.line(f"{file['size']:>10}  {file['path']}")
        if answer["truncated"]:
            failure.say("there are more")

    here.tell("agent_file_list", {"agent": agent, "path": path, "limit": limit}, show)


@command(app, "file-get", example="agent file-get ada notes.md")
def file_get(
    here: Session,
    agent: AgentRef,
    path: _Path,
    max_size: MaxSize = None,
) -> None:
    """Write a small file of an agent to standard output; `agent cp` copies large ones."""
    here.tell("agent_file_get", {"agent": agent, "path": path, "max_size": max_size}, write)


@command(app, "file-put", example="agent file-put ada notes.md --content 'Read me first.'")
def file_put(
    here: Session,
    agent: AgentRef,
    path: _Path,
    content: Content = None,
    content_base64: ContentBase64 = None,
    mode: Mode = None,
    parents: Annotated[
        bool | None,
        typer.Option(
            "--parents/--no-parents",
            help="Make the folders above it, as is done by default.",
            show_default=False,
        ),
    ] = None,
    user: Annotated[
        str | None,
        typer.Option("--user", metavar="USER", help="Its owner; by default as the agent runs."),
    ] = None,
) -> None:
    """Write a small file of an agent, whole or not at all."""
    given = {
        "agent": agent,
        "path": path,
        "content": content,
        "content_base64": content_base64,
        "mode": mode,
        "parents": parents,
        "user": user,
    }
    here.tell("agent_file_put", given)


@command(
    app,
    "cp",
    example="agent cp notes.md ada:\nagent cp -r ada:src results\nagent cp ada:out.log -",
)
def cp(
    here: Session,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="A path, AGENT:PATH, or - for standard input.", show_default=False
        ),
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="DST", help="A path, AGENT:PATH, or - for standard output.", show_default=False
        ),
    ],
    recursive: Recursive = None,
    parents: Parents = None,
    user: Annotated[
        str | None,
        typer.Option("--user", metavar="USER", help="Who owns it; by default as the agent runs."),
    ] = None,
) -> None:
    """Copy a file or a folder between here and an agent, of any size, as `machine cp` does.

    PATH is below its workspace unless it begins with /. One that was suspended is started for it.
    """
    # With nothing behind the colon its workspace is meant, as a folder to copy into.
    far, near = (
        place(f"{word}./" if word.endswith(":") else word, "agent") for word in (source, target)
    )
    copied(here, far, near, recursive=recursive, parents=parents, user=user)


@interactive_command(app, "shell", example="agent shell ada\nagent shell ada -- git log")
def shell(
    here: Session,
    agent: AgentRef,
    argv: Words = None,
    env: Env = None,
    path: Annotated[
        str | None,
        typer.Option(
            "--path",
            metavar="PATH",
            help="Where it runs, below its workspace; by default where the agent does.",
        ),
    ] = None,
) -> int:
    """Have a shell, or another program, beside an agent on this terminal; exit as it does.

    It runs as the agent does, also while that is in a turn. Ctrl-] leaves it running; `exec attach`
    comes back to it.
    """
    given: dict[str, object] = {
        "agent": agent,
        "argv": argv or None,
        "script": None if argv else SHELL,
        "env": with_term(env),
        "path": path,
        "timeout_s": SHELL_S,
    }
    return on_terminal(here, "agent_shell", given)


@command(app, "follow", example="agent follow ada\nagent follow ada --cursor begin --timeout-s 0")
def follow(
    here: Session,
    agent: AgentRef,
    cursor: Annotated[
        str | None,
        typer.Option(
            "--cursor",
            metavar="CURSOR",
            help="Where to begin; `begin` is all that is kept. The turn that it is in by default.",
        ),
    ] = None,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout-s",
            metavar="SECONDS",
            help="Not until it is over: end when so long nothing was heard.",
        ),
    ] = None,
) -> None:
    """Show what an agent is told, says, does and answers, as it happens, until it is over."""
    given: dict[str, Any] = {"agent": agent, "cursor": cursor}
    given["timeout_s"] = _FOLLOW_S if timeout_s is None else timeout_s
    while True:
        answer = here.client.call_through_restarts("agent_follow", given)
        here.give(answer, _heard)
        told = answer.value
        if told["ended"] or (timeout_s is not None and not told["pieces"]):
            return
        given["cursor"] = told["cursor"]


def _heard(answer: dict[str, Any]) -> None:
    for piece in answer["pieces"]:
        match piece["kind"]:
            case "message":
                output.line(f"> {piece['sender']}: {piece['text']}")
            case "says":
                output.line(piece["text"])
            case "does":
                output.line(f"  [{piece['text']}]")
            case _:
                why: dict[str, Any] = piece["error"] or {}
                output.line(f"= {piece['state']}" + (f": {why['message']}" if why else ""))
