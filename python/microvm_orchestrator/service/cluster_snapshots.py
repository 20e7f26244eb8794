"""Snapshots of clusters: all nodes saved at one moment, put back, copied.

Above are the front ends; below, the clusters of this host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, JsonValue

from microvm_orchestrator.clusters.saved import meant
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.cluster import (
    Cluster,
    ClusterSnapshot,
    ClusterSnapshotState,
    SavedNode,
)
from microvm_orchestrator.model.names import NAME_PATTERN
from microvm_orchestrator.model.operation import Operation
from microvm_orchestrator.model.topology import Label
from microvm_orchestrator.model.values import Moment
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, declare
from microvm_orchestrator.service.clusters import NamedCluster
from microvm_orchestrator.service.operations import USUAL_WAIT_S, WaitS, long_call
from microvm_orchestrator.service.service import Service, actor

if TYPE_CHECKING:
    from microvm_orchestrator.operations import Report

SnapshotName = Annotated[str, Field(pattern=NAME_PATTERN)]


class NamedClusterSnapshot(NamedCluster):
    """A snapshot of a cluster."""

    snapshot: SnapshotName = Field(
        description="its name; `baseline` is the one that the topology calls so"
    )


class SaveCluster(NamedClusterSnapshot):
    """A cluster to save, and under which name."""

    memory: bool = Field(
        default=True,
        description="save what the nodes have in memory; without, they write it down before, and "
        "boot when they are put back",
    )
    wait_s: WaitS = USUAL_WAIT_S


class RevertCluster(NamedClusterSnapshot):
    """A cluster to put back."""

    wait_s: WaitS = USUAL_WAIT_S


class BranchCluster(NamedClusterSnapshot):
    """A snapshot to start a copy from."""

    name: Label = Field(description="what the copy is called")
    wait_s: WaitS = USUAL_WAIT_S


class SavedCluster(Answer):
    """All nodes of a cluster as they were at one moment."""

    cluster: str
    snapshot: str
    baseline: bool = Field(description="the topology means this one by `baseline`")
    owner: str
    state: ClusterSnapshotState
    memory: bool = Field(description="without, its nodes boot when they are put back")
    nodes: dict[str, SavedNode]
    skew_s: float = Field(
        description="at most so long lies between the moments at which two nodes were stopped"
    )
    pause_s: float = Field(description="how long the cluster stood still")
    created_at: Moment


class ClusterSnapshotList(Answer):
    """The snapshots of a cluster, oldest first."""

    items: list[SavedCluster]


class ClusterSnapshotDeleted(Answer):
    """The snapshot that is gone."""

    cluster: str
    snapshot: str


def _saved(cluster: Cluster, snapshot: ClusterSnapshot) -> SavedCluster:
    return SavedCluster(
        cluster=cluster.name,
        snapshot=snapshot.name,
        baseline=snapshot.name == cluster.topology.snapshots.baseline,
        owner=snapshot.owner,
        state=snapshot.state,
        memory=snapshot.memory,
        nodes=snapshot.nodes,
        skew_s=snapshot.skew_s,
        pause_s=snapshot.pause_s,
        created_at=snapshot.created_at,
    )


@declare(
    "cluster_snapshot_create",
    "POST /v1/clusters/{cluster}/snapshots",
    role=Role.OPERATOR,
    waits=True,
)
async def cluster_snapshot_create(
    service: Service, caller: Caller, request: SaveCluster
) -> Operation:
    """Save all nodes of a cluster at one moment, with memory and disks; they go on.

    All nodes are stopped at once and saved side by side; the result states by how much they were
    apart. All or nothing: if one node does not run or cannot be saved, nothing is. With `memory`
    false only the disks are saved, once the guests have written down what they have in memory.
    """
    by = actor(caller, "cluster_snapshot_create")
    room = service.host.clusters
    cluster = await room.records.standing(request.cluster, by)

    async def work(report: Report) -> JsonValue:
        made = await room.snapshots.create(
            cluster.cluster_id, request.snapshot, by, report, memory=request.memory
        )
        return _saved(cluster, made).model_dump(mode="json")

    return await long_call(
        service, caller, "cluster_snapshot_create", cluster.cluster_id, request.wait_s, work
    )


@declare(
    "cluster_snapshot_list",
    "GET /v1/clusters/{cluster}/snapshots",
    role=Role.VIEWER,
    effect=Effect.READ,
)
async def cluster_snapshot_list(
    service: Service, caller: Caller, request: NamedCluster
) -> ClusterSnapshotList:
    """List the snapshots of a cluster, oldest first."""
    room = service.host.clusters
    cluster = await room.records.get(request.cluster, actor(caller, "cluster_snapshot_list"))
    found = await room.saved.of(cluster)
    return ClusterSnapshotList(items=[_saved(cluster, each) for each in found])


@declare(
    "cluster_snapshot_revert",
    "POST /v1/clusters/{cluster}/snapshots/{snapshot}/revert",
    role=Role.OPERATOR,
    effect=Effect.DESTROY,
    waits=True,
)
async def cluster_snapshot_revert(
    service: Service, caller: Caller, request: RevertCluster
) -> Operation:
    """Put all nodes of a cluster back to where they were saved; what came after is lost.

    They go on under the same names and addresses, with clocks that are right; the operation
    succeeds when every node answers. Before any node is ended the snapshot is looked at: a damaged
    one changes nothing.
    """
    by = actor(caller, "cluster_snapshot_revert")
    room = service.host.clusters
    cluster = await room.records.standing(request.cluster, by)
    await room.saved.get(cluster, request.snapshot)

    async def work(report: Report) -> JsonValue:
        back = await room.snapshots.revert(cluster.cluster_id, request.snapshot, by, report)
        return back.model_dump(mode="json")

    return await long_call(
        service, caller, "cluster_snapshot_revert", cluster.cluster_id, request.wait_s, work
    )


@declare(
    "cluster_snapshot_delete",
    "DELETE /v1/clusters/{cluster}/snapshots/{snapshot}",
    role=Role.OPERATOR,
    effect=Effect.DESTROY,
)
async def cluster_snapshot_delete(
    service: Service, caller: Caller, request: NamedClusterSnapshot
) -> ClusterSnapshotDeleted:
    """Delete a snapshot of a cluster, be it the newest; the cluster and its copies run on."""
    by = actor(caller, "cluster_snapshot_delete")
    gone = await service.host.clusters.snapshots.delete(request.cluster, request.snapshot, by)
    return ClusterSnapshotDeleted(cluster=gone.cluster, snapshot=gone.name)


@declare(
    "cluster_snapshot_branch",
    "POST /v1/clusters/{cluster}/snapshots/{snapshot}/branch",
    role=Role.OPERATOR,
    waits=True,
)
async def cluster_snapshot_branch(
    service: Service, caller: Caller, request: BranchCluster
) -> Operation:
    """Start a copy of a whole cluster where it was saved, beside it.

    The copy has networks of its own, with the same addresses in them. All of its nodes, or nothing.
    """
    by = actor(caller, "cluster_snapshot_branch")
    room = service.host.clusters
    cluster = await room.records.get(request.cluster, by)
    await room.saved.get(cluster, request.snapshot)
    name = meant(cluster, request.snapshot)

    async def work(report: Report) -> JsonValue:
        copy = await room.snapshots.branch(cluster.cluster_id, name, request.name, by, report)
        return copy.model_dump(mode="json")

    return await long_call(
        service, caller, "cluster_snapshot_branch", cluster.cluster_id, request.wait_s, work
    )


CALLS: tuple[Call, ...] = (
    cluster_snapshot_create,
    cluster_snapshot_list,
    cluster_snapshot_revert,
    cluster_snapshot_delete,
    cluster_snapshot_branch,
)
