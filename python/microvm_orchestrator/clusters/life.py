"""Starting and ending the nodes of clusters, and looking how they are.

What is done to several nodes is done to all at once; one that fails is named, and the others are
kept as they have come to be. Above are the services; below, the machines.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from enum import StrEnum
from functools import partial

import anyio

from microvm_orchestrator import errors, log
from microvm_orchestrator.clusters import names as naming
from microvm_orchestrator.clusters.clusters import Parts
from microvm_orchestrator.clusters.each import each, reason
from microvm_orchestrator.clusters.inside import UNTOLD, Inside, look_inside
from microvm_orchestrator.clusters.records import acting, node_of
from microvm_orchestrator.model.cluster import (
    Cluster,
    ClusterState,
    ClusterStatus,
    Node,
    NodeStatus,
)
from microvm_orchestrator.model.machine import ENDED, Machine, MachineState
from microvm_orchestrator.model.records import Actor

# Within which a node has to answer that is only looked at; the topology may say less.
LOOK_S = 5.0

Report = Callable[[float | None, str], Awaitable[None]]
_AT_REST = frozenset({MachineState.DEFINED, *ENDED})
_log = log.get(__name__)


class StopMode(StrEnum):
    """How nodes are ended."""

    # Each guest powers off.
    SHUTDOWN = "shutdown"
    # As a power cut would.
    DESTROY = "destroy"


class ClusterLife:
    """What happens to the nodes of one daemon's clusters."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._records = parts.records
        self._machines = parts.machines

    # Looking

    async def status(self, cluster: Cluster) -> ClusterStatus:
        """Look at a cluster, and ask all nodes that run whether they answer."""
        looked = await each(
            [node.name for node in cluster.nodes], lambda name: self.look(cluster, name)
        )
        return ClusterStatus(
            cluster_id=cluster.cluster_id,
            name=cluster.name,
            owner=cluster.owner,
            state=cluster.state,
            networks=cluster.networks,
            nodes=list(looked.done.values()),
            notes=cluster.notes,
            created_at=cluster.created_at,
        )

    async def look(self, cluster: Cluster, name: str) -> NodeStatus:
        """Look at a node. Raises: NotFound."""
        node = node_of(cluster, name)
        machine = await self._machine(cluster, node)
        trip_s, why, told = None, node.reason, UNTOLD
        if machine is not None:
            why = machine.reason
            if machine.state is MachineState.RUNNING:
                bound_s = min(LOOK_S, cluster.topology.ssh.connect_timeout_s)
                trip_s, why = await self._trip(machine, bound_s)
                if trip_s is not None:
                    told = await self._told_inside(machine, bound_s)
        elif not why:
            why = f"its machine {node.machine_id} was deleted; cluster_define makes it again"
        return NodeStatus(
            name=node.name,
            role=node.role,
            backend=node.backend,
            machine_id=node.machine_id,
            state=machine and machine.state,
            reason=why,
            addresses=addresses(cluster, machine),
            reachable=trip_s is not None,
            round_trip_s=trip_s,
            artifact_id_installed=told.artifact_id,
            loaded_modules=None if told.modules is None else list(told.modules),
        )

    async def alive(self, cluster: Cluster, name: str) -> Machine:
        """Find the machine of a node that runs. Raises: NotFound, MachineUnreachable."""
        node = node_of(cluster, name)
        machine = await self._machine(cluster, node)
        if machine is None:
            state, why = "not made", node.reason
        elif machine.state is MachineState.RUNNING:
            return machine
        else:
            state, why = str(machine.state), machine.reason
        raise errors.MachineUnreachable(
            f"node {name} of cluster {cluster.name} is {state}" + (f": {why}" if why else ""),
            hint="cluster_start starts the nodes that do not run",
        )

    async def _trip(self, machine: Machine, bound_s: float) -> tuple[float | None, str]:
        try:
            with anyio.fail_after(bound_s):
                shell = await self._machines.live(machine).reached()
                return await shell.ping(), ""
        except TimeoutError:
            return None, f"its guest did not answer within {bound_s:g} s"
        except errors.OrchestratorError as error:
            return None, reason(error)

    async def _told_inside(self, machine: Machine, bound_s: float) -> Inside:
        with contextlib.suppress(TimeoutError, errors.OrchestratorError):
            with anyio.fail_after(bound_s):
                return await look_inside(await self._machines.live(machine).reached())
        return UNTOLD

    async def _machine(self, cluster: Cluster, node: Node) -> Machine | None:
        try:
            return await self._machines.get(node.machine_id, acting(cluster))
        except errors.NotFound:
            return None

    # Verbs

    async def start(self, reference: str, by: Actor, report: Report) -> ClusterStatus:
        """Boot all nodes that do not run, at once; each answers when this returns.

        Raises: NotFound, StateForbids; NodesFailed with those that did not come up. The others run.
        """
        cluster = await self._records.standing(reference, by)
        async with self._records.turn(cluster.cluster_id):
            cluster = await self._records.standing(cluster.cluster_id, by)
            refuse_incomplete(cluster)
            names = [node.name for node in cluster.nodes]

            async def on_done(over: int) -> None:
                await report(over / len(names), f"{over} of {len(names)} nodes")

            await report(0.0, f"starts {len(names)} nodes")
            outcome = await each(names, partial(self._start, cluster, by), on_done=on_done)
            await self._introduce(cluster, list(outcome.done))
            if outcome.failed:
                raise errors.NodesFailed(
                    f"{len(outcome.failed)} of {len(names)} nodes of cluster {cluster.name} did "
                    f"not start: {outcome.told()}",
                    hint="the others run; cluster_start tries again with those that do not",
                )
            return await self._told(cluster)

    async def _start(self, cluster: Cluster, by: Actor, name: str) -> None:
        node = node_of(cluster, name)
        machine = await self._machine(cluster, node)
        if machine is None:
            raise errors.NotFound(f"its machine {node.machine_id} was deleted")
        if machine.state is MachineState.PAUSED:
            raise errors.StateForbids("it is paused", hint="machine_resume lets it go on")
        if machine.state is not MachineState.RUNNING:
            # Whoever waited in line would keep places that another cluster waits for.
            own = acting(cluster, by)
            await self._machines.start(node.machine_id, own, wait_for_room=False)
        await self.answers(cluster, name)

    async def answers(self, cluster: Cluster, name: str) -> None:
        """See that a node that runs answers. Raises: NotFound, MachineUnreachable."""
        bound_s = cluster.topology.ssh.connect_timeout_s
        trip_s, why = await self._trip(await self.alive(cluster, name), bound_s)
        if trip_s is None:
            raise errors.MachineUnreachable(why)

    async def stop(
        self, reference: str, by: Actor, report: Report, *, mode: StopMode, deadline_s: float
    ) -> ClusterStatus:
        """End all nodes that run, at once; none runs when this returns.

        A guest that has not powered off by the deadline is ended by force, which its reason says.
        Raises: NotFound, StateForbids; NodesFailed with those that could not be ended.
        """
        cluster = await self._records.standing(reference, by)
        async with self._records.turn(cluster.cluster_id):
            cluster = await self._records.standing(cluster.cluster_id, by)
            names = [node.name for node in cluster.nodes]
            await report(0.0, f"ends {len(names)} nodes")

            async def stop(name: str) -> None:
                machine = await self._machine(cluster, node_of(cluster, name))
                if machine is None or machine.state in _AT_REST:
                    return
                own = acting(cluster, by)
                if mode is StopMode.DESTROY:
                    await self._machines.kill(machine.machine_id, own)
                else:
                    await self._machines.stop(machine.machine_id, own, grace_s=deadline_s)

            outcome = await each(names, stop)
            if outcome.failed:
                raise errors.NodesFailed(
                    f"of cluster {cluster.name} still run: {outcome.told()}",
                    hint="the others have ended",
                )
            return await self._told(cluster)

    async def crash(
        self, reference: str, name: str, by: Actor, report: Report, *, restart: bool
    ) -> NodeStatus:
        """End a node as a power cut would, and boot it again if that is asked for.

        Raises: NotFound; MachineUnreachable for one that does not run; MachineBootFailed.
        """
        cluster = await self._records.standing(reference, by)
        async with self._records.turn(cluster.cluster_id):
            cluster = await self._records.standing(cluster.cluster_id, by)
            node = node_of(cluster, name)
            machine = await self._machine(cluster, node)
            if machine is None or machine.state is not MachineState.PAUSED:
                await self.alive(cluster, name)
            await report(0.0, f"ends {name}")
            await self._machines.kill(node.machine_id, acting(cluster, by))
            if restart:
                await report(0.5, f"boots {name}")
                await self._start(cluster, by, name)
                await self._introduce(cluster, [name])
            return await self.look(cluster, name)

    async def revive(self, reference: str, name: str, by: Actor) -> None:
        """Boot a node that has ended; it answers when this returns. One that runs is left.

        Raises: NotFound; StateForbids for one that is paused; MachineBootFailed.
        """
        cluster = await self._records.standing(reference, by)
        async with self._records.turn(cluster.cluster_id):
            cluster = await self._records.standing(cluster.cluster_id, by)
            await self._start(cluster, by, name)
            await self._introduce(cluster, [name])

    async def _introduce(self, cluster: Cluster, names: list[str]) -> None:
        """Let nodes that answer know all by name; one that does not learn it runs all the same."""
        places = {
            node.name: addresses(cluster, await self._machine(cluster, node))
            for node in cluster.nodes
        }

        async def write(name: str) -> None:
            shell = await self._machines.live(await self.alive(cluster, name)).reached()
            await naming.write(shell, name, places, cluster.name)

        told = await each(names, write)
        if told.failed:
            _log.warning("names_not_written", cluster=cluster.name, why=told.told())

    async def _told(self, cluster: Cluster) -> ClusterStatus:
        return await self.status(await self._records.get(cluster.cluster_id, acting(cluster)))


def addresses(cluster: Cluster, machine: Machine | None) -> dict[str, list[str]]:
    """Give a node's addresses in each of its networks, by the networks' names in the topology."""
    if machine is None:
        return {}
    names = {each.network_id: each.name for each in cluster.networks}
    return {
        names.get(place.network_id, place.name): [
            address.partition("/")[0] for address in place.addresses
        ]
        for place in machine.networks
    }


def refuse_incomplete(cluster: Cluster) -> None:
    """Raises: StateForbids."""
    if cluster.state is ClusterState.INCOMPLETE:
        missing = [each.name for each in (*cluster.networks, *cluster.nodes) if each.reason]
        raise errors.StateForbids(
            f"cluster {cluster.name} is incomplete: {', '.join(missing) or 'half taken away'}",
            hint="cluster_define makes what is missing",
        )
