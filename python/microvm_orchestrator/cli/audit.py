"""`audit`: who did what, to what, through which door, and what came of it."""

from __future__ import annotations

from typing import Annotated

import typer

from microvm_orchestrator.cli import output
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.options import Cursor, Limit

app = typer.Typer(help="The audit log, which nobody can change.")

ENTRY = ("seq", "at", "actor", "role", "via", "action", "target", "outcome")


def _filter(name: str, meaning: str) -> typer.models.OptionInfo:
    return typer.Option(f"--{name}", metavar=name.upper(), help=meaning)


@command(app, "list", example="audit list --action task_cancel --since 2026-11-21T00:00:00Z")
def list_(
    here: Session,
    actor: Annotated[str | None, _filter("actor", "Only what they did.")] = None,
    action: Annotated[str | None, _filter("action", "Only this call, as task_cancel.")] = None,
    target: Annotated[str | None, _filter("target", "Only what was done to it.")] = None,
    outcome: Annotated[
        str | None, _filter("outcome", "Only with this outcome: ok, or an error's code.")
    ] = None,
    since: Annotated[
        str | None, _filter("since", "Only from this moment on, as 2026-11-21T00:00:00Z.")
    ] = None,
    limit: Limit = None,
    cursor: Cursor = None,
) -> None:
    """Read the audit log, newest first."""
    given = {
        "actor": actor,
        "action": action,
        "target": target,
        "outcome": outcome,
        "since": since,
        "limit": limit,
        "cursor": cursor,
    }
    here.tell("audit_list", given, lambda answer: output.page(answer, ENTRY, "nothing"))
