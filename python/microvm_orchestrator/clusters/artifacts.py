"""Registered trees in the nodes of clusters: brought there, and installed.

Each node is dealt with by itself, some at once; one that fails is named by its error and keeps
nobody else from it. A guest has a tree under its name only when all of it was compared there. Above
are the services; below, the trees of this host, and the guests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.artifact_trees import ArtifactTrees
from microvm_orchestrator.clusters import installing
from microvm_orchestrator.clusters.clusters import Parts
from microvm_orchestrator.clusters.each import each
from microvm_orchestrator.clusters.guest_trees import Stage, bring_tree, sums
from microvm_orchestrator.clusters.life import ClusterLife, Report
from microvm_orchestrator.clusters.records import nodes_of
from microvm_orchestrator.model.artifact import PREFIX
from microvm_orchestrator.model.artifact_tree import (
    ArtifactTree,
    InstallMode,
    TreeFile,
)
from microvm_orchestrator.model.cluster import (
    ArtifactInNode,
    ArtifactInNodes,
    Cluster,
)
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.model.task import TaskError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from microvm_orchestrator.machine.shell import Shell

# Each lays out what it sends.
_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Installation:
    """How a tree is to be installed."""

    mode: InstallMode
    # Whether its modules are loaded in the end.
    load: bool
    timeout_s: float


class ClusterArtifacts:
    """What the nodes of one daemon's clusters have of its trees."""

    def __init__(self, parts: Parts, life: ClusterLife, trees: ArtifactTrees) -> None:
        self._machines = parts.machines
        self._life = life
        self._trees = trees
        # One at a time for each machine.
        self._turns: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)

    async def sync(
        self,
        cluster: Cluster,
        tree: ArtifactTree,
        nodes: Sequence[str],
        base: str,
        stage: Stage,
        report: Report,
        *,
        force: bool,
    ) -> ArtifactInNodes:
        """Bring a tree to nodes, to those that do not have it. Raises: NotFound for a node."""
        files = await self._trees.files(tree)

        async def bring(name: str, shell: Shell) -> ArtifactInNode:
            began = anyio.current_time()
            brought = await bring_tree(
                shell,
                base,
                digits(tree),
                files,
                partial(self._trees.lay_out, tree),
                stage,
                others=self._other,
                force=force,
            )
            return ArtifactInNode(
                node=name,
                path=f"{base}/{digits(tree)}",
                seconds=anyio.current_time() - began,
                sent_files=brought.sent_files,
                sent_bytes=brought.sent_bytes,
                skipped=brought.skipped,
            )

        return await self._in_each(cluster, tree, nodes, report, bring)

    async def install(
        self,
        cluster: Cluster,
        tree: ArtifactTree,
        nodes: Sequence[str],
        base: str,
        how: Installation,
        report: Report,
    ) -> ArtifactInNodes:
        """Install a tree in nodes that have it. Raises: NotFound; InvalidInput for its mode."""
        files = await self._trees.files(tree)
        script = installing.script_of(tree, files, how.mode, load=how.load)
        whole = {each.path: each.digest for each in files}

        async def install(name: str, shell: Shell) -> ArtifactInNode:
            began = anyio.current_time()
            path = f"{base}/{digits(tree)}"
            if await sums(shell, path, files) != whole:
                raise errors.StateForbids(
                    f"node {name} does not have artifact {tree.artifact_id} in {path}, or not as "
                    "it was registered",
                    hint="cluster_artifact_sync brings it there",
                )
            ran = await installing.run(shell, script, path, how.timeout_s)
            copied = how.mode is InstallMode.MODPROBE_PATH and ran.exit_code == 0
            return ArtifactInNode(
                node=name,
                path=path,
                seconds=anyio.current_time() - began,
                mode=how.mode,
                exit_code=ran.exit_code,
                timed_out=ran.timed_out,
                output=ran.output,
                installed=await installing.modules_in(shell) if copied else [],
            )

        return await self._in_each(cluster, tree, nodes, report, install)

    async def _in_each(
        self,
        cluster: Cluster,
        tree: ArtifactTree,
        nodes: Sequence[str],
        report: Report,
        act: Callable[[str, Shell], Awaitable[ArtifactInNode]],
    ) -> ArtifactInNodes:
        names = [node.name for node in nodes_of(cluster, nodes)]
        limiter = anyio.CapacityLimiter(_AT_ONCE)

        async def one(name: str) -> ArtifactInNode:
            machine = await self._life.alive(cluster, name)
            async with limiter, self._turns[machine.machine_id]:
                return await act(name, await self._machines.live(machine).reached())

        async def on_done(over: int) -> None:
            await report(over / len(names), f"{over} of {len(names)} nodes")

        found = await each(names, one, on_done=on_done)
        told = {
            name: found.done[name]
            if name in found.done
            else ArtifactInNode(
                node=name,
                path="",
                error=TaskError(
                    code=found.failed[name].code,
                    message=found.failed[name].message,
                    detail=found.failed[name].hint,
                ),
            )
            for name in names
        }
        failed = [name for name in names if not told[name].succeeded]
        return ArtifactInNodes(
            artifact_id=tree.artifact_id,
            cluster=cluster.name,
            nodes=told,
            all_succeeded=not failed,
            failed_nodes=failed,
        )

    async def _other(self, name: str) -> list[TreeFile] | None:
        try:
            return await self._trees.files(await self._trees.get(PREFIX + name, SYSTEM))
        except errors.NotFound:
            return None


def digits(tree: ArtifactTree) -> str:
    """What a tree's folder in a guest is called."""
    return tree.artifact_id.removeprefix(PREFIX)
