"""`worker`: external claimants that register, are heard of, drain and get lost."""

from __future__ import annotations

from typing import Annotated

import typer

from microvm_orchestrator.cli import output, values
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.options import (
    Capabilities,
    Cursor,
    Labels,
    Limit,
    OwnName,
    WorkerName,
)

app = typer.Typer(help="Workers: who claims tasks, and what they can do.")

BRIEF = ("worker", "state", "capabilities", "roles", "principal", "seen_at")


@command(app, "register", example="worker register --capability node --capability gpu --ttl-s 300")
def register(
    here: Session,
    worker: OwnName = None,
    capabilities: Capabilities = None,
    roles: Annotated[
        list[str] | None,
        typer.Option("--role", metavar="ROLE", help="A role it has; may be repeated."),
    ] = None,
    labels: Labels = None,
    ttl_s: Annotated[
        float | None,
        typer.Option(
            "--ttl-s", metavar="SECONDS", help="How long it may be silent before it counts as lost."
        ),
    ] = None,
) -> None:
    """Register a worker with what it can do, for as long as it says that it is still there.

    Its capabilities and roles are added to those of each claim it makes.
    """
    given = {
        "worker": worker,
        "capabilities": capabilities,
        "roles": roles,
        "labels": values.pairs(labels, "--label"),
        "ttl_s": ttl_s,
    }
    here.tell("worker_register", given)


@command(app, "heartbeat", example="worker heartbeat --worker builder-1")
def heartbeat(here: Session, worker: OwnName = None) -> None:
    """Say that a registered worker is still there, though it holds no task."""
    here.tell("worker_heartbeat", {"worker": worker})


@command(app, "get", example="worker get builder-1")
def get(here: Session, worker: WorkerName) -> None:
    """Look at a worker: what it can do, and when it was last heard of."""
    here.tell("worker_get", {"worker": worker})


@command(app, "list", example="worker list")
def list_(here: Session, limit: Limit = None, cursor: Cursor = None) -> None:
    """List the registered workers."""
    given = {"limit": limit, "cursor": cursor}
    here.tell("worker_list", given, lambda answer: output.page(answer, BRIEF, "no workers"))


@command(app, "drain", example="worker drain builder-1\nworker drain builder-1 --no-draining")
def drain(
    here: Session,
    worker: WorkerName,
    draining: Annotated[
        bool | None,
        typer.Option(
            "--draining/--no-draining",
            help="Whether it shall take no more tasks; by default yes.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Let a worker finish what it holds and take no more; --no-draining takes it back."""
    here.tell("worker_drain", {"worker": worker, "draining": draining})


@command(app, "remove", example="worker remove builder-1")
def remove(here: Session, worker: WorkerName) -> None:
    """Forget a worker. Leases it holds stay until they are ended or run out."""
    here.tell("worker_remove", {"worker": worker})
