"""The faults of the profile `vmcluster`, translated onto ours.

Nodes may share several networks; what is broken between them is so in each, or in none. A handle
names the fault of each network, which have a label in common, by which they are one when listed.
Percentages are shares here, milliseconds seconds, and what a node sends is what is impaired. Below
is the service.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.mcp_server.profiles import vmcluster_words as words
from microvm_orchestrator.mcp_server.profiles.vmcluster_clusters import Failed, asked_of
from microvm_orchestrator.model.names import new_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.service import Service

# Between the faults of a handle.
_AND = "+"
_EVERYBODY = "all"


class Faults:
    """The tools about faults in networks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def partition(self, caller: Caller, asked: words.PartitionAsked) -> words.FaultHandle:
        one, other = asked.partition_a, asked.partition_b
        if not one or not other:
            raise Failed("INVALID_INPUT", "a partition has nodes on both sides")
        if both := sorted(set(one) & set(other)):
            raise Failed("INVALID_INPUT", f"on both sides of the partition: {', '.join(both)}")
        cluster = await self._cluster(caller, asked.cluster_name, [*one, *other])
        wanted: list[dict[str, Any]] = []
        for network, members in _networks(cluster).items():
            here = [[members[name] for name in side if name in members] for side in (one, other)]
            if all(here):
                hate = dict.fromkeys(here[0], here[1]) | dict.fromkeys(here[1], here[0])
                wanted.append({"network": network, "shape": "grudges", "grudges": hate})
        kind = {"kind": "partition"}
        made = await self._inject(caller, [{**kind, **each} for each in wanted])
        return _handle(made, "partition", [*one, *other])

    async def impair(self, caller: Caller, asked: words.ImpairAsked) -> words.FaultHandle:
        meets = {
            "delay_s": asked.latency_ms / 1000,
            "jitter_s": asked.jitter_ms / 1000,
            "loss": asked.loss_pct / 100,
            "corrupt": asked.corrupt_pct / 100,
            "reorder": asked.reorder_pct / 100,
        }
        meets = {name: float(value) for name, value in meets.items() if value}
        if not meets:
            raise Failed("NO_PARAMETERS", "nothing is to be impaired: every parameter is zero")
        targets = [] if asked.target_node == _EVERYBODY else [asked.target_node]
        nodes = [asked.source_node, *targets]
        cluster = await self._cluster(caller, asked.cluster_name, nodes)
        wanted = [
            {
                "kind": "impair",
                "network": network,
                "machine": members[asked.source_node],
                "targets": [members[name] for name in targets],
                **meets,
            }
            for network, members in _networks(cluster).items()
            if all(name in members for name in nodes) and len(members) > 1
        ]
        return _handle(await self._inject(caller, wanted), "impair", nodes)

    async def heal(self, caller: Caller, asked: words.HealAsked) -> bool:
        cluster = await self._cluster(caller, asked.cluster_name, [])
        here = {each["network_id"] for each in cluster["networks"]}
        for fault_id in asked.fault_handle.split(_AND):
            try:
                fault = await self._ask(caller, "fault_get", fault_id=fault_id)
            except errors.NotFound as error:
                raise Failed("HANDLE_NOT_FOUND", error.message) from error
            if fault["network_id"] not in here:
                raise Failed(
                    "HANDLE_NOT_FOUND", f"{fault_id} is no fault of cluster {cluster['name']}"
                )
            await self._ask(caller, "fault_heal", fault_id=fault_id)
        return True

    async def heal_all(self, caller: Caller, asked: words.ClusterAsked) -> int:
        cluster = await self._cluster(caller, asked.cluster_name, [])
        known = await self._handles(caller, cluster)
        for network in _ids(cluster):
            await self._ask(caller, "fault_heal_all", network=network)
        return len(known)

    async def listed(self, caller: Caller, asked: words.ClusterAsked) -> list[words.FaultInfo]:
        cluster = await self._cluster(caller, asked.cluster_name, [])
        names = {node["machine_id"]: node["name"] for node in cluster["nodes"]}
        return [
            words.FaultInfo(
                handle_id=_AND.join(fault["fault_id"] for fault in faults),
                fault_type=faults[0]["kind"],
                affected_nodes=_each_once(
                    names.get(machine, machine) for fault in faults for machine in fault["machines"]
                ),
                created_at=faults[0]["created_at"],
                parameters=faults[0]["parameters"],
            )
            for faults in await self._handles(caller, cluster)
        ]

    async def _handles(self, caller: Caller, cluster: dict[str, Any]) -> list[list[Any]]:
        """Give the faults of each handle, as they were injected: oldest first."""
        handles: dict[str, list[Any]] = {}
        for network in _ids(cluster):
            for fault in (await self._ask(caller, "fault_list", network=network))["items"]:
                handle = fault["parameters"].get("label", fault["fault_id"])
                handles.setdefault(handle, []).append(fault)
        return sorted(handles.values(), key=lambda faults: faults[0]["created_at"])

    # Steps

    async def _inject(self, caller: Caller, wanted: Sequence[dict[str, Any]]) -> list[Any]:
        """Inject all, or none. Raises: Failed."""
        if not wanted:
            raise Failed("INVALID_INPUT", "these nodes share no network")
        # Only where there are several, which nobody else tells from others.
        label = {"label": new_id("handle")} if len(wanted) > 1 else {}
        made: list[Any] = []
        try:
            for each in wanted:
                made = [*made, await self._ask(caller, "fault_inject", **each, **label)]
        except BaseException:
            with anyio.CancelScope(shield=True):
                for fault in made:
                    await self._ask(caller, "fault_heal", fault_id=fault["fault_id"])
            raise
        return made

    async def _cluster(self, caller: Caller, name: str, nodes: Sequence[str]) -> dict[str, Any]:
        cluster = await self._ask(caller, "cluster_status", cluster=name)
        known = {node["name"] for node in cluster["nodes"]}
        for node in nodes:
            if node not in known:
                told = f"cluster {name} has no node {node}"
                raise Failed("NODE_NOT_FOUND", told, node=node)
        return cluster

    async def _ask(self, caller: Caller, call: str, /, **arguments: object) -> dict[str, Any]:
        return await asked_of(self._service, caller, call, **arguments)


def _ids(cluster: dict[str, Any]) -> list[str]:
    return [each["network_id"] for each in cluster["networks"] if each["network_id"] is not None]


def _networks(cluster: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Give the machines in each network, by the names of the nodes."""
    return {
        each["network_id"]: {
            node["name"]: node["machine_id"]
            for node in cluster["nodes"]
            if each["name"] in node["addresses"]
        }
        for each in cluster["networks"]
        if each["network_id"] is not None
    }


def _each_once(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _handle(made: list[Any], kind: str, nodes: list[str]) -> words.FaultHandle:
    return words.FaultHandle(
        handle_id=_AND.join(fault["fault_id"] for fault in made),
        fault_type=kind,
        affected_nodes=nodes,
        created_at=made[0]["created_at"],
    )
