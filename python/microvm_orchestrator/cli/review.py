"""`run approve`, `reject`, `merge` and `resolve`: what becomes of the commits of runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from microvm_orchestrator.cli import output, values
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.machine_exec import Words
from microvm_orchestrator.cli.options import DriverName, IdempotencyKey, KeyGroup, TaskId

app = typer.Typer()

_Message = Annotated[
    str | None,
    typer.Option("--message", "-m", metavar="TEXT|@FILE|-", help="What there is to say of it."),
]


@command(app, "approve", example="run approve build -m 'Looks good'")
def approve(
    here: Session, task_id: TaskId, group: KeyGroup = None, message: _Message = None
) -> None:
    """Let the commits of a run be merged that waits to be reviewed.

    It waits where its task or its repository has `--merge review`. `run diff` shows what it
    changed, and `run list` those that wait.
    """
    given = {"task_id": task_id, "group": group, "message": values.text(message)}
    here.tell("run_approve", given, _show)


@command(app, "reject", example="run reject build -m 'The second test is wrong'")
def reject(
    here: Session, task_id: TaskId, group: KeyGroup = None, message: _Message = None
) -> None:
    """Refuse the commits of a run that waits to be reviewed; they are kept, and its task fails."""
    given = {"task_id": task_id, "group": group, "message": values.text(message)}
    here.tell("run_reject", given, _show)


def _show(answer: dict[str, Any]) -> None:
    run = answer["run"]
    output.record({"task_id": answer["task_id"], "step": run["step"], **run["decision"]})


@command(app, "merge", example="run merge build")
def merge(here: Session, task_id: TaskId, group: KeyGroup = None) -> None:
    """Merge a run's commits once more, when what was in their way is gone.

    For a run that did its work and whose merge was refused, did not fit, did not pass its check or
    was rejected. Its program does not run again. `task wait` waits for the end.
    """
    here.tell("run_merge", {"task_id": task_id, "group": group}, _merging)


def _merging(answer: dict[str, Any]) -> None:
    output.record({"task_id": answer["task_id"], "merge": "begun"})


@command(
    app,
    "resolve",
    example="run resolve build\nrun resolve build --prompt 'Keep the new names' --max-turns 40\n"
    "run resolve build --script 'git checkout --theirs . && git commit -qam both'",
)
def resolve(
    here: Session,
    task_id: TaskId,
    argv: Words = None,
    group: KeyGroup = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", metavar="TEXT|@FILE|-", help="What an agent is told besides the conflict."
        ),
    ] = None,
    script: Annotated[
        str | None,
        typer.Option("--script", metavar="TEXT|@FILE|-", help="A shell text in place of an agent."),
    ] = None,
    driver: Annotated[
        DriverName | None,
        typer.Option("--driver", help="Which agent."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Which model it asks.")
    ] = None,
    max_turns: Annotated[
        int | None, typer.Option("--max-turns", metavar="N", help="How many turns it may take.")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", metavar="N", help="How many tokens of model APIs it may use."),
    ] = None,
    cost_usd: Annotated[
        float | None, typer.Option("--cost-usd", metavar="USD", help="What it may cost.")
    ] = None,
    egress: Annotated[
        list[str] | None,
        typer.Option(
            "--egress", metavar="HOST", help="A host it may reach: HOST, HOST:PORT or *.DOMAIN."
        ),
    ] = None,
    image: Annotated[
        str | None, typer.Option("--image", metavar="IMAGE", help="What its machine boots.")
    ] = None,
    memory_mib: Annotated[
        int | None, typer.Option("--memory-mib", metavar="MIB", help="Its machine's memory.")
    ] = None,
    timeout_s: Annotated[
        float | None,
        typer.Option("--timeout-s", metavar="SECONDS", help="How long its program may take."),
    ] = None,
    idempotency_key: IdempotencyKey = None,
) -> None:
    """Let an agent bring a run's commits together with what they do not fit, in a machine.

    For a run whose merge is a conflict, or did not pass its check. What comes of it is merged and
    checked as that of any run.
    """
    given: dict[str, object] = {
        "task_id": task_id,
        "argv": argv or None,
        "group": group,
        "prompt": values.text(prompt),
        "script": values.text(script),
        "driver": driver,
        "model": model,
        "max_turns": max_turns,
        "tokens": tokens,
        "cost_usd": cost_usd,
        "egress": egress,
        "image": image,
        "memory_mib": memory_mib,
        "timeout_s": timeout_s,
        "idempotency_key": idempotency_key,
    }
    here.tell("merge_resolve", given)
