"""Webhooks and their deliveries, as they are stored."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from microvm_orchestrator.model.access import Role, Scope
from microvm_orchestrator.model.event import Event
from microvm_orchestrator.model.records import Actor

WEBHOOK = "webhook"
DELIVERY = "delivery"
CURSOR = "delivery-cursor"
# The wish that a dead delivery be tried again; its event wakes who sends.
RETRY = "delivery-retry"


class Shape(StrEnum):
    """What a receiver is sent."""

    # The event as it is in the journal.
    EVENT = "event"
    # How the job that an event tells of stands, as the profile `delegation` has it.
    JOB = "job"


# What is worth a callback to whoever waits for a job.
JOB_KINDS = ("task.claimed", "task.progress", "task.done", "task.failed", "task.cancelled")


class KeptWebhook(BaseModel):
    """A webhook. What its receiver sees is limited to what its owner could see when making it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    secret: str
    kinds: tuple[str, ...]
    groups: tuple[str, ...]
    shape: Shape = Shape.EVENT
    active: bool
    description: str
    owner: str
    role: Role
    scope: Scope
    # The token it was made with: when that ends, so do the deliveries.
    token_id: str | None
    # The end of the journal when it was made.
    since: str
    # Its deliveries are still to be cleared away, and its id not to be used again till then.
    deleted: bool = False

    @property
    def reader(self) -> Actor:
        return Actor(self.owner, self.role, via="webhook", action="deliver", scope=self.scope)


class KeptCursor(BaseModel):
    """How far a webhook has read the journal."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # None: the beginning of what is kept.
    cursor: str | None
    # When events were last found to have gone before they were read.
    missed_at: float | None = None


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


class KeptDelivery(BaseModel):
    """One event on its way to one receiver."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    webhook_id: str
    event: Event
    state: DeliveryState = DeliveryState.PENDING
    attempts: int = 0
    next_at: float | None
    status: int | None = None
    error: str | None = None
    settled_at: float | None = None


@dataclass(frozen=True, slots=True)
class Posted:
    """What came of one attempt."""

    status: int | None
    error: str | None
    seconds: float

    @property
    def accepted(self) -> bool:
        return self.error is None


def delivery_prefix(webhook_id: str) -> str:
    """How the ids of a webhook's deliveries begin."""
    return f"dlv_{webhook_id.partition('_')[2]}_"


def delivery_id(webhook_id: str, seq: int) -> str:
    """The one id that an event's delivery to a webhook can have, so that there is one."""
    return f"{delivery_prefix(webhook_id)}{seq:015d}"
