"""The command line as tests see it: the tree of its commands, and a way to run one in process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer.main

from microvm_orchestrator import places
from microvm_orchestrator.cli.program import application

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# A plan that is only looked at is shown, whatever its call is named; a merge is part of a run.
SPOKEN = {
    "plan_tasks": ("plan", "show"),
    "merge_resolve": ("run", "resolve"),
    "kernel_log_mark": ("kernel-log", "mark"),
    "kernel_log_collect": ("kernel-log", "collect"),
    "kernel_log_events": ("kernel-log", "events"),
    "node_exec_all": ("node", "exec-all"),
    "agent_send_many": ("agent", "send-many"),
    **{f"agent_file_{verb}": ("agent", f"file-{verb}") for verb in ("list", "get", "put")},
    "fault_heal_all": ("fault", "heal-all"),
    **{f"cluster_artifact_{verb}": ("cluster", f"artifact-{verb}") for verb in ("sync", "install")},
    **{f"node_source_{verb}": ("node", f"source-{verb}") for verb in ("sync", "build")},
    **{
        f"fault_campaign_{verb}": ("fault", f"campaign-{verb}")
        for verb in ("get", "list", "cancel")
    },
    **{
        f"cluster_snapshot_{verb}": ("cluster", f"snapshot-{verb}")
        for verb in ("create", "list", "revert", "delete", "branch")
    },
}

# The vendored click of typer has no public name; what we use of it is what click documents.
Command = Any


def tree() -> Command:
    return typer.main.get_command(application(drawn=False))


def leaves(
    command: Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Command]]:
    """Yield every command with the words that lead to it."""
    below: dict[str, Command] | None = getattr(command, "commands", None)
    if below is None:
        yield path, command
        return
    for name, child in below.items():
        yield from leaves(child, (*path, name))


def run(words: Sequence[str]) -> int:
    """Run a command in this process, and return its exit status."""
    status = tree().main(list(words), prog_name=places.NAME, standalone_mode=False)
    return status if isinstance(status, int) else 0
