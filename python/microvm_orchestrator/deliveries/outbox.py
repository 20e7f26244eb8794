"""One webhook's deliveries: read off the journal, kept, sent, tried again, and at last forgotten.

An outbox has a cursor, a bounded number of deliveries on their way and a few attempts at a time of
its own, so a receiver that is slow or dead holds up nobody else. What it has promised is in the
store before the cursor moves on: after a crash an event may be sent twice, but none is skipped.
Above sits deliver.py, which runs one outbox for each active webhook.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors, log
from microvm_orchestrator.deliveries.jobs import Said, payload_of, silent
from microvm_orchestrator.deliveries.post import Message, Poster
from microvm_orchestrator.model import token
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.records import Actor, Record
from microvm_orchestrator.model.task import Retry
from microvm_orchestrator.model.webhook import (
    CURSOR,
    DELIVERY,
    RETRY,
    WEBHOOK,
    DeliveryState,
    KeptCursor,
    KeptDelivery,
    KeptWebhook,
    Posted,
    Shape,
    delivery_id,
    delivery_prefix,
)
from microvm_orchestrator.store.base import Match
from microvm_orchestrator.store.every import every_record
from microvm_orchestrator.store.questions import RecordById

if TYPE_CHECKING:
    from microvm_orchestrator.events import Journal, Listener
    from microvm_orchestrator.model.event import Event
    from microvm_orchestrator.store.base import Store

# Who keeps the books; the deliveries are read as the webhook's owner.
SENDER = Actor(name="system", role=Role.ADMIN, via="clock", action="deliver")
# From a second to an hour: twelve attempts span the better part of an hour and more with each.
PACE = Retry(backoff_s=2.0, factor=2.0, max_backoff_s=3600.0)
# At once for one receiver.
_ABREAST = 4
# On their way for one receiver; past that the journal is where events wait.
_WINDOW = 1000
_BATCH = 100
# How many that ended are kept for one receiver, of each kind of end.
_KEPT = 1000
# A result that is known is worth writing down even when the daemon stops.
_LAST_WORD_S = 2.0
# The cursor of a webhook that nothing concerns is written this seldom.
_CURSOR_EVERY_S = 300.0

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Means:
    """What every outbox works with."""

    store: Store
    journal: Journal
    poster: Poster
    max_attempts: int
    keep_s: float | None
    pace: Retry = PACE
    said: Said = silent


@dataclass(slots=True)
class Outbox:
    """The deliveries of one webhook, from `run` to its end."""

    means: Means
    webhook_id: str
    version: int
    hook: KeptWebhook
    _waiting: dict[str, KeptDelivery] = field(default_factory=dict[str, KeptDelivery])
    _due: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])
    _flying: set[str] = field(default_factory=set[str])
    # Those that ended, oldest first, with the time they did.
    _ended: dict[DeliveryState, dict[str, float]] = field(
        default_factory=lambda: {DeliveryState.DELIVERED: {}, DeliveryState.DEAD: {}}
    )
    _cursor: KeptCursor = field(default_factory=lambda: KeptCursor(cursor=""))
    _cursor_kept_at: float = 0.0
    _bell: Listener | None = None
    _lookups: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(_ABREAST))

    async def run(self) -> None:
        """Deliver until the webhook changes or may no more. Raises: Unavailable."""
        with self.means.journal.listen(self._match) as self._bell:
            await self._recall()
            async with anyio.create_task_group() as attempts:
                while True:
                    more = await self._take_events()
                    # After reading: what was written after a change is not sent as before it.
                    if not await self._is_current():
                        return
                    await self._forget()
                    for key in await self._next_ones():
                        attempts.start_soon(self._attempt, key)
                    if not more:
                        with anyio.move_on_after(await self._pause()):
                            await self._bell.wait()

    async def again(self, key: str) -> None:
        """Take up a delivery that was dead and is wanted once more."""
        record = await self.means.store.query(RecordById(DELIVERY, key), SENDER)
        if record is not None:
            self._ended[DeliveryState.DEAD].pop(key, None)
            self._await(key, KeptDelivery.model_validate(record.body))
            if self._bell is not None:
                self._bell.ring()

    @property
    def _match(self) -> Match:
        return Match(kinds=self.hook.kinds, groups=self.hook.groups)

    async def _is_current(self) -> bool:
        """Whether the webhook is what it was, and the token it was made with still good."""
        record = await self.means.store.query(RecordById(WEBHOOK, self.webhook_id), SENDER)
        if record is None or record.version != self.version:
            return False
        if self.hook.token_id is None:
            return True
        made_with = await self.means.store.query(RecordById(token.KIND, self.hook.token_id), SENDER)
        now = await self.means.store.now()
        return made_with is not None and token.KeptToken.model_validate(made_with.body).live(now)

    # What the store knows

    async def _recall(self) -> None:
        store = self.means.store
        found = await store.query(RecordById(CURSOR, self.webhook_id), SENDER)
        self._cursor = (
            KeptCursor(cursor=self.hook.since)
            if found is None
            else KeptCursor.model_validate(found.body)
        )
        for record in await every_record(store, DELIVERY, SENDER, delivery_prefix(self.webhook_id)):
            kept = KeptDelivery.model_validate(record.body)
            if kept.state is DeliveryState.PENDING:
                self._await(record.id, kept)
            else:
                self._ended[kept.state][record.id] = kept.settled_at or record.updated_at
        for state, ended in self._ended.items():
            self._ended[state] = dict(sorted(ended.items(), key=lambda item: item[1]))

    def _await(self, key: str, kept: KeptDelivery) -> None:
        if key in self._waiting:
            return
        self._waiting[key] = kept
        heapq.heappush(self._due, (kept.next_at or 0.0, key))

    async def _keep(self, key: str, kept: KeptDelivery) -> None:
        record = Record(DELIVERY, key, kept.model_dump(mode="json"))
        await self.means.store.save(record, SENDER)

    # From the journal

    async def _take_events(self) -> bool:
        """Make deliveries of new events; says whether there are more, and room for them."""
        room = min(_BATCH, _WINDOW - len(self._waiting))
        if room <= 0:
            return False
        try:
            read = await self.means.store.events(
                self._cursor.cursor, self._match, room, self.hook.reader
            )
        except (errors.CursorExpired, errors.CursorInvalid) as gone:
            await self._skip_to_what_is_kept(gone)
            return True
        now = await self.means.store.now()
        # Each saved by its own task, so that they share a commit.
        async with anyio.create_task_group() as saves:
            for event in read.events:
                # Wishes to deliver again are ours; a hook that saw them would see its own shadow.
                if not event.kind.startswith(f"{RETRY}."):
                    saves.start_soon(self._take, event, now)
        moved = read.cursor != self._cursor.cursor
        self._cursor = self._cursor.model_copy(update={"cursor": read.cursor})
        if moved and (read.events or now - self._cursor_kept_at > _CURSOR_EVERY_S):
            await self._keep_cursor(now)
        return read.more

    async def _take(self, event: Event, now: float) -> None:
        key = delivery_id(self.webhook_id, event.seq)
        kept = KeptDelivery(webhook_id=self.webhook_id, event=event, next_at=now)
        record = Record(DELIVERY, key, kept.model_dump(mode="json"))
        try:
            await self.means.store.save(record, SENDER, expect=0)
        except errors.AlreadyExists:
            # Kept before a crash that lost the cursor; recalled with the rest.
            return
        self._await(key, kept)

    async def _skip_to_what_is_kept(self, gone: errors.OrchestratorError) -> None:
        now = await self.means.store.now()
        _log.warning("webhook_missed_events", webhook=self.webhook_id, reason=gone.message)
        self._cursor = KeptCursor(cursor=None, missed_at=now)
        await self._keep_cursor(now)

    async def _keep_cursor(self, now: float) -> None:
        record = Record(CURSOR, self.webhook_id, self._cursor.model_dump(mode="json"))
        await self.means.store.save(record, SENDER)
        self._cursor_kept_at = now

    # To the receiver

    async def _next_ones(self) -> list[str]:
        """Which to try now, as far as hands are free."""
        now = await self.means.store.now()
        chosen: list[str] = []
        while self._due and self._due[0][0] <= now and len(self._flying) < _ABREAST:
            key = heapq.heappop(self._due)[1]
            self._flying.add(key)
            chosen.append(key)
        return chosen

    async def _pause(self) -> float:
        """How long until the next falls due; who comes back rings before that."""
        if not self._due or len(self._flying) >= _ABREAST:
            return math.inf
        return max(0.0, self._due[0][0] - await self.means.store.now())

    async def _attempt(self, key: str) -> None:
        kept = self._waiting[key]
        event = kept.event
        payload = None
        if self.hook.shape is Shape.JOB:
            reader, said = self.hook.reader, self.means.said
            payload = await payload_of(event, self.means.store, reader, said)
        told = event.model_dump(mode="json")
        message = Message(key, self.webhook_id, event.kind, told, payload)
        posted = await self.means.poster.post(
            self.hook.url,
            self.hook.secret,
            message,
            attempt=kept.attempts + 1,
            lookups=self._lookups,
        )
        after = self._after(kept, posted, await self.means.store.now())
        with anyio.move_on_after(_LAST_WORD_S, shield=True):
            await self._keep(key, after)
        self._put_back(key, after)
        self._flying.discard(key)
        if self._bell is not None:
            self._bell.ring()

    def _after(self, kept: KeptDelivery, posted: Posted, now: float) -> KeptDelivery:
        attempts = kept.attempts + 1
        told: dict[str, object] = {
            "attempts": attempts,
            "status": posted.status,
            "error": posted.error,
        }
        if posted.accepted:
            told |= {"state": DeliveryState.DELIVERED, "next_at": None, "settled_at": now}
        elif attempts >= self.means.max_attempts:
            told |= {"state": DeliveryState.DEAD, "next_at": None, "settled_at": now}
            _log.warning("delivery_dead", webhook=self.webhook_id, error=posted.error)
        else:
            # Half of the wait is by chance, so that many failures do not come back together.
            share = (1 + random.random()) / 2  # noqa: S311 - keeps no secret
            told["next_at"] = now + self.means.pace.delay_s(attempts) * share
        return kept.model_copy(update=told)

    def _put_back(self, key: str, kept: KeptDelivery) -> None:
        del self._waiting[key]
        if kept.state is DeliveryState.PENDING:
            self._await(key, kept)
        else:
            self._ended[kept.state][key] = kept.settled_at or 0.0

    async def _forget(self) -> None:
        """Erase what ended and is past its number or age."""
        now = await self.means.store.now()
        for ended in self._ended.values():
            while ended:
                key, at = next(iter(ended.items()))
                old = self.means.keep_s is not None and now - at > self.means.keep_s
                if len(ended) <= _KEPT and not old:
                    break
                await self.means.store.erase(DELIVERY, key, SENDER)
                del ended[key]
