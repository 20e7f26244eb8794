"""`whoami` and `version`: who the daemon takes you for, and which one it is."""

from __future__ import annotations

import typer

from microvm_orchestrator import __version__, errors
from microvm_orchestrator.cli import output
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.failure import say

app = typer.Typer()


@command(app, "whoami", example="whoami")
def whoami(here: Session) -> None:
    """Say who the daemon takes you for, and how far you reach."""
    here.tell("whoami", {})


@command(app, "version", example="version --json")
def version(here: Session) -> None:
    """Print the version of this program, and of the daemon if it can be reached."""
    found = {"client": __version__, "daemon": None}
    try:
        found["daemon"] = here.client.health()["version"]
    except errors.OrchestratorError as error:
        say(f"no word from the daemon: {error.message}")
    if here.json:
        output.emit_value(found)
    else:
        output.record(found)
