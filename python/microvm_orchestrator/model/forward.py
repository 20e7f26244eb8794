"""Ports that lead from the host into a guest, or from a guest to the host."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from microvm_orchestrator.model.values import Moment

# The kind of record they are stored as.
FORWARD = "forward"


class Direction(StrEnum):
    """Which way connections go."""

    # Whoever connects on the host reaches a port of the guest.
    TO_GUEST = "to_guest"
    # Whoever connects in the guest reaches a service of the host.
    TO_HOST = "to_host"


class ForwardState(StrEnum):
    """Where a forward stands."""

    ACTIVE = "active"
    # Its machine does not run, or its guest is not reached yet.
    WAITING = "waiting"
    FAILED = "failed"


class Forward(BaseModel):
    """A forward as it was asked for; it lasts as long as its machine is known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    forward_id: str
    machine_id: str
    owner: str
    direction: Direction
    guest: str = Field(description="host:port, or the path of a unix socket, in the guest")
    host: str = Field(description="host:port, or the path of a unix socket, on the host")
    created_at: Moment
