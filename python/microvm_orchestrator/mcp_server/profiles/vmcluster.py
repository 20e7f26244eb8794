"""The profile `vmcluster`: the tools of vmcluster-mcp about clusters, faults and kernel logs.

Names, parameters and the envelope of every answer are that program's: `success`, `result`, `error`
with a code, a sentence, the node and whether it helps to try again. Below, a module for each of its
subjects translates.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mcp.shared.exceptions import MCPError
from mcp.types import (
    METHOD_NOT_FOUND,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    TextContent,
    Tool,
)
from pydantic import BaseModel, TypeAdapter

from microvm_orchestrator import errors, log
from microvm_orchestrator.mcp_server.callers import caller_of
from microvm_orchestrator.mcp_server.profiles import vmcluster_words as words
from microvm_orchestrator.mcp_server.profiles.vmcluster_clusters import Clusters, Failed
from microvm_orchestrator.mcp_server.profiles.vmcluster_faults import Faults
from microvm_orchestrator.mcp_server.profiles.vmcluster_kernel import KernelLogs
from microvm_orchestrator.mcp_server.quiet_server import QuietServer
from microvm_orchestrator.mcp_server.schemas import answer_schema, request_schema
from microvm_orchestrator.service.service import parse

if TYPE_CHECKING:
    from mcp.types import PaginatedRequestParams

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


@dataclass(frozen=True, slots=True)
class _Tool:
    description: str
    asked: type[words.Asked]
    # Of the envelope.
    given: type[BaseModel]
    answer: Callable[[Caller, Any], Awaitable[object]]


def _tools(service: Service) -> dict[str, _Tool]:
    clusters, faults, logs = Clusters(service), Faults(service), KernelLogs(service)
    status = words.ToolResult[words.ClusterStatus]
    return {
        "cluster_define": _Tool(
            "Provision a cluster from a topology file. Idempotent, and repairs what is missing.",
            words.DefineAsked,
            status,
            clusters.define,
        ),
        "cluster_start": _Tool(
            "Boot all stopped nodes, and wait until every node answers.",
            words.StartAsked,
            status,
            clusters.start,
        ),
        "cluster_stop": _Tool(
            "Stop all running nodes: mode shutdown, or destroy to force them off.",
            words.StopAsked,
            status,
            clusters.stop,
        ),
        "cluster_destroy": _Tool(
            "End a cluster; with remove_overlays its disks and snapshots go too.",
            words.DestroyAsked,
            status,
            clusters.destroy,
        ),
        "cluster_status": _Tool(
            "Return the state of each node, and whether it answers.",
            words.ClusterAsked,
            status,
            clusters.status,
        ),
        "cluster_handle": _Tool(
            "Return what it takes to use a running cluster.",
            words.ClusterAsked,
            words.ToolResult[words.ClusterHandle],
            clusters.handle,
        ),
        "node_crash": _Tool(
            "Simulate an unclean node failure, and restart the node.",
            words.CrashAsked,
            words.ToolResult[words.NodeStatus],
            clusters.crash,
        ),
        "node_exec": _Tool(
            "Run a command on one node; a node that does not answer is an error.",
            words.ExecAsked,
            words.ToolResult[words.ExecResult],
            clusters.exec,
        ),
        "node_exec_all": _Tool(
            "Run a command on many nodes in parallel.",
            words.ExecAllAsked,
            words.ToolResult[words.ExecAllResult],
            clusters.exec_all,
        ),
        "snapshot_create": _Tool(
            "Save all nodes of a cluster at one moment, with memory and disks, or none of them.",
            words.SaveAsked,
            words.ToolResult[words.SnapshotInfo],
            clusters.save,
        ),
        "snapshot_list": _Tool(
            "List snapshots with per-node metadata.",
            words.ClusterAsked,
            words.ToolResult[list[words.SnapshotInfo]],
            clusters.snapshots,
        ),
        "snapshot_revert": _Tool(
            "Put all nodes back to a named snapshot, and see that they answer.",
            words.RevertAsked,
            status,
            clusters.revert,
        ),
        "snapshot_delete": _Tool(
            "Delete a named snapshot across all nodes.",
            words.SnapshotAsked,
            words.ToolResult[words.SnapshotDeleted],
            clusters.forget,
        ),
        "net_partition": _Tool(
            "Let two groups of nodes not hear each other, and see that they do not.",
            words.PartitionAsked,
            words.ToolResult[words.FaultHandle],
            faults.partition,
        ),
        "net_impair": _Tool(
            "Impair what a node sends: to one other node, or to all.",
            words.ImpairAsked,
            words.ToolResult[words.FaultHandle],
            faults.impair,
        ),
        "net_heal": _Tool(
            "Remove a fault, and see that it is gone.",
            words.HealAsked,
            words.ToolResult[bool],
            faults.heal,
        ),
        "net_heal_all": _Tool(
            "Remove all active faults of a cluster, and count them.",
            words.ClusterAsked,
            words.ToolResult[int],
            faults.heal_all,
        ),
        "net_fault_list": _Tool(
            "List the active faults of a cluster.",
            words.ClusterAsked,
            words.ToolResult[list[words.FaultInfo]],
            faults.listed,
        ),
        "dmesg_mark": _Tool(
            "Write a marker into the kernel log of nodes.",
            words.MarkAsked,
            words.ToolResult[dict[str, str]],
            logs.mark,
        ),
        "dmesg_collect": _Tool(
            "Collect and classify the kernel logs of nodes: all, warn+ or err+.",
            words.CollectAsked,
            words.ToolResult[dict[str, words.DmesgResult]],
            logs.collect,
        ),
    }


class VmclusterTools:
    """Those tools as the protocol wants them."""

    def __init__(self, service: Service) -> None:
        self._tools = _tools(service)
        self._listed = ListToolsResult(
            tools=[
                Tool(
                    name=name,
                    description=tool.description,
                    input_schema=request_schema(tool.asked),
                    output_schema=answer_schema(tool.given),
                )
                for name, tool in self._tools.items()
            ]
        )

    async def listed(
        self, _ctx: Context, _params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        return self._listed

    async def call(self, ctx: Context, params: CallToolRequestParams) -> CallToolResult:
        tool = self._tools.get(params.name)
        if tool is None:
            raise MCPError(code=METHOD_NOT_FOUND, message=f"Unknown tool: {params.name}")
        result, error = None, None
        try:
            asked = parse(tool.asked, params.arguments or {})
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
