"""`allow`, `list` and `remove`: an older tool's words for repositories, for whoever knows them."""

from __future__ import annotations

from typing import Annotated

import typer

from microvm_orchestrator.cli import output, repo
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.options import Cursor, Limit

app = typer.Typer()


@command(app, "allow", example="allow\nallow ~/src/site --alias site")
def allow(
    here: Session,
    path: repo.Folder = ".",
    alias: Annotated[
        str | None,
        typer.Option(
            "--alias", "-a", metavar="NAME", help="What it is called; else its folder's name."
        ),
    ] = None,
) -> None:
    """Register a git repository, as `repo add` does, and say its alias."""
    given = {"path": repo.path_of(path), "alias": alias}
    here.tell("repo_add", given, lambda told: output.line(f"Registered: {told['alias']}"))


@command(app, "list", example="list")
def list_(here: Session, limit: Limit = None, cursor: Cursor = None) -> None:
    """List repositories, as `repo list` does."""
    repo.list_(here, limit, cursor)


@command(app, "remove", example="remove site")
def remove(here: Session, alias: repo.RepoRef) -> None:
    """Forget a repository, as `repo remove` does, and say its alias."""
    given = {"repo": alias}
    here.tell("repo_remove", given, lambda told: output.line(f"Removed: {told['alias']}"))
