"""`web`: the pages of the daemon in a browser on this host, for whoever may open its socket."""

from __future__ import annotations

import os
import tempfile
import webbrowser
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microvm_orchestrator.cli import output, pages
from microvm_orchestrator.cli.command import Session, interactive_command
from microvm_orchestrator.cli.failure import say

if TYPE_CHECKING:
    from collections.abc import Generator

app = typer.Typer()


@interactive_command(app, "web", example="web\nweb --open\nweb --port 8080")
def web(
    here: Session,
    port: Annotated[
        int,
        typer.Option("--port", metavar="PORT", min=0, max=65_535, help="0 takes any free one."),
    ] = 0,
    open_: Annotated[
        bool | None,
        typer.Option("--open", help="Open it in your browser.", show_default=False),
    ] = None,
) -> None:
    """Show the daemon's pages in a browser on this host, as you, until it is interrupted.

    It prints an address that lets one browser in, once; nobody else on this host gets in.
    """
    here.client.health()
    with pages.Door(here.client, port) as door:
        output.line(door.url)
        if open_:
            with _leading_to(door.url) as file:
                if not webbrowser.open(file.as_uri()):
                    say("no browser was found: open the address yourself")
                pages.serve(door)
        else:
            pages.serve(door)


@contextmanager
def _leading_to(url: str) -> Generator[Path]:
    """Give a file that leads to an address: everybody can read the words of a command."""
    handle, name = tempfile.mkstemp(suffix=".html")
    file = Path(name)
    try:
        with os.fdopen(handle, "w") as page:
            page.write(f'<!doctype html><meta http-equiv="refresh" content="0;url={url}">')
        yield file
    finally:
        file.unlink(missing_ok=True)
