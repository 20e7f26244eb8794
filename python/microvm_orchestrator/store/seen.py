"""Reading one record that belongs to somebody: whoever may not see it finds nothing.

Above sit the records of this host; below, the seam only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from microvm_orchestrator.store.questions import RecordById

if TYPE_CHECKING:
    from microvm_orchestrator.model.records import Actor
    from microvm_orchestrator.store.base import Store


class _Owned(Protocol):
    @property
    def owner(self) -> str: ...

    @classmethod
    def model_validate(cls, obj: object, /) -> Self: ...


T = TypeVar("T", bound=_Owned)


async def find_seen(store: Store, kind: str, record_id: str, model: type[T], by: Actor) -> T | None:
    """Give what is stored under an id, if there is such a thing and `by` may know of it."""
    record = await store.query(RecordById(kind, record_id), by)
    if record is None:
        return None
    found = model.model_validate(record.body)
    return found if by.sees_of(found.owner) else None
