"""What is measured of tasks, groups and workers, as callers read it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from microvm_orchestrator.model.values import Moment


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True)


class StateCounts(_Report):
    """How many tasks stand where."""

    blocked: int = 0
    ready: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0


class GroupStatus(_Report):
    """A group of tasks as a whole."""

    group: str
    state: str = Field(
        description="`running`, `waiting` (ready, nobody took it), `blocked` (for a time, or for a "
        "task of another group), `deadlocked` (nothing can free it), or, when all are finished, "
        "`failed` (some failed), `cancelled` (some were cancelled) or `done`"
    )
    counts: StateCounts
    total: int
    fraction_done: float
    created_at: Moment
    started_at: Moment | None
    finished_at: Moment | None


class PathStep(_Report):
    """One task of a critical path."""

    task_id: str
    key: str | None
    state: str
    wait_s: float = Field(description="from when it was ready to when it was claimed")
    run_s: float = Field(description="from when it was claimed to when it ended; all attempts")


class Bottleneck(_Report):
    """A task, or a kind of task, that holds others up."""

    task_id: str
    key: str | None
    state: str
    holds_up: int = Field(description="unfinished tasks that wait for it, directly or not")
    run_s: float
    wait_s: float
    why: str


class GroupReport(_Report):
    """Where a group's time went and what holds it up."""

    group: str
    elapsed_s: float
    busy_s: float = Field(description="sum of all attempts")
    parallelism: float = Field(description="busy_s over elapsed_s")
    critical_path: list[PathStep]
    critical_path_s: float
    bottlenecks: list[Bottleneck]


class Spread(_Report):
    """A distribution of durations."""

    count: int = 0
    mean_s: float = 0.0
    p50_s: float = 0.0
    p95_s: float = 0.0
    max_s: float = 0.0


class WorkerFigures(_Report):
    """What one worker did within the window."""

    worker: str
    succeeded: int
    failed: int
    lost: int
    timed_out: int
    success_rate: float
    run: Spread


class Measures(_Report):
    """Figures over a stretch of time, and how things stand now."""

    window_s: float
    tasks: StateCounts
    oldest_ready_s: float | None
    submitted: int
    completed: int
    failed: int
    completed_per_s: float
    wait: Spread
    run: Spread
    workers: list[WorkerFigures]
