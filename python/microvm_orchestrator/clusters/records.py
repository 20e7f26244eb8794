"""The clusters that are written down: found by name or id, and seen by their owner.

Above are the verbs of clusters; below, the store.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.model.access import Scope
from microvm_orchestrator.model.cluster import CLUSTER, Cluster, ClusterState, Node
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.store.base import Store, Tell
from microvm_orchestrator.store.every import every_record
from microvm_orchestrator.store.questions import RecordById

if TYPE_CHECKING:
    from collections.abc import Sequence


class ClusterRecords:
    """The clusters of one daemon."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # Between looking whether a name is free and taking it.
        self.naming = anyio.Lock()
        # One verb at a time for each cluster; looking at one waits for nobody.
        self._turns: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)

    def turn(self, cluster_id: str) -> anyio.Lock:
        """What is held by who does something to a cluster."""
        return self._turns[cluster_id]

    async def visible(self, by: Actor) -> list[Cluster]:
        records = await every_record(self._store, CLUSTER, by)
        clusters = [Cluster.model_validate(record.body) for record in records]
        return [cluster for cluster in clusters if by.sees_of(cluster.owner)]

    async def get(self, reference: str, by: Actor) -> Cluster:
        """Find a cluster by its name or id. Raises: NotFound, also for what `by` cannot see."""
        record = await self._store.query(RecordById(CLUSTER, reference), by)
        found = [Cluster.model_validate(record.body)] if record is not None else []
        if not found:
            found = [each for each in await self.visible(by) if each.name == reference]
        if found and by.sees_of(found[0].owner):
            return found[0]
        raise errors.NotFound(f"no cluster {reference}", hint="cluster_list shows the clusters")

    async def find(self, name: str) -> Cluster | None:
        """Find a cluster by its name, whoever owns it."""
        every = await self.visible(SYSTEM)
        return next((each for each in every if each.name == name), None)

    async def standing(self, reference: str, by: Actor) -> Cluster:
        """Find a cluster that has nodes. Raises: NotFound, StateForbids."""
        cluster = await self.get(reference, by)
        if cluster.state is ClusterState.DESTROYED:
            raise errors.StateForbids(
                f"cluster {cluster.name} is destroyed, and only its disks are kept",
                hint="cluster_define takes them up again; cluster_destroy with delete_disks "
                "deletes them",
            )
        return cluster

    async def save(
        self, cluster: Cluster, by: Actor, what: str, *, audited: bool = False, expect: int | None
    ) -> Cluster:
        told = Tell(what, {"name": cluster.name}, audited=audited)
        await self._store.save(_record_of(cluster), by, expect=expect, tell=told)
        return cluster

    async def erase(self, cluster: Cluster) -> None:
        await self._store.erase(CLUSTER, cluster.cluster_id, acting(cluster))
        self._turns.pop(cluster.cluster_id, None)


def acting(cluster: Cluster, by: Actor | None = None) -> Actor:
    """Who does what a verb of a cluster asks of machines and networks: they are its owner's."""
    everything = by is not None and by.scope.everything
    role = SYSTEM.role if by is None else by.role
    words = f"cluster {cluster.name}"
    return Actor(cluster.owner, role, "cluster", words, Scope(everything=everything))


def node_of(cluster: Cluster, name: str) -> Node:
    """Raises: NotFound."""
    node = cluster.node(name)
    if node is None:
        raise errors.NotFound(
            f"cluster {cluster.name} has no node {name[:64]}",
            hint=f"it has {', '.join(each.name for each in cluster.nodes)}",
        )
    return node


def nodes_of(cluster: Cluster, names: Sequence[str]) -> list[Node]:
    """Give the nodes of these names, all for none. Raises: NotFound."""
    wanted = [node_of(cluster, name).name for name in names]
    return [node for node in cluster.nodes if not wanted or node.name in wanted]


def _record_of(cluster: Cluster) -> Record:
    return Record(CLUSTER, cluster.cluster_id, cluster.model_dump(mode="json"))
