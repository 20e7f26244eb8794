"""Commands in machines as callers know them."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from microvm_orchestrator.model.values import Moment

# The kind of record a command is stored as.
EXEC = "exec"


class ExecState(StrEnum):
    """Where a command stands."""

    RUNNING = "running"
    EXITED = "exited"
    # What became of it is not known, and will not be: its machine is gone, or forgot it.
    LOST = "lost"


class Exec(BaseModel):
    """A command in a machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    exec_id: str
    machine_id: str
    owner: str
    argv: list[str] = Field(description="its words; long ones are cut short here")
    user: str | None = None
    cwd: str | None = None
    terminal: bool = False
    timeout_s: float = Field(description="after so long, by the guest's clock, it is ended")
    state: ExecState
    exit_code: int | None = Field(default=None, description="null unless it exited by itself")
    signal: int | None = Field(default=None, description="the signal that ended it")
    timed_out: bool = False
    reason: str = Field(default="", description="why it is lost")
    started_at: Moment
    ended_at: Moment | None = None

    @property
    def over(self) -> bool:
        return self.state is not ExecState.RUNNING


class KeptExec(BaseModel):
    """A command as it is stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    exec: Exec
    # Of the request that began it: the same id may come again with the same request only.
    digest: str
    output_cap: int
    # Of the guest that it was sent to: one that is still the same and does not know it never
    # started it. None where that is not known.
    guest: tuple[str, str] | None = None
    # Whether it takes more input.
    takes_input: bool = False
