"""The clusters of the profile `vmcluster`, translated onto ours: one method for each of its tools.

What that program told in vain, or did to half of a cluster, is an error here, under its codes where
it has one. Below is the service.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from microvm_orchestrator import errors
from microvm_orchestrator.mcp_server.profiles import vmcluster_words as words
from microvm_orchestrator.model.topology import Backend

if TYPE_CHECKING:
    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.service import Service

# That program stopped without waiting; who asks for it has some time all the same.
_STOP_S = 60.0
LONG_S = 600.0
# Behind its own end a request may be told of.
_TELL_S = 5.0
# Where SSH servers listen, and by which address of this host some are reached.
_SSH_PORT = 22
_LOOPBACK = "127.0.0.1"
# That program's exit code for what has none.
NO_CODE = -1


class Failed(Exception):
    """What that program answers with an error in its envelope."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        node: str | None = None,
        recoverable: bool = False,
        result: object = None,
    ) -> None:
        super().__init__(message)
        self.error = words.ToolError(code=code, message=message, node=node, recoverable=recoverable)
        self.result = result


async def asked_of(
    service: Service, caller: Caller, call: str, /, **arguments: object
) -> dict[str, Any]:
    """Make one of our calls, and read its answer as a client does."""
    answer = await service.invoke(caller, call, arguments)
    return answer.model_dump(mode="json")


class Clusters:
    """The tools about clusters, nodes and snapshots."""

    def __init__(self, service: Service) -> None:
        self._service = service

    # Clusters

    async def define(self, caller: Caller, asked: words.DefineAsked) -> words.ClusterStatus:
        try:
            made = await self._ask(caller, "cluster_define", name=asked.topology_name)
        except errors.NodesFailed as error:
            raise Failed("PARTIAL_DEFINE", error.message, recoverable=True) from error
        return await self._status(caller, made["name"])

    async def start(self, caller: Caller, asked: words.StartAsked) -> words.ClusterStatus:
        await self._start(caller, asked)
        return await self._status(caller, asked.cluster_name)

    async def _start(self, caller: Caller, asked: words.StartAsked) -> None:
        wait_s = asked.ssh_timeout_s if asked.wait_for_ssh else 0.0
        given = {"cluster": asked.cluster_name, "wait_s": wait_s}
        ended = await self._operation(caller, "cluster_start", **given)
        self._refuse_slow(ended, asked)

    def _refuse_slow(self, ended: dict[str, Any], asked: words.StartAsked) -> None:
        if ended["state"] == "running" and asked.wait_for_ssh:
            raise Failed(
                "SSH_TIMEOUT",
                f"not every node answered within {asked.ssh_timeout_s:g} s; they go on starting",
                recoverable=True,
            )
        if ended["state"] == "failed":
            raise Failed("SSH_TIMEOUT", ended["error"]["message"], recoverable=True)

    async def stop(self, caller: Caller, asked: words.StopAsked) -> words.ClusterStatus:
        # Any other word has always been a shutdown.
        mode = "destroy" if asked.mode == "destroy" else "shutdown"
        given = {"cluster": asked.cluster_name, "mode": mode, "deadline_s": _STOP_S}
        ended = await self._operation(caller, "cluster_stop", **given, wait_s=_STOP_S + _TELL_S)
        succeeded(ended, "STOP_FAILED")
        return await self._status(caller, asked.cluster_name)

    async def destroy(self, caller: Caller, asked: words.DestroyAsked) -> words.ClusterStatus:
        before = await self._status(caller, asked.cluster_name)
        given = {"cluster": asked.cluster_name, "delete_disks": asked.remove_overlays}
        ended = await self._operation(caller, "cluster_destroy", **given, wait_s=LONG_S)
        succeeded(ended, "DESTROY_FAILED")
        gone = {"domain_state": "unknown", "ssh_reachable": False}
        nodes = [node.model_copy(update=gone) for node in before.nodes]
        return before.model_copy(update={"network_active": False, "nodes": nodes})

    async def status(self, caller: Caller, asked: words.ClusterAsked) -> words.ClusterStatus:
        return await self._status(caller, asked.cluster_name)

    async def handle(self, caller: Caller, asked: words.ClusterAsked) -> words.ClusterHandle:
        here = {"cluster": asked.cluster_name}
        try:
            try:
                # As that program told everybody; whoever may not know of the key goes without it.
                told = await self._ask(caller, "cluster_handle", **here, key=True)
            except errors.Denied:
                told = await self._ask(caller, "cluster_handle", **here)
        except (errors.MachineUnreachable, errors.StateForbids) as error:
            raise Failed("CLUSTER_NOT_RUNNING", error.message, recoverable=True) from error
        nodes = [
            words.NodeHandle(
                name=node["name"],
                role=node["role"],
                ip=_first(node["addresses"]),
                ssh_host=None if node["ssh_port"] is None else _LOOPBACK,
                ssh_port=node["ssh_port"] or _SSH_PORT,
                ssh_user=node["user"],
                ssh_key_path=node["ssh_key_path"],
            )
            for node in told["nodes"]
        ]
        return words.ClusterHandle(
            cluster_name=told["name"],
            nodes=nodes,
            artifact_path=told["artifact_path"],
            kernel_version=told["kernel_version"],
        )

    # Nodes

    async def crash(self, caller: Caller, asked: words.CrashAsked) -> words.NodeStatus:
        ended = await self._operation(
            caller,
            "node_crash",
            cluster=asked.cluster_name,
            node=asked.node,
            restart=asked.restart_after,
            wait_s=asked.ssh_timeout_s if asked.wait_for_ssh or not asked.restart_after else 0.0,
        )
        self._refuse_slow(ended, asked)
        told = await self._ask(caller, "cluster_status", cluster=asked.cluster_name)
        [node] = [_node(each) for each in told["nodes"] if each["name"] == asked.node]
        return node

    async def exec(self, caller: Caller, asked: words.ExecAsked) -> words.ExecResult:
        try:
            ran = await self._ask(
                caller,
                "node_exec",
                cluster=asked.cluster_name,
                node=asked.node_name,
                script=asked.command,
                timeout_s=float(asked.timeout_s),
            )
        except (errors.MachineFailed, errors.UnknownOutcome) as error:
            raise Failed(
                "SSH_ERROR", error.message, node=asked.node_name, recoverable=True
            ) from error
        return _ran(ran)

    async def exec_all(self, caller: Caller, asked: words.ExecAllAsked) -> words.ExecAllResult:
        told = await self._ask(
            caller,
            "node_exec_all",
            cluster=asked.cluster_name,
            nodes=asked.nodes or [],
            script=asked.command,
            timeout_s=float(asked.timeout_s),
            # Its results tell of every node, also of one that does not run.
            require_all=False,
        )
        results = {
            name: words.ExecResult(
                exit_code=NO_CODE,
                stdout="",
                stderr=each["error"]["message"],
                duration_s=0.0,
                timed_out=False,
            )
            if each["ran"] is None
            else _ran(each["ran"])
            for name, each in told["results"].items()
        }
        failed = told["failed_nodes"]
        ran = words.ExecAllResult(
            results=results, all_succeeded=told["all_succeeded"], failed_nodes=failed
        )
        if failed and asked.require_all:
            raise Failed(
                "PARTIAL_FAILURE",
                f"the command did not succeed in {', '.join(failed)}",
                node=failed[0],
                recoverable=True,
                result=ran,
            )
        return ran

    # Snapshots

    async def save(self, caller: Caller, asked: words.SaveAsked) -> words.SnapshotInfo:
        given = {"cluster": asked.cluster_name, "snapshot": asked.snapshot_name}
        ended = await self._operation(
            caller,
            "cluster_snapshot_create",
            **given,
            memory=asked.include_memory or await self._lives_in_memory(caller, asked),
            wait_s=LONG_S,
        )
        if ended["state"] == "failed" and ended["error"]["code"] == errors.AlreadyExists.code:
            raise Failed("SNAPSHOT_EXISTS", ended["error"]["message"])
        succeeded(ended, "SNAPSHOT_FAILED")
        return _snapshot(ended["result"])

    async def _lives_in_memory(self, caller: Caller, asked: words.ClusterAsked) -> bool:
        """Tell whether a node's disk, as its guest knows it, may be in its memory alone."""
        status = await self._ask(caller, "cluster_status", cluster=asked.cluster_name)
        return any(node["backend"] == Backend.MICROVM for node in status["nodes"])

    async def snapshots(
        self, caller: Caller, asked: words.ClusterAsked
    ) -> list[words.SnapshotInfo]:
        told = await self._ask(caller, "cluster_snapshot_list", cluster=asked.cluster_name)
        return [_snapshot(each) for each in told["items"]]

    async def revert(self, caller: Caller, asked: words.RevertAsked) -> words.ClusterStatus:
        given = {"cluster": asked.cluster_name, "snapshot": asked.snapshot_name}
        wait_s = float(asked.ssh_timeout_s) if asked.wait_for_ssh else LONG_S
        ended = await self._operation(caller, "cluster_snapshot_revert", **given, wait_s=wait_s)
        succeeded(ended, "REVERT_FAILED")
        if not asked.restart_after:
            stop = {"cluster": asked.cluster_name, "mode": "destroy", "wait_s": LONG_S}
            succeeded(await self._operation(caller, "cluster_stop", **stop), "REVERT_FAILED")
        return await self._status(caller, asked.cluster_name)

    async def forget(self, caller: Caller, asked: words.SnapshotAsked) -> words.SnapshotDeleted:
        given = {"cluster": asked.cluster_name, "snapshot": asked.snapshot_name}
        status = await self._ask(caller, "cluster_status", cluster=asked.cluster_name)
        gone = await self._ask(caller, "cluster_snapshot_delete", **given)
        return words.SnapshotDeleted(
            snapshot_name=gone["snapshot"],
            cluster_name=gone["cluster"],
            per_node={
                node["name"]: words.NodeDeleted(node_name=node["name"], deleted=True)
                for node in status["nodes"]
            },
        )

    # Asking

    async def _ask(self, caller: Caller, call: str, /, **arguments: object) -> dict[str, Any]:
        return await asked_of(self._service, caller, call, **arguments)

    async def _operation(self, caller: Caller, call: str, /, **arguments: Any) -> dict[str, Any]:
        arguments["wait_s"] = float(arguments["wait_s"])
        return await self._ask(caller, call, **arguments)

    async def _status(self, caller: Caller, name: str) -> words.ClusterStatus:
        told = await self._ask(caller, "cluster_status", cluster=name)
        return words.ClusterStatus(
            cluster_name=told["name"],
            network_active=told["state"] != "destroyed"
            and all(network["network_id"] is not None for network in told["networks"]),
            nodes=[_node(each) for each in told["nodes"]],
        )


def succeeded(ended: Mapping[str, Any], code: str) -> None:
    """Raises: Failed, under that program's code."""
    if ended["state"] == "failed":
        raise Failed(code, ended["error"]["message"], recoverable=True)
    if ended["state"] != "succeeded":
        told = f"it is {ended['state']}; operation {ended['operation_id']} tells what becomes of it"
        raise Failed(code, told, recoverable=True)


def _node(told: Mapping[str, Any]) -> words.NodeStatus:
    installed = told["artifact_id_installed"]
    return words.NodeStatus(
        name=told["name"],
        role=told["role"],
        ip=_first(told["addresses"]),
        domain_state=words.domain_state(told["state"]),
        ssh_reachable=told["reachable"],
        artifact_id_installed=installed and installed.removeprefix("sha256:"),
        loaded_modules=told["loaded_modules"] or [],
    )


def _first(addresses: Mapping[str, list[str]]) -> str:
    return next((address for each in addresses.values() for address in each), "")


def _ran(told: Mapping[str, Any]) -> words.ExecResult:
    code = told["exit_code"]
    return words.ExecResult(
        exit_code=NO_CODE if code is None else code,
        stdout=told["stdout"],
        stderr=told["stderr"],
        duration_s=_between(told["started_at"], told["ended_at"]),
        timed_out=told["timed_out"],
        truncated=told["truncated"],
    )


def _between(began: str, ended: str | None) -> float:
    if ended is None:
        return 0.0
    return max(0.0, (datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds())


def _snapshot(told: Mapping[str, Any]) -> words.SnapshotInfo:
    return words.SnapshotInfo(
        snapshot_name=told["snapshot"],
        cluster_name=told["cluster"],
        created_at=told["created_at"],
        per_node={
            name: words.NodeSnapshot(
                node_name=name,
                # It is no file of its own that somebody could use.
                disk_path=f"snapshot:{each['snapshot_id']}",
                size_bytes=int(each["unique_mib"] * (1 << 20)),
            )
            for name, each in told["nodes"].items()
        },
    )
