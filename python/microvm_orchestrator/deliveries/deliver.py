"""Runs an outbox for each active webhook, and takes over what the service writes down of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import anyio
import anyio.to_thread

from microvm_orchestrator import errors, log
from microvm_orchestrator.deliveries.jobs import Said, silent
from microvm_orchestrator.deliveries.outbox import PACE, SENDER, Means, Outbox
from microvm_orchestrator.deliveries.post import Poster
from microvm_orchestrator.model.webhook import (
    CURSOR,
    DELIVERY,
    RETRY,
    WEBHOOK,
    KeptWebhook,
    delivery_prefix,
)
from microvm_orchestrator.store.base import Match
from microvm_orchestrator.store.every import every_record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anyio.abc import TaskGroup

    from microvm_orchestrator.config import Settings
    from microvm_orchestrator.events import Journal
    from microvm_orchestrator.model.task import Retry
    from microvm_orchestrator.store.base import Store

# Every change rings; this is for the day that one does not.
_LOOK_EVERY_S = 60.0
# A store that is full or away is asked again after this.
_RESTART_S = 5.0

_log = log.get(__name__)


async def deliver(
    store: Store, journal: Journal, settings: Settings, pace: Retry = PACE, said: Said = silent
) -> None:
    """Send every active webhook its events, until cancelled; `said` knows what runs have said."""
    poster = await anyio.to_thread.run_sync(Poster, settings.webhooks)
    means = Means(
        store=store,
        journal=journal,
        poster=poster,
        max_attempts=settings.webhooks.max_attempts,
        keep_s=settings.store.events.max_age_s,
        pace=pace,
        said=said,
    )
    async with anyio.create_task_group() as group:
        await _Desk(means, group).run()


@dataclass(slots=True)
class _Running:
    """An outbox at work."""

    outbox: Outbox
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    ended: anyio.Event = field(default_factory=anyio.Event)

    async def run(self) -> None:
        try:
            with self.scope:
                while not await self._done():
                    await anyio.sleep(_RESTART_S)
                    # What it knew may not be what was written down.
                    old = self.outbox
                    self.outbox = Outbox(old.means, old.webhook_id, old.version, old.hook)
        finally:
            self.ended.set()

    async def _done(self) -> bool:
        done = False
        try:
            await self.outbox.run()
            done = True
        except* errors.OrchestratorError as found:
            reasons = list(_reasons(found))
            _log.error("outbox_failed", webhook=self.outbox.webhook_id, reasons=reasons)
        return done

    async def stop(self) -> None:
        self.scope.cancel()
        await self.ended.wait()


def _reasons(group: BaseExceptionGroup[BaseException]) -> Iterator[str]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _reasons(cast("BaseExceptionGroup[BaseException]", error))
        else:
            yield str(error)


@dataclass(slots=True)
class _Desk:
    """Compares the webhooks there are with the outboxes that run."""

    means: Means
    group: TaskGroup
    running: dict[str, _Running] = field(default_factory=dict[str, _Running])
    clearing: set[str] = field(default_factory=set[str])

    async def run(self) -> None:
        match = Match(kinds=(f"{WEBHOOK}.*", f"{RETRY}.created"))
        with self.means.journal.listen(match) as bell:
            while True:
                pause = _LOOK_EVERY_S
                try:
                    await self._look()
                except errors.Unavailable as error:
                    pause = _RESTART_S
                    _log.error("webhooks_not_read", code=error.code, reason=error.message)
                with anyio.move_on_after(pause):
                    await bell.wait()

    async def _look(self) -> None:
        records = await every_record(self.means.store, WEBHOOK, SENDER)
        hooks = {record.id: KeptWebhook.model_validate(record.body) for record in records}
        wanted = {record.id: record.version for record in records if hooks[record.id].active}
        for webhook_id, running in list(self.running.items()):
            if wanted.get(webhook_id) != running.outbox.version:
                await running.stop()
                del self.running[webhook_id]
        for webhook_id, version in wanted.items():
            if webhook_id not in self.running:
                outbox = Outbox(self.means, webhook_id, version, hooks[webhook_id])
                self.running[webhook_id] = _Running(outbox)
                self.group.start_soon(self.running[webhook_id].run)
        for webhook_id, hook in hooks.items():
            if hook.deleted and webhook_id not in self.clearing:
                self.clearing.add(webhook_id)
                self.group.start_soon(self._clear, webhook_id)
        await self._retry()

    async def _retry(self) -> None:
        for wish in await every_record(self.means.store, RETRY, SENDER):
            running = self.running.get(str(wish.body["webhook_id"]))
            # Without an outbox it waits, like all that is pending, until there is one.
            if running is not None:
                await running.outbox.again(wish.id)
            await self.means.store.erase(RETRY, wish.id, SENDER)

    async def _clear(self, webhook_id: str) -> None:
        """Erase what is left of a deleted webhook, itself last."""
        store = self.means.store
        try:
            for record in await every_record(store, DELIVERY, SENDER, delivery_prefix(webhook_id)):
                await store.erase(DELIVERY, record.id, SENDER)
            await store.erase(CURSOR, webhook_id, SENDER)
            await store.erase(WEBHOOK, webhook_id, SENDER)
        except errors.Unavailable as error:
            _log.error("webhook_not_cleared", webhook=webhook_id, reason=error.message)
        finally:
            self.clearing.discard(webhook_id)
