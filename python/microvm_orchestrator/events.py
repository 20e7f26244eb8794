"""The journal as something to wait for.

Events are written by the store, with the change they tell of. Here one pump follows the journal and
wakes those whose filter fits; each then reads for itself by its own cursor. So there is no queue
that a slow listener could fill, and nothing is lost by whoever comes late or goes away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass, field

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.model.event import Event
from microvm_orchestrator.model.records import SYSTEM, Actor
from microvm_orchestrator.store.base import Events, Match, Store

_PUMPED = 1000


@dataclass(eq=False, slots=True)
class Listener:
    """Somebody who waits for events of a kind."""

    match: Match
    _wake: anyio.Event = field(default_factory=anyio.Event)

    def ring(self) -> None:
        self._wake.set()

    async def wait(self) -> None:
        """Until something happened that fits, since the last time this returned."""
        await self._wake.wait()
        self._wake = anyio.Event()


def fits(match: Match, event: Event) -> bool:
    return (
        (not match.kinds or any(_kind_fits(kind, event.kind) for kind in match.kinds))
        and (not match.groups or event.group in match.groups)
        and (not match.subjects or event.subject in match.subjects)
    )


def _kind_fits(wanted: str, kind: str) -> bool:
    return kind.startswith(wanted[:-1]) if wanted.endswith(".*") else kind == wanted


class Journal:
    """Fan-out of the store's journal; lives as long as its pump runs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._listeners: set[Listener] = set()
        self._stopping = False

    async def pump(self) -> None:
        """Follow the journal until cancelled."""
        cursor: str | None = None
        async with self._store.hints() as changes:
            async for _ in changes:
                if not self._listeners:
                    cursor = None
                elif cursor is None:
                    # Nobody was listening; whoever is now may have missed anything.
                    cursor = await self._end()
                    self._ring_all()
                else:
                    cursor = await self._pass_on(cursor)

    async def _end(self) -> str | None:
        try:
            return await self._store.cursor()
        except errors.OrchestratorError:
            # A damaged disk is for those to hear who ask; we look again at the next change.
            return None

    async def _pass_on(self, cursor: str) -> str | None:
        while True:
            try:
                read = await self._store.events(cursor, Match(), _PUMPED, SYSTEM)
            except errors.OrchestratorError:
                # Retention overtook us, or the disk answers with errors: let everyone look.
                self._ring_all()
                return None
            for listener in self._listeners:
                if any(fits(listener.match, event) for event in read.events):
                    listener.ring()
            cursor = read.cursor
            if not read.more:
                return cursor

    def stop(self) -> None:
        """End every wait, now and from now on, with `Stopping`."""
        self._stopping = True
        self._ring_all()

    def _ring_all(self) -> None:
        for listener in self._listeners:
            listener.ring()

    @contextlib.contextmanager
    def listen(self, match: Match) -> Generator[Listener]:
        """Listen first, look then: what happens between the two rings."""
        listener = Listener(match)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def refuse_when_stopping(self) -> None:
        """Raises: Stopping."""
        if self._stopping:
            raise errors.Stopping(
                "the daemon is going down", hint="ask again in a moment, with the same cursor"
            )

    async def read(
        self, after: str | None, match: Match, limit: int, by: Actor, *, timeout_s: float
    ) -> Events:
        """The events after a cursor; where there are none yet, wait for the first of them.

        Raises: CursorInvalid, CursorExpired, Stopping.
        """
        with self.listen(match) as listener:
            read = await self._store.events(after, match, limit, by)
            with anyio.move_on_after(timeout_s):
                while not read.events:
                    if not read.more:
                        self.refuse_when_stopping()
                        await listener.wait()
                    read = await self._store.events(read.cursor, match, limit, by)
            return read
