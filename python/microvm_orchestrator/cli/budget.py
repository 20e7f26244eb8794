"""`task resume`: let a run go on that is paused at a limit of its budget."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from microvm_orchestrator.cli import output
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.options import KeyGroup, TaskId

app = typer.Typer()

WallS = Annotated[
    float | None,
    typer.Option(
        "--wall-s", metavar="SECONDS", help="How long its program may run in all, without pauses."
    ),
]
CpuS = Annotated[
    float | None,
    typer.Option(
        "--cpu-s",
        metavar="SECONDS",
        help="What its machine may take of this host's processors in all.",
    ),
]
Tokens = Annotated[
    int | None,
    typer.Option("--tokens", metavar="N", help="How many tokens of model APIs it may use in all."),
]
CostUsd = Annotated[
    float | None,
    typer.Option("--cost-usd", metavar="USD", help="What it may cost in all, at list prices."),
]


@command(app, "resume", example="task resume build --tokens 2000000 --cost-usd 5")
def resume(
    here: Session,
    task_id: TaskId,
    group: KeyGroup = None,
    wall_s: WallS = None,
    cpu_s: CpuS = None,
    tokens: Tokens = None,
    cost_usd: CostUsd = None,
) -> None:
    """Let a run go on that is paused at a limit of its budget, where it stands.

    A limit that is not above what was used already is refused; what is left out stays as it is.
    `run get` shows which limit was reached and what was used.
    """
    given = {
        "task_id": task_id,
        "group": group,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "tokens": tokens,
        "cost_usd": cost_usd,
    }
    here.tell("task_resume", given, _show)


def _show(answer: dict[str, Any]) -> None:
    output.record({"task_id": answer["task_id"], "step": answer["run"]["step"]})
