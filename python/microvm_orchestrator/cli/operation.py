"""`operation`: long work of the daemon: looked at, waited for, stopped.

`follow` is how the commands of other nouns begin some and see it through.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from microvm_orchestrator import places
from microvm_orchestrator.cli import failure, output
from microvm_orchestrator.cli.client import error_of
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.options import Cursor, Limit, complete_operation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from microvm_orchestrator.cli.client import Client
    from microvm_orchestrator.cli.command import Show

app = typer.Typer(help="Operations: long work of the daemon, which goes on whoever leaves.")

BRIEF = ("operation_id", "kind", "target", "state", "progress", "owner", "created_at")
# One question waits so long; then the same is asked again.
_SLICE_S = 10.0
# A terminal is drawn anew this often.
_DRAWN_EVERY_S = 1.0

OperationId = Annotated[
    str,
    typer.Argument(
        metavar="OPERATION",
        help="The operation's id.",
        autocompletion=complete_operation,
        show_default=False,
    ),
]
WaitS = Annotated[
    float | None,
    typer.Option(
        "--wait-s",
        metavar="SECONDS",
        help="How long to wait for the end; by default as long as it takes, 0 not at all. "
        "The operation goes on all the same.",
    ),
]


def follow(
    here: Session,
    call: str,
    given: Mapping[str, object],
    wait_s: float | None,
    show: Show = output.show,
) -> int:
    """Begin an operation, wait for its end, show its result, and return the exit status.

    With --json the operation itself is printed.
    """
    operation = see_through(here, call, given, wait_s, show)
    return status_of(operation, tell=not here.json)


def see_through(
    here: Session,
    call: str,
    given: Mapping[str, object],
    wait_s: float | None,
    show: Show,
) -> dict[str, Any]:
    """Begin an operation, wait for its end, show its result, and return how it stands."""
    answer = here.client.call(call, {**given, "wait_s": 0.0 if wait_s is None else wait_s})
    if wait_s is None:
        ended = _ended(here.client, answer.value)
        answer = here.client.call_through_restarts("operation_get", _id(ended))
    operation: dict[str, Any] = answer.value
    if here.json:
        output.emit(answer.raw)
    elif operation["state"] == "succeeded":
        show(operation["result"])
    elif operation["state"] == "running":
        output.show(operation)
    return operation


def status_of(operation: dict[str, Any], *, tell: bool) -> int:
    """Return the exit status for how an operation stands, and say why it failed."""
    match operation["state"]:
        case "succeeded":
            return failure.OK
        case "running":
            return failure.TIMED_OUT
        case "cancelled":
            if tell:
                failure.say(f"operation {operation['operation_id']} was cancelled")
            return failure.TASK_CANCELLED
        case _:
            told: dict[str, Any] = operation["error"] or {}
            error = error_of(
                str(told.get("code", "internal-error")),
                str(told.get("message", "it failed")),
                told.get("detail"),
            )
            return failure.tell(error) if tell else failure.status_of(type(error))


def _ended(client: Client, operation: dict[str, Any]) -> dict[str, Any]:
    drawn = sys.stderr.isatty()
    timeout_s = _DRAWN_EVERY_S if drawn else _SLICE_S
    try:
        while operation["state"] == "running":
            given = {**_id(operation), "timeout_s": timeout_s}
            operation = client.call_through_restarts("operation_wait", given).value["operation"]
            if drawn:
                _draw(operation)
    except KeyboardInterrupt as interrupt:
        name = operation["operation_id"]
        interrupt.add_note(
            f"it goes on; to wait for it: {places.NAME} operation wait {name}; "
            f"to stop it: {places.NAME} operation cancel {name}"
        )
        raise
    finally:
        if drawn:
            _draw(None)
    return operation


def _draw(operation: dict[str, Any] | None) -> None:
    """Show on one line of a terminal how far it is; None wipes the line."""
    said = ""
    if operation is not None and operation["progress"]:
        said = f"{operation['kind']}  {output.cell('progress', operation['progress'])}"
    sys.stderr.write(f"\r\x1b[K{failure.harmless(said)[:100]}")
    sys.stderr.flush()


def _id(operation: dict[str, Any]) -> dict[str, object]:
    return {"operation_id": operation["operation_id"]}


@command(app, "get", example="operation get op_01k6vq...")
def get(here: Session, operation_id: OperationId) -> None:
    """Look at an operation: how far it is, or how it ended."""
    here.tell("operation_get", {"operation_id": operation_id})


@command(app, "wait", example="operation wait op_01k6vq... --timeout-s 60")
def wait(
    here: Session,
    operation_id: OperationId,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout-s", metavar="SECONDS", help="How long to wait; by default for ever."
        ),
    ] = None,
) -> int:
    """Wait until an operation has ended, and exit as it did; 124 when the time is up."""
    given = {"operation_id": operation_id, "timeout_s": timeout_s}
    if timeout_s is None:
        given["timeout_s"] = _SLICE_S
        while True:
            answer = here.client.call_through_restarts("operation_wait", given)
            if answer.value["finished"]:
                break
    else:
        answer = here.client.call("operation_wait", given)
    here.give(answer, lambda value: output.show(value["operation"]))
    return status_of(answer.value["operation"], tell=not here.json)


@command(app, "list", example="operation list --state running")
def list_(
    here: Session,
    state: Annotated[
        Literal["running", "succeeded", "failed", "cancelled", "lost"] | None,
        typer.Option("--state", help="Only in this state."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="CALL", help="Only of this call: image_build.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="ID", help="Only about this.")
    ] = None,
    limit: Limit = None,
    cursor: Cursor = None,
) -> None:
    """List operations, oldest first: those you began, or all if you see everything."""
    given = {"state": state, "kind": kind, "target": target, "limit": limit, "cursor": cursor}
    here.tell("operation_list", given, lambda answer: output.page(answer, BRIEF, "no operations"))


@command(app, "cancel", example="operation cancel op_01k6vq...")
def cancel(here: Session, operation_id: OperationId) -> None:
    """Stop an operation that runs."""
    here.tell("operation_cancel", {"operation_id": operation_id})
