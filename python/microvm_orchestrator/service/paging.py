"""Lists: what every one of them takes, and how a page is filled from records that are filtered.

Above sit the functions of the nouns; below, the store's own pages and cursors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import Field

from microvm_orchestrator.service.calls import Request
from microvm_orchestrator.store.questions import RecordList

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from microvm_orchestrator.model.records import Actor, Record
    from microvm_orchestrator.store.base import Store

Limit = Annotated[int, Field(strict=True, ge=1, le=200)]
Cursor = Annotated[str, Field(min_length=1, max_length=500)]
T = TypeVar("T")


class ListRequest(Request):
    """Which part of a list."""

    limit: Limit = 50
    cursor: Cursor | None = Field(default=None, description="`next_cursor` of the page before")


async def records(
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


async def every_record(store: Store, kind: str, by: Actor, prefix: str = "") -> list[Record]:
    """All records of a kind, for kinds of which there are few."""
    found: list[Record] = []
    cursor = None
    while True:
        page = await store.query(RecordList(kind, prefix, limit=200, cursor=cursor), by)
        found += page.items
        cursor = page.cursor
        if cursor is None:
            return found
