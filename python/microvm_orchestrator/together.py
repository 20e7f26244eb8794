"""Several things at once, with one plain error if one of them fails.

Everything above may use it; below are the errors alone.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import anyio

from microvm_orchestrator import errors

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence

    from anyio.abc import TaskGroup

T = TypeVar("T")


async def together(jobs: Sequence[Callable[[], Awaitable[T]]], *, at_once: int = 8) -> list[T]:
    """Run every job and give their results in the order of the jobs.

    The first that fails stops the others. Raises: what that one raised, alone.
    """
    results: dict[int, T] = {}
    places = anyio.CapacityLimiter(at_once)

    async def work(number: int, job: Callable[[], Awaitable[T]]) -> None:
        async with places:
            results[number] = await job()

    try:
        async with anyio.create_task_group() as group:
            for number, job in enumerate(jobs):
                group.start_soon(work, number, job)
    except BaseExceptionGroup as failed:
        known = failed.subgroup(errors.OrchestratorError)
        if known is None or failed.split(errors.OrchestratorError)[1] is not None:
            raise
        raise known.exceptions[0] from None
    return [results[number] for number in range(len(jobs))]


@asynccontextmanager
async def beside(*tasks: Callable[[], Coroutine[None, None, None]]) -> AsyncGenerator[TaskGroup]:
    """Run tasks until the block is left, then cancel them.

    A task group would wrap an error of the block in a group, and nobody above could catch it by its
    class.
    """
    raised: Exception | None = None
    async with anyio.create_task_group() as group:
        for task in tasks:
            group.start_soon(task)
        try:
            yield group
        except Exception as error:  # noqa: BLE001 # raised again below, out of the group
            raised = error
        group.cancel_scope.cancel()
    if raised is not None:
        raise raised
