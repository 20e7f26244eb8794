"""`role`: what agents can be spawned as."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from microvm_orchestrator.cli import output
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.options import complete_role

app = typer.Typer(help="Roles: what agents can be spawned as, and what each is told.")

BRIEF = ("name", "source", "aliases", "description")
_BROKEN = ("file", "reason")


@command(app, "list", example="role list")
def list_(here: Session) -> None:
    """List the roles that ship, and those of the folder that agents.roles_dir names."""
    here.tell("role_list", {}, _show)


def _show(answer: dict[str, Any]) -> None:
    output.table(BRIEF, answer["items"])
    if answer["broken"]:
        output.line("")
        output.table(_BROKEN, answer["broken"])


@command(app, "get", example="role get architect")
def get(
    here: Session,
    name: Annotated[
        str,
        typer.Argument(
            metavar="ROLE",
            help="The role's name, or an alias of it.",
            autocompletion=complete_role,
            show_default=False,
        ),
    ],
) -> None:
    """Look at a role, and at what an agent is told that takes it on."""

    def show(answer: dict[str, Any]) -> None:
        output.record({key: answer[key] for key in BRIEF})
        output.line("")
        output.line(answer["prompt"])

    here.tell("role_get", {"name": name}, show)
