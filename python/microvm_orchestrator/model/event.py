"""Events: the append-only journal's rows as callers read them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from microvm_orchestrator.model.values import Json, Moment


class Event(BaseModel):
    """One thing that happened, written in the same transaction as the change it tells of."""

    model_config = ConfigDict(frozen=True)

    seq: int = Field(description="position in the journal, without gaps")
    at: Moment
    kind: str = Field(description="noun and past tense, as in `task.done`")
    subject: str = Field(description="id of what it happened to")
    group: str | None
    actor: str = Field(description="who did it; `system` for the clock")
    body: Json
