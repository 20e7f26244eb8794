"""Campaigns as callers know them: faults in a cluster one after another, and what came of each."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from microvm_orchestrator.model.values import Json, Line, Moment

# The kind of record they are stored as.
CAMPAIGN = "campaign"
# What is stored of each fault is small; a campaign is saved whole with every step.
MAX_FAULTS = 500
MAX_DURATION_S = 86_400.0
# Who breaks things, in the history.
NEMESIS = "nemesis"

_FEW_PARAMETERS = 64

AtS = Annotated[float, Field(ge=0, le=MAX_DURATION_S, allow_inf_nan=False)]
ForS = Annotated[float, Field(gt=0, le=MAX_DURATION_S, allow_inf_nan=False)]


class CampaignState(StrEnum):
    """Where a campaign stands."""

    # Only its schedule was asked for.
    DRAWN = "drawn"
    RUNNING = "running"
    # No more is broken, and what was is not whole again yet.
    HEALING = "healing"
    SUCCEEDED = "succeeded"
    CANCELLED = "cancelled"
    FAILED = "failed"
    # The daemon ended while it ran.
    INTERRUPTED = "interrupted"

    @property
    def ended(self) -> bool:
        return self not in {CampaignState.RUNNING, CampaignState.HEALING}


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScheduledFault(_Told):
    """A fault of a schedule: when it begins, how long it holds, and what it is."""

    at_s: AtS = Field(description="when it is injected, counted from the campaign's beginning")
    for_s: ForS = Field(description="how long it holds")
    fault: Annotated[dict[Line, Json], Field(max_length=_FEW_PARAMETERS)] = Field(
        description="what fault_inject takes, without ttl_s; machines are named as the topology "
        "names its nodes, and so is the network, which is the first one when nothing is said. "
        "The kind `crash` takes a `machine` alone: it is booted again when its time is over."
    )


class CampaignEvent(_Told):
    """Something is begun or has ended, as histories for checkers have it."""

    process: str = NEMESIS
    type: Literal["invoke", "ok", "fail", "info"]
    f: str = Field(description="the kind of the fault, or `heal`")
    value: JsonValue
    time: int = Field(description="nanoseconds since started_at")
    error: str | None = None


class Campaign(_Told):
    """Faults in a cluster one after another, from before the first until after the last."""

    campaign_id: str | None = Field(default=None, description="null where it was only drawn")
    cluster_id: str
    cluster: str = Field(description="the cluster's name")
    owner: str
    state: CampaignState
    seed: str | None = Field(
        default=None,
        description="draws this schedule again, for nodes and networks of the same names; null "
        "for one by hand",
    )
    schedule: list[ScheduledFault]
    fault_ids: list[str] = Field(default=[], description="of the faults that were injected")
    crashed: list[str] = Field(
        default=[], description="nodes that were crashed, and not booted again yet"
    )
    injected: int = Field(default=0, description="how many faults of the schedule came to hold")
    history: list[CampaignEvent] = Field(
        default=[], description="what was done when, one thing after another"
    )
    reason: str = Field(default="", description="why it failed, or is not healed yet")
    created_at: Moment
    started_at: Moment | None = None
    ended_at: Moment | None = None
