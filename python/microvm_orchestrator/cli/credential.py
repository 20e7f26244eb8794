"""`credential` and `setup-token`: the keys that the daemon adds for its guests.

A value is read from standard input and never from the command line, which everybody on a machine
can list.
"""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from microvm_orchestrator import errors, places
from microvm_orchestrator.cli import output, values
from microvm_orchestrator.cli.command import Session, command

app = typer.Typer(help="Credentials: keys for model APIs, which guests never see.")
setup = typer.Typer()

BRIEF = ("name", "kind", "created_at", "source")

CredentialName = Annotated[
    str, typer.Argument(metavar="NAME", help="The credential's name.", show_default=False)
]


@command(app, "set", example="credential set work anthropic-api-key < key-file")
def set_(
    here: Session,
    name: CredentialName,
    kind: Annotated[
        Literal["anthropic-api-key", "anthropic-oauth", "openai-api-key", "secret"],
        typer.Argument(help="What it opens.", show_default=False),
    ],
    value: Annotated[
        str,
        typer.Option(
            "--value-file",
            metavar="FILE",
            help="The file that holds it; - is standard input, where what you type is not shown.",
        ),
    ] = "-",
) -> None:
    """Keep a key for the model APIs, or another secret, in place of the one that had the name.

    The value is one line of standard input or of a file.
    """
    here.tell("credential_set", {"name": name, "kind": kind, "value": _read(value)})


@command(app, "list", example="credential list")
def list_(here: Session) -> None:
    """List the credentials that there are: names and kinds, never values."""
    here.tell("credential_list", {}, lambda answer: output.page(answer, BRIEF, "no credentials"))


@command(app, "remove", example="credential remove work")
def remove(here: Session, name: CredentialName) -> None:
    """Forget a credential, from the next request of a guest on."""
    here.tell("credential_remove", {"name": name})


@command(setup, "setup-token", example="setup-token")
def setup_token(
    here: Session,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="What the credential is called.")
    ] = "claude",
) -> None:
    """Log in to a Claude subscription, and keep its token as a credential.

    This runs `claude setup-token` and takes the token from what that prints. With standard input
    from a file or a pipe, the token is looked for in there, and nothing is run.
    """
    from microvm_orchestrator.cli import claude_token

    if sys.stdin.isatty():
        token = claude_token.obtain()
    else:
        token = claude_token.find(sys.stdin.buffer.read(claude_token.OUTPUT_MOST))
    if token is None:
        raise errors.InvalidInput(
            "there is no token in what was printed",
            hint=f"copy it, and give it to `{places.NAME} setup-token < FILE`",
        )
    here.tell("credential_set", {"name": name, "kind": "anthropic-oauth", "value": token})


def _read(file: str) -> str | None:
    if file == "-" and sys.stdin.isatty():
        import getpass

        return getpass.getpass("Value: ")
    return values.secret(file)
