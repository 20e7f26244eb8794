"""`completion`: the script that makes a shell complete our commands, options and names."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

# Typer offers these as options of the program, --install-completion and --show-completion, which
# guess the shell and edit its files; by their names they are not public.
from typer.completion import (
    completion_init,  # pyright: ignore[reportPrivateImportUsage]  # typer exports it by use
    get_completion_script,  # pyright: ignore[reportPrivateImportUsage]  # typer exports it by use
)

from microvm_orchestrator import places
from microvm_orchestrator.cli import output
from microvm_orchestrator.cli.command import plain_command

app = typer.Typer()

VARIABLE = f"_{places.NAME.upper().replace('-', '_')}_COMPLETE"


@plain_command(
    app,
    "completion",
    example="completion bash > ~/.local/share/bash-completion/completions/microvm-orchestrator",
)
def completion(
    _: None,
    shell: Annotated[
        Literal["bash", "zsh", "fish"], typer.Argument(help="Which shell.", show_default=False)
    ],
) -> None:
    """Print the script that makes a shell complete commands, options, and names at the daemon.

    bash: save it as in the example, or source it. zsh: save it as _microvm-orchestrator in a
    directory of $fpath. fish: save it as ~/.config/fish/completions/microvm-orchestrator.fish.
    """
    output.line(get_completion_script(prog_name=places.NAME, complete_var=VARIABLE, shell=shell))


def be_ready() -> None:
    """Let typer answer a shell that asks for completions."""
    completion_init()
