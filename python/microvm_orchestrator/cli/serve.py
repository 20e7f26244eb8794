"""`serve`: become the daemon."""

from __future__ import annotations

import typer

from microvm_orchestrator.cli import config as settings
from microvm_orchestrator.cli.command import plain_command
from microvm_orchestrator.loading import loading

app = typer.Typer()


@plain_command(
    app,
    "serve",
    example="serve\nserve --state-dir ./state --socket ./socket --tcp 127.0.0.1:7070",
)
def serve(
    _: None,
    state_dir: settings.StateDir = None,
    socket: settings.DaemonSocket = None,
    config: settings.ConfigFile = None,
    tcp: settings.Tcp = None,
    log_level: settings.LogLevel = None,
) -> int:
    """Run the daemon until a signal ends it.

    It needs no root and no configuration file. TERM and INT stop it politely, HUP makes it read its
    settings anew. What it says goes to stderr.
    """
    loaded = settings.load(config, state_dir, socket, tcp, log_level)
    # The daemon is the other program in this package; no client waits for it to load.
    with loading():
        from microvm_orchestrator.daemon import run

    return run(
        loaded.settings,
        lambda: settings.load(config, state_dir, socket, tcp, log_level).settings,
    )
