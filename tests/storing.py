"""A store to test, time to move by hand, and short words for graphs, claims and ends.

Everything here speaks to the `Store` protocol; only the engines know what they are made of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from microvm_orchestrator.model.access import Role, Scope
from microvm_orchestrator.model.records import Actor
from microvm_orchestrator.model.task import Gate, GroupedSpec, Task, TaskError
from microvm_orchestrator.store.base import (
    SWEEP_EVERY_S,
    Address,
    Claimed,
    Done,
    Failed,
    Graph,
    Keep,
    Match,
    NewTask,
    Offer,
    Ref,
    Settled,
    Store,
    Submitted,
    Swept,
)
from microvm_orchestrator.store.clock import Clock
from microvm_orchestrator.store.questions import FullTaskList, OneTask
from microvm_orchestrator.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from microvm_orchestrator.model.event import Event
    from microvm_orchestrator.model.task import Dependency

# The store's time in every test that does not begin elsewhere.
BEGIN = 1_800_000_000.0
LEASE_S = 30.0
KEEP_ALL = Keep()


class HandClock(Clock):
    """Time that moves when a test says so."""

    def __init__(self, at: float = BEGIN) -> None:
        self.at = at
        self._ahead = 0.0

    def now(self) -> float:
        return self.at

    def step(self) -> float:
        ahead, self._ahead = self._ahead, 0.0
        self.at += ahead
        return ahead

    def behind(self) -> float:
        return 0.0

    def advance(self, seconds: float) -> None:
        self.at += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall forward: the store learns of it by `step`."""
        self._ahead += seconds

    def begin(self, not_before: float) -> HandClock:
        self.at = max(self.at, not_before)
        return self


@dataclass(frozen=True)
class SqliteEngine:
    """The embedded engine; every store it makes has the same time."""

    folder: Path
    clock: HandClock

    def store(self, name: str = "store.sqlite") -> Store:
        return SqliteStore(self.folder / name, self.clock.begin)


ENGINES = {"sqlite": SqliteEngine}


def actor(name: str, role: Role = Role.ADMIN, scope: Scope | None = None) -> Actor:
    return Actor(name, role, "test", "tested", Scope() if scope is None else scope)


ALICE = actor("alice")


def own_only(name: str, **labels: set[str]) -> Actor:
    """An actor who sees what it owns, and what has one of the values for each of the labels."""
    seen = tuple((key, frozenset(values)) for key, values in labels.items())
    return actor(name, Role.OPERATOR, Scope(everything=False, labels=seen))


# Graphs


def task(
    key: str | None = None,
    *after: Dependency,
    child: bool = False,
    before: Sequence[str] = (),
    lease_s: float = LEASE_S,
    **spec: Any,
) -> NewTask:
    made = GroupedSpec(key=key, depends_on=list(after), **spec)
    return NewTask(made, lease_s, child=child, before=tuple(before))


def gate(need: str | int, *of: Any) -> Gate:
    return Gate.model_validate({"need": need, "of": list(of)})


async def submit(store: Store, *tasks: NewTask, by: Actor = ALICE, **graph: Any) -> Submitted:
    return await store.submit(Graph(tasks, **graph), by)


async def get(store: Store, ref: str, group: str = "default", by: Actor = ALICE) -> Task:
    return await store.query(OneTask(ref, group), by)


async def states(store: Store, group: str = "default") -> dict[str, str]:
    """The state of each task of a group, by key."""
    found: dict[str, str] = {}
    cursor = None
    while True:
        page = await store.query(FullTaskList(group, 500, cursor), ALICE)
        found |= {item.key or item.task_id: item.state.value for item in page.items}
        cursor = page.cursor
        if cursor is None:
            return found


# Claims and ends


@dataclass(frozen=True)
class Held:
    """A claimed task and the words that hold it."""

    task: Task
    ref: Ref

    @property
    def key(self) -> str | None:
        return self.task.key


async def claim(store: Store, worker: str = "w1", by: Actor = ALICE, **offer: Any) -> Claimed:
    return await store.claim(Offer(worker, **offer), by)


async def take(store: Store, worker: str = "w1", by: Actor = ALICE, **offer: Any) -> Held:
    """Claim one task that must be there."""
    claimed = await claim(store, worker, by, **offer)
    assert claimed.verdict == "claimed", claimed
    ((found, lease),) = claimed.tasks
    return Held(found, Ref(Address(found.task_id), lease.token, worker))


async def finish(store: Store, held: Held, result: JsonValue = None, by: Actor = ALICE) -> Settled:
    return await store.settle(held.ref, Done(result), by)


async def fail(
    store: Store, held: Held, message: str = "broken", *, retryable: bool = False
) -> Settled:
    return await store.settle(held.ref, Failed(TaskError(message=message), retryable), ALICE)


async def run_next(store: Store, worker: str = "w1") -> str | None:
    """Claim the next task and finish it at once; its key."""
    held = await take(store, worker)
    settled = await finish(store, held)
    assert settled.verdict == "accepted"
    return held.key


async def fail_next(store: Store, worker: str = "w1") -> str | None:
    """Claim the next task and fail it for good; its key."""
    held = await take(store, worker)
    settled = await fail(store, held)
    assert settled.task.state == "failed"
    return held.key


# Time and events


async def pass_time(
    store: Store, clock: HandClock, seconds: float, keep: Keep = KEEP_ALL
) -> list[Swept]:
    """Move time on as a running daemon does: with a sweep every so often."""
    steps = max(1, math.ceil(seconds / SWEEP_EVERY_S))
    swept: list[Swept] = []
    for _ in range(steps):
        clock.advance(seconds / steps)
        swept.append(await store.sweep(keep))
    return swept


async def told(store: Store, *kinds: str, by: Actor = ALICE, **match: Any) -> list[Event]:
    """All events of these kinds that are kept."""
    found: list[Event] = []
    cursor: str | None = None
    while True:
        events = await store.events(cursor, Match(kinds=kinds, **match), 500, by)
        found += events.events
        cursor = events.cursor
        if not events.more:
            return found


async def told_of(store: Store, task_id: str) -> list[str]:
    """The kinds of events of one task, in order."""
    return [event.kind for event in await told(store, subjects=(task_id,))]
