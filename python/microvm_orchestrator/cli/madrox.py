"""`madrox`: the address that users of that program have, in front of the daemon.

It reads the environment variables that they set. Above sits the program; below, the door that
listens and passes requests on.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microvm_orchestrator import errors, places
from microvm_orchestrator.cli import output
from microvm_orchestrator.cli.command import Session, interactive_command
from microvm_orchestrator.cli.connect import SETTINGS
from microvm_orchestrator.cli.failure import say
from microvm_orchestrator.cli.madrox_door import Door, Terms

if TYPE_CHECKING:
    from collections.abc import Mapping

app = typer.Typer()

_HOST, _PORT = "localhost", 8001
_FOLDER = "/tmp/claude_orchestrator"  # noqa: S108 - that program's default; made for its owner alone, and refused if somebody else's
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
# Under which name the daemon keeps a key that was in the environment.
CREDENTIAL = "madrox"


@interactive_command(app, "madrox", example="madrox\nmadrox --port 8002")
def madrox(
    here: Session,
    host: Annotated[
        str | None,
        typer.Option("--host", metavar="HOST", help="Else $ORCHESTRATOR_HOST, else localhost."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            metavar="PORT",
            min=0,
            max=65_535,
            help="Else $ORCHESTRATOR_PORT, else 8001; 0 takes any free one.",
        ),
    ] = None,
) -> None:
    """Listen where clients of madrox look for it, and let the daemon answer, until interrupted.

    It has that program's REST and, at /mcp, its tools, and reads its environment variables. On this
    host it serves you alone; who comes from elsewhere shows a token of the daemon.
    """
    here.client.health()
    terms = terms_of(os.environ)
    key = os.environ.get("ANTHROPIC_API_KEY", "").strip()
    if key and _kept(here, key):
        terms = replace(terms, settings={**terms.settings, "CREDENTIAL": CREDENTIAL})
    chosen = host or os.environ.get("ORCHESTRATOR_HOST", "").strip() or _HOST
    with Door(here.client, chosen, _port(os.environ) if port is None else port, terms) as door:
        output.line(door.url)
        door.serve()


def _kept(here: Session, key: str) -> bool:
    """Have the daemon keep a key, if one may say so."""
    given = {"name": CREDENTIAL, "kind": "anthropic-api-key", "value": key}
    try:
        here.client.call("credential_set", given)
    except errors.Denied as error:
        say(f"ANTHROPIC_API_KEY is not used, but what the daemon has: {error.message}")
        return False
    say(f"ANTHROPIC_API_KEY is the daemon's credential {CREDENTIAL} now; no machine sees it")
    return True


def terms_of(environment: Mapping[str, str]) -> Terms:
    """Raises: InvalidInput."""
    level = environment.get("LOG_LEVEL", "").strip().upper() or "INFO"
    if level not in _LEVELS:
        raise errors.InvalidInput(f"LOG_LEVEL is one of {', '.join(_LEVELS)}")
    names = SETTINGS["madrox"]
    return Terms(
        settings={name: environment[name] for name in names if environment.get(name, "").strip()},
        folder=Path(environment.get("WORKSPACE_DIR", "").strip() or _FOLDER),
        verbosity=_LEVELS.index(level),
    )


def _port(environment: Mapping[str, str]) -> int:
    given = environment.get("ORCHESTRATOR_PORT", "").strip() or str(_PORT)
    if not (given.isdecimal() and int(given) <= 65_535):
        raise errors.InvalidInput(
            f"ORCHESTRATOR_PORT {given[:40]} is no port", hint=f"{places.NAME} madrox --port 8001"
        )
    return int(given)
