"""`pool`: machines that stand ready to be claimed."""

from __future__ import annotations

import typer

from microvm_orchestrator.cli import output
from microvm_orchestrator.cli.command import Session, command

app = typer.Typer(help="Pools: machines that stand ready to be claimed.")

BRIEF = ("image", "for_agents", "wanted", "ready", "reason")


@command(app, "list", example="pool list")
def list_(here: Session) -> None:
    """List the images of which machines stand ready, as machines.warm and agents.warm want it."""
    nothing = "none is kept ready: the settings machines.warm and agents.warm name no image"
    here.tell("pool_list", {}, lambda answer: output.page(answer, BRIEF, nothing))
