"""`task claim` and what follows it: what a worker says of a task that it holds."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from microvm_orchestrator import places
from microvm_orchestrator.cli import failure, output, values
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.options import (
    Capabilities,
    IdempotencyKey,
    KeyGroup,
    OwnName,
    Reason,
    TaskId,
    Token,
    complete_group,
)

app = typer.Typer()

LeaseS = Annotated[
    float | None,
    typer.Option("--lease-s", metavar="SECONDS", help="How long you may be silent from now on."),
]
UNLOCKED = ("task_id", "key", "group", "state")
STUCK = ("task_id", "key", "reason")


def show_settled(answer: dict[str, Any]) -> None:
    task = answer["task"]
    output.record({name: task[name] for name in ("task_id", "key", "state", "reason")})
    if answer["repeated"]:
        failure.say("the same had been said before; nothing changed now")
    if answer["unlocked"]:
        output.line("\nunlocked")
        output.table(UNLOCKED, answer["unlocked"])


def show_claimed(answer: dict[str, Any]) -> None:
    if not answer["tasks"]:
        output.record({"verdict": answer["verdict"], "due_at": answer["due_at"]})
    if answer["stuck"]:
        output.table(STUCK, answer["stuck"])
    for claimed in answer["tasks"]:
        task, lease = claimed["task"], claimed["lease"]
        shown = ("task_id", "key", "group", "title", "description", "input", "attempt")
        told = {name: task[name] for name in shown}
        output.record({**told, "token": lease["token"], "expires_at": lease["expires_at"]})
        failure.say(
            f"it is yours: {places.NAME} task complete {task['task_id']} --token {lease['token']}"
        )


@command(
    app,
    "claim",
    example="task claim --capability node --wait-s 600\ntask claim --group release --json",
)
def claim(
    here: Session,
    worker: OwnName = None,
    capabilities: Capabilities = None,
    roles: Annotated[
        list[str] | None,
        typer.Option("--role", metavar="ROLE", help="A role you have; may be repeated."),
    ] = None,
    groups: Annotated[
        list[str] | None,
        typer.Option(
            "--group",
            metavar="GROUP",
            help="Only tasks of this group; may be repeated.",
            autocompletion=complete_group,
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", metavar="N", help="How many at most; 1 by default.")
    ] = None,
    lease_s: LeaseS = None,
    wait_s: Annotated[
        float | None,
        typer.Option("--wait-s", metavar="SECONDS", help="How long to wait for a task at most."),
    ] = None,
) -> None:
    """Take the best ready task that you can do, under a lease.

    Renew it with `task heartbeat` well within its time, and end it with `task complete`,
    `task fail` or `task release`; each takes the lease's token. No task is ever given to two at a
    time.
    """
    given = {
        "worker": worker,
        "capabilities": capabilities,
        "roles": roles,
        "groups": groups,
        "count": count,
        "lease_s": lease_s,
        "wait_s": wait_s,
    }
    here.tell("task_claim", given, show_claimed)


@command(
    app, "heartbeat", example="task heartbeat build --token 1 --fraction 0.5 --message 'half way'"
)
def heartbeat(
    here: Session,
    task_id: TaskId,
    token: Token,
    group: KeyGroup = None,
    worker: OwnName = None,
    fraction: Annotated[
        float | None,
        typer.Option("--fraction", metavar="0..1", help="How much of it is done."),
    ] = None,
    message: Annotated[
        str | None, typer.Option("--message", metavar="TEXT", help="How far you are, in words.")
    ] = None,
    lease_s: LeaseS = None,
) -> int:
    """Renew the lease of a task you hold, and tell how far you are.

    The exit status is 4 when it is no longer yours: stop then.
    """
    told = {"fraction": fraction, "message": message}
    progress = {name: value for name, value in told.items() if value is not None}
    given = {
        "task_id": task_id,
        "group": group,
        "token": token,
        "worker": worker,
        "progress": progress or None,
        "lease_s": lease_s,
    }
    answer = here.client.call("task_heartbeat", given)
    here.give(answer)
    return failure.OK if answer.value["held"] else failure.CONFLICT


@command(app, "complete", example="task complete build --token 1 --result '{\"coverage\": 93}'")
def complete(
    here: Session,
    task_id: TaskId,
    token: Token,
    group: KeyGroup = None,
    worker: OwnName = None,
    result: Annotated[
        str | None,
        typer.Option(
            "--result",
            metavar="JSON|@FILE|-",
            help="What came of it, any JSON; of a file, or of standard input.",
        ),
    ] = None,
) -> None:
    """Say that a task you hold is done, with its result; learn which tasks that unlocked."""
    given = {
        "task_id": task_id,
        "group": group,
        "token": token,
        "worker": worker,
        "result": values.json_value(result, "--result"),
    }
    here.tell("task_complete", given, show_settled)


@command(app, "fail", example="task fail build --token 1 --message 'no disk space' --no-retryable")
def fail(
    here: Session,
    task_id: TaskId,
    token: Token,
    group: KeyGroup = None,
    worker: OwnName = None,
    message: Annotated[
        str | None, typer.Option("--message", metavar="TEXT", help="What went wrong.")
    ] = None,
    code: Annotated[
        str | None,
        typer.Option("--code", metavar="CODE", help="The kind of failure, for programs."),
    ] = None,
    detail: Annotated[
        str | None,
        typer.Option("--detail", metavar="JSON|@FILE|-", help="More about it, any JSON."),
    ] = None,
    retryable: Annotated[
        bool | None,
        typer.Option(
            "--retryable/--no-retryable",
            help="Whether to try again, as far as the task's policy allows; by default yes.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Say that a task you hold failed; its retry policy decides whether it is tried again."""
    given = {
        "task_id": task_id,
        "group": group,
        "token": token,
        "worker": worker,
        "message": message,
        "code": code,
        "detail": values.json_value(detail, "--detail"),
        "retryable": retryable,
    }
    here.tell("task_fail", given, show_settled)


@command(
    app, "release", example="task release build --token 1 --reason 'wrong machine' --delay-s 60"
)
def release(
    here: Session,
    task_id: TaskId,
    token: Token,
    group: KeyGroup = None,
    worker: OwnName = None,
    reason: Reason = None,
    delay_s: Annotated[
        float | None,
        typer.Option("--delay-s", metavar="SECONDS", help="Not to be claimed again before."),
    ] = None,
) -> None:
    """Give back a task you hold, undone, for another worker; it does not count as failed."""
    given = {
        "task_id": task_id,
        "group": group,
        "token": token,
        "worker": worker,
        "reason": reason,
        "delay_s": delay_s,
    }
    here.tell("task_release", given, show_settled)


@command(
    app,
    "extend",
    example="""
task extend plan --token 1 --children '[{"key": "part-1"}, {"key": "part-2"}]'
task extend plan --token 1 --successors @review.json
""",
)
def extend(
    here: Session,
    task_id: TaskId,
    token: Token,
    group: KeyGroup = None,
    worker: OwnName = None,
    children: Annotated[
        str | None,
        typer.Option(
            "--children",
            metavar="JSON|@FILE|-",
            help="A list of tasks that are parts of it: who waits for it waits for them too.",
        ),
    ] = None,
    successors: Annotated[
        str | None,
        typer.Option(
            "--successors",
            metavar="JSON|@FILE|-",
            help="A list of tasks that start after it has succeeded.",
        ),
    ] = None,
    idempotency_key: IdempotencyKey = None,
) -> None:
    """Add tasks to the graph of a task you hold: children of it, or successors.

    Each is written as in a graph's file; `before` names tasks of the group that shall wait for it.
    """
    given = {
        "task_id": task_id,
        "group": group,
        "token": token,
        "worker": worker,
        "children": values.json_value(children, "--children"),
        "successors": values.json_value(successors, "--successors"),
        "idempotency_key": idempotency_key,
    }
    here.tell("task_extend", given)
