"""The faults of the profile `vmcluster`, translated onto ours.

Nodes may share several networks; what is broken between them is so in each, or in none.
Percentages are shares here, milliseconds seconds, and what a node sends is what is impaired. Below
is the service.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microvm_orchestrator import errors
from microvm_orchestrator.mcp_server.profiles import vmcluster_words as words
from microvm_orchestrator.mcp_server.profiles.vmcluster_clusters import Failed, asked_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.service import Service

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
        await self._cluster(caller, asked.cluster_name, [*one, *other])
        groups = {"kind": "partition", "groups": [one, other]}
        return await self._inject(caller, asked.cluster_name, groups, [*one, *other])

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
        await self._cluster(caller, asked.cluster_name, nodes)
        wanted = {"kind": "impair", "machine": asked.source_node, "targets": targets, **meets}
        return await self._inject(caller, asked.cluster_name, wanted, nodes)

    async def heal(self, caller: Caller, asked: words.HealAsked) -> bool:
        cluster = await self._cluster(caller, asked.cluster_name, [])
        try:
            fault = await self._ask(caller, "fault_get", fault_id=asked.fault_handle)
        except errors.NotFound as error:
            raise Failed("HANDLE_NOT_FOUND", error.message) from error
        if fault["network_id"] not in _networks(cluster):
            raise Failed(
                "HANDLE_NOT_FOUND", f"{fault['fault_id']} is no fault of cluster {cluster['name']}"
            )
        await self._ask(caller, "fault_heal", fault_id=fault["fault_id"])
        return True

    async def heal_all(self, caller: Caller, asked: words.ClusterAsked) -> int:
        cluster = await self._cluster(caller, asked.cluster_name, [])
        healed = 0
        for network in _networks(cluster):
            healed += (await self._ask(caller, "fault_heal_all", network=network))["healed"]
        return healed

    async def listed(self, caller: Caller, asked: words.ClusterAsked) -> list[words.FaultInfo]:
        cluster = await self._cluster(caller, asked.cluster_name, [])
        names = {node["machine_id"]: node["name"] for node in cluster["nodes"]}
        told = await self._ask(caller, "fault_list", cluster=cluster["name"])
        return [
            words.FaultInfo(
                handle_id=fault["fault_id"],
                fault_type=fault["kind"],
                affected_nodes=[names.get(machine, machine) for machine in fault["machines"]],
                created_at=fault["created_at"],
                parameters=fault["parameters"],
            )
            for fault in told["items"]
            # What befalls nodes themselves is none of that program's.
            if fault["network_id"] is not None
        ]

    # Steps

    async def _inject(
        self, caller: Caller, cluster: str, wanted: dict[str, Any], nodes: list[str]
    ) -> words.FaultHandle:
        fault = await self._ask(caller, "fault_inject", cluster=cluster, **wanted)
        return words.FaultHandle(
            handle_id=fault["fault_id"],
            fault_type=fault["kind"],
            affected_nodes=nodes,
            created_at=fault["created_at"],
        )

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


def _networks(cluster: dict[str, Any]) -> list[str]:
    return [each["network_id"] for each in cluster["networks"] if each["network_id"] is not None]
