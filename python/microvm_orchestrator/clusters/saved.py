"""The snapshots of clusters that are written down, and how one is taken away again.

Each is a snapshot of every node's machine, known by its names from before the first is made until
the last has gone: a daemon that ends meanwhile lets the nodes go on, and drops what was saved of
them. Above are the verbs of clusters; below, the machines' snapshots and the store.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import anyio

from microvm_orchestrator import errors, log
from microvm_orchestrator.clusters.each import each
from microvm_orchestrator.machines import Machines
from microvm_orchestrator.model.cluster import (
    CLUSTER_SNAPSHOT,
    Cluster,
    ClusterSnapshot,
    ClusterSnapshotState,
)
from microvm_orchestrator.model.machine import MachineState
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.snapshots import Snapshots
from microvm_orchestrator.store.base import Store, Tell
from microvm_orchestrator.store.every import every_record
from microvm_orchestrator.store.questions import RecordById

_log = log.get(__name__)

# By which a snapshot is meant that the topology names.
BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class SavedClusters:
    """The snapshots of clusters of one daemon."""

    store: Store
    machines: Machines
    snapshots: Snapshots

    async def of(self, cluster: Cluster) -> list[ClusterSnapshot]:
        """Give the snapshots of a cluster, the oldest first."""
        prefix = f"{cluster.cluster_id}."
        records = await every_record(self.store, CLUSTER_SNAPSHOT, SYSTEM, prefix)
        found = [ClusterSnapshot.model_validate(record.body) for record in records]
        return sorted(found, key=lambda each: each.created_at)

    async def get(self, cluster: Cluster, name: str) -> ClusterSnapshot:
        """Find one that is complete, by its name or as the baseline.

        Raises: NotFound, StateForbids.
        """
        snapshot = await self.find(cluster, name)
        match snapshot.state:
            case ClusterSnapshotState.READY:
                return snapshot
            case ClusterSnapshotState.SAVING:
                raise errors.StateForbids(
                    f"snapshot {snapshot.name} of {cluster.name} is being saved"
                )
            case ClusterSnapshotState.DELETING:
                raise errors.StateForbids(
                    f"snapshot {snapshot.name} of {cluster.name} is being deleted",
                    hint="cluster_snapshot_delete goes on with what is left of it",
                )

    async def find(self, cluster: Cluster, name: str) -> ClusterSnapshot:
        """Find one, however it stands, by its name or as the baseline. Raises: NotFound."""
        name = meant(cluster, name)
        record_id = f"{cluster.cluster_id}.{name}"
        record = await self.store.query(RecordById(CLUSTER_SNAPSHOT, record_id), SYSTEM)
        if record is None:
            raise errors.NotFound(
                f"cluster {cluster.name} has no snapshot {name}",
                hint="cluster_snapshot_list shows them",
            )
        return ClusterSnapshot.model_validate(record.body)

    async def save(
        self,
        snapshot: ClusterSnapshot,
        by: Actor,
        what: str,
        *,
        audited: bool = False,
        expect: int | None = None,
    ) -> None:
        """Raises: AlreadyExists for `expect=0`."""
        body = snapshot.model_dump(mode="json")
        record = Record(CLUSTER_SNAPSHOT, snapshot.record_id, body)
        tell = Tell(
            what, {"cluster": snapshot.cluster}, audited=audited, target=snapshot.cluster_id
        )
        await self.store.save(record, by, expect=expect, tell=tell)

    async def forget(self, snapshot: ClusterSnapshot, by: Actor) -> None:
        """Take one away, whole or what there is of it.

        Nobody goes back to it from before the first of its parts goes; its record stays until the
        last has gone. Raises: NodesFailed, with what is left.
        """

        async def drop(node: str) -> None:
            with contextlib.suppress(errors.NotFound):
                saved = snapshot.nodes[node].snapshot_id
                await self.snapshots.forget(saved, SYSTEM, part_of=snapshot.cluster_id)

        # Whoever stood still for it has been let go, and may stand still for another reason.
        going = snapshot.model_copy(update={"state": ClusterSnapshotState.DELETING, "held": []})
        with anyio.CancelScope(shield=True):
            await self.save(going, by, "deleting")
            dropped = await each(snapshot.nodes, drop)
            if dropped.failed:
                raise errors.NodesFailed(
                    f"of snapshot {snapshot.name} of cluster {snapshot.cluster} is left: "
                    f"{dropped.told()}",
                    hint="cluster_snapshot_delete goes on with it",
                )
            await self.store.erase(CLUSTER_SNAPSHOT, snapshot.record_id, by)

    async def forget_all(self, cluster: Cluster) -> None:
        for snapshot in await self.of(cluster):
            await self.forget(snapshot, SYSTEM)

    async def reconcile(self) -> None:
        """Let go on what stood still for a snapshot that nobody completes, and drop that one.

        So does one go that was being deleted.
        """
        for record in await every_record(self.store, CLUSTER_SNAPSHOT, SYSTEM):
            snapshot = ClusterSnapshot.model_validate(record.body)
            if snapshot.state is ClusterSnapshotState.READY:
                continue
            _log.info("cluster_snapshot_incomplete", cluster=snapshot.cluster, name=snapshot.name)
            for machine_id in snapshot.held:
                with contextlib.suppress(errors.OrchestratorError):
                    machine = await self.machines.get(machine_id, SYSTEM)
                    if machine.state is MachineState.PAUSED:
                        await self.machines.resume(machine_id, SYSTEM)
            try:
                await self.forget(snapshot, SYSTEM)
            except errors.NodesFailed as error:
                _log.error("cluster_snapshot_left", cluster=snapshot.cluster, why=error.message)


def meant(cluster: Cluster, name: str) -> str:
    """Tell which snapshot is meant by a name, as the topology has it."""
    baseline = cluster.topology.snapshots.baseline
    return baseline if name == BASELINE and baseline is not None else name
