"""`snapshot`: saved machines."""

from __future__ import annotations

from typing import Annotated

import typer

from microvm_orchestrator.cli import output
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.machine import MachineRef
from microvm_orchestrator.cli.operation import WaitS, follow
from microvm_orchestrator.cli.options import Cursor, Limit, OnlyMachine, complete_snapshot

app = typer.Typer(help="Snapshots: saved machines, from which others are started.")

BRIEF = (
    "snapshot_id",
    "machine_id",
    "state",
    "memory_mib",
    "unique_mib",
    "pause_s",
    "owner",
    "created_at",
)

SnapshotId = Annotated[
    str,
    typer.Argument(
        metavar="SNAPSHOT",
        help="The snapshot's id.",
        autocompletion=complete_snapshot,
        show_default=False,
    ),
]


@command(app, "create", example="snapshot create box")
def create(here: Session, machine: MachineRef, wait_s: WaitS = None) -> int:
    """Save a machine with its memory, its devices and its disk; it goes on as it was.

    `machine branch` starts others from it.
    """
    return follow(here, "snapshot_create", {"machine": machine}, wait_s, output.record)


@command(app, "get", example="snapshot get s_01k6vq...")
def get(here: Session, snapshot_id: SnapshotId) -> None:
    """Look at a snapshot."""
    here.tell("snapshot_get", {"snapshot_id": snapshot_id}, output.record)


@command(app, "list", example="snapshot list --machine box")
def list_(
    here: Session,
    machine: OnlyMachine = None,
    limit: Limit = None,
    cursor: Cursor = None,
) -> None:
    """List snapshots, oldest first: yours, or all if you see everything."""
    given = {"machine": machine, "limit": limit, "cursor": cursor}
    here.tell("snapshot_list", given, lambda answer: output.page(answer, BRIEF, "no snapshots"))


@command(app, "verify", example="snapshot verify s_01k6vq...")
def verify(here: Session, snapshot_id: SnapshotId, wait_s: WaitS = None) -> int:
    """Read all of a snapshot, and compare it with what was saved; a damaged one is an error."""
    given = {"snapshot_id": snapshot_id}
    return follow(here, "snapshot_verify", given, wait_s, output.record)


@command(app, "delete", example="snapshot delete s_01k6vq...")
def delete(here: Session, snapshot_id: SnapshotId) -> None:
    """Delete a snapshot; machines that were started from it run on."""
    here.tell("snapshot_delete", {"snapshot_id": snapshot_id})
