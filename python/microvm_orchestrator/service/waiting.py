"""Waiting until something is over, while whoever waits hears how it stands.

Above are the calls that wait; below, the journal, which tells that something changed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import anyio
from pydantic import Field

if TYPE_CHECKING:
    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.service import Service
    from microvm_orchestrator.store.base import Match

# Long enough that a waiting client seldom has to ask anew, short enough that none is forgotten.
MAX_WAIT_S = 3600.0
Wait = Annotated[float, Field(strict=True, ge=0, le=MAX_WAIT_S)]
PROGRESS_EVERY_S = 10.0

_Seen = TypeVar("_Seen")


async def until(  # what is waited for, and how it is looked at
    service: Service,
    caller: Caller,
    changes: Match,
    timeout_s: float,
    *,
    look: Callable[[], Awaitable[_Seen]],
    over: Callable[[_Seen], bool],
    said: Callable[[_Seen], str],
) -> _Seen:
    """Give what `look` sees once that is over, or the time is up; it looks at each of `changes`."""
    with service.journal.listen(changes) as listener:
        with anyio.move_on_after(timeout_s) as patience:
            while not over(seen := await look()):
                service.journal.refuse_when_stopping()
                with anyio.move_on_after(PROGRESS_EVERY_S):
                    await listener.wait()
                waited = timeout_s - (patience.deadline - anyio.current_time())
                await caller.progress(waited, timeout_s, said(seen))
        return await look()
