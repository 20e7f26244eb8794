"""`token`: bearer tokens for those who do not come through the unix socket, or shall do less."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from microvm_orchestrator import errors
from microvm_orchestrator.cli import output
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.options import Cursor, IdempotencyKey, Limit, complete_token

app = typer.Typer(help="Tokens: let others in, with the role and the sight you choose.")

BRIEF = ("token_id", "name", "role", "live", "expires_at", "last_used_at", "created_by")


@command(
    app,
    "create",
    example="token create builder-1 worker --expires-in-s 86400 --scope-label team=web",
)
def create(
    here: Session,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Who its holder is: worker, owner and actor of what it does.",
            show_default=False,
        ),
    ],
    role: Annotated[
        Literal["viewer", "worker", "operator", "admin"],
        typer.Argument(help="What it may do; no more than you.", show_default=False),
    ],
    scope_labels: Annotated[
        list[str] | None,
        typer.Option(
            "--scope-label",
            metavar="K=V",
            help="It sees only tasks with this label; several values of one label are "
            "alternatives, and of several labels all must match.",
        ),
    ] = None,
    own: Annotated[
        bool | None,
        typer.Option(
            "--own/--no-own",
            help="Whether a narrowed sight includes the tasks submitted in its name; by default "
            "yes. Alone, --own narrows to just these.",
            show_default=False,
        ),
    ] = None,
    expires_in_s: Annotated[
        float | None,
        typer.Option("--expires-in-s", metavar="SECONDS", help="When it ends; by default never."),
    ] = None,
    idempotency_key: IdempotencyKey = None,
) -> None:
    """Make a bearer token; the answer is the only time that it is shown.

    Its role reaches no further than yours, and only who sees everything can make one.
    """
    labels: dict[str, list[str]] = {}
    for word in scope_labels or ():
        label, equals, value = word.partition("=")
        if not equals:
            raise errors.InvalidInput(f"--scope-label {word} is not written key=value")
        labels.setdefault(label, []).append(value)
    scope = {
        name: part
        for name, part in {"labels": labels, "own": own}.items()
        if part not in ({}, None)
    }
    given = {
        "name": name,
        "role": role,
        "scope": scope or None,
        "expires_in_s": expires_in_s,
        "idempotency_key": idempotency_key,
    }
    here.tell("token_create", given)


@command(app, "list", example="token list")
def list_(here: Session, limit: Limit = None, cursor: Cursor = None) -> None:
    """List tokens, those that ended too: an admin sees all, an operator those they made."""
    given = {"limit": limit, "cursor": cursor}
    here.tell("token_list", given, lambda answer: output.page(answer, BRIEF, "no tokens"))


@command(app, "revoke", example="token revoke tok_01k6vq...")
def revoke(
    here: Session,
    token_id: Annotated[
        str,
        typer.Argument(
            metavar="TOKEN",
            help="The token's id, not the token.",
            autocompletion=complete_token,
            show_default=False,
        ),
    ],
) -> None:
    """End a token, from the next request on. Leases held with it run out by themselves."""
    here.tell("token_revoke", {"token_id": token_id})
