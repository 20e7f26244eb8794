"""Operations: how callers look at long work, wait for it and stop it.

`long_call` is how the functions of other nouns begin some. Above are the front ends; below, the
daemon's operations, which go on whoever leaves.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.operation import OPERATION, Operation, OperationState
from microvm_orchestrator.model.records import Actor, Record
from microvm_orchestrator.model.values import Line
from microvm_orchestrator.operations import Work
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.page import ListRequest, PageOf
from microvm_orchestrator.service.records import page_of
from microvm_orchestrator.service.service import Service, actor
from microvm_orchestrator.service.waiting import Wait, until
from microvm_orchestrator.store.base import Match

OperationId = Annotated[str, Field(min_length=1, max_length=100)]
# Most of what takes longer than a request should is over by then.
USUAL_WAIT_S = 30.0
WaitS = Annotated[
    Wait,
    Field(
        description="how long to wait for the end before the operation is answered as it is; it "
        "goes on all the same, and `operation_wait` waits on"
    ),
]


class OperationRef(Request):
    """An operation."""

    operation_id: OperationId


class OperationWait(OperationRef):
    """An operation, and how long to wait for its end."""

    timeout_s: Wait = USUAL_WAIT_S


class OperationListRequest(ListRequest):
    """Which operations."""

    state: OperationState | None = None
    kind: Line | None = Field(default=None, description="such as `image_build`")
    target: Line | None = Field(default=None, description="what it is about: the id of a machine")


class OperationWaitAnswer(Answer):
    """How the operation stood when the waiting ended."""

    finished: bool
    operation: Operation


async def long_call(
    service: Service, caller: Caller, call: str, target: str, wait_s: float, work: Work
) -> Operation:
    """Begin long work, and wait a while for its end."""
    by = actor(caller, call)
    operation = await service.host.operations.begin(call, target, by, work)
    return await awaited(service, caller, by, operation.operation_id, wait_s)


async def awaited(
    service: Service, caller: Caller, by: Actor, operation_id: str, timeout_s: float
) -> Operation:
    """Wait a while for the end of an operation, and give it as it stands then."""
    operations = service.host.operations
    return await until(
        service,
        caller,
        Match(subjects=(operation_id,)),
        timeout_s,
        look=lambda: operations.get(operation_id, by),
        over=lambda operation: operation.finished,
        said=_said,
    )


def _said(operation: Operation) -> str:
    if operation.progress is None or not operation.progress.message:
        return operation.state
    return f"{operation.state}: {operation.progress.message}"


@declare("operation_get", "GET /v1/operations/{operation_id}", role=Role.VIEWER, effect=Effect.READ)
async def operation_get(service: Service, caller: Caller, request: OperationRef) -> Operation:
    """Look at an operation: how far it is, or how it ended."""
    return await service.host.operations.get(request.operation_id, actor(caller, "operation_get"))


@declare(
    "operation_wait",
    "GET /v1/operations/{operation_id}/wait",
    role=Role.VIEWER,
    effect=Effect.READ,
    waits=True,
)
async def operation_wait(
    service: Service, caller: Caller, request: OperationWait
) -> OperationWaitAnswer:
    """Wait until an operation has ended, or the time is up; then look at it.

    Waiting is all this does: the operation goes on whether or not anybody waits.
    """
    by = actor(caller, "operation_wait")
    operation = await awaited(service, caller, by, request.operation_id, request.timeout_s)
    return OperationWaitAnswer(finished=operation.finished, operation=operation)


@declare("operation_list", "GET /v1/operations", role=Role.VIEWER, effect=Effect.READ)
async def operation_list(
    service: Service, caller: Caller, request: OperationListRequest
) -> PageOf[Operation]:
    """List operations, oldest first: those you began, or all if you see everything."""
    by = actor(caller, "operation_list")

    async def shown(record: Record) -> Operation | None:
        operation = Operation.model_validate(record.body)
        fits = (
            (by.scope.everything or operation.owner == by.name)
            and request.state in {None, operation.state}
            and request.kind in {None, operation.kind}
            and request.target in {None, operation.target}
        )
        return operation if fits else None

    items, cursor = await page_of(service.store, OPERATION, request, by, shown)
    return PageOf[Operation](items=items, next_cursor=cursor)


@declare(
    "operation_cancel",
    "POST /v1/operations/{operation_id}/cancel",
    role=Role.OPERATOR,
    idempotent=True,
)
async def operation_cancel(service: Service, caller: Caller, request: OperationRef) -> Operation:
    """Stop an operation that runs; what it had done already is taken back where it can be."""
    by = actor(caller, "operation_cancel")
    await service.host.operations.cancel(request.operation_id, by)
    return await service.host.operations.get(request.operation_id, by)


CALLS: tuple[Call, ...] = (operation_get, operation_wait, operation_list, operation_cancel)
