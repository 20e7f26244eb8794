"""The seam between the core and an engine: what may be asked of a store, and in which words.

Each verb is one atomic transition, written with its events and its audit row in one transaction;
no transaction, connection or engine type leaks out. Time is the engine's own. Cursors are opaque.
An answer means that the change is on disk. The core never asks which engine it has.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from pydantic import JsonValue

from microvm_orchestrator.model.event import Event
from microvm_orchestrator.model.names import DEFAULT_GROUP
from microvm_orchestrator.model.records import Actor, Record
from microvm_orchestrator.model.task import (
    GroupedSpec,
    Lease,
    Task,
    TaskError,
    TaskProgress,
    TaskState,
)
from microvm_orchestrator.store.fleet import FleetStore
from microvm_orchestrator.store.questions import Query

T = TypeVar("T")

# How often whoever owns a store is to sweep it: the finest grain of leases and delays. A sweep that
# comes much later tells the store that nobody could reach it meanwhile.
SWEEP_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Address:
    """A task by its id, or by its key within a group."""

    ref: str
    group: str = DEFAULT_GROUP


@dataclass(frozen=True, slots=True)
class Ref:
    """A held lease: the task, the fencing token and who says to hold it."""

    address: Address
    token: int
    worker: str


@dataclass(frozen=True, slots=True)
class NewTask:
    """A task to be written, with what only the service knows of it."""

    spec: GroupedSpec
    lease_s: float
    template: str | None = None
    # For a task that grows its own graph: a child is waited for by whoever waits for its parent.
    child: bool = False
    # Unfinished, unclaimed tasks that shall wait for this one too.
    before: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A request's name, and a digest of its content to tell a replay from a mistake."""

    key: str
    digest: str


@dataclass(frozen=True, slots=True)
class Graph:
    """Tasks that are written all or not at all; they may depend on each other in any order."""

    tasks: tuple[NewTask, ...]
    idempotency: Idempotency | None = None
    # The running task that adds these to its own graph.
    under: Ref | None = None
    # Keys of labels that decide visibility.
    visibility_labels: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SubmittedTask:
    task_id: str
    key: str | None
    group: str
    state: TaskState


@dataclass(frozen=True, slots=True)
class Submitted:
    tasks: tuple[SubmittedTask, ...]
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """What a claimant can do, and what it wants."""

    worker: str
    capabilities: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()
    # Empty: any group.
    groups: tuple[str, ...] = ()
    count: int = 1
    lease_s: float | None = None


class Verdict(StrEnum):
    """Why a claim brought what it brought."""

    CLAIMED = "claimed"
    # Ready tasks exist, but none asks for what this claimant offers.
    NO_MATCH = "no_match"
    # Unfinished tasks wait for running ones, or for a time.
    BLOCKED = "blocked"
    # Unfinished tasks wait, and nothing that runs or falls due can free them.
    DEADLOCKED = "deadlocked"
    ALL_DONE = "all_done"
    # The worker was told to take no more.
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class StuckTask:
    task_id: str
    key: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Claimed:
    verdict: Verdict
    tasks: tuple[tuple[Task, Lease], ...] = ()
    stuck: tuple[StuckTask, ...] = ()
    # When the next task falls due, if only time is in the way.
    due_at: float | None = None


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life."""

    ref: Ref
    progress: TaskProgress | None = None
    lease_s: float | None = None


@dataclass(frozen=True, slots=True)
class Renewed:
    """`state` is the task's; unless it is `held`, the worker must stop: others decided so."""

    task_id: str
    held: bool
    state: TaskState
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class Done:
    result: JsonValue = None


@dataclass(frozen=True, slots=True)
class Failed:
    error: TaskError
    retryable: bool = True


@dataclass(frozen=True, slots=True)
class Released:
    reason: str = ""
    delay_s: float = 0.0


Outcome = Done | Failed | Released


@dataclass(frozen=True, slots=True)
class Settled:
    """`fenced` is no error of the store: the late word was refused, and recorded as an event."""

    verdict: Literal["accepted", "repeated", "fenced"]
    task: Task
    unlocked: tuple[SubmittedTask, ...] = ()


@dataclass(frozen=True, slots=True)
class InGroup:
    """The unfinished (or, to retry, the failed and cancelled) tasks of a group."""

    group: str
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class CancelTasks:
    reason: str = ""
    # Also what depends on it, directly or not.
    cascade: bool = False


@dataclass(frozen=True, slots=True)
class RetryTasks:
    # Also the failed and cancelled tasks it depends on.
    upstream: bool = False


@dataclass(frozen=True, slots=True)
class SetPriority:
    priority: int


@dataclass(frozen=True, slots=True)
class UpdateTask:
    """Only the fields named in `fields` change."""

    spec: GroupedSpec
    fields: frozenset[str]
    lease_s: float | None = None
    expect_version: int | None = None
    visibility_labels: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class DeleteTask:
    # Also what depends on it, directly or not.
    cascade: bool = False
    # Nothing changes, and what would go is told.
    rehearsed: bool = False


Change = CancelTasks | RetryTasks | SetPriority | UpdateTask | DeleteTask


@dataclass(frozen=True, slots=True)
class Amended:
    """Ids of the tasks that changed, in the order they did."""

    task_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Keep:
    """What to keep of the past; None keeps all."""

    event_age_s: float | None = None
    event_count: int | None = None
    task_age_s: float | None = None
    task_count: int | None = None


@dataclass(frozen=True, slots=True)
class Swept:
    requeued: int = 0
    failed: int = 0
    opened: int = 0
    workers_lost: int = 0
    dropped_events: int = 0
    dropped_tasks: int = 0
    # Seconds by which leases were extended because nobody could have renewed them.
    grace_s: float = 0.0
    # When the next lease runs out or the next task falls due.
    next_at: float | None = None


@dataclass(frozen=True, slots=True)
class WorkerCard:
    """What an external claimant says of itself."""

    name: str
    capabilities: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Match:
    """Which events to give: empty means any. A kind may end in `.*`."""

    kinds: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tell:
    """What the journal says of a change to a record: its kind's event, as in `machine.running`."""

    what: str
    body: dict[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    # What the clock or a guest did is an event, but nobody's deed.
    audited: bool = True
    # What the audit row names, where that is not the record itself.
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Events:
    """A stretch of the journal; `cursor` is where to go on, also after an empty one."""

    events: tuple[Event, ...]
    cursor: str
    # More were there than the limit allowed.
    more: bool = False


@dataclass(frozen=True, slots=True)
class Health:
    engine: str
    problems: tuple[str, ...]
    facts: dict[str, JsonValue]


class Store(FleetStore, Protocol):
    """What the core asks of an engine."""

    def opened(self) -> AbstractAsyncContextManager[None]:
        """Hold the store open: migrate, give running leases their grace, close at the end.

        Raises: SchemaTooNew, StoreCorrupt, StoreReadOnly, StoreFull.
        """
        ...

    async def submit(self, graph: Graph, by: Actor) -> Submitted: ...
    async def claim(self, offer: Offer, by: Actor) -> Claimed: ...
    async def renew(self, beats: Sequence[Beat], by: Actor) -> list[Renewed]: ...
    async def settle(self, ref: Ref, outcome: Outcome, by: Actor) -> Settled: ...
    async def amend(self, which: Address | InGroup, change: Change, by: Actor) -> Amended: ...
    async def sweep(self, keep: Keep) -> Swept: ...

    async def enlist(self, card: WorkerCard, ttl_s: float, by: Actor) -> None: ...
    async def drain(self, worker: str, *, draining: bool, by: Actor) -> None: ...
    async def dismiss(self, worker: str, by: Actor) -> None: ...

    async def save(
        self, record: Record, by: Actor, *, expect: int | None = None, tell: Tell | None = None
    ) -> Record:
        """Write a record; `expect` is the version it must have now, 0 for none.

        Without `tell` the journal says `created` or `updated`.

        Raises: VersionMoved, or AlreadyExists for `expect=0`.
        """
        ...

    async def erase(self, kind: str, id: str, by: Actor) -> bool: ...
    async def note(self, by: Actor, target: str, outcome: str) -> None: ...

    async def events(self, after: str | None, match: Match, limit: int, by: Actor) -> Events:
        """The events after a cursor; None is the beginning of what is kept.

        Raises: CursorInvalid, CursorExpired.
        """
        ...

    async def cursor(self) -> str:
        """The end of the journal."""
        ...

    async def query(self, question: Query[T], by: Actor) -> T: ...
    def hints(self) -> AbstractAsyncContextManager[AsyncIterator[None]]:
        """Says "look again" after changes; may say it too often, never too late."""
        ...

    async def backup(self, to: Path) -> None: ...
    async def check(self) -> Health: ...
    async def now(self) -> float: ...
