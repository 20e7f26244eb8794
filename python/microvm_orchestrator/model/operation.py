"""Operations: the handle of any call that takes longer than a request should."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from microvm_orchestrator.model.task import TaskError, TaskProgress
from microvm_orchestrator.model.values import Json, Moment

# The kind of record an operation is stored as.
OPERATION = "operation"


class OperationState(StrEnum):
    """Where an operation stands."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    # The daemon ended while it ran; what it had done is done, the rest is not.
    LOST = "lost"


class Operation(BaseModel):
    """Long work of the daemon: what it is, how far it is, and what came of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    operation_id: str
    kind: str
    target: str
    owner: str
    state: OperationState
    progress: TaskProgress | None = None
    result: Json = None
    error: TaskError | None = None
    created_at: Moment
    finished_at: Moment | None = None

    @property
    def finished(self) -> bool:
        return self.state is not OperationState.RUNNING
