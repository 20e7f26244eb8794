"""The words of vmcluster-mcp: what its tools take, and what they give in their envelope.

Names, defaults and shapes are that program's. Below are only pydantic and what becomes of a state
of ours in its words.
"""

from __future__ import annotations

from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from microvm_orchestrator.model.artifact_tree import BuildType, InstallMode
from microvm_orchestrator.model.machine import MachineState
from microvm_orchestrator.service.calls import Request
from microvm_orchestrator.service.clusters import ARTIFACT_PATH

T = TypeVar("T")

DomainState = Literal["running", "shut off", "paused", "crashed", "unknown"]

_DOMAIN: dict[MachineState, DomainState] = {
    MachineState.DEFINED: "shut off",
    MachineState.BOOTING: "running",
    MachineState.RUNNING: "running",
    MachineState.PAUSED: "paused",
    MachineState.STOPPED: "shut off",
    MachineState.CRASHED: "crashed",
    MachineState.LOST: "crashed",
}

Percent = Annotated[float, Field(ge=0, le=100)]
Seconds = Annotated[float, Field(gt=0, le=3400)]


def domain_state(state: str | None) -> DomainState:
    return "unknown" if state is None else _DOMAIN[MachineState(state)]


# What is asked


class Asked(Request):
    # That program never minded an argument too many.
    model_config = ConfigDict(extra="ignore", frozen=True)


class DefineAsked(Asked):
    topology_name: str


class ClusterAsked(Asked):
    cluster_name: str


class StartAsked(ClusterAsked):
    wait_for_ssh: bool = True
    ssh_timeout_s: Seconds = 120


class StopAsked(ClusterAsked):
    mode: str = "shutdown"


class DestroyAsked(ClusterAsked):
    remove_overlays: bool = False


class CrashAsked(StartAsked):
    node: str
    restart_after: bool = True


class ExecAsked(ClusterAsked):
    node_name: str
    command: str
    timeout_s: Seconds = 30


class ExecAllAsked(ClusterAsked):
    command: str
    nodes: list[str] | None = None
    require_all: bool = True
    timeout_s: Seconds = 30


class SnapshotAsked(ClusterAsked):
    snapshot_name: str


class SaveAsked(SnapshotAsked):
    include_memory: bool = False


class RevertAsked(StartAsked):
    snapshot_name: str
    restart_after: bool = True


class PartitionAsked(ClusterAsked):
    partition_a: list[str]
    partition_b: list[str]


class ImpairAsked(ClusterAsked):
    source_node: str
    target_node: str = "all"
    latency_ms: Annotated[float, Field(ge=0)] = 0
    jitter_ms: Annotated[float, Field(ge=0)] = 0
    loss_pct: Percent = 0.0
    corrupt_pct: Percent = 0.0
    reorder_pct: Percent = 0.0


class HealAsked(ClusterAsked):
    fault_handle: str


class MarkAsked(ClusterAsked):
    nodes: list[str] | None = None


class CollectAsked(MarkAsked):
    since_marker: str | None = None
    filter_level: str = "all"


class NothingAsked(Asked):
    pass


class RegisterAsked(Asked):
    source_path: str
    build_type: BuildType = BuildType.RAW_TREE
    kernel_version: str | None = None
    metadata: dict[str, str] | None = None


class DiffAsked(Asked):
    artifact_id_a: str
    artifact_id_b: str


class InNodesAsked(ClusterAsked):
    artifact_id: str
    nodes: list[str] | None = None
    dest_base: str = ARTIFACT_PATH


class SyncAsked(InNodesAsked):
    force: bool = False


class InstallAsked(InNodesAsked):
    install_mode: InstallMode = InstallMode.MODPROBE_PATH


class _SourceAsked(Asked):
    cluster: str
    node: str


class SourceSyncAsked(_SourceAsked):
    local_path: str
    remote_path: str


class BuildAsked(_SourceAsked):
    source_path: str
    build_path: str
    build_command: str
    binary_path: str
    version: str
    timeout: Seconds = 300


# What is given


class _Given(BaseModel):
    model_config = ConfigDict(frozen=True)


class ToolError(_Given):
    code: str
    message: str
    node: str | None = None
    recoverable: bool = False


class ToolResult(_Given, Generic[T]):
    success: bool
    result: T | None = None
    error: ToolError | None = None


class NodeStatus(_Given):
    name: str
    role: str
    ip: str
    domain_state: DomainState
    ssh_reachable: bool = False
    artifact_id_installed: str | None = None
    loaded_modules: list[str] = []


class ClusterStatus(_Given):
    cluster_name: str
    network_active: bool
    nodes: list[NodeStatus]


class NodeHandle(_Given):
    name: str
    role: str
    ip: str
    # Where the port is one of this host's; without it, of the node's.
    ssh_host: str | None = None
    ssh_port: int = 22
    ssh_user: str
    ssh_key_path: str | None = None


class ClusterHandle(_Given):
    cluster_name: str
    nodes: list[NodeHandle]
    artifact_path: str
    kernel_version: str


class ExecResult(_Given):
    exit_code: int
    stdout: str
    stderr: str
    duration_s: float
    timed_out: bool
    # That program kept all that was said; what is here is the last of it.
    truncated: bool = False


class ExecAllResult(_Given):
    results: dict[str, ExecResult]
    all_succeeded: bool
    failed_nodes: list[str]


class NodeSnapshot(_Given):
    node_name: str
    disk_path: str
    size_bytes: int


class SnapshotInfo(_Given):
    snapshot_name: str
    cluster_name: str
    created_at: str
    per_node: dict[str, NodeSnapshot]


class NodeDeleted(_Given):
    node_name: str
    deleted: bool
    error: str | None = None


class SnapshotDeleted(_Given):
    snapshot_name: str
    cluster_name: str
    per_node: dict[str, NodeDeleted]


class FaultHandle(_Given):
    handle_id: str
    fault_type: str
    affected_nodes: list[str]
    created_at: str


class FaultInfo(FaultHandle):
    parameters: dict[str, JsonValue] = {}


class DmesgLine(_Given):
    timestamp: float | None
    level: str | None
    facility: str | None
    text: str
    classified_as: str


class DmesgResult(_Given):
    lines: list[DmesgLine]
    oops_detected: bool
    panic_detected: bool
    warning_count: int
    error_count: int


class BuildArtifact(_Given):
    artifact_id: str
    source_path: str
    build_type: str
    kernel_version: str
    modules: list[str]
    userspace_bins: list[str]
    test_framework_path: str | None = None
    git_sha: str | None = None
    git_branch: str | None = None
    build_timestamp: str
    metadata: dict[str, str] = {}


class ArtifactDiff(_Given):
    artifact_id_a: str
    artifact_id_b: str
    changed_modules: list[str]
    changed_bins: list[str]
    git_log: str | None = None


class SyncNodeResult(_Given):
    node_name: str
    bytes_transferred: int
    duration_s: float
    rsync_exit_code: int
    skipped: bool


class SyncStatus(_Given):
    per_node: dict[str, SyncNodeResult]


class InstallNodeResult(_Given):
    node_name: str
    exit_code: int
    installed_module_paths: list[str]
    depmod_output: str


class InstallStatus(_Given):
    per_node: dict[str, InstallNodeResult]


class Artifact(_Given):
    name: str
    version: str
    build_node: str
    path: str
    hash: str
