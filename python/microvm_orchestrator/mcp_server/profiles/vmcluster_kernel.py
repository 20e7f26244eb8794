"""The kernel logs of the profile `vmcluster`, translated onto ours.

That program wrote one marker into all nodes; ours is another in each kernel, so its marker is the
list of them. A node whose kernel can be heard nowhere is an error, whatever the others say. Below
is the service.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microvm_orchestrator import errors
from microvm_orchestrator.clusters.each import each
from microvm_orchestrator.mcp_server.profiles import vmcluster_words as words
from microvm_orchestrator.mcp_server.profiles.vmcluster_clusters import Failed, asked_of

if TYPE_CHECKING:
    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.service import Service

_MARKER = "vmcluster-marker-"


class KernelLogs:
    """The tools about kernel logs."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def mark(self, caller: Caller, asked: words.MarkAsked) -> dict[str, str]:
        nodes = await self._nodes(caller, asked)

        async def mark(name: str) -> str:
            told = await asked_of(self._service, caller, "kernel_log_mark", machine=nodes[name])
            return str(told["mark"])

        marked = await each(nodes, mark)
        marker = _MARKER + ",".join(f"{name}={mark}" for name, mark in marked.done.items())
        given = dict.fromkeys(marked.done, marker)
        if marked.failed:
            code = "PARTIAL_FAILURE" if marked.done else "ALL_NODES_FAILED"
            first = next(iter(marked.failed))
            raise Failed(code, marked.told(), node=first, recoverable=True, result=given or None)
        return given

    async def collect(
        self, caller: Caller, asked: words.CollectAsked
    ) -> dict[str, words.DmesgResult]:
        if asked.filter_level not in {"all", "warn+", "err+"}:
            told = f"filter_level is all, warn+ or err+, not {asked.filter_level[:40]!r}"
            raise Failed("INVALID_FILTER_LEVEL", told)
        nodes = await self._nodes(caller, asked)
        marks = _marks(asked.since_marker)

        async def collect(name: str) -> words.DmesgResult:
            given: dict[str, object] = {"level": asked.filter_level, "limit": 5000}
            if asked.since_marker is not None:
                if name not in marks:
                    raise errors.NotFound("the marker is none of this node's")
                given["since"] = marks[name]
            told = await asked_of(
                self._service, caller, "kernel_log_collect", machine=nodes[name], **given
            )
            return _result(told)

        heard = await each(nodes, collect)
        if heard.failed:
            code = "PARTIAL_FAILURE" if heard.done else "ALL_NODES_FAILED"
            first = next(iter(heard.failed))
            raise Failed(
                code, heard.told(), node=first, recoverable=True, result=heard.done or None
            )
        return heard.done

    async def _nodes(self, caller: Caller, asked: words.MarkAsked) -> dict[str, str]:
        """Give the machines of the nodes that are meant, by their names. Raises: Failed."""
        cluster = await asked_of(
            self._service, caller, "cluster_status", cluster=asked.cluster_name
        )
        known = {node["name"]: node["machine_id"] for node in cluster["nodes"]}
        for name in asked.nodes or ():
            if name not in known:
                told = f"cluster {asked.cluster_name} has no node {name}"
                raise Failed("NODE_NOT_FOUND", told, node=name)
        return {name: known[name] for name in asked.nodes or known}


def _marks(marker: str | None) -> dict[str, str]:
    pairs = (marker or "").removeprefix(_MARKER).split(",")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def _result(told: dict[str, Any]) -> words.DmesgResult:
    lines = [
        words.DmesgLine(
            timestamp=line["timestamp"],
            level=line["level"],
            facility=line["facility"],
            text=line["text"],
            classified_as=line["trouble"] or "normal",
        )
        for line in told["lines"]
    ]
    return words.DmesgResult(
        lines=lines,
        oops_detected=told["oops_detected"],
        panic_detected=told["panic_detected"],
        warning_count=told["warning_count"],
        error_count=told["error_count"],
    )
