"""Tasks as callers write and read them: what to do, after what, by whom, and what came of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from microvm_orchestrator import errors
from microvm_orchestrator.model.names import DEFAULT_GROUP
from microvm_orchestrator.model.run import Kind, RunSpec
from microvm_orchestrator.model.values import (
    MAX_DEPENDENCIES,
    Capability,
    Int,
    Json,
    Key,
    Labels,
    Line,
    Moment,
    Name,
    Priority,
    Seconds,
    Text,
)


class TaskState(StrEnum):
    """Where a task stands."""

    BLOCKED = "blocked"
    READY = "ready"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        return self in FINISHED


FINISHED = frozenset({TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED})


class RunState(StrEnum):
    """Where one attempt at a task stands."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    LOST = "lost"


class On(StrEnum):
    """Which end of a task satisfies a dependency on it."""

    SUCCESS = "success"
    FAILURE = "failure"
    FINISH = "finish"


class Unmet(StrEnum):
    """What becomes of a task whose dependencies can no longer be met."""

    WAIT = "wait"
    CANCEL = "cancel"
    FAIL = "fail"


class OnExpiry(StrEnum):
    """What becomes of a task whose worker went silent."""

    REQUEUE = "requeue"
    FAIL = "fail"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ResultTest(_Part):
    """A condition on a field of an upstream task's result."""

    field: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        description="dotted path into the result, as in `tests.failed`"
    )
    op: Literal["eq", "ne", "gt", "ge", "lt", "le", "in", "exists"] = "eq"
    value: Json = True


class Edge(_Part):
    """A dependency on one task."""

    task: Key = Field(description="its task_id, or its key within the same group")
    on: On = On.SUCCESS
    where: ResultTest | None = Field(
        default=None, description="with on=success: the result must also pass this test"
    )

    @model_validator(mode="after")
    def _tests_need_a_result(self) -> Edge:
        if self.where is not None and self.on is not On.SUCCESS:
            raise ValueError("`where` looks at a result, so it goes with on=success")
        return self


class Gate(_Part):
    """A dependency on some of several tasks."""

    of: Annotated[list[Key | Edge], Field(min_length=1, max_length=MAX_DEPENDENCIES)]
    need: (
        Literal["all", "any"]
        | Annotated[int, Field(strict=True, ge=1)]
        | Annotated[str, Field(pattern=r"^(100|[1-9][0-9]?)%$")]
    ) = Field(default="all", description="`all`, `any`, a number, or a share such as `60%`")

    @property
    def edges(self) -> list[Edge]:
        return [Edge(task=item) if isinstance(item, str) else item for item in self.of]

    @property
    def needed(self) -> int:
        """How many of the edges must be met; shares round up."""
        match self.need:
            case "all":
                return len(self.of)
            case "any":
                return 1
            case int(number):
                return number
            case share:
                return -(-len(self.of) * int(share[:-1]) // 100)

    @model_validator(mode="after")
    def _can_be_met(self) -> Gate:
        if self.needed > len(self.of):
            raise ValueError(f"needs {self.needed} of only {len(self.of)} tasks")
        return self


Dependency = Key | Edge | Gate
Dependencies = Annotated[list[Dependency], Field(max_length=MAX_DEPENDENCIES)]


class Retry(_Part):
    """How often, and how soon, a failed task is tried again."""

    max_attempts: Annotated[int, Field(strict=True, ge=1, le=100)] = 1
    backoff_s: Seconds = 1.0
    factor: Annotated[float, Field(strict=True, ge=1, le=100)] = 2.0
    max_backoff_s: Seconds = 300.0

    def delay_s(self, attempt: int) -> float:
        """How long to wait after the given attempt, counted from 1, failed."""
        try:
            return min(self.backoff_s * self.factor ** (attempt - 1), self.max_backoff_s)
        except OverflowError:
            return self.max_backoff_s


class TaskSpec(_Part):
    """A task as it is asked for."""

    key: Key | None = Field(default=None, description="your name for it, unique within its group")
    title: Line = ""
    description: Text = Field(default="", description="what to do, for whoever claims it")
    input: Json = Field(default=None, description="parameters for whoever claims it, any JSON")
    depends_on: Dependencies = Field(
        default=[], description="tasks that come first; all of the list must be met"
    )
    on_unmet: Unmet = Unmet.WAIT
    priority: Priority = 0
    labels: Labels = {}
    capabilities: Annotated[list[Capability], Field(max_length=64)] = Field(
        default=[], description="what a worker must be capable of to get it"
    )
    role: Name | None = Field(default=None, description="the role a worker must have to get it")
    timeout_s: Annotated[float, Field(strict=True, gt=0, le=31_536_000)] | None = Field(
        default=None, description="how long one attempt may take"
    )
    lease_s: Annotated[float, Field(strict=True, ge=1, le=86_400)] | None = Field(
        default=None, description="how long a worker may be silent before it is given up for dead"
    )
    retry: Retry = Retry()
    on_expiry: OnExpiry = OnExpiry.REQUEUE
    max_expiries: Annotated[int, Field(strict=True, ge=0, le=100)] = Field(
        default=3, description="how many silent workers are forgiven before the task fails"
    )
    not_before: Moment | None = None
    run: RunSpec | None = Field(
        default=None,
        description="what this host is to do in a machine; without it, a worker claims the task",
    )


class GroupedSpec(TaskSpec):
    """A task of a graph that is submitted whole."""

    group: Name = DEFAULT_GROUP


class Lease(_Part):
    """A time-limited claim of a task; every later word about it must carry the token."""

    token: Int = Field(description="fencing token: an older one is refused")
    worker: str
    expires_at: Moment


class TaskProgress(_Part):
    """What a worker last said."""

    fraction: Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)] | None = None
    message: Line = ""


class TaskError(_Part):
    """Why a task failed."""

    code: str = "failed"
    message: Text = ""
    detail: Json = None

    @classmethod
    def of(cls, error: errors.OrchestratorError) -> TaskError:
        """Say of an error what callers are told of it."""
        return cls(code=error.code, message=error.message, detail=error.hint)


class TaskBrief(BaseModel):
    """A task in a list."""

    model_config = ConfigDict(frozen=True)

    task_id: str
    key: str | None
    group: str
    title: str
    kind: Kind
    state: TaskState
    reason: str | None = Field(description="why it is in this state, where that needs saying")
    priority: int
    labels: dict[str, str]
    role: str | None
    capabilities: list[str]
    owner: str
    worker: str | None
    attempt: int
    progress: TaskProgress | None
    created_at: Moment
    started_at: Moment | None
    finished_at: Moment | None


class Task(TaskBrief):
    """A task with all that is known of it."""

    description: str
    input: Json
    run: RunSpec | None
    depends_on: list[Gate | Edge]
    waiting_for: list[str] = Field(description="ids of the tasks it still waits for, at most 100")
    on_unmet: Unmet
    parent_id: str | None
    timeout_s: float | None
    lease_s: float
    lease_expires_at: Moment | None
    retry: Retry
    on_expiry: OnExpiry
    max_expiries: int
    not_before: Moment | None
    ready_at: Moment | None
    result: Json
    error: TaskError | None
    template: str | None
    version: int = Field(description="counts every change; an update may ask for the one it read")


class Run(BaseModel):
    """One attempt at a task."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    task_id: str
    attempt: int
    worker: str
    state: RunState
    started_at: Moment
    finished_at: Moment | None
    progress: TaskProgress | None
    result: Json
    error: TaskError | None
