"""Clusters as callers know them: nodes that are machines, networks between them, and snapshots."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from microvm_orchestrator.model.artifact_tree import InstallMode
from microvm_orchestrator.model.machine import MachineState
from microvm_orchestrator.model.task import TaskError
from microvm_orchestrator.model.topology import Backend, Topology
from microvm_orchestrator.model.values import Int, Moment

# The kinds of record clusters and their snapshots are stored as.
CLUSTER = "cluster"
CLUSTER_SNAPSHOT = "cluster_snapshot"


class ClusterState(StrEnum):
    """Where a cluster stands; how its nodes are is theirs to say."""

    # Something of it is missing; defining it again makes that.
    INCOMPLETE = "incomplete"
    DEFINED = "defined"
    # Nothing of it runs, and only what it had written is kept.
    DESTROYED = "destroyed"


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClusterNetwork(_Told):
    """A network of a cluster."""

    name: str
    network_id: str | None = Field(default=None, description="null while it is not made")
    prefixes: list[str]
    reason: str = Field(default="", description="why it is not there")


class Node(_Told):
    """A machine of a cluster."""

    name: str
    role: str
    backend: Backend
    machine_id: str
    reason: str = Field(default="", description="why it is not there")


class Cluster(_Told):
    """Machines and networks that belong together."""

    cluster_id: str
    name: str
    owner: str
    state: ClusterState
    topology: Topology
    networks: list[ClusterNetwork]
    nodes: list[Node]
    notes: list[str] = Field(
        default=[], description="what the topology says in vain, as its nodes have no use of it"
    )
    copying: bool = Field(
        default=False, description="it is a copy that is not complete yet, and goes if it never is"
    )
    created_at: Moment

    def node(self, name: str) -> Node | None:
        return next((node for node in self.nodes if node.name == name), None)


class NodeStatus(_Told):
    """How a node was when it was looked at."""

    name: str
    role: str
    backend: Backend
    machine_id: str
    state: MachineState | None = Field(description="null for one that is not made")
    reason: str = Field(description="why it is in this state, or not reached")
    addresses: dict[str, list[str]] = Field(description="in each network, without prefixes")
    reachable: bool = Field(description="its guest answered just now, over its control channel")
    round_trip_s: float | None = Field(default=None, description="how long the answer took")
    artifact_id_installed: str | None = Field(
        default=None,
        description="what cluster_artifact_install has brought there last, as the guest tells; "
        "null while it does not, and from the begin of an installation until it has succeeded",
    )
    loaded_modules: list[str] | None = Field(
        default=None, description="of its kernel, as the guest tells; null while it does not"
    )


class ClusterStatus(_Told):
    """How a cluster was when it was looked at."""

    cluster_id: str
    name: str
    owner: str
    state: ClusterState
    networks: list[ClusterNetwork]
    nodes: list[NodeStatus]
    notes: list[str] = []
    created_at: Moment


class ArtifactInNode(_Told):
    """What came of an artifact in a node."""

    node: str
    path: str = Field(description="of its folder in the node")
    seconds: float = 0.0
    error: TaskError | None = Field(default=None, description="why the node was not dealt with")
    # Of a sync.
    sent_files: Int = 0
    sent_bytes: Int = 0
    skipped: bool = Field(default=False, description="the node had it already, all of it")
    # Of an installation.
    mode: InstallMode | None = None
    exit_code: Int | None = Field(
        default=None,
        description="of what installs; null: it did not exit, or did not begin",
    )
    timed_out: bool = False
    output: str = Field(default="", description="the end of what it said")
    installed: list[str] = Field(default=[], description="paths of modules that lie there now")

    @property
    def succeeded(self) -> bool:
        return self.error is None and (self.mode is None or self.exit_code == 0)


class ArtifactInNodes(_Told):
    """What came of an artifact in several nodes."""

    artifact_id: str
    cluster: str
    nodes: dict[str, ArtifactInNode]
    all_succeeded: bool
    failed_nodes: list[str]


class ClusterSnapshotState(StrEnum):
    """Where a snapshot of a cluster stands."""

    SAVING = "saving"
    READY = "ready"
    # What is left of one that could not be taken away whole; to delete it again goes on.
    DELETING = "deleting"


class Quiesced(StrEnum):
    """How what a guest had in memory came to its disks before these alone were saved."""

    # Written down, and its file systems held as they were.
    FROZEN = "frozen"
    # Written down just before; it cannot hold its file systems.
    SYNCED = "synced"


class SavedNode(_Told):
    """A node in a snapshot."""

    snapshot_id: str = Field(description="of its machine")
    quiesced: Quiesced | None = Field(
        default=None,
        description="how its disks came to be complete, where these alone were saved: `frozen`, "
        "its file systems were held still; `synced`, it wrote down what it had just before",
    )
    unique_mib: float = Field(default=0.0, description="what it takes on the disk by itself")


class ClusterSnapshot(_Told):
    """All nodes of a cluster as they were at one moment, with disks, and memory if that is said."""

    cluster_id: str
    cluster: str = Field(description="the cluster's name")
    name: str
    owner: str
    state: ClusterSnapshotState
    nodes: dict[str, SavedNode]
    memory: bool = Field(default=True, description="without, nodes that are put back boot")
    # Those that ran, and are to go on if the daemon ends before they do.
    held: list[str] = Field(default=[], description="machines that stand still for it now")
    topology: Topology
    skew_s: float = Field(
        default=0.0,
        description="at most so long lies between the moments at which two nodes were stopped",
    )
    pause_s: float = Field(default=0.0, description="how long the cluster stood still")
    created_at: Moment

    @property
    def record_id(self) -> str:
        return f"{self.cluster_id}.{self.name}"
