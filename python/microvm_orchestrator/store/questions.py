"""What may be read from a store: each question is a type that names the type of its answer.

All but the records are answered within what the asking actor can see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from microvm_orchestrator.model.names import DEFAULT_GROUP
from microvm_orchestrator.model.records import AuditRow, Record, WorkerRow
from microvm_orchestrator.model.report import GroupReport, GroupStatus, Measures
from microvm_orchestrator.model.task import Run, Task, TaskBrief, TaskState

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")


class Query(Generic[T]):
    """A question whose answer is a T."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some of a list; `cursor` is where it goes on, None at the end."""

    items: Sequence[T]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class OneTask(Query[Task]):
    """Raises: NotFound."""

    ref: str
    group: str = DEFAULT_GROUP


@dataclass(frozen=True, slots=True)
class TaskList(Query[Page[TaskBrief]]):
    """Newest last, or first. `text` looks into title and key."""

    states: tuple[TaskState, ...] = ()
    group: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    owner: str | None = None
    worker: str | None = None
    text: str | None = None
    newest_first: bool = False
    limit: int = 50
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class FullTaskList(Query[Page[Task]]):
    """Whole tasks of a group, oldest first."""

    group: str
    limit: int = 1000
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class RunList(Query[Page[Run]]):
    """Attempts at one task, oldest first. Raises: NotFound."""

    ref: str
    group: str = DEFAULT_GROUP
    limit: int = 50
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class GroupList(Query[Page[GroupStatus]]):
    limit: int = 50
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class OneGroup(Query[GroupStatus]):
    """Raises: NotFound."""

    group: str


@dataclass(frozen=True, slots=True)
class GroupAnalysis(Query[GroupReport]):
    """Raises: NotFound."""

    group: str


@dataclass(frozen=True, slots=True)
class Figures(Query[Measures]):
    """Counts, durations, waits, throughput and workers' performance over a stretch of time."""

    window_s: float = 3600.0
    group: str | None = None


@dataclass(frozen=True, slots=True)
class RecordById(Query[Record | None]):
    kind: str
    id: str


@dataclass(frozen=True, slots=True)
class RecordList(Query[Page[Record]]):
    """By id, those that begin with `prefix` and come after `after`."""

    kind: str
    prefix: str = ""
    limit: int = 50
    cursor: str | None = None
    after: str = ""


@dataclass(frozen=True, slots=True)
class WorkerByName(Query[WorkerRow | None]):
    name: str


@dataclass(frozen=True, slots=True)
class WorkerList(Query[Page[WorkerRow]]):
    limit: int = 50
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class AuditList(Query[Page[AuditRow]]):
    """Newest first."""

    actor: str | None = None
    action: str | None = None
    target: str | None = None
    outcome: str | None = None
    since: float | None = None
    limit: int = 50
    cursor: str | None = None
