"""Faults as callers know them: what was broken on purpose, where it stands, and what it affects."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from microvm_orchestrator.model.values import Moment

# The kind of record they are stored as.
FAULT = "fault"

Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=3600)]
# An edge takes tens of milliseconds to be made and seen, so no phase is shorter than a few of them.
Phase = Annotated[float, Field(ge=0.1, le=86_400)]


class FaultState(StrEnum):
    """Where a fault stands."""

    APPLYING = "applying"
    ACTIVE = "active"
    HEALING = "healing"
    HEALED = "healed"
    # It never came to hold, and nothing of it is left.
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self in {FaultState.HEALED, FaultState.FAILED}

    @property
    def ending(self) -> bool:
        """Whether it is on its way out: nobody was told that it holds, or it is to hold no more."""
        return self in {FaultState.APPLYING, FaultState.HEALING}


class FaultKind(StrEnum):
    """What is broken."""

    # Machines of a network do not hear certain others.
    PARTITION = "partition"
    # What machines say to certain others comes late, twice, wrong, or not at all.
    IMPAIR = "impair"
    # A machine is alone: neither heard by any other of its network nor hearing one.
    LINK_DOWN = "link_down"
    # A machine is alone for a while, and is not, and again.
    FLAP = "flap"
    # A machine's questions to servers of names go nowhere.
    DNS = "dns"
    # A machine stands still.
    PAUSE = "pause"
    # It has less of a processor of this host.
    SLOW_CPU = "slow_cpu"
    # Its guest's clock is wrong.
    CLOCK_SKEW = "clock_skew"
    # Its disks pass less.
    DISK_SLOW = "disk_slow"
    # Its disks cannot be read, or written.
    DISK_ERROR = "disk_error"
    # Nothing is free where its guest writes.
    DISK_FULL = "disk_full"
    # Something of no use has its guest's memory.
    MEMORY = "memory"

    @property
    def of_machines(self) -> bool:
        """Whether it befalls machines themselves, and no ways between them."""
        return self in OF_MACHINES


OF_MACHINES = frozenset(
    {
        FaultKind.PAUSE,
        FaultKind.SLOW_CPU,
        FaultKind.CLOCK_SKEW,
        FaultKind.DISK_SLOW,
        FaultKind.DISK_ERROR,
        FaultKind.DISK_FULL,
        FaultKind.MEMORY,
    }
)


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LossBursts(_Told):
    """Loss after Gilbert and Elliott: a way is good or bad, and may change at each frame."""

    worsens: Share = Field(description="chance that a good way turns bad")
    recovers: Share = Field(description="chance that a bad way turns good")
    loss_bad: Share = Field(default=1.0, description="share that is lost while it is bad")
    loss_good: Share = Field(default=0.0, description="share that is lost while it is good")


class Meets(_Told):
    """What befalls the frames that go from one machine to another; by default, nothing."""

    cut: bool = Field(default=False, description="nothing passes")
    loss: Share = Field(default=0.0, description="share that is lost")
    loss_correlation: Share = Field(
        default=0.0, description="how much the loss of a frame follows that of the one before"
    )
    bursts: LossBursts | None = Field(default=None, description="instead of both")
    delay_s: Seconds = Field(default=0.0, description="how late frames come")
    jitter_s: Seconds = Field(default=0.0, description="how far delays are from that")
    spread: str = Field(default="uniform", description="of delays: uniform, normal or pareto")
    corrupt: Share = Field(default=0.0, description="share that has one bit changed")
    duplicate: Share = Field(default=0.0, description="share that comes twice")
    reorder: Share = Field(default=0.0, description="share that comes out of its turn")
    rate_bytes: int | None = Field(default=None, description="what passes in a second")
    mtu: int | None = Field(default=None, description="larger packets vanish, and nobody is told")
    dns: bool = Field(default=False, description="questions for names vanish")
    seed: str = Field(default="", description="names the luck of its frames, in userspace")


class FaultWay(_Told):
    """One direction between two machines of a network, and what its frames meet."""

    source: str = Field(description="id of the machine that sends")
    target: str = Field(description="id of the machine that it is for")
    meets: Meets
    network_id: str | None = Field(
        default=None, description="in which it goes, of a fault that is in several networks"
    )


class Harm(_Told):
    """What befalls a machine itself; by default, nothing."""

    paused: bool = Field(default=False, description="it stands still")
    cpu_share: float | None = Field(default=None, description="of one processor that it has left")
    skew_s: float = Field(default=0.0, description="how far its clock is ahead of the truth")
    disk_bytes_s: int | None = Field(default=None, description="that each of its disks passes")
    disk_operations_s: int | None = Field(default=None, description="that each of its disks passes")
    reads_fail: bool = Field(default=False, description="its disks cannot be read")
    writes_fail: bool = Field(default=False, description="its disks cannot be written")
    full: tuple[str, ...] = Field(
        default=(), description="folders of its guest below which nothing is free"
    )
    memory_mib: int = Field(default=0, description="of its memory that something of no use has")

    @property
    def nothing(self) -> bool:
        return self == UNHARMED

    @property
    def touched(self) -> frozenset[str]:
        """Name what is not as it should be."""
        return frozenset(
            name for name in type(self).model_fields if getattr(self, name) != _HARMLESS[name]
        )


UNHARMED = Harm()
_HARMLESS = UNHARMED.model_dump()


class FaultHarm(_Told):
    """A machine, and what befalls it."""

    machine: str = Field(description="its id")
    suffers: Harm


class Flap(_Told):
    """That a fault comes and goes, from when it became active: first it holds, then it does not."""

    down_s: Phase = Field(description="how long it holds at a time")
    up_s: Phase = Field(description="how long it does not, before it does again")
    count: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="how often it holds before it has healed; for ever, if left out"
    )

    @property
    def lasts_s(self) -> float | None:
        """How long it is until it has held for the last time."""
        if self.count is None:
            return None
        return self.count * (self.down_s + self.up_s) - self.up_s

    def at(self, elapsed_s: float) -> tuple[bool, float]:
        """Tell whether it holds after so long, and how long that stays so."""
        into_s = elapsed_s % (self.down_s + self.up_s)
        if into_s < self.down_s:
            return True, self.down_s - into_s
        return False, self.down_s + self.up_s - into_s


class Fault(_Told):
    """Something that was broken on purpose, from before it is until after it is no more."""

    fault_id: str
    kind: FaultKind
    state: FaultState
    owner: str
    network_id: str | None = Field(
        default=None, description="whose ways it changes; none where it is about machines alone"
    )
    also_in: list[str] = Field(
        default=[], description="ids of the other networks that it is in: nodes may share several"
    )
    machines: list[str] = Field(description="ids of the machines it affects")
    ways: list[FaultWay] = Field(
        default=[], description="what it does to ways, whatever other faults do"
    )
    before: list[FaultWay] = Field(
        default=[], description="those of its ways that were not as they should be already"
    )
    joining: list[FaultWay] = Field(
        default=[],
        description="what it does to the ways of a machine that joins the network later, for which "
        "* stands",
    )
    only_own: bool = Field(
        default=False, description="of those that join, only its owner's: no others are seen"
    )
    flap: Flap | None = Field(default=None, description="that it comes and goes, and how")
    harms: list[FaultHarm] = Field(
        default=[], description="what it does to machines, whatever other faults do"
    )
    harmed_before: list[FaultHarm] = Field(
        default=[], description="those of its machines that suffered something already"
    )
    parameters: dict[str, JsonValue] = Field(default={}, description="as it was asked for")
    ttl_s: float | None = Field(default=None, description="after which it heals by itself")
    campaign_id: str | None = Field(default=None, description="of the campaign that injected it")
    reason: str = Field(default="", description="why it failed, or is not healed yet")
    created_at: Moment
    active_at: Moment | None = None
    heals_at: Moment | None = None
    ended_at: Moment | None = None

    @property
    def network_ids(self) -> list[str]:
        """All networks that it is in."""
        return [] if self.network_id is None else [self.network_id, *self.also_in]
