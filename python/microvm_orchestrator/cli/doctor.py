"""`doctor`: is the service well, and what to do where it is not."""

from __future__ import annotations

from typing import Any

import typer

from microvm_orchestrator.cli import failure, output
from microvm_orchestrator.cli.command import Session, command

app = typer.Typer()

CHECK = ("state", "name", "found", "meaning")


def show(answer: dict[str, Any]) -> None:
    output.table(CHECK, answer["checks"])
    output.line("")
    output.record({"version": answer["version"], **answer["facts"]})


@command(app, "doctor", example="doctor || journalctl -u microvm-orchestrator -e")
def doctor(here: Session) -> int:
    """Check the service and what machines need of its host; each with what to do.

    The exit status is 1 when a check failed; a warning tells what this host does without. It reads
    the whole store.
    """
    answer = here.client.call("doctor_run", {})
    here.give(answer, show)
    return failure.OK if answer.value["healthy"] else failure.INTERNAL
