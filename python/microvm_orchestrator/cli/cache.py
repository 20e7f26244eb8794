"""`cache`: disks that outlive the machines they are lent to."""

from __future__ import annotations

from typing import Annotated

import typer

from microvm_orchestrator.cli import output
from microvm_orchestrator.cli.command import Session, command

app = typer.Typer(help="Caches: disks that are lent to machines of one trust domain in turn.")

BRIEF = ("domain", "number", "size_mib", "used_mib", "used_at", "holder", "home")


@command(app, "list", example="cache list --domain repo")
def list_(
    here: Session,
    domain: Annotated[
        str | None, typer.Option("--domain", metavar="DOMAIN", help="Only of this domain.")
    ] = None,
) -> None:
    """List cache disks: yours, or all if you see everything."""
    nothing = "no caches; `machine define --cache DOMAIN` asks for one"
    given = {"domain": domain}
    here.tell("cache_list", given, lambda answer: output.page(answer, BRIEF, nothing))


@command(app, "remove", example="cache remove repo\ncache remove repo --number 2")
def remove(
    here: Session,
    domain: Annotated[
        str, typer.Argument(metavar="DOMAIN", help="The trust domain.", show_default=False)
    ],
    number: Annotated[
        int | None, typer.Option("--number", metavar="N", help="Only this one of its caches.")
    ] = None,
) -> None:
    """Remove the cache disks of a domain, or one of them; refused while a machine has it."""
    here.tell("cache_remove", {"domain": domain, "number": number})
