"""Everything that deals with clusters, put together once for a daemon.

Above are the host and the services; below, the modules of this room.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from microvm_orchestrator.artifact_trees import ArtifactTrees
from microvm_orchestrator.clusters.artifacts import ClusterArtifacts
from microvm_orchestrator.clusters.clusters import BeforeEnd, Clusters, ImageOf, Parts
from microvm_orchestrator.clusters.life import ClusterLife
from microvm_orchestrator.clusters.records import ClusterRecords
from microvm_orchestrator.clusters.saved import SavedClusters
from microvm_orchestrator.clusters.snapshots import ClusterSnapshots
from microvm_orchestrator.machines import Machines
from microvm_orchestrator.networks import Networks
from microvm_orchestrator.snapshots import Snapshots
from microvm_orchestrator.store.base import Store


@dataclass(frozen=True, slots=True)
class ClusterRoom:
    """The clusters of one daemon."""

    records: ClusterRecords
    making: Clusters
    life: ClusterLife
    saved: SavedClusters
    snapshots: ClusterSnapshots
    artifacts: ClusterArtifacts

    async def reconcile(self) -> None:
        """Bring to an end what a daemon was in the middle of when it ended."""
        await self.saved.reconcile()
        await self.snapshots.reconcile()


def furnished(
    store: Store,
    machines: Machines,
    snapshots: Snapshots,
    networks: Networks,
    trees: ArtifactTrees,
    *,
    image_of: ImageOf,
    forget: Callable[[str], Awaitable[None]],
    before_end: Sequence[BeforeEnd] = (),
) -> ClusterRoom:
    """`before_end` is done to a cluster before it is destroyed; see `Parts` for the others."""
    records = ClusterRecords(store)
    saved = SavedClusters(store, machines, snapshots)
    parts = Parts(store, records, saved, machines, snapshots, networks, image_of, forget)
    making, life = Clusters(parts, before_end), ClusterLife(parts)
    return ClusterRoom(
        records,
        making,
        life,
        saved,
        ClusterSnapshots(parts, making, life),
        ClusterArtifacts(parts, life, trees),
    )
