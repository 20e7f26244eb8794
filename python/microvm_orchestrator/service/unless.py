"""Waiting for an answer only as long as there is somebody to give it to."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import anyio

from microvm_orchestrator import errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


async def unless(ends: Callable[[], Awaitable[None]], work: Awaitable[T]) -> T | None:
    """Give what `work` gives; when `ends` returns first, cut the work off and give None.

    Raises: what `work` raises.
    """
    outcome: T | errors.OrchestratorError | None = None

    async def watch() -> None:
        await ends()
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        try:
            outcome = await work
        except errors.OrchestratorError as error:
            # Not as a member of a group: those who translate errors know ours one by one.
            outcome = error
        group.cancel_scope.cancel()
    if isinstance(outcome, errors.OrchestratorError):
        raise outcome
    return outcome
