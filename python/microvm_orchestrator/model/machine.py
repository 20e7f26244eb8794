"""Machines as callers know them: the states one passes through."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from microvm_orchestrator.model.network import Place
from microvm_orchestrator.model.values import Moment


class MachineState(StrEnum):
    """Where a machine stands."""

    DEFINED = "defined"
    BOOTING = "booting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    CRASHED = "crashed"
    LOST = "lost"

    @property
    def ended(self) -> bool:
        return self in ENDED


# Nothing runs any more; the states of a machine that may be defined anew or removed.
ENDED = frozenset({MachineState.STOPPED, MachineState.CRASHED, MachineState.LOST})


# The kinds of record machines and their snapshots are stored as.
MACHINE = "machine"
SNAPSHOT = "snapshot"


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MachineDisk(_Told):
    """A further disk of a machine: empty at first, and its guest does what it likes with it."""

    serial: str = Field(description="by which the guest knows it")
    size_mib: int


class Machine(_Told):
    """A virtual machine of this host."""

    machine_id: str
    name: str | None = None
    owner: str
    image: str = Field(description="digest of what it boots")
    snapshot_id: str | None = Field(default=None, description="the snapshot it was started from")
    memory_mib: int
    vcpus: int
    disk_mib: int | None = Field(default=None, description="size of its scratch disk, if any")
    disks: list[MachineDisk] = Field(
        default=[], description="further disks, which it keeps as it does its scratch disk"
    )
    hostname: str | None = Field(
        default=None, description="what its guest calls itself, where that is not its name"
    )
    accel: str
    networks: list[Place] = Field(
        default=[], description="its places in networks; the first is its eth0"
    )
    max_pids: int | None = Field(default=None, description="processes of its commands at a time")
    max_disk_operations_s: int | None = Field(default=None, description="of each disk")
    max_disk_bytes_s: int | None = Field(default=None, description="of each disk")
    cache: str | None = Field(
        default=None, description="the trust domain whose cache disk it gets while it runs"
    )
    cache_volume: str | None = Field(
        default=None, description="the cache disk that it has, or had when it ran"
    )
    history: str | None = Field(
        default=None,
        description="the history of a repository that it has to read, as mirror/commit",
    )
    runtime_id: str | None = Field(
        default=None,
        description="what its processes and files on the host are named by, where that is another "
        "name: it stood ready before it was claimed",
    )
    state: MachineState
    reason: str = ""
    created_at: Moment
    started_at: Moment | None = None
    ended_at: Moment | None = None

    @property
    def on_host(self) -> str:
        """By which name the hypervisor knows it."""
        return self.runtime_id or self.machine_id


class SnapshotState(StrEnum):
    """Where a snapshot stands."""

    SAVING = "saving"
    READY = "ready"
    # What is left of one that could not be taken away whole; to delete it again goes on.
    DELETING = "deleting"


class MachineSnapshot(_Told):
    """A saved machine, from which others can be started."""

    snapshot_id: str
    state: SnapshotState = SnapshotState.READY
    machine_id: str = Field(description="the machine that was saved")
    part_of: str | None = Field(
        default=None, description="id of the cluster that was saved, and is put back as a whole"
    )
    owner: str
    image: str
    memory_mib: int
    vcpus: int
    disk_mib: int | None = None
    disks: list[MachineDisk] = []
    networks: list[str] = Field(
        default=[], description="ids of the networks it was in; what starts from it is in them too"
    )
    memory: bool = Field(
        default=True, description="whether its memory was saved; what starts from disks alone boots"
    )
    pause_s: float = Field(default=0.0, description="how long the saved machine stood still")
    unique_mib: float = Field(default=0.0, description="what it takes on the disk by itself")
    created_at: Moment
