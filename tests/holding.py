"""Stores that keep somebody waiting where a test says so, or take nothing once.

What others do comes first then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import anyio

from calling import PATIENCE_S
from microvm_orchestrator import errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from microvm_orchestrator.model.records import Actor, Record
    from microvm_orchestrator.store.base import Store


class Holding:
    """A store; `over` makes one of another. It holds one record, or one question, at a time."""

    def __init__(self) -> None:
        self._store: Store
        self._saved: Callable[[Record], bool] | None = None
        self._asked: Callable[[Any], bool] | None = None
        self._reached = anyio.Event()
        self._released = anyio.Event()

    def over(self, store: Store) -> Store:
        self._store = store
        return cast("Store", self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def hold_save(self, of: Callable[[Record], bool]) -> None:
        """Hold the next record that is like this, before it is written."""
        self._saved = of
        self._reached, self._released = anyio.Event(), anyio.Event()

    def hold_question(self, of: Callable[[Any], bool]) -> None:
        """Hold the next question that is like this."""
        self._asked = of
        self._reached, self._released = anyio.Event(), anyio.Event()

    async def reached(self) -> None:
        """Wait until somebody is held."""
        with anyio.fail_after(PATIENCE_S):
            await self._reached.wait()

    def release(self) -> None:
        self._released.set()

    async def save(self, record: Record, by: Actor, **more: Any) -> Record:
        if self._saved is not None and self._saved(record):
            self._saved = None
            await self._hold()
        return await self._store.save(record, by, **more)

    async def query(self, question: Any, by: Actor) -> Any:
        if self._asked is not None and self._asked(question):
            self._asked = None
            await self._hold()
        return await self._store.query(question, by)

    async def _hold(self) -> None:
        self._reached.set()
        await self._released.wait()


class Refusing:
    """A store; `over` makes one of another. It once takes no record that is like this."""

    def __init__(self) -> None:
        self._store: Store
        self._refused: Callable[[Record], bool] | None = None

    def over(self, store: Store) -> Store:
        self._store = store
        return cast("Store", self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def refuse(self, of: Callable[[Record], bool]) -> None:
        self._refused = of

    @property
    def has_refused(self) -> bool:
        return self._refused is None

    async def save(self, record: Record, by: Actor, **more: Any) -> Record:
        if self._refused is not None and self._refused(record):
            self._refused = None
            raise errors.Unavailable("the store takes nothing")
        return await self._store.save(record, by, **more)
