"""`connect` as a command of the full program: its help, and words that the fast way did not take.

Above sits the program; below is the bridge itself, which main.py starts directly.
"""

from __future__ import annotations

from typing import Annotated

import typer

from microvm_orchestrator import places
from microvm_orchestrator.cli import connect as bridge
from microvm_orchestrator.cli.command import plain_command

app = typer.Typer()


@plain_command(
    app,
    "connect",
    example="connect\nconnect --profile vmcluster --wait 30",
)
def connect(
    _: None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            metavar="NAME",
            help="The set of tools to be served; by default the daemon's own.",
        ),
    ] = None,
    socket: Annotated[
        str | None,
        typer.Option(
            "--socket",
            metavar="PATH",
            help=f"The daemon's unix socket; else ${places.SOCKET_VARIABLE}, else the usual place.",
        ),
    ] = None,
    token_file: Annotated[
        str | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help=f"A file that holds a bearer token; else ${places.TOKEN_VARIABLE}, else the file "
            f"${places.TOKEN_FILE_VARIABLE}.",
        ),
    ] = None,
    wait: Annotated[
        str | None,
        typer.Option("--wait", metavar="SECONDS", help="How long to wait for the daemon to come."),
    ] = None,
) -> int:
    """Be an MCP server on standard input and output: the bridge that an MCP client starts.

    It carries lines between its client and the daemon, stays through a restart of the daemon, and
    ends when its client does: claude mcp add microvm-orchestrator -- microvm-orchestrator connect
    """
    return bridge.run(profile=profile, socket=socket, token_file=token_file, wait=wait)
