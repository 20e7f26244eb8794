"""Tasks beside a block: they end with it, and what the block raises comes out as it is."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine

    from anyio.abc import TaskGroup


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
