"""Pages of records, where not every record is shown.

Above sit the functions of the nouns that are kept as records; below, the store's pages and cursors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from microvm_orchestrator.store.questions import RecordList

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from microvm_orchestrator.model.records import Actor, Record
    from microvm_orchestrator.service.page import ListRequest
    from microvm_orchestrator.store.base import Store

T = TypeVar("T")


async def page_of(
    store: Store,
    kind: str,
    page: ListRequest,
    by: Actor,
    pick: Callable[[Record], Awaitable[T | None]],
    prefix: str = "",
) -> tuple[list[T], str | None]:
    """A page of what `pick` makes of records, without those it makes None of."""
    items: list[T] = []
    cursor = page.cursor
    while True:
        found = await store.query(
            RecordList(kind, prefix, limit=page.limit - len(items), cursor=cursor), by
        )
        items += [item for record in found.items if (item := await pick(record)) is not None]
        cursor = found.cursor
        if cursor is None or len(items) == page.limit:
            return items, cursor
