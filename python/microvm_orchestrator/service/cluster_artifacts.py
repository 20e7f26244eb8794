"""Artifacts and sources in the nodes of clusters: brought there, installed, built.

Above are the front ends; below, the clusters and the trees of this host.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio
from pydantic import Field, JsonValue

from microvm_orchestrator.clusters.artifacts import Installation
from microvm_orchestrator.clusters.compiler import Diagnosed, Severity
from microvm_orchestrator.clusters.guest_trees import tail
from microvm_orchestrator.clusters.records import node_of
from microvm_orchestrator.clusters.sources import bring_source, build
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.artifact_tree import USUAL_MODE, InstallMode, TreeRef
from microvm_orchestrator.model.operation import Operation
from microvm_orchestrator.model.repo import HostPath
from microvm_orchestrator.model.topology import MAX_NODES
from microvm_orchestrator.model.values import Flag, Int
from microvm_orchestrator.service.calls import Answer, Call, Caller, declare
from microvm_orchestrator.service.clusters import ARTIFACT_PATH, NamedCluster
from microvm_orchestrator.service.execs import VariableName, Word
from microvm_orchestrator.service.nodes import NamedNode, NodeName
from microvm_orchestrator.service.operations import USUAL_WAIT_S, WaitS, long_call
from microvm_orchestrator.service.service import Service, actor
from microvm_orchestrator.service.transfers import halfway

if TYPE_CHECKING:
    from microvm_orchestrator.machine.shell import Shell
    from microvm_orchestrator.operations import Report

_MAX_TIMEOUT_S = 86_400.0
_USUAL_INSTALL_S = 600.0
_USUAL_BUILD_S = 300.0

# Every part has letters: none is . or .. or empty.
PlainPath = Annotated[str, Field(pattern=r"^(/[A-Za-z0-9_+@][A-Za-z0-9._+@-]*)+$", max_length=1000)]
TimeoutS = Annotated[float, Field(strict=True, gt=0, le=_MAX_TIMEOUT_S)]


class _ArtifactInCluster(NamedCluster):
    """An artifact, and nodes of a cluster."""

    artifact_id: TreeRef = Field(description="its digest, with sha256: before it or without")
    nodes: Annotated[list[NodeName], Field(max_length=MAX_NODES)] = Field(
        default=[], description="only these; by default all"
    )
    dest_base: PlainPath = Field(
        default=ARTIFACT_PATH, description="the folder of the nodes that artifacts lie in"
    )
    wait_s: WaitS = USUAL_WAIT_S


class SyncArtifact(_ArtifactInCluster):
    """An artifact to bring to nodes."""

    force: Flag = Field(default=False, description="also to nodes that have it")


class InstallArtifact(_ArtifactInCluster):
    """An artifact to install in nodes."""

    mode: InstallMode | None = Field(
        default=None,
        description="`modprobe_path` puts its modules where modprobe finds them, `make_install` "
        "runs `make install` in a copy, `rpm` and `deb` install its packages; by default as its "
        "build_type says",
    )
    load: Flag = Field(
        default=False,
        description="whether its modules are loaded too, in place of those of their names; for "
        "modprobe_path",
    )
    timeout_s: TimeoutS = Field(
        default=_USUAL_INSTALL_S, description="after so long it is ended in the node"
    )


class SyncSource(NamedNode):
    """Sources to bring to a node."""

    local_path: HostPath = Field(description="a folder of this host: an absolute path")
    remote_path: PlainPath = Field(description="the folder of the node")
    wait_s: WaitS = USUAL_WAIT_S


class BuildSource(NamedNode):
    """Sources to build in a node."""

    path: PlainPath = Field(description="where the command runs; made if need be")
    command: Word = Field(description="run by /bin/sh -c")
    binary: Annotated[str, Field(min_length=1, max_length=1000)] | None = Field(
        default=None, description="what it makes, from there: digested when it has succeeded"
    )
    env: Annotated[dict[VariableName, Word], Field(max_length=256)] = Field(
        default={}, description="over what the topology says for the cluster and the node"
    )
    timeout_s: TimeoutS = Field(
        default=_USUAL_BUILD_S, description="after so long it is ended in the node"
    )
    wait_s: WaitS = USUAL_WAIT_S


class SourceSynced(Answer):
    """What it took to bring sources to a node."""

    node: str
    path: str
    sent_files: Int
    sent_bytes: Int
    skipped: bool = Field(description="the node had all of it")
    seconds: float


class CompilerDiagnostic(Answer):
    """What a compiler, a linker or make complained of."""

    severity: Severity
    message: str
    file: str | None
    line: Int | None
    column: Int | None
    code: str | None = Field(description="as the tool has it: -Wunused-variable, E0425")


class SourceBuilt(Answer):
    """How a build in a node ended."""

    node: str
    path: str
    exit_code: Int | None = Field(description="null: a signal ended it")
    timed_out: bool
    errors: Int = Field(description="how many there were")
    warnings: Int
    diagnostics: list[CompilerDiagnostic] = Field(description="the first 500, errors first to stay")
    diagnostics_cut: bool
    output: str = Field(description="the end of what it said")
    binary: str | None = Field(description="the digest of what it made; null: that is not there")
    binary_size: Int


@declare(
    "cluster_artifact_sync",
    "POST /v1/clusters/{cluster}/artifacts/{artifact_id}/sync",
    role=Role.OPERATOR,
    idempotent=True,
    waits=True,
)
async def cluster_artifact_sync(
    service: Service, caller: Caller, request: SyncArtifact
) -> Operation:
    """Bring an artifact to all nodes of a cluster, or to some; where it is already, it stays.

    Each node has it in `dest_base`, in a folder of its digits, only when all of it has been
    compared there. What another artifact there has of it is copied in the node. The operation's
    result tells of each node: one that fails has an error in its place, and the others are kept.
    """
    by = actor(caller, "cluster_artifact_sync")
    room = service.host.clusters
    cluster = await room.records.standing(request.cluster, by)
    tree = await service.host.trees.get(request.artifact_id, by)
    stage = partial(halfway, service)

    async def work(report: Report) -> JsonValue:
        told = await room.artifacts.sync(
            cluster, tree, request.nodes, request.dest_base, stage, report, force=request.force
        )
        return told.model_dump(mode="json")

    return await long_call(
        service, caller, "cluster_artifact_sync", cluster.cluster_id, request.wait_s, work
    )


@declare(
    "cluster_artifact_install",
    "POST /v1/clusters/{cluster}/artifacts/{artifact_id}/install",
    role=Role.OPERATOR,
    waits=True,
)
async def cluster_artifact_install(
    service: Service, caller: Caller, request: InstallArtifact
) -> Operation:
    """Install an artifact in all nodes of a cluster, or in some; it has to be there already.

    The operation's result tells of each node with which status it ended and what it said last; one
    that fails keeps the others from nothing. `cluster_status` shows what is installed.
    """
    by = actor(caller, "cluster_artifact_install")
    room = service.host.clusters
    cluster = await room.records.standing(request.cluster, by)
    tree = await service.host.trees.get(request.artifact_id, by)
    how = Installation(request.mode or USUAL_MODE[tree.build_type], request.load, request.timeout_s)

    async def work(report: Report) -> JsonValue:
        told = await room.artifacts.install(
            cluster, tree, request.nodes, request.dest_base, how, report
        )
        return told.model_dump(mode="json")

    return await long_call(
        service, caller, "cluster_artifact_install", cluster.cluster_id, request.wait_s, work
    )


@declare(
    "node_source_sync",
    "POST /v1/clusters/{cluster}/nodes/{node}/source",
    role=Role.ADMIN,
    idempotent=True,
    waits=True,
)
async def node_source_sync(service: Service, caller: Caller, request: SyncSource) -> Operation:
    """Bring a folder of this host to a node: what differs is sent, and what else is there stays.

    Folders named .git and __pycache__ are left out; a link counts as the file it leads to, where
    that is in the folder. What was sent is compared in the node.
    """
    cluster, shell = await _shell(service, caller, request, "node_source_sync")

    async def work(report: Report) -> JsonValue:
        began = anyio.current_time()
        await report(None, "compares")
        brought = await bring_source(
            shell, Path(request.local_path), request.remote_path, partial(halfway, service)
        )
        return SourceSynced(
            node=request.node,
            path=request.remote_path,
            sent_files=brought.sent_files,
            sent_bytes=brought.sent_bytes,
            skipped=brought.skipped,
            seconds=anyio.current_time() - began,
        ).model_dump(mode="json")

    return await long_call(service, caller, "node_source_sync", cluster, request.wait_s, work)


@declare(
    "node_source_build",
    "POST /v1/clusters/{cluster}/nodes/{node}/build",
    role=Role.OPERATOR,
    waits=True,
)
async def node_source_build(service: Service, caller: Caller, request: BuildSource) -> Operation:
    """Build sources in a node, and tell what compilers, linkers and make complained of.

    The operation succeeds when the build has ended, however it did: its result tells the status.
    """
    by = actor(caller, "node_source_build")
    cluster = await service.host.clusters.records.standing(request.cluster, by)
    machine_id, shell = await _shell(service, caller, request, "node_source_build")
    asked = next(node for node in cluster.topology.nodes if node.name == request.node)
    env = {**cluster.topology.env_of(asked), **request.env}

    async def work(report: Report) -> JsonValue:
        await report(None, "builds")
        built = await build(
            shell,
            request.path,
            request.command,
            request.binary,
            env=env,
            timeout_s=request.timeout_s,
        )
        return SourceBuilt(
            node=request.node,
            path=request.path,
            exit_code=built.exit_code,
            timed_out=built.timed_out,
            errors=built.diagnosed.errors,
            warnings=built.diagnosed.warnings,
            diagnostics=_told(built.diagnosed),
            diagnostics_cut=built.diagnosed.cut,
            output=tail(built.said),
            binary=built.digest,
            binary_size=built.size,
        ).model_dump(mode="json")

    return await long_call(service, caller, "node_source_build", machine_id, request.wait_s, work)


async def _shell(
    service: Service, caller: Caller, request: NamedNode, call: str
) -> tuple[str, Shell]:
    """Give a node's machine and the way into it. Raises: NotFound, MachineUnreachable."""
    room = service.host.clusters
    cluster = await room.records.standing(request.cluster, actor(caller, call))
    machine = await room.life.alive(cluster, node_of(cluster, request.node).name)
    return machine.machine_id, await service.host.machines.live(machine).reached()


def _told(diagnosed: Diagnosed) -> list[CompilerDiagnostic]:
    return [
        CompilerDiagnostic(
            severity=each.severity,
            message=each.message,
            file=each.file,
            line=each.line,
            column=each.column,
            code=each.code,
        )
        for each in diagnosed.diagnostics
    ]


CALLS: tuple[Call, ...] = (
    cluster_artifact_sync,
    cluster_artifact_install,
    node_source_sync,
    node_source_build,
)
