"""A port in a guest behind which something of this host is, over any number of connections.

Above are the way out of a guest and the callbacks of its program; below, the shell into it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.machine.shell import Tcp
from microvm_orchestrator.together import beside

if TYPE_CHECKING:
    from anyio.abc import ByteStream

    from microvm_orchestrator.machine.base import Machine

# Between two tries on a connection into the guest that broke.
_AGAIN_S = 0.2
# The guest listens within that, or its program does without.
_LISTENS_S = 15.0


@asynccontextmanager
async def held_open(
    machine: Machine, port: int, serve: Callable[[ByteStream], Awaitable[None]]
) -> AsyncGenerator[None]:
    """Serve whoever connects to a port in the guest until the block ends."""
    listening = anyio.Event()

    async def hold() -> None:
        while True:
            with suppress(errors.OrchestratorError):
                shell = await machine.reached()
                async with shell.reverse(Tcp(port), serve):
                    listening.set()
                    await machine.hung_up()
            await anyio.sleep(_AGAIN_S)

    async with beside(hold):
        with anyio.move_on_after(_LISTENS_S):
            await listening.wait()
        yield
