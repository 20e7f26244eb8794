"""`machine`: virtual machines: asked for, started, looked at, ended."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated, Any, Literal

import typer

from microvm_orchestrator.cli import failure, output
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.operation import WaitS, follow
from microvm_orchestrator.cli.options import (
    Cursor,
    IdempotencyKey,
    Limit,
    complete_machine,
    complete_network,
)

app = typer.Typer(help="Machines: virtual machines of this host.")

BRIEF = ("machine_id", "name", "state", "memory_mib", "vcpus", "image", "owner", "reason")
_FOLLOW_S = 10.0


class State(StrEnum):
    DEFINED = "defined"
    BOOTING = "booting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    CRASHED = "crashed"
    LOST = "lost"


MachineRef = Annotated[
    str,
    typer.Argument(
        metavar="MACHINE",
        help="The machine's name or id.",
        autocompletion=complete_machine,
        show_default=False,
    ),
]


@command(
    app,
    "define",
    example="machine define box\nmachine define box --memory-mib 1024 --vcpus 2\n"
    "machine define web --network lan --network lab=10.9.0.7",
)
def define(
    here: Session,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="What it is called.", show_default=False)
    ] = None,
    image: Annotated[
        str | None,
        typer.Option("--image", metavar="IMAGE", help="What it boots: a name or digest."),
    ] = None,
    memory_mib: Annotated[
        int | None, typer.Option("--memory-mib", metavar="MIB", help="Its memory.")
    ] = None,
    vcpus: Annotated[
        int | None, typer.Option("--vcpus", metavar="N", help="Its processors; 1 by default.")
    ] = None,
    disk_mib: Annotated[
        int | None,
        typer.Option(
            "--disk-mib",
            metavar="MIB",
            help="A disk for what the guest writes, kept when it stops; else it writes to memory.",
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            "--cache",
            metavar="DOMAIN",
            help="The trust domain, such as a repository, whose cache disk it finds at /cache.",
        ),
    ] = None,
    networks: Annotated[
        list[str] | None,
        typer.Option(
            "--network",
            metavar="NETWORK[=ADDRESS,...]",
            help="A network it is in, with addresses of your choice or of ours; may be repeated.",
            autocompletion=complete_network,
        ),
    ] = None,
    max_pids: Annotated[
        int | None,
        typer.Option(
            "--max-pids", metavar="N", help="Processes and threads that its commands have at once."
        ),
    ] = None,
    max_disk_operations_s: Annotated[
        int | None,
        typer.Option(
            "--max-disk-operations-s", metavar="N", help="Of each of its disks, by the second."
        ),
    ] = None,
    max_disk_bytes_s: Annotated[
        int | None,
        typer.Option(
            "--max-disk-bytes-s", metavar="BYTES", help="Of each of its disks, by the second."
        ),
    ] = None,
    accel: Annotated[
        Literal["auto", "kvm", "tcg"] | None,
        typer.Option("--accel", help="How guest code runs; auto by default."),
    ] = None,
    idempotency_key: IdempotencyKey = None,
) -> None:
    """Write a machine down; `machine start` boots it."""
    given = {
        "name": name,
        "image": image,
        "memory_mib": memory_mib,
        "vcpus": vcpus,
        "disk_mib": disk_mib,
        "cache": cache,
        "networks": networks,
        "max_pids": max_pids,
        "max_disk_operations_s": max_disk_operations_s,
        "max_disk_bytes_s": max_disk_bytes_s,
        "accel": accel,
        "idempotency_key": idempotency_key,
    }
    here.tell("machine_define", given, output.show)


@command(app, "get", example="machine get box")
def get(here: Session, machine: MachineRef) -> None:
    """Look at a machine: how it was made, where it stands, and why."""
    here.tell("machine_get", {"machine": machine}, output.show)


@command(app, "list", example="machine list --state running --state paused")
def list_(
    here: Session,
    state: Annotated[
        list[State] | None, typer.Option("--state", help="Only in this state; may be repeated.")
    ] = None,
    limit: Limit = None,
    cursor: Cursor = None,
) -> None:
    """List machines, oldest first: yours, or all if you see everything."""
    given = {"state": state, "limit": limit, "cursor": cursor}
    here.tell("machine_list", given, lambda answer: output.page(answer, BRIEF, "no machines"))


@command(app, "start", example="machine start box\nmachine start box --no-queue")
def start(
    here: Session,
    machine: MachineRef,
    queue: Annotated[
        bool | None,
        typer.Option(
            "--queue/--no-queue",
            help="Whether to wait in line when all slots are busy, or be refused.",
            show_default=False,
        ),
    ] = None,
    wait_s: WaitS = None,
) -> int:
    """Boot a machine, and wait until its guest is ready."""
    given = {"machine": machine, "queue": queue}
    return follow(here, "machine_start", given, wait_s, output.show)


@command(app, "stop", example="machine stop box --grace-s 30")
def stop(
    here: Session,
    machine: MachineRef,
    grace_s: Annotated[
        float | None,
        typer.Option(
            "--grace-s",
            metavar="SECONDS",
            help="How long its guest may take before it is ended by force.",
        ),
    ] = None,
    wait_s: WaitS = None,
) -> int:
    """Let a machine's guest power off, and end it by force when it has not in time."""
    given = {"machine": machine, "grace_s": grace_s}
    return follow(here, "machine_stop", given, wait_s, output.show)


@command(app, "kill", example="machine kill box")
def kill(here: Session, machine: MachineRef) -> None:
    """End a machine at once, as a power cut would."""
    here.tell("machine_kill", {"machine": machine}, output.show)


@command(app, "pause", example="machine pause box")
def pause(here: Session, machine: MachineRef) -> None:
    """Let a machine stand still; its memory stays."""
    here.tell("machine_pause", {"machine": machine}, output.show)


@command(app, "resume", example="machine resume box")
def resume(here: Session, machine: MachineRef) -> None:
    """Let a paused machine go on."""
    here.tell("machine_resume", {"machine": machine}, output.show)


@command(app, "delete", example="machine delete box")
def delete(here: Session, machine: MachineRef) -> None:
    """Forget a machine that does not run, with its disk and its console; its snapshots stay."""
    here.tell("machine_delete", {"machine": machine})


@command(app, "usage", example="machine usage box")
def usage(here: Session, machine: MachineRef) -> None:
    """Measure what a running machine costs this host now."""
    here.tell("machine_usage", {"machine": machine})


@command(app, "console", example="machine console box --offset 0")
def console(
    here: Session,
    machine: MachineRef,
    offset: Annotated[
        int | None,
        typer.Option("--offset", metavar="N", help="Where to begin; by default the last of it."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="BYTES", help="At most so many bytes at once.")
    ] = None,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout-s", metavar="SECONDS", help="How long to wait where there is nothing yet."
        ),
    ] = None,
) -> None:
    """Read a part of what a guest wrote to its console, also after it ended."""
    given = {"machine": machine, "offset": offset, "limit": limit, "timeout_s": timeout_s}
    here.tell("machine_console", given, _write)


@command(app, "logs", example="machine logs box\nmachine logs box --follow")
def logs(
    here: Session,
    machine: MachineRef,
    follow_: Annotated[
        bool | None,
        typer.Option("--follow", "-f", help="Go on until the machine ends.", show_default=False),
    ] = None,
) -> None:
    """Show the last of what a guest wrote to its console, and with --follow what comes."""
    given: dict[str, Any] = {"machine": machine}
    while True:
        answer = here.client.call_through_restarts("machine_console", given)
        here.give(answer, _write)
        if not follow_ or (answer.value["ended"] and not answer.value["text"]):
            return
        given |= {"offset": answer.value["next"], "timeout_s": _FOLLOW_S}


def _write(answer: dict[str, Any]) -> None:
    # Line by line: what would command the terminal is written out.
    for text in answer["text"].splitlines(keepends=True):
        sys.stdout.write(failure.harmless(text.rstrip("\r\n")))
        sys.stdout.write("\n" if text.endswith("\n") else "")
    sys.stdout.flush()


@command(
    app,
    "branch",
    example="machine branch box --name try --count 4\nmachine branch s_01k6vq...",
)
def branch(
    here: Session,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A snapshot's id; or a running machine, which is saved for it and goes on.",
            show_default=False,
        ),
    ],
    count: Annotated[
        int | None, typer.Option("--count", metavar="N", help="How many; 1 by default.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Its name; several get a number behind it."),
    ] = None,
    wait_s: WaitS = None,
) -> int:
    """Start machines that go on where one was saved, each with entropy, clock and names of its own.

    All or none: when one cannot be started, the others are taken away again.
    """
    given = {"source": source, "count": count, "name": name}
    return follow(here, "machine_branch", given, wait_s, _show_branches)


def _show_branches(result: dict[str, Any]) -> None:
    output.record({"snapshot_id": result["snapshot_id"]})
    output.table(BRIEF, result["machines"])
