"""Snapshots of whole clusters: every node as it was at one moment, its disks and its memory.

All nodes are stopped at once, saved side by side, and go on; if one cannot be saved, nothing is.
Without memory, guests write down what they have before that, and boot when they are put back. Of
a snapshot the cluster itself is put back, each node under its own names, or a copy of it is
started. Above are the services; below, the machines and their snapshots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel

from microvm_orchestrator import errors, log
from microvm_orchestrator.clusters.clusters import Clusters, Parts
from microvm_orchestrator.clusters.each import Outcome, each
from microvm_orchestrator.clusters.life import ClusterLife, Report, refuse_incomplete
from microvm_orchestrator.clusters.quiet import held_quiet
from microvm_orchestrator.clusters.records import acting, node_of
from microvm_orchestrator.clusters.saved import meant
from microvm_orchestrator.machine import base
from microvm_orchestrator.model.cluster import (
    Cluster,
    ClusterSnapshot,
    ClusterSnapshotState,
    ClusterStatus,
    SavedNode,
)
from microvm_orchestrator.model.machine import ENDED, Machine, MachineSnapshot, MachineState
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.records import SYSTEM, Actor
from microvm_orchestrator.model.values import moment

_log = log.get(__name__)

# Each takes the memory of its machine once more while it is saved.
_SAVED_AT_ONCE = 4
_AT_REST = frozenset({MachineState.DEFINED, *ENDED})


class ClusterSnapshots:
    """How the clusters of one daemon are saved and put back."""

    def __init__(self, parts: Parts, clusters: Clusters, life: ClusterLife) -> None:
        self._parts = parts
        self._clusters = clusters
        self._life = life
        self._records = parts.records
        self._machines = parts.machines
        self._saved = parts.saved

    # Save

    async def create(
        self, reference: str, name: str, by: Actor, report: Report, *, memory: bool = True
    ) -> ClusterSnapshot:
        """Save all nodes as they are at one moment, or their disks alone; they go on.

        Raises: NotFound, StateForbids, AlreadyExists; MachineUnreachable when a node does not run;
            NodesFailed when one cannot be saved. Nothing of the snapshot is left then.
        """
        cluster = await self._records.standing(reference, by)
        async with self._records.turn(cluster.cluster_id), AsyncExitStack() as turns:
            cluster = await self._records.standing(cluster.cluster_id, by)
            refuse_incomplete(cluster)
            name = meant(cluster, name)
            known = {each.name: each.state for each in await self._saved.of(cluster)}
            if name in known:
                left = known[name] is ClusterSnapshotState.DELETING
                raise errors.AlreadyExists(
                    f"cluster {cluster.name} has a snapshot {name} already",
                    hint="cluster_snapshot_delete goes on with what is left of it"
                    if left
                    else None,
                )
            # Always in the same order: two that wait for each other would wait for ever.
            for node in sorted(cluster.nodes, key=lambda node: node.machine_id):
                await turns.enter_async_context(self._machines.turn(node.machine_id))
            machines = await self._standing(cluster, memory=memory)
            planned = ClusterSnapshot(
                cluster_id=cluster.cluster_id,
                cluster=cluster.name,
                name=name,
                owner=cluster.owner,
                state=ClusterSnapshotState.SAVING,
                memory=memory,
                nodes={node: SavedNode(snapshot_id=new_id("s")) for node in machines},
                held=[m.machine_id for m in machines.values() if m.state is MachineState.RUNNING],
                topology=cluster.topology,
                created_at=moment(await self._parts.store.now()),
            )
            own = acting(cluster, by)
            await self._saved.save(planned, own, "saving", expect=0)
            try:
                snapshot = await self._save(cluster, planned, machines, report)
                await self._saved.save(snapshot, own, "saved")
            except BaseException:
                await self._drop(planned)
                raise
        return snapshot

    async def _drop(self, planned: ClusterSnapshot) -> None:
        """Take away what there is of one that did not come about; why it did not is told."""
        try:
            await self._saved.forget(planned, SYSTEM)
        except errors.NodesFailed as error:
            # The record says that it is no snapshot.
            _log.error("cluster_snapshot_left", cluster=planned.cluster, why=error.message)

    async def _standing(self, cluster: Cluster, *, memory: bool) -> dict[str, Machine]:
        """Give the machines of all nodes. Raises: MachineUnreachable unless all of them run."""
        machines: dict[str, Machine] = {}
        for node in cluster.nodes:
            machine = await self._machines.get(node.machine_id, SYSTEM)
            if machine.state is MachineState.PAUSED:
                if not memory:
                    raise errors.StateForbids(
                        f"node {node.name} of cluster {cluster.name} is paused, and cannot write"
                        " down what it has in memory",
                        hint="let it go on, or save the cluster with memory",
                    )
            else:
                machine = await self._life.alive(cluster, node.name)
            machines[node.name] = machine
        return machines

    async def _save(
        self,
        cluster: Cluster,
        snapshot: ClusterSnapshot,
        machines: dict[str, Machine],
        report: Report,
    ) -> ClusterSnapshot:
        running = {name: self._machines.live(machine) for name, machine in machines.items()}
        await report(0.0, f"saves {len(machines)} nodes")
        if snapshot.memory:
            return await self._save_still(cluster, snapshot, machines, running)
        reached = await each(machines, lambda name: running[name].reached())
        _refuse_failed(cluster, "do not answer", reached)
        async with held_quiet(reached.done) as quiet:
            saved = await self._save_still(cluster, snapshot, machines, running)
        nodes = {
            name: node.model_copy(update={"quiesced": quiet[name]})
            for name, node in saved.nodes.items()
        }
        return saved.model_copy(update={"nodes": nodes})

    async def _save_still(
        self,
        cluster: Cluster,
        snapshot: ClusterSnapshot,
        machines: dict[str, Machine],
        running: Mapping[str, base.Machine],
    ) -> ClusterSnapshot:
        """Let all nodes stand still until what is saved of them is taken; it is kept after that."""
        moving = [name for name in machines if machines[name].machine_id in snapshot.held]
        places = anyio.CapacityLimiter(_SAVED_AT_ONCE)
        left, taken = set(machines), anyio.Event()
        saved = Outcome[MachineSnapshot]()

        def take(name: str) -> None:
            left.discard(name)
            if not left:
                taken.set()

        async def save(name: str) -> MachineSnapshot:
            try:
                async with places:
                    return await self._parts.snapshots.save_held(
                        machines[name],
                        running[name],
                        acting(cluster),
                        snapshot_id=snapshot.nodes[name].snapshot_id,
                        part_of=cluster.cluster_id,
                        memory=snapshot.memory,
                        on_taken=partial(take, name),
                    )
            finally:
                take(name)  # nobody waits for one that failed

        async def save_all() -> None:
            nonlocal saved
            saved = await each(machines, save)

        held = going = Outcome[base.Within]()
        async with anyio.create_task_group() as group:
            try:
                held = await each(moving, lambda name: running[name].pause())
                if not held.failed:
                    group.start_soon(save_all)
                    await taken.wait()
            finally:
                with anyio.CancelScope(shield=True):
                    going = await each(moving, lambda name: running[name].resume())
        # A group whose tasks were all cancelled already is left as if they had done their work.
        await anyio.lowlevel.checkpoint_if_cancelled()
        _refuse_failed(cluster, "cannot stand still", held)
        _refuse_failed(cluster, "cannot be saved", saved)
        for name in going.failed:
            # Its record says that it runs, as it did before.
            await self._machines.stand(
                machines[name].machine_id,
                running[name].state,
                "it did not go on after it was saved",
            )
        _refuse_failed(cluster, "do not go on", going)
        stops = list(held.done.values())
        first = min((stop.since for stop in stops), default=0.0)
        last = max((went.until for went in going.done.values()), default=first)
        return snapshot.model_copy(
            update={
                "state": ClusterSnapshotState.READY,
                "held": [],
                "nodes": {
                    name: SavedNode(snapshot_id=each.snapshot_id, unique_mib=each.unique_mib)
                    for name, each in saved.done.items()
                },
                "skew_s": round(_skew_s(stops), 6),
                "pause_s": round(last - first, 6),
            }
        )

    # Put back

    async def revert(self, reference: str, name: str, by: Actor, report: Report) -> ClusterStatus:
        """Put all nodes back to where they were saved; each answers when this returns.

        Every file of the snapshot is looked at before a node is ended, and whether who runs it is
        there. Raises: NotFound, SnapshotDamaged, StateForbids; NodesFailed with the nodes that
        could not come up, or did not.
        """
        cluster = await self._records.standing(reference, by)
        async with self._records.turn(cluster.cluster_id):
            cluster = await self._records.standing(cluster.cluster_id, by)
            snapshot = await self._saved.get(cluster, name)
            if set(snapshot.nodes) != {node.name for node in cluster.nodes}:
                raise errors.StateForbids(
                    f"cluster {cluster.name} has other nodes than snapshot {snapshot.name}",
                    hint="cluster_snapshot_branch starts a copy of what was saved",
                )
            await self._check(snapshot)
            await report(0.2, "ends what runs")
            own = acting(cluster, by)
            names = [node.name for node in cluster.nodes]
            ended = await each(names, partial(self._end, cluster, own))
            _refuse_failed(cluster, "could not be ended", ended)
            await report(0.4, f"puts {len(names)} nodes back")
            await self._start_from(cluster, snapshot, own)
            return await self._life.status(cluster)

    async def _check(self, snapshot: ClusterSnapshot) -> dict[str, MachineSnapshot]:
        found = await each(
            snapshot.nodes,
            lambda name: self._parts.snapshots.check(snapshot.nodes[name].snapshot_id, SYSTEM),
        )
        if found.failed:
            of_files = (errors.NotFound, errors.SnapshotDamaged)
            damaged = any(isinstance(error, of_files) for error in found.failed.values())
            kind = errors.SnapshotDamaged if damaged else errors.NodesFailed
            raise kind(
                f"snapshot {snapshot.name} of cluster {snapshot.cluster} cannot be used: "
                + found.told(),
                hint="nothing was changed",
            )
        return found.done

    async def _end(self, cluster: Cluster, own: Actor, name: str) -> None:
        machine = await self._machines.get(node_of(cluster, name).machine_id, own)
        if machine.state not in _AT_REST:
            await self._machines.kill(machine.machine_id, own)

    async def _start_from(self, cluster: Cluster, snapshot: ClusterSnapshot, own: Actor) -> None:
        async def start(name: str) -> None:
            machine_id = node_of(cluster, name).machine_id
            await self._machines.start(
                machine_id,
                own,
                wait_for_room=False,
                snapshot_id=snapshot.nodes[name].snapshot_id,
            )
            await self._life.answers(cluster, name)

        started = await each([node.name for node in cluster.nodes], start)
        _refuse_failed(cluster, f"did not come up from snapshot {snapshot.name}", started)

    # Others

    async def delete(self, reference: str, name: str, by: Actor) -> ClusterSnapshot:
        """Take a snapshot away, or what is left of it; be it the newest, nobody needs it who runs.

        Raises: NotFound, StateForbids; NodesFailed, with what is left.
        """
        cluster = await self._records.get(reference, by)
        async with self._records.turn(cluster.cluster_id):
            snapshot = await self._saved.find(cluster, name)
            if snapshot.state is not ClusterSnapshotState.DELETING:
                snapshot = await self._saved.get(cluster, name)
            await self._saved.forget(snapshot, by)
        return snapshot

    async def branch(
        self, reference: str, name: str, as_name: str, by: Actor, report: Report
    ) -> ClusterStatus:
        """Start a copy of a whole cluster where it was saved: with all nodes, or not at all.

        It has networks of its own, with the same addresses. Raises: NotFound, AlreadyExists,
        SnapshotDamaged, NodesFailed.
        """
        cluster = await self._records.get(reference, by)
        snapshot = await self._saved.get(cluster, name)
        saved = await self._check(snapshot)
        own = Actor(by.name, by.role, "cluster", f"cluster {as_name}", by.scope)
        nodes = [
            # What it boots by its digest: the name may be another's by now.
            node.model_copy(update={"image": saved[node.name].image})
            for node in snapshot.topology.nodes
        ]
        named = {"cluster_name": as_name, "nodes": nodes}
        await report(0.0, "makes networks and machines")
        topology = snapshot.topology.model_copy(update=named)
        try:
            copy = await self._clusters.define(topology, own, copying=True)
            await report(0.3, f"starts {len(copy.nodes)} nodes")
            async with self._records.turn(copy.cluster_id):
                await self._start_from(copy, snapshot, own)
                complete = copy.model_copy(update={"copying": False})
                await self._records.save(complete, own, "copied", expect=None)
        except errors.AlreadyExists:
            raise  # it is somebody else's
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._take_away(as_name, own)
            raise
        return await self._life.status(copy)

    async def reconcile(self) -> None:
        """Take away copies that a daemon was making when it ended."""
        for cluster in await self._records.visible(SYSTEM):
            if cluster.copying:
                await self._take_away(cluster.name, SYSTEM)

    async def _take_away(self, name: str, own: Actor) -> None:
        try:
            await self._clusters.destroy(name, own, delete_disks=True)
        except errors.NotFound:
            pass  # it was not even written down
        except errors.OrchestratorError as error:
            # The record says what is left, and cluster_destroy goes on with it.
            _log.error("cluster_branch_left", cluster=name, why=error.message)


def _skew_s(stops: Sequence[base.Within]) -> float:
    """Tell how far apart two of them stopped at most: each did at some moment of its own two."""
    if len(stops) < 2:  # one is no two
        return 0.0
    return max(stop.until for stop in stops) - min(stop.since for stop in stops)


def _refuse_failed(cluster: Cluster, what: str, outcome: Outcome[Any]) -> None:
    if outcome.failed:
        raise errors.NodesFailed(f"nodes of cluster {cluster.name} {what}: {outcome.told()}")
