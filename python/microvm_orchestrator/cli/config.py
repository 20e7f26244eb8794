"""`config`: what a daemon started now would read, and from where. It asks no daemon."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from microvm_orchestrator import places
from microvm_orchestrator.cli import output
from microvm_orchestrator.cli.command import local_command

if TYPE_CHECKING:
    from microvm_orchestrator.config import Loaded, Settings

app = typer.Typer(help="Settings: what a daemon started now would read, and from where.")

ConfigFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help=f"The configuration file; else ${places.CONFIG_VARIABLE}, else the usual places.",
    ),
]
StateDir = Annotated[
    str | None,
    typer.Option("--state-dir", metavar="DIR", help="Where the store lies; made if missing."),
]
DaemonSocket = Annotated[
    str | None,
    typer.Option("--socket", metavar="PATH", help="The unix socket that the daemon listens on."),
]
Tcp = Annotated[
    str | None,
    typer.Option(
        "--tcp",
        metavar="ADDR:PORT",
        help="Listen on the network too, where every request needs a token.",
    ),
]
LogLevel = Annotated[
    str | None,
    typer.Option(
        "--log-level", metavar="LEVEL", help="debug, info, warning or error: the least to log."
    ),
]


def load(
    config: str | None = None,
    state_dir: str | None = None,
    socket: str | None = None,
    tcp: str | None = None,
    log_level: str | None = None,
) -> Loaded:
    """Read the settings as the daemon does. Raises: ConfigInvalid."""
    # Only who asks for settings waits for what checks them.
    from microvm_orchestrator.config import load as read

    flags = {
        "state_dir": state_dir,
        "socket.path": socket,
        "tcp.listen": tcp,
        "log.level": log_level,
    }
    file = Path(config) if config is not None else places.find_config(os.environ)
    return read(file, os.environ, flags)


def _written(loaded: Loaded) -> dict[str, Any]:
    """Every setting as JSON writes it; secrets stay hidden."""
    tree: Settings = loaded.settings
    found: dict[str, Any] = {}
    for key in loaded.sources:
        value: Any = tree.model_dump(mode="json")
        for name in key.split("."):
            value = value[name]
        found[key] = value
    return found


@local_command(app, "check", example="config check\nconfig check --config ./config.toml --json")
def check(
    as_json: bool,  # noqa: FBT001 - every command's first parameter
    config: ConfigFile = None,
    state_dir: StateDir = None,
    socket: DaemonSocket = None,
    tcp: Tcp = None,
    log_level: LogLevel = None,
) -> None:
    """Check the settings and explain them: each one's value, and what set it.

    From weakest to strongest: the default, the file, the environment, the options.
    """
    loaded = load(config, state_dir, socket, tcp, log_level)
    rows = [
        {"setting": key, "value": value, "source": loaded.sources[key]}
        for key, value in _written(loaded).items()
    ]
    if as_json:
        output.emit_value({"settings": rows})
        return
    told = [{**row, "value": _toml(row["value"])} for row in rows]
    output.table(("setting", "value", "source"), told)


@local_command(app, "show", example="config show > config.toml")
def show(
    as_json: bool,  # noqa: FBT001 - every command's first parameter
    config: ConfigFile = None,
    state_dir: StateDir = None,
    socket: DaemonSocket = None,
    tcp: Tcp = None,
    log_level: LogLevel = None,
) -> None:
    """Print all settings as a configuration file that says the same."""
    found = _written(load(config, state_dir, socket, tcp, log_level))
    if as_json:
        output.emit_value(found)
        return
    section = ""
    for key, value in sorted(found.items(), key=lambda item: "." in item[0]):
        table, _, name = key.rpartition(".")
        if table != section:
            section = table
            output.line(f"\n[{section}]")
        output.line(_line(key, name, value))


def _line(key: str, name: str, value: object) -> str:
    if value is None:
        # TOML has no null. A retention takes the word; elsewhere leaving out means it.
        return f'{name} = "none"' if key.startswith("store.") else f"# {name} is not set"
    if key == "socket.mode":
        return f'{name} = "{value:o}"'
    return f"{name} = {_toml(value)}"


def _toml(value: object) -> str:
    match value:
        case None:
            return "none"
        case dict():
            members = cast("dict[str, object]", value).items()
            return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in members) + "}"
        case _:
            return json.dumps(value)
