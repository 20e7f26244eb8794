"""`slot`: who holds places on the host."""

from __future__ import annotations

from typing import Any

import typer

from microvm_orchestrator.cli import cache, output
from microvm_orchestrator.cli.command import Session, command

app = typer.Typer(help="Slots: who holds places on the host, and who waits for one.")

BRIEF = ("machine_id", "name", "memory_mib", "vcpus", "waiting", "cache")


@command(app, "list", example="slot list")
def list_(here: Session) -> None:
    """List who holds places, who waits in line for one, and the cache disks."""
    here.tell("slot_list", {}, _show)


def _show(answer: dict[str, Any]) -> None:
    output.record({name: answer[name] for name in ("capacity", "used", "waiting")})
    if answer["items"]:
        output.line("")
        output.table(BRIEF, answer["items"])
    if answer["caches"]:
        output.line("")
        output.table(cache.BRIEF, answer["caches"])
