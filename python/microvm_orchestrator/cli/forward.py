"""`forward`: ports of a guest on the host, and services of the host in a guest."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from microvm_orchestrator.cli import output
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.machine import MachineRef
from microvm_orchestrator.cli.options import OnlyMachine

app = typer.Typer(help="Forwards: ports of a guest on the host, and the other way round.")

BRIEF = ("forward_id", "machine_id", "direction", "guest", "host", "state", "connections", "reason")
_ADDRESS = "PORT, HOST:PORT or the path of a socket"


@command(
    app,
    "add",
    example="forward add box 8000\nforward add box 8000 --host 9000\n"
    "forward add box 5432 --host 127.0.0.1:5432 --direction to_host",
)
def add(
    here: Session,
    machine: MachineRef,
    guest: Annotated[
        str, typer.Argument(metavar="GUEST", help=f"In the guest: {_ADDRESS}.", show_default=False)
    ],
    host: Annotated[
        str | None,
        typer.Option(
            "--host", metavar="ADDRESS", help=f"On the host: {_ADDRESS}; by default any free port."
        ),
    ] = None,
    direction: Annotated[
        Literal["to_guest", "to_host"] | None,
        typer.Option(
            "--direction",
            help="Whether who connects on the host reaches the guest (the default), or who "
            "connects in the guest reaches the host.",
        ),
    ] = None,
) -> None:
    """Forward a port of a guest to the host, or a service of the host into the guest.

    It needs no network, and lasts as long as the machine is known.
    """
    given = {"machine": machine, "guest": guest, "host": host, "direction": direction}
    here.tell("forward_add", given, output.record)


@command(app, "list", example="forward list --machine box")
def list_(
    here: Session,
    machine: OnlyMachine = None,
) -> None:
    """List forwards: yours, or all if you see everything."""
    here.tell(
        "forward_list",
        {"machine": machine},
        lambda answer: output.page(answer, BRIEF, "no forwards"),
    )


@command(app, "remove", example="forward remove f_01k6vq...")
def remove(
    here: Session,
    forward_id: Annotated[
        str, typer.Argument(metavar="FORWARD", help="The forward's id.", show_default=False)
    ],
) -> None:
    """End a forward, and the connections that it has."""
    here.tell("forward_remove", {"forward_id": forward_id})
