"""Networks of machines as callers know them, and a machine's place in one."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from microvm_orchestrator.model.values import Moment

# The kind of record they are stored as.
NETWORK = "network"


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Network(_Told):
    """A segment of its own: the machines in it reach each other, and nobody else."""

    network_id: str
    name: str
    owner: str
    prefixes: list[str] = Field(description="of which its machines have their addresses")
    created_at: Moment


class Place(_Told):
    """What a machine has in a network; it keeps it until it is deleted."""

    network_id: str
    name: str = Field(description="of the network")
    mac: str
    addresses: list[str] = Field(description="each with its prefix: 10.80.0.17/24")
