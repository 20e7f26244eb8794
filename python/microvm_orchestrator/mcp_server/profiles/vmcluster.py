"""The profile `vmcluster`: the tools of vmcluster-mcp.

Names, parameters and the envelope of every answer are that program's: `success`, `result`, `error`
with a code, a sentence, the node and whether it helps to try again. Below, a module for each of its
subjects translates.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from mcp.types import CallToolRequestParams, CallToolResult, TextContent
from pydantic import TypeAdapter

from microvm_orchestrator import errors, log
from microvm_orchestrator.mcp_server.callers import caller_of
from microvm_orchestrator.mcp_server.profiles import vmcluster_words as words
from microvm_orchestrator.mcp_server.profiles.offers import Offer, Offers
from microvm_orchestrator.mcp_server.profiles.vmcluster_artifacts import Artifacts
from microvm_orchestrator.mcp_server.profiles.vmcluster_clusters import Clusters, Failed
from microvm_orchestrator.mcp_server.profiles.vmcluster_faults import Faults
from microvm_orchestrator.mcp_server.profiles.vmcluster_kernel import KernelLogs
from microvm_orchestrator.mcp_server.quiet_server import QuietServer
from microvm_orchestrator.service.service import parse

if TYPE_CHECKING:
    from microvm_orchestrator.mcp_server.callers import Context
    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.service import Service

# As that program introduced itself.
_NAME = "vmcluster-mcp"
_log = log.get(__name__)

# Where that program had a word of its own for one of our codes.
_CODES = {
    "already-exists": "ALREADY_EXISTS",
    "invalid-input": "INVALID_INPUT",
    "nodes-failed": "PARTIAL_FAILURE",
    "machine-unreachable": "SSH_ERROR",
}


_Answer = Callable[["Caller", Any], Awaitable[object]]


def _tools(service: Service) -> dict[str, Offer[_Answer]]:
    clusters, faults, logs = Clusters(service), Faults(service), KernelLogs(service)
    artifacts = Artifacts(service)
    status = words.ToolResult[words.ClusterStatus]
    return {
        "cluster_define": Offer(
            "Provision a cluster from a topology file. Idempotent, and repairs what is missing.",
            words.DefineAsked,
            clusters.define,
            status,
        ),
        "cluster_start": Offer(
            "Boot all stopped nodes, and wait until every node answers.",
            words.StartAsked,
            clusters.start,
            status,
        ),
        "cluster_stop": Offer(
            "Stop all running nodes: mode shutdown, or destroy to force them off.",
            words.StopAsked,
            clusters.stop,
            status,
        ),
        "cluster_destroy": Offer(
            "End a cluster; with remove_overlays its disks and snapshots go too.",
            words.DestroyAsked,
            clusters.destroy,
            status,
        ),
        "cluster_status": Offer(
            "Return the state of each node, and whether it answers.",
            words.ClusterAsked,
            clusters.status,
            status,
        ),
        "cluster_handle": Offer(
            "Return what it takes to use a running cluster.",
            words.ClusterAsked,
            clusters.handle,
            words.ToolResult[words.ClusterHandle],
        ),
        "node_crash": Offer(
            "Simulate an unclean node failure, and restart the node.",
            words.CrashAsked,
            clusters.crash,
            words.ToolResult[words.NodeStatus],
        ),
        "node_exec": Offer(
            "Run a command on one node; a node that does not answer is an error.",
            words.ExecAsked,
            clusters.exec,
            words.ToolResult[words.ExecResult],
        ),
        "node_exec_all": Offer(
            "Run a command on many nodes in parallel.",
            words.ExecAllAsked,
            clusters.exec_all,
            words.ToolResult[words.ExecAllResult],
        ),
        "snapshot_create": Offer(
            "Save all nodes of a cluster at one moment, or none of them: their disks, and their"
            " memory if that is asked for or they are microVMs.",
            words.SaveAsked,
            clusters.save,
            words.ToolResult[words.SnapshotInfo],
        ),
        "snapshot_list": Offer(
            "List snapshots with per-node metadata.",
            words.ClusterAsked,
            clusters.snapshots,
            words.ToolResult[list[words.SnapshotInfo]],
        ),
        "snapshot_revert": Offer(
            "Put all nodes back to a named snapshot, and see that they answer.",
            words.RevertAsked,
            clusters.revert,
            status,
        ),
        "snapshot_delete": Offer(
            "Delete a named snapshot across all nodes.",
            words.SnapshotAsked,
            clusters.forget,
            words.ToolResult[words.SnapshotDeleted],
        ),
        "artifact_register": Offer(
            "Register a local build tree and get a content-addressed artifact id.",
            words.RegisterAsked,
            artifacts.register,
            words.ToolResult[words.BuildArtifact],
        ),
        "artifact_list": Offer(
            "List registered artifacts.",
            words.NothingAsked,
            artifacts.listed,
            words.ToolResult[list[words.BuildArtifact]],
        ),
        "artifact_diff": Offer(
            "Diff modules and binaries of two artifacts, as they were registered.",
            words.DiffAsked,
            artifacts.diff,
            words.ToolResult[words.ArtifactDiff],
        ),
        "artifact_sync": Offer(
            "Bring an artifact to nodes, and see that all of it is there.",
            words.SyncAsked,
            artifacts.sync,
            words.ToolResult[words.SyncStatus],
        ),
        "artifact_install": Offer(
            "Install a synced artifact on nodes: modprobe_path, make_install, rpm or deb.",
            words.InstallAsked,
            artifacts.install,
            words.ToolResult[words.InstallStatus],
        ),
        "source_sync_to_node": Offer(
            "Bring source code from the host to a node.",
            words.SourceSyncAsked,
            artifacts.source_sync,
            words.ToolResult[words.SyncNodeResult],
        ),
        "source_build": Offer(
            "Build source code on a node, and digest what it makes.",
            words.BuildAsked,
            artifacts.source_build,
            words.ToolResult[words.Artifact],
        ),
        "net_partition": Offer(
            "Let two groups of nodes not hear each other, and see that they do not.",
            words.PartitionAsked,
            faults.partition,
            words.ToolResult[words.FaultHandle],
        ),
        "net_impair": Offer(
            "Impair what a node sends: to one other node, or to all.",
            words.ImpairAsked,
            faults.impair,
            words.ToolResult[words.FaultHandle],
        ),
        "net_heal": Offer(
            "Remove a fault, and see that it is gone.",
            words.HealAsked,
            faults.heal,
            words.ToolResult[bool],
        ),
        "net_heal_all": Offer(
            "Remove all active faults of a cluster, and count them.",
            words.ClusterAsked,
            faults.heal_all,
            words.ToolResult[int],
        ),
        "net_fault_list": Offer(
            "List the active faults of a cluster.",
            words.ClusterAsked,
            faults.listed,
            words.ToolResult[list[words.FaultInfo]],
        ),
        "dmesg_mark": Offer(
            "Write a marker into the kernel log of nodes.",
            words.MarkAsked,
            logs.mark,
            words.ToolResult[dict[str, str]],
        ),
        "dmesg_collect": Offer(
            "Collect and classify the kernel logs of nodes: all, warn+ or err+.",
            words.CollectAsked,
            logs.collect,
            words.ToolResult[dict[str, words.DmesgResult]],
        ),
    }


class VmclusterTools:
    """Those tools as the protocol wants them."""

    def __init__(self, service: Service) -> None:
        self._tools = Offers(_tools(service))
        self.listed = self._tools.listed

    async def call(self, ctx: Context, params: CallToolRequestParams) -> CallToolResult:
        tool = self._tools.find(params.name)
        result, error = None, None
        try:
            asked = parse(tool.request, params.arguments or {})
            result = await tool.answer(caller_of(ctx), asked)
        except Failed as failed:
            result, error = failed.result, failed.error
        except errors.OrchestratorError as refused:
            error = _told(refused)
        except Exception as crash:  # noqa: BLE001 - the converting edge: a bug must not end the connection
            _log.error("call_crashed", call=params.name, exc_info=crash)
            error = words.ToolError(code="INTERNAL_ERROR", message="see the daemon's log")
        envelope = {"success": error is None, "result": result, "error": error}
        told = _DUMPED.dump_python(envelope, mode="json")
        text = json.dumps(told, ensure_ascii=False, indent=2)
        return CallToolResult(
            content=[TextContent(type="text", text=text)], structured_content=told
        )


_DUMPED = TypeAdapter(dict[str, Any])


# What is not found, by the words of the sentence.
_MISSING = {
    "has no node ": "NODE_NOT_FOUND",
    "has no snapshot ": "SNAPSHOT_NOT_FOUND",
    "no topology ": "TOPOLOGY_NOT_FOUND",
    "no cluster ": "CLUSTER_NOT_FOUND",
    "no artifact ": "ARTIFACT_NOT_FOUND",
}


def _told(error: errors.OrchestratorError) -> words.ToolError:
    code = _CODES.get(error.code, error.code.upper().replace("-", "_"))
    if isinstance(error, errors.NotFound):
        found = (known for said, known in _MISSING.items() if said in error.message)
        code = next(found, code)
    hint = f" ({error.hint})" if error.hint else ""
    again = isinstance(error, errors.Unavailable | errors.Conflict)
    return words.ToolError(code=code, message=error.message + hint, recoverable=again)


def vmcluster(service: Service) -> QuietServer:
    tools = VmclusterTools(service)
    return QuietServer(
        _NAME,
        version="1.1.0",
        title="vmcluster",
        on_list_tools=tools.listed,
        on_call_tool=tools.call,
    )
