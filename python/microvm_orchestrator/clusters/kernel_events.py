"""Trouble in the kernels of a cluster's nodes, as events: for whoever waits, and at most once each.

Switched on for a cluster and written down with it, so a daemon that starts goes on where the last
one was. What was told of a boot is kept beside the event that told it, in one transaction. A guest
may make up as much trouble as it likes: each node has a small allowance of events, and what goes
beyond is counted. Above are the services; below, the kernel logs of machines.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import partial

import anyio
import anyio.abc
from pydantic import BaseModel, ConfigDict, JsonValue

from microvm_orchestrator import errors, log
from microvm_orchestrator.clusters.kernel_logs import KernelLogs
from microvm_orchestrator.clusters.kernel_reports import likeness
from microvm_orchestrator.clusters.kernel_watch import Allowance
from microvm_orchestrator.machines import Machines
from microvm_orchestrator.model.cluster import Cluster
from microvm_orchestrator.model.kernel_log import (
    KERNEL_LOG,
    KernelNews,
    KernelPlace,
    KernelReport,
    News,
)
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.store.base import Store, Tell
from microvm_orchestrator.store.every import every_record

_log = log.get(__name__)

# Events of one node at once, and then one in so many seconds.
_AT_ONCE = 20
_ONE_IN_S = 30.0
# Different ones of one boot: more are counted.
_TOLD_MOST = 200
_TEXT_MOST = 200
_CALLS_MOST = 8


class NodeLog(BaseModel):
    """How far a node was heard, and what was told of its boot."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    machine_id: str
    place: KernelPlace | None = None
    boot_id: str | None = None
    told: tuple[str, ...] = ()


class ClusterLog(BaseModel):
    """A cluster whose nodes are heard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cluster_id: str
    name: str
    owner: str
    nodes: tuple[NodeLog, ...]


@dataclass(slots=True)
class _Node:
    log: NodeLog
    allowance: Allowance = field(default_factory=lambda: Allowance(_AT_ONCE, 1 / _ONE_IN_S))
    # Since the last event: what there was no allowance for.
    untold: int = 0
    told: set[str] = field(default_factory=set[str])

    def anew(self, boot_id: str | None) -> None:
        """Of another boot, everything is another trouble."""
        self.log = self.log.model_copy(update={"boot_id": boot_id, "told": ()})
        self.told.clear()


class Hearing:
    """One cluster that is heard."""

    def __init__(self, store: Store, log: ClusterLog) -> None:
        self._store = store
        self.log = log
        self._nodes = {each.name: _Node(each, told=set(each.told)) for each in log.nodes}
        self._writing = anyio.Lock()
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()

    async def run(self, kernels: KernelLogs) -> None:
        """Hear them until the scope is cancelled."""
        try:
            with self.scope:
                async with anyio.create_task_group() as tasks:
                    for name, node in self._nodes.items():
                        tasks.start_soon(self._follow, kernels, name, node)
        finally:
            self.ended.set()

    async def _follow(self, kernels: KernelLogs, name: str, node: _Node) -> None:
        try:
            await kernels.follow(node.log.machine_id, node.log.place, partial(self.hear, name))
        except errors.OrchestratorError as error:
            _log.error("kernel_log_lost", cluster=self.log.name, node=name, reason=error.message)

    def untold(self, name: str) -> int:
        """How much was not told of a node since its last event."""
        return self._nodes[name].untold

    async def hear(self, name: str, news: KernelNews) -> None:
        """Take in what was heard of a node, and tell what is trouble and was not told."""
        node = self._nodes[name]
        if news.boot_id is not None and news.boot_id != node.log.boot_id:
            node.anew(news.boot_id)
        if news.place is not None:
            node.log = node.log.model_copy(update={"place": news.place})
        body: dict[str, JsonValue]
        if news.report is not None:
            body = _of_report(news.report)
            await self._tell(node, "trouble", " ".join(likeness(news.report)), body)
        elif news.what is News.DROPPED:
            body = {"source": news.source, "count": news.count}
            await self._tell(node, "dropped", "dropped", body)
        elif news.what is News.NODE:
            if news.place is not None:
                node.anew(None)
            body = {"state": news.state, "reason": news.reason[:_TEXT_MOST]}
            await self._tell(node, "heard" if news.answers else "silent", "", body)

    async def _tell(self, node: _Node, what: str, key: str, body: dict[str, JsonValue]) -> None:
        """Tell it, unless that was done; an empty key is told whenever it happens."""
        key = key[: 2 * _TEXT_MOST]
        if key in node.told:
            return
        if len(node.told) >= _TOLD_MOST or not node.allowance.spend_one():
            node.untold += 1
            return
        if key:
            node.told.add(key)
            node.log = node.log.model_copy(update={"told": (*node.log.told, key)})
        untold, node.untold = node.untold, 0
        told: dict[str, JsonValue] = {
            "cluster": self.log.name,
            "node": node.log.name,
            "machine_id": node.log.machine_id,
            **body,
            "untold": untold,
        }
        async with self._writing:
            logs = tuple(each.log for each in self._nodes.values())
            self.log = self.log.model_copy(update={"nodes": logs})
            try:
                await _save(self._store, self.log, Tell(what, told, audited=False), SYSTEM)
            except errors.OrchestratorError as error:
                # The machine's log has it still; the disk is somebody else's to mend.
                _log.error("kernel_trouble_unwritten", cluster=self.log.name, reason=error.message)


class KernelEvents:
    """The clusters of one daemon whose nodes are heard; they are so as long as `running`."""

    def __init__(self, store: Store, machines: Machines, kernels: KernelLogs) -> None:
        self._store = store
        self._machines = machines
        self._kernels = kernels
        self._heard: dict[str, Hearing] = {}
        self._turn = anyio.Lock()
        self._tasks: anyio.abc.TaskGroup | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Go on hearing those that were heard, until the block ends."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            for record in await every_record(self._store, KERNEL_LOG, SYSTEM):
                self._hear(ClusterLog.model_validate(record.body))
            try:
                yield
            finally:
                self._tasks = None
                tasks.cancel_scope.cancel()

    def of(self, cluster: Cluster) -> ClusterLog | None:
        """What is written down of a cluster that is heard."""
        found = self._heard.get(cluster.cluster_id)
        return found and found.log

    async def switch_on(self, cluster: Cluster, by: Actor) -> ClusterLog:
        """Hear all nodes of a cluster from now on; those that are heard go on as they were."""
        async with self._turn:
            before = self.of(cluster)
            known = {each.machine_id: each for each in before.nodes} if before else {}
            if before and set(known) == {node.machine_id for node in cluster.nodes}:
                return before
            await self._stop(cluster.cluster_id)
            nodes = [
                known.get(node.machine_id) or await self._new(node.name, node.machine_id)
                for node in cluster.nodes
            ]
            log = ClusterLog(
                cluster_id=cluster.cluster_id,
                name=cluster.name,
                owner=cluster.owner,
                nodes=tuple(nodes),
            )
            body: dict[str, JsonValue] = {"cluster": cluster.name}
            await _save(self._store, log, Tell("watched", body), by)
            self._hear(log)
            return log

    async def switch_off(self, cluster: Cluster, by: Actor) -> None:
        """Hear them no more."""
        async with self._turn:
            await self._stop(cluster.cluster_id)
            with contextlib.suppress(errors.NotFound):
                await self._store.erase(KERNEL_LOG, cluster.cluster_id, by)

    async def renew(self, cluster: Cluster) -> None:
        """A cluster was defined again: if it is heard, so are its new nodes."""
        if self.of(cluster) is not None:
            await self.switch_on(cluster, SYSTEM)

    async def _new(self, name: str, machine_id: str) -> NodeLog:
        try:
            machine = await self._machines.get(machine_id, SYSTEM)
        except errors.NotFound:
            return NodeLog(name=name, machine_id=machine_id)
        place = await self._kernels.begin(machine)
        boot_id = place and place.boot_id
        return NodeLog(name=name, machine_id=machine_id, place=place, boot_id=boot_id)

    def _hear(self, log: ClusterLog) -> None:
        if self._tasks is not None:
            self._heard[log.cluster_id] = heard = Hearing(self._store, log)
            self._tasks.start_soon(heard.run, self._kernels)

    async def _stop(self, cluster_id: str) -> None:
        heard = self._heard.pop(cluster_id, None)
        if heard is not None:
            heard.scope.cancel()
            await heard.ended.wait()


def _of_report(report: KernelReport) -> dict[str, JsonValue]:
    return {
        "trouble": report.trouble,
        "headline": report.headline[:_TEXT_MOST],
        "timestamp": report.timestamp,
        "process": report.process,
        "rip": report.rip,
        "call_trace": list(report.call_trace[:_CALLS_MOST]),
    }


async def _save(store: Store, log: ClusterLog, tell: Tell, by: Actor) -> None:
    record = Record(KERNEL_LOG, log.cluster_id, log.model_dump(mode="json"))
    await store.save(record, by, tell=tell)
