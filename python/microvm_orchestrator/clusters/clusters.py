"""Making clusters and taking them away: networks and machines as a topology asks for them.

What is to be is written down before any of it is made, so whatever fails or ends in between is
known, and defining the cluster again makes what is missing. What is there is left alone. Above are
the services; below, machines and networks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.clusters import topology as topologies
from microvm_orchestrator.clusters.each import Outcome, each, reason
from microvm_orchestrator.clusters.records import ClusterRecords, acting
from microvm_orchestrator.clusters.saved import SavedClusters
from microvm_orchestrator.images.store import Fixed
from microvm_orchestrator.machine.base import Accel
from microvm_orchestrator.machines import Machines, Wish
from microvm_orchestrator.model.cluster import (
    Cluster,
    ClusterNetwork,
    ClusterState,
    Node,
)
from microvm_orchestrator.model.machine import ENDED, Machine, MachineDisk, MachineState
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.records import Actor
from microvm_orchestrator.model.topology import (
    Backend,
    Topology,
    TopologyNetwork,
    TopologyNode,
)
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.networks import Attachment, Networks
from microvm_orchestrator.snapshots import Snapshots
from microvm_orchestrator.store.base import Store

_MIB_OF_GB = 1024
# Of a node whose topology and image leave it open.
_MEMORY_MIB = 512
_VCPUS = 1
_AT_REST = frozenset({MachineState.DEFINED, *ENDED})


ImageOf = Callable[[str | None, Backend], Awaitable[tuple[str, Fixed]]]


@dataclass(frozen=True, slots=True)
class Parts:
    """What clusters are made with."""

    store: Store
    records: ClusterRecords
    saved: SavedClusters
    machines: Machines
    snapshots: Snapshots
    networks: Networks
    # The digest of an image by its name, and what it fixes, for who is to run it; None is the
    # usual one. Raises: NotFound; InvalidInput for one that it cannot run.
    image_of: ImageOf
    # Forgets what else is known of a machine that is gone.
    forget: Callable[[str], Awaitable[None]]


# Done to a cluster before it is destroyed, as faults are healed.
BeforeEnd = Callable[[Cluster, Actor], Awaitable[None]]


class Clusters:
    """How the clusters of one daemon come and go."""

    def __init__(self, parts: Parts, before_end: Sequence[BeforeEnd] = ()) -> None:
        self._parts = parts
        self._records = parts.records
        self._machines = parts.machines
        self._before_end = before_end

    # Define

    async def define(self, topology: Topology, by: Actor, *, copying: bool = False) -> Cluster:
        """Make a cluster, or what is missing of one; what is there stays as it is.

        Raises: AlreadyExists when the name is somebody else's, or taken at all if it is
            to be a copy; StateForbids when what is there would have to change; NodesFailed
            with what could not be made, which a further call makes.
        """
        async with self._records.naming:
            cluster = await self._records.find(topology.cluster_name)
            if cluster is None:
                cluster = await self._plan(topology, by, copying=copying)
                await self._records.save(cluster, by, "defined", audited=True, expect=0)
            elif copying or not by.sees_of(cluster.owner):
                raise errors.AlreadyExists(f"cluster {cluster.name} already exists")
            else:
                await self._parts.store.note(by, cluster.cluster_id, "ok")
        async with self._records.turn(cluster.cluster_id):
            cluster = await self._records.get(cluster.cluster_id, by)
            cluster = await self._amended(cluster, topology)
            return await self._complete(cluster, by)

    async def _plan(self, topology: Topology, by: Actor, *, copying: bool) -> Cluster:
        return Cluster(
            cluster_id=new_id("c"),
            name=topology.cluster_name,
            owner=by.name,
            state=ClusterState.INCOMPLETE,
            topology=topology,
            networks=[_planned_network(network) for network in topology.every_network],
            nodes=[_planned_node(topology, node) for node in topology.nodes],
            notes=topologies.notes(topology),
            copying=copying,
            created_at=moment(await self._parts.store.now()),
        )

    async def _amended(self, cluster: Cluster, topology: Topology) -> Cluster:
        """Give the cluster as the topology has it, with what is there already.

        Raises: StateForbids with the path of each thing that is there and would be another.
        """
        if cluster.topology == topology:
            return cluster
        networks = {each.name: each for each in cluster.networks if each.network_id is not None}
        nodes = {
            node.name: node
            for node in cluster.nodes
            if await self._machine(cluster, node.machine_id) is not None
        }
        if wrong := list(_differences(cluster.topology, topology, set(networks), set(nodes))):
            raise errors.StateForbids(
                f"cluster {cluster.name} is there already, and would be another: "
                + "; ".join(wrong),
                hint="cluster_destroy with delete_disks takes it away",
            )
        return cluster.model_copy(
            update={
                "topology": topology,
                "networks": [
                    networks.get(each.name) or _planned_network(each)
                    for each in topology.every_network
                ],
                "nodes": [_taken_over(topology, each, nodes) for each in topology.nodes],
                "notes": topologies.notes(topology),
            }
        )

    async def _complete(self, cluster: Cluster, by: Actor) -> Cluster:
        """Make what is missing, and write down what came of it. Raises: NodesFailed."""
        own = acting(cluster, by)
        # Known by its plan before anything is made.
        await self._records.save(cluster, own, "changed", expect=None)
        networks = [await self._network(cluster, network, own) for network in cluster.networks]
        cluster = cluster.model_copy(update={"networks": networks})
        nodes = [await self._node(cluster, node, own) for node in cluster.nodes]
        missing = [
            *(f"network {each.name}: {each.reason}" for each in networks if each.reason),
            *(f"node {each.name}: {each.reason}" for each in nodes if each.reason),
        ]
        state = ClusterState.INCOMPLETE if missing else ClusterState.DEFINED
        cluster = cluster.model_copy(update={"nodes": nodes, "state": state})
        await self._records.save(cluster, own, state, expect=None)
        if missing:
            raise errors.NodesFailed(
                f"cluster {cluster.name} is incomplete: {'; '.join(missing)}",
                hint="cluster_define makes what is missing; cluster_destroy takes away the rest",
            )
        return cluster

    async def _network(
        self, cluster: Cluster, network: ClusterNetwork, own: Actor
    ) -> ClusterNetwork:
        name = f"{cluster.name}.{network.name}"
        known = [each for each in await self._parts.networks.visible(own) if each.name == name]
        try:
            # One of this name was made for us by somebody who could not write that down.
            if known and (known[0].owner, known[0].prefixes) != (cluster.owner, network.prefixes):
                raise errors.AlreadyExists(f"there is another network {name}")
            made = known[0] if known else None
            made = made or await self._parts.networks.create(name, network.prefixes, own)
        except errors.OrchestratorError as error:
            return network.model_copy(update={"network_id": None, "reason": reason(error)})
        return network.model_copy(update={"network_id": made.network_id, "reason": ""})

    async def _node(self, cluster: Cluster, node: Node, own: Actor) -> Node:
        try:
            if await self._machine(cluster, node.machine_id) is None:
                wish = await self._wish(cluster, node)
                await self._machines.define(wish, own, machine_id=node.machine_id)
        except errors.OrchestratorError as error:
            return node.model_copy(update={"reason": reason(error)})
        return node.model_copy(update={"reason": ""})

    async def _wish(self, cluster: Cluster, node: Node) -> Wish:
        """Raises: NotFound, Unavailable."""
        topology = cluster.topology
        asked = next(each for each in topology.nodes if each.name == node.name)
        ids = {each.name: each.network_id for each in cluster.networks}
        places: list[Attachment] = []
        for nic in topology.nics_of(asked):
            network_id = ids.get(nic.name)
            if network_id is None:
                raise errors.Unavailable(f"its network {nic.name} is not there")
            wanted = tuple(address for address in (nic.ip, nic.ip6) if address is not None)
            places.append(Attachment(network_id, wanted))
        image, own = await self._image(topology, asked)
        return Wish(
            image=image,
            memory_mib=asked.memory_mb or own.memory_mib or _MEMORY_MIB,
            vcpus=asked.vcpus or own.vcpus or _VCPUS,
            accel=Accel.AUTO,
            name=f"{cluster.name}.{node.name}",
            disk_mib=asked.disk_gb and asked.disk_gb * _MIB_OF_GB,
            networks=tuple(places),
            disks=tuple(
                MachineDisk(serial=topologies.serial_of(disk), size_mib=disk.size_gb * _MIB_OF_GB)
                for disk in asked.extra_disks
            ),
            hostname=node.name,
        )

    async def _image(self, topology: Topology, node: TopologyNode) -> tuple[str, Fixed]:
        """Raises: NotFound, InvalidInput."""
        name, backend = topology.image_of(node), topology.backend_of(node)
        try:
            return await self._parts.image_of(name, backend)
        except errors.NotFound as error:
            if backend is Backend.LIBVIRT and node.image is None and topology.base_image:
                told = f"image_add with disk={topology.base_image} makes it of base_image"
                raise errors.NotFound(f"{error.message}; {told}") from error
            raise

    async def _machine(self, cluster: Cluster, machine_id: str) -> Machine | None:
        try:
            return await self._machines.get(machine_id, acting(cluster))
        except errors.NotFound:
            return None

    # Destroy

    async def destroy(self, reference: str, by: Actor, *, delete_disks: bool) -> Cluster | None:
        """End a cluster; give it as far as it is kept, for its disks, or None.

        Its disks and snapshots are kept for who defines it again, unless they are to go too. A
        cluster that has neither is gone. Raises: NotFound; NodesFailed, with what is left.
        """
        cluster = await self._records.get(reference, by)
        async with self._records.turn(cluster.cluster_id):
            cluster = await self._records.get(cluster.cluster_id, by)
            for before in self._before_end:
                await before(cluster, by)
            names = [node.name for node in cluster.nodes]
            ended = await each(names, partial(self._end, cluster))
            if ended.failed:
                raise self._left(cluster, ended)
            keeps = not delete_disks and (
                _has_disks(cluster) or await self._parts.saved.of(cluster)
            )
            if keeps:
                cluster = cluster.model_copy(update={"state": ClusterState.DESTROYED})
                return await self._records.save(cluster, acting(cluster), "destroyed", expect=None)
            await self.delete(cluster)
            return None

    async def delete(self, cluster: Cluster) -> None:
        """Delete the snapshots, machines, networks and record of a cluster of which nothing runs.

        Its turn is held. Raises: NodesFailed, with what is left.
        """
        names = [node.name for node in cluster.nodes]
        # What it has made of itself goes whole, whoever leaves meanwhile.
        with anyio.CancelScope(shield=True):
            await self._parts.saved.forget_all(cluster)
            outcome = await each(names, partial(self._delete, cluster))
            if not outcome.failed:
                outcome = await each(
                    [each.name for each in cluster.networks], partial(self._remove, cluster)
                )
            if outcome.failed:
                cluster = cluster.model_copy(update={"state": ClusterState.INCOMPLETE})
                await self._records.save(cluster, acting(cluster), "incomplete", expect=None)
                raise self._left(cluster, outcome)
            await self._records.erase(cluster)

    async def _end(self, cluster: Cluster, name: str) -> None:
        node = cluster.node(name)
        machine = node and await self._machine(cluster, node.machine_id)
        if machine is not None and machine.state not in _AT_REST:
            await self._machines.kill(machine.machine_id, acting(cluster))

    async def _delete(self, cluster: Cluster, name: str) -> None:
        node = cluster.node(name)
        machine = node and await self._machine(cluster, node.machine_id)
        if machine is not None:
            await self._machines.delete(machine.machine_id, acting(cluster))
            await self._parts.forget(machine.machine_id)

    async def _remove(self, cluster: Cluster, name: str) -> None:
        known = {each.name: each for each in await self._parts.networks.visible(acting(cluster))}
        network = known.get(f"{cluster.name}.{name}")
        if network is not None and network.owner == cluster.owner:
            await self._parts.networks.remove(network.network_id, acting(cluster))

    def _left(self, cluster: Cluster, outcome: Outcome[None]) -> errors.NodesFailed:
        left = [name for name in (node.name for node in cluster.nodes) if name in outcome.failed]
        return errors.NodesFailed(
            f"of cluster {cluster.name} is left: {outcome.told()}",
            hint="cluster_destroy goes on with it" if left else None,
        )


def _planned_network(network: TopologyNetwork) -> ClusterNetwork:
    prefixes = [text for text in (network.subnet, network.subnet6) if text is not None]
    return ClusterNetwork(name=network.name, prefixes=prefixes, reason="it is not made yet")


def _planned_node(topology: Topology, node: TopologyNode) -> Node:
    return Node(
        name=node.name,
        role=node.role,
        backend=topology.backend_of(node),
        machine_id=new_id("m"),
        reason="it is not made yet",
    )


def _taken_over(topology: Topology, node: TopologyNode, known: dict[str, Node]) -> Node:
    there = known.get(node.name)
    if there is None:
        return _planned_node(topology, node)
    return there.model_copy(update={"role": node.role})


def _has_disks(cluster: Cluster) -> bool:
    topology = cluster.topology
    return any(
        node.disk_gb is not None or node.extra_disks or topology.backend_of(node) is Backend.LIBVIRT
        for node in topology.nodes
    )


# What the topology of a cluster that is there may not say anew


def _differences(
    old: Topology, new: Topology, networks: set[str], nodes: set[str]
) -> Iterable[str]:
    """Name what is there, and would have to be made anew to be as it is asked for."""
    was = {each.name: each for each in old.every_network}
    will = {each.name: each for each in new.every_network}
    for name in sorted(networks):
        if name not in will:
            yield f"network {name} is gone"
        else:
            keys = ("subnet", "subnet6", "bridge")
            for key in keys:
                if getattr(was[name], key) != getattr(will[name], key):
                    yield f"network {name}: {key}"
    there = {each.name: each for each in new.nodes}
    for node in old.nodes:
        if node.name not in nodes:
            continue
        if node.name not in there:
            yield f"node {node.name} is gone"
            continue
        number = new.nodes.index(there[node.name])
        before, after = _shape(old, node), _shape(new, there[node.name])
        yield from (f"nodes[{number}].{key}" for key in before if before[key] != after[key])


def _shape(topology: Topology, node: TopologyNode) -> dict[str, object]:
    return {
        "vcpus": node.vcpus,
        "memory_mb": node.memory_mb,
        "disk_gb": node.disk_gb,
        "networks": topology.nics_of(node),
        "extra_disks": node.extra_disks,
        "backend": topology.backend_of(node),
        "image": topology.image_of(node),
    }
