"""Whether a token is still good: asked at each call, and watched while one waits.

A connection lives for days, and its token may be revoked or run out at any moment of them. Above
sits the service, which everything a token does goes through; below, the record of the token and
the journal, which tells of every change to it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.model.token import KIND, KeptToken
from microvm_orchestrator.service.unless import unless
from microvm_orchestrator.store.base import Match
from microvm_orchestrator.store.questions import RecordById

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from microvm_orchestrator.events import Journal
    from microvm_orchestrator.store.base import Store

T = TypeVar("T")

# A store that could not be read may tell by then.
_LOOK_AGAIN_S = 5.0


async def refuse_ended(store: Store, token_id: str) -> None:
    """Raises: Unauthenticated."""
    if await _left_s(store, token_id) <= 0:
        raise _ended()


async def while_good(store: Store, journal: Journal, token_id: str, work: Awaitable[T]) -> T:
    """Give what `work` gives, unless the token ends first.

    Raises: what `work` raises; Unauthenticated.
    """
    answer = await unless(partial(ended, store, journal, token_id), work)
    if answer is None:
        raise _ended()
    # What ended the wait may be that the token ended.
    await refuse_ended(store, token_id)
    return answer


async def ended(store: Store, journal: Journal, token_id: str) -> None:
    """Wait until the token was revoked or its time is over."""
    with journal.listen(Match(subjects=(token_id,))) as changes:
        while True:
            try:
                left_s = await _left_s(store, token_id)
            except errors.Unavailable:
                # Nobody is sent away because the disk is not well.
                left_s = _LOOK_AGAIN_S
            if left_s <= 0:
                return
            with anyio.move_on_after(left_s):
                await changes.wait()


async def _left_s(store: Store, token_id: str) -> float:
    record = await store.query(RecordById(KIND, token_id), SYSTEM)
    if record is None:
        return 0.0
    kept = KeptToken.model_validate(record.body)
    if kept.revoked_at is not None:
        return 0.0
    return math.inf if kept.expires_at is None else kept.expires_at - await store.now()


def _ended() -> errors.Unauthenticated:
    return errors.Unauthenticated(
        "the token of this connection has been revoked or has run out",
        hint="connect again with a token that is good; token_create makes one",
    )
