"""`metrics`: figures of tasks and workers."""

from __future__ import annotations

from typing import Annotated

import typer

from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.options import complete_group

app = typer.Typer()


@command(app, "metrics", example="metrics --window-s 86400 --group release")
def metrics(
    here: Session,
    window_s: Annotated[
        float | None,
        typer.Option(
            "--window-s", metavar="SECONDS", help="Over how long a time; by default an hour."
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            "--group",
            metavar="GROUP",
            help="Only of this group.",
            autocompletion=complete_group,
        ),
    ] = None,
) -> None:
    """Read figures: counts by state, waiting and running times, throughput, workers.

    For Prometheus there is `/metrics` over HTTP.
    """
    here.tell("metrics_get", {"window_s": window_s, "group": group})
