"""`network`: what connects machines with each other."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from microvm_orchestrator.cli import output
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.options import complete_network

app = typer.Typer(help="Networks: machines in one reach each other, and nobody else.")

BRIEF = ("network_id", "name", "prefixes", "owner", "created_at")
_MEMBER = ("machine_id", "name", "state", "mac", "addresses")

NetworkRef = Annotated[
    str,
    typer.Argument(
        metavar="NETWORK",
        help="The network's name or id.",
        autocompletion=complete_network,
        show_default=False,
    ),
]


@command(
    app,
    "create",
    example="network create lan\nnetwork create lab --prefix 10.9.0.0/24 --prefix fd09::/64",
)
def create(
    here: Session,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What it is called.", show_default=False)
    ],
    prefixes: Annotated[
        list[str] | None,
        typer.Option(
            "--prefix",
            metavar="PREFIX",
            help="Of which its machines get their addresses, one of IPv4 and one of IPv6; by "
            "default some that no other network has.",
        ),
    ] = None,
) -> None:
    """Make a network; `machine define --network NAME` gives a machine its place in it."""
    here.tell("network_create", {"name": name, "prefixes": prefixes}, output.record)


@command(app, "get", example="network get lan")
def get(here: Session, network: NetworkRef) -> None:
    """Look at a network, and at the machines that have a place in it."""
    here.tell("network_get", {"network": network}, _show)


def _show(answer: dict[str, Any]) -> None:
    output.record(answer["network"])
    output.table(_MEMBER, answer["members"])


@command(app, "list", example="network list")
def list_(here: Session) -> None:
    """List networks, oldest first: yours, or all if you see everything."""
    nothing = "no networks; `network create NAME` makes one"
    here.tell("network_list", {}, lambda answer: output.page(answer, BRIEF, nothing))


@command(app, "remove", example="network remove lan")
def remove(here: Session, network: NetworkRef) -> None:
    """Remove a network; refused while a machine or a snapshot has a place in it."""
    here.tell("network_remove", {"network": network})
