"""The clock's part of the daemon: sweeps the store, and outlives a disk that is full."""

from __future__ import annotations

import anyio
import structlog

from microvm_orchestrator import errors
from microvm_orchestrator.store.base import SWEEP_EVERY_S, Keep, Store, Swept

log = structlog.get_logger(__name__)

# After a full batch there is more to do at once; this lets others in between.
_BREATH_S = 0.01


async def upkeep(store: Store, keep: Keep) -> None:
    """Until cancelled."""
    while True:
        pause = SWEEP_EVERY_S
        try:
            swept = await store.sweep(keep)
        except errors.Unavailable as error:
            log.warning("sweep_failed", code=error.code, reason=error.message)
        else:
            pause = await _until_next(store, swept)
            if swept.requeued or swept.failed or swept.workers_lost:
                log.info(
                    "swept",
                    requeued=swept.requeued,
                    failed=swept.failed,
                    opened=swept.opened,
                    workers_lost=swept.workers_lost,
                )
        await anyio.sleep(pause)


async def _until_next(store: Store, swept: Swept) -> float:
    if swept.next_at is None:
        return SWEEP_EVERY_S
    return min(SWEEP_EVERY_S, max(_BREATH_S, swept.next_at - await store.now()))
