"""`pool`: machines that stand ready to be claimed."""

from __future__ import annotations

import typer

from microvm_orchestrator.cli import output
from microvm_orchestrator.cli.command import Session, command

app = typer.Typer(help="Pools: machines that stand ready to be claimed.")

BRIEF = ("image", "wanted", "ready", "reason")


@command(app, "list", example="pool list")
def list_(here: Session) -> None:
    """List the images of which machines stand ready, as the setting machines.warm wants it."""
    nothing = "none is kept ready: the setting machines.warm names no image"
    here.tell("pool_list", {}, lambda answer: output.page(answer, BRIEF, nothing))
