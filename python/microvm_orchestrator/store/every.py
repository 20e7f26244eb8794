"""Reading a whole list, page by page, where it is known to be short.

Above sit the service and the deliveries; below, the seam only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm_orchestrator.store.questions import RecordList

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from microvm_orchestrator.model.records import Actor, Record
    from microvm_orchestrator.store.base import Store


async def every_record(store: Store, kind: str, by: Actor, prefix: str = "") -> list[Record]:
    """All records of a kind whose id begins so."""
    return [record async for record in each_record(store, kind, by, prefix)]


async def each_record(
    store: Store, kind: str, by: Actor, prefix: str = ""
) -> AsyncGenerator[Record]:
    """Give them one after the other, where no more than a page is to be held."""
    cursor = None
    while True:
        page = await store.query(RecordList(kind, prefix, limit=200, cursor=cursor), by)
        for record in page.items:
            yield record
        cursor = page.cursor
        if cursor is None:
            return
