"""The stream of what the kernels of a cluster's nodes say, as they say it.

A client gets a line of JSON for each thing that is heard, until it leaves. Nothing is queued for
one that is slow: its nodes are read more slowly then, and what that loses is told. Above is the
front end that carries the frames; below, the kernel logs of this host.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import Annotated

import anyio
from pydantic import Field, TypeAdapter

from microvm_orchestrator import errors
from microvm_orchestrator.clusters.each import each
from microvm_orchestrator.clusters.kernel_log import at_least
from microvm_orchestrator.clusters.kernel_ring import PREFIX
from microvm_orchestrator.clusters.records import node_of, nodes_of
from microvm_orchestrator.model.cluster import Node
from microvm_orchestrator.model.kernel_log import KernelNews, KernelPlace, News
from microvm_orchestrator.model.topology import MAX_NODES
from microvm_orchestrator.service.calls import Answer, Caller
from microvm_orchestrator.service.clusters import NamedCluster
from microvm_orchestrator.service.kernel_log import FLOORS, LevelFilter, short
from microvm_orchestrator.service.nodes import NodeName
from microvm_orchestrator.service.service import Service, actor
from microvm_orchestrator.service.talk import ClientGone, Kind, Stream, Talk, both_ways

_NEWS = TypeAdapter(KernelNews)


class WatchKernelLog(NamedCluster):
    """Which kernels are watched, and from where on."""

    nodes: Annotated[list[NodeName], Field(max_length=MAX_NODES)] = Field(
        default=[], description="only these; by default all"
    )
    since: Annotated[str, Field(min_length=1, max_length=100)] | None = Field(
        default=None, description="a mark that all of these nodes were given; without it, from now"
    )
    level: LevelFilter = LevelFilter.ALL


async def _watch(service: Service, caller: Caller, request: WatchKernelLog, talk: Talk) -> Answer:
    by = actor(caller, "kernel_log_watch")
    cluster = await service.host.clusters.records.standing(request.cluster, by)
    nodes = nodes_of(cluster, request.nodes)
    kernels, machines = service.host.kernel_logs, service.host.machines
    since = request.since.removeprefix(PREFIX) if request.since else None
    floor = FLOORS[request.level]

    async def begin(name: str) -> KernelPlace | None:
        machine = await machines.get(node_of(cluster, name).machine_id, by)
        return await kernels.begin(machine, since)

    begun = await each([node.name for node in nodes], begin)
    for error in begun.failed.values():
        raise error
    await service.store.note(by, cluster.cluster_id, "ok")
    gone = False

    async def tell(scope: anyio.CancelScope, node: Node, news: KernelNews) -> None:
        nonlocal gone
        if news.line is not None and not at_least(news.line, floor):
            return
        if news.report is not None:
            news = replace(news, report=short(news.report))
        told = _NEWS.dump_python(news, mode="json", exclude={"place"}, exclude_none=True)
        try:
            await talk.send(Kind.DATA, json.dumps({"node": node.name, **told}).encode() + b"\n")
        except ClientGone:
            gone = True
            scope.cancel()

    async def follow(scope: anyio.CancelScope, node: Node) -> None:
        hear = partial(tell, scope, node)
        try:
            await kernels.follow(node.machine_id, begun.done[node.name], hear)
        except errors.OrchestratorError as error:
            await hear(KernelNews(News.NODE, answers=False, reason=error.message))

    async def say() -> None:
        async with anyio.create_task_group() as group:
            for node in nodes:
                group.start_soon(follow, group.cancel_scope, node)
        if gone:
            raise ClientGone
        await talk.send(Kind.END, b"{}")

    async def take(kind: int, payload: bytes) -> None:
        """Nothing is said to kernels."""

    await talk.begin({"cluster_id": cluster.cluster_id, "nodes": [node.name for node in nodes]})
    await both_ways(talk, take, say)
    return Answer()


STREAMS = (Stream("kernel_log_watch", WatchKernelLog, _watch),)
