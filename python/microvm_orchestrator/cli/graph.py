"""`graph`: several tasks at once, from a file."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

from microvm_orchestrator.cli import values
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.options import Group, IdempotencyKey

app = typer.Typer(help="Graphs: tasks that depend on each other, submitted together.")


@command(
    app,
    "submit",
    example="graph submit release.toml --group release\ngraph submit - < release.json",
)
def submit(
    here: Session,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="TOML if its name ends so, else JSON; - is JSON on standard input. Either "
            "an object with `tasks`, or a list of tasks. A task has the fields of `task submit`.",
            show_default=False,
        ),
    ],
    group: Group = None,
    idempotency_key: IdempotencyKey = None,
) -> None:
    """Submit a graph of tasks, all or nothing.

    Tasks name each other by key, in any order. A cycle is refused with the cycle named.
    """
    found = values.document(file)
    given = cast("dict[str, Any]", found) if isinstance(found, dict) else {"tasks": found}
    chosen = {"group": group, "idempotency_key": idempotency_key}
    more = {name: value for name, value in chosen.items() if value is not None}
    here.tell("graph_submit", {**given, **more})
