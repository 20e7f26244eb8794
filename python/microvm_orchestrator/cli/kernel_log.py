"""`kernel-log`: what the kernels of machines say."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from microvm_orchestrator.cli import output
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.machine import MachineRef

app = typer.Typer(help="Kernel logs: what the kernels of machines say, and what that tells.")

BRIEF = ("trouble", "headline", "process", "rip", "count")
_SAID = (
    *("machine_id", "source", "since", "reason", "panic_detected", "oops_detected"),
    *("warning_count", "error_count", "cut"),
)


class Level(StrEnum):
    ALL = "all"
    WARN = "warn+"
    ERR = "err+"


@command(app, "mark", example="kernel-log mark box")
def mark(here: Session, machine: MachineRef) -> None:
    """Write a mark into the log of a machine's kernel, and see that it stands there."""
    here.tell("kernel_log_mark", {"machine": machine}, output.show)


@command(
    app,
    "collect",
    example="kernel-log collect box\nkernel-log collect box --since MARK --level warn+",
)
def collect(
    here: Session,
    machine: MachineRef,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="MARK", help="Only what came after this mark."),
    ] = None,
    level: Annotated[
        Level | None, typer.Option("--level", help="Only lines as grave as that; all by default.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="At most so many lines, the newest.")
    ] = None,
) -> None:
    """Read what a machine's kernel has said, and find panics, oopses and the like in it.

    Of a machine that answers no more it is what the console kept, where that tells of trouble.
    """
    given = {"machine": machine, "since": since, "level": level, "limit": limit}
    here.tell("kernel_log_collect", given, _show)


def _show(answer: dict[str, Any]) -> None:
    for line in answer["lines"]:
        at = line["timestamp"]
        when = " " * 15 if at is None else f"[{at:12.6f}] "
        output.line(f"{when}{line['level'] or '-':<6} {line['text']}")
    if answer["lines"]:
        output.line("")
    output.record({name: answer[name] for name in _SAID})
    if answer["reports"]:
        output.line("")
        output.table(BRIEF, answer["reports"])
