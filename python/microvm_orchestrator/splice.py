"""Two byte streams that become one: what either says, the other hears, at its own pace.

Each direction ends by itself, as the two of a socket do; neither is cut short because the other
side has said all it had to say. Above stand the forwards.
"""

from __future__ import annotations

import anyio
from anyio.abc import ByteStream

GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)
# A side that has said its last and never hangs up is not waited for any longer.
_HALF_OPEN_S = 3600.0


async def splice(one: ByteStream, other: ByteStream) -> None:
    """Carry both ways until both have ended."""
    async with anyio.create_task_group() as group:

        async def carry(source: ByteStream, sink: ByteStream) -> None:
            try:
                async for data in source:
                    await sink.send(data)
                await sink.send_eof()
            except GONE:
                pass  # the other direction finds out for itself, after what was on its way
            group.cancel_scope.deadline = anyio.current_time() + _HALF_OPEN_S

        group.start_soon(carry, one, other)
        group.start_soon(carry, other, one)
