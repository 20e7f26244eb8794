"""Reading a whole list, page by page, where it is known to be short.

Above sit the service and the deliveries; below, the seam only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm_orchestrator.store.questions import RecordList

if TYPE_CHECKING:
    from microvm_orchestrator.model.records import Actor, Record
    from microvm_orchestrator.store.base import Store


async def every_record(store: Store, kind: str, by: Actor, prefix: str = "") -> list[Record]:
    """All records of a kind whose id begins so."""
    found: list[Record] = []
    cursor = None
    while True:
        page = await store.query(RecordList(kind, prefix, limit=200, cursor=cursor), by)
        found += page.items
        cursor = page.cursor
        if cursor is None:
            return found
