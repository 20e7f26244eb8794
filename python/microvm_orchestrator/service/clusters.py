"""Clusters: defined by a topology, started, looked at, ended.

Above are the front ends; below, the clusters of this host.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio
import anyio.to_thread
from pydantic import Field, JsonValue

from microvm_orchestrator import errors, places
from microvm_orchestrator.clusters import files, topology
from microvm_orchestrator.clusters.each import each
from microvm_orchestrator.clusters.life import StopMode, addresses
from microvm_orchestrator.clusters.records import node_of
from microvm_orchestrator.images import disk
from microvm_orchestrator.images.store import DiskImage
from microvm_orchestrator.machine.qemu.qcow2 import check_alone
from microvm_orchestrator.machine.shell import Command
from microvm_orchestrator.machine.ssh import our_key_path
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.cluster import CLUSTER, Cluster, ClusterState, ClusterStatus, Node
from microvm_orchestrator.model.operation import Operation
from microvm_orchestrator.model.records import Record
from microvm_orchestrator.model.topology import Backend, Topology, base_name
from microvm_orchestrator.model.values import MAX_TEXT, Flag, Moment
from microvm_orchestrator.runner import Ssh
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.operations import USUAL_WAIT_S, WaitS, long_call
from microvm_orchestrator.service.page import ListRequest, PageOf
from microvm_orchestrator.service.records import page_of
from microvm_orchestrator.service.service import Service, actor

if TYPE_CHECKING:
    from microvm_orchestrator.operations import Report

# As artifacts are installed in nodes.
ARTIFACT_PATH = "/opt/vmcluster/artifacts"
# For a guest to power off.
_USUAL_DEADLINE_S = 60.0
_QUICK_S = 5.0
_RELEASE_CHARS = 200

ClusterRef = Annotated[str, Field(min_length=1, max_length=100)]


class DefineCluster(Request):
    """A cluster to make: by what its topology says, or by the name of one that lies here."""

    name: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="a topology in the folder of the setting clusters.topology_dir"
    )
    topology: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)] | None = Field(
        default=None, description="the topology itself, as YAML; cluster_schema tells its keys"
    )


class NamedCluster(Request):
    """A cluster."""

    cluster: ClusterRef = Field(description="its name or id")


class HandleCluster(NamedCluster):
    """A cluster to use."""

    key: Flag = Field(
        default=False,
        description="whether to tell where the private key lies that nodes with an SSH server let "
        "in; it opens all such machines of this host, so only the cluster's owner and "
        "administrators are told, and the audit log says whom",
    )


class StartCluster(NamedCluster):
    """A cluster to start."""

    wait_s: WaitS = USUAL_WAIT_S


class StopCluster(NamedCluster):
    """A cluster to stop, and how."""

    mode: StopMode = Field(
        default=StopMode.SHUTDOWN,
        description="`shutdown` lets guests power off; `destroy` ends them as a power cut would",
    )
    deadline_s: Annotated[float, Field(strict=True, ge=0, le=3600)] = Field(
        default=_USUAL_DEADLINE_S,
        description="how long a guest may take to power off before it is ended by force",
    )
    wait_s: WaitS = USUAL_WAIT_S


class DestroyCluster(NamedCluster):
    """A cluster to take away."""

    delete_disks: Flag = Field(
        default=False, description="whether its disks and snapshots go too; without, they are kept"
    )
    wait_s: WaitS = USUAL_WAIT_S


class NoSchemaFilter(Request):
    """No parameters."""


class TopologySchema(Answer):
    """What a topology may say."""

    json_schema: dict[str, JsonValue] = Field(description="as JSON Schema, of draft 2020-12")


class ClusterBrief(Answer):
    """A cluster in a list."""

    cluster_id: str
    name: str
    owner: str
    state: ClusterState
    nodes: int
    created_at: Moment


class NodeHandle(Answer):
    """What it takes to use a node."""

    name: str
    role: str
    backend: Backend
    machine_id: str
    machine: str = Field(description="the name by which commands and files reach it")
    addresses: dict[str, list[str]] = Field(description="in each network, without prefixes")
    user: str = Field(description="who its commands run as when nothing is said")
    kernel_version: str
    ssh_port: int | None = Field(
        default=None,
        description="of this host's loopback, behind which its SSH server is, if it is reached so",
    )
    ssh_key_path: str | None = Field(
        default=None, description="of the key that this server lets in, if it was asked for"
    )


class ClusterHandle(Answer):
    """What it takes to use a cluster that runs."""

    cluster_id: str
    name: str
    nodes: list[NodeHandle]
    networks: dict[str, list[str]] = Field(description="the prefixes of each")
    kernel_version: str = Field(description="of the first node")
    artifact_path: str = Field(description="where artifacts lie in the nodes")


@declare("cluster_define", "POST /v1/clusters", role=Role.OPERATOR, idempotent=True)
async def cluster_define(service: Service, caller: Caller, request: DefineCluster) -> Cluster:
    """Make a cluster as a topology says: its networks, and a machine for each node; none runs yet.

    Define it again as often as you like: what is missing is made, what is there stays as it is, and
    what would have to be another is refused by its path. All that is wrong with a topology is told
    at once. Where some of it cannot be made the error names it, and the rest is kept.
    """
    by = actor(caller, "cluster_define")
    wanted = await _topology(service, request)
    await _take_in(service, caller, wanted)
    cluster = await service.host.clusters.making.define(wanted, by)
    await service.host.kernel_events.renew(cluster)
    return cluster


async def _topology(service: Service, request: DefineCluster) -> Topology:
    if (request.name is None) == (request.topology is None):
        raise errors.InvalidInput("a cluster is defined by name, or by topology")
    if request.name is None:
        return await anyio.to_thread.run_sync(topology.read, request.topology or "")
    settings = service.settings
    folder = settings.clusters.topology_dir or settings.state_dir / places.TOPOLOGIES
    text = await anyio.to_thread.run_sync(files.find, folder, request.name)
    wanted = await anyio.to_thread.run_sync(topology.read, text)
    if wanted.cluster_name != request.name:
        raise errors.InvalidInput(
            f"cluster_name: is {wanted.cluster_name}, and its topology is called {request.name}",
            hint="a cluster and its topology have the same name",
        )
    return wanted


async def _take_in(service: Service, caller: Caller, wanted: Topology) -> None:
    """Make an image of a `base_image` for who may; others are told who has to.

    Raises: InvalidInput when there is another image of its name.
    """
    images, path = service.host.images, wanted.base_image
    if path is None or all(wanted.backend_of(each) is Backend.MICROVM for each in wanted.nodes):
        return
    name = base_name(path)
    try:
        known = await anyio.to_thread.run_sync(images.get, name)
    except errors.NotFound:
        if caller.principal.role is Role.ADMIN:
            login = Ssh(wanted.ssh.user, None)
            await disk.add(Path(path), images, name, check_alone, login, cloud_init=True)
            await service.store.note(actor(caller, "image_add"), name, "ok")
        return
    size = await anyio.to_thread.run_sync(_size, path)
    made_of = known.manifest.disk.bytes if isinstance(known, DiskImage) else None
    if size is not None and made_of != size:
        raise errors.InvalidInput(
            f"base_image: there is another image {name}, which was not made of {path}",
            hint="call the file otherwise, or name an image that was added from it by `image`",
        )


def _size(path: str) -> int | None:
    try:
        return Path(path).stat().st_size
    except OSError:
        return None  # it may be gone: what was made of it is there


@declare("cluster_schema", "GET /v1/topology-schema", role=Role.VIEWER, effect=Effect.READ)
async def cluster_schema(
    service: Service, caller: Caller, request: NoSchemaFilter
) -> TopologySchema:
    """Tell what a topology may say, as a JSON schema."""
    del service, caller, request
    return TopologySchema(json_schema=Topology.model_json_schema())


@declare("cluster_list", "GET /v1/clusters", role=Role.VIEWER, effect=Effect.READ)
async def cluster_list(
    service: Service, caller: Caller, request: ListRequest
) -> PageOf[ClusterBrief]:
    """List clusters, oldest first: yours, or all if you see everything."""
    by = actor(caller, "cluster_list")

    async def shown(record: Record) -> ClusterBrief | None:
        cluster = Cluster.model_validate(record.body)
        if not by.sees_of(cluster.owner):
            return None
        return ClusterBrief(
            cluster_id=cluster.cluster_id,
            name=cluster.name,
            owner=cluster.owner,
            state=cluster.state,
            nodes=len(cluster.nodes),
            created_at=cluster.created_at,
        )

    items, cursor = await page_of(service.store, CLUSTER, request, by, shown)
    return PageOf[ClusterBrief](items=items, next_cursor=cursor)


@declare("cluster_status", "GET /v1/clusters/{cluster}", role=Role.VIEWER, effect=Effect.READ)
async def cluster_status(service: Service, caller: Caller, request: NamedCluster) -> ClusterStatus:
    """Look at a cluster: how each node is, and whether its guest answers now.

    All nodes that run are asked at once, and given a few seconds. They are asked over their control
    channel, which no broken network of the cluster is part of.
    """
    room = service.host.clusters
    cluster = await room.records.get(request.cluster, actor(caller, "cluster_status"))
    return await room.life.status(cluster)


@declare(
    "cluster_handle", "GET /v1/clusters/{cluster}/handle", role=Role.VIEWER, effect=Effect.READ
)
async def cluster_handle(service: Service, caller: Caller, request: HandleCluster) -> ClusterHandle:
    """Tell what it takes to use a cluster: names, addresses, kernels. All its nodes have to run.

    Where the private key for their SSH servers lies is told only who asks for it, and may know.
    """
    room = service.host.clusters
    by = actor(caller, "cluster_handle")
    cluster = await room.records.standing(request.cluster, by)
    if request.key:
        _check_may_enter(caller, cluster)

    async def describe(name: str) -> NodeHandle:
        node, machine = node_of(cluster, name), await room.life.alive(cluster, name)
        running = service.host.machines.live(machine)
        has_key = request.key and running.ssh is not None
        return NodeHandle(
            name=node.name,
            role=node.role,
            backend=node.backend,
            machine_id=node.machine_id,
            machine=machine.name or machine.machine_id,
            addresses=addresses(cluster, machine),
            user=running.ssh.user if running.ssh is not None else cluster.topology.ssh.user,
            kernel_version=await _kernel(service, cluster, node),
            ssh_port=running.ssh_port,
            ssh_key_path=str(our_key_path(service.settings.state_dir)) if has_key else None,
        )

    described = await each([node.name for node in cluster.nodes], describe)
    for error in described.failed.values():
        raise error
    if any(node.ssh_key_path is not None for node in described.done.values()):
        await service.store.note(by, cluster.cluster_id, "ok")
    return ClusterHandle(
        cluster_id=cluster.cluster_id,
        name=cluster.name,
        nodes=list(described.done.values()),
        networks={network.name: network.prefixes for network in cluster.networks},
        kernel_version=described.done[cluster.nodes[0].name].kernel_version,
        artifact_path=ARTIFACT_PATH,
    )


def _check_may_enter(caller: Caller, cluster: Cluster) -> None:
    """Raises: Denied for who is neither the cluster's owner nor an administrator."""
    who = caller.principal
    owns = who.role.reaches(Role.OPERATOR) and who.name == cluster.owner
    if not owns and who.role is not Role.ADMIN:
        raise errors.Denied(
            f"the key for cluster {cluster.name} is for its owner and administrators",
            hint="node_exec and machine_exec need no key",
        )


async def _kernel(service: Service, cluster: Cluster, node: Node) -> str:
    """Ask a node for its kernel's release. Raises: MachineUnreachable, GuestRefused."""
    room, machines = service.host.clusters, service.host.machines
    running = machines.live(await room.life.alive(cluster, node.name))
    try:
        with anyio.fail_after(_QUICK_S):
            shell = await running.reached()
            ran = await shell.exec(Command(["uname", "-r"], timeout_s=_QUICK_S), output_cap=4096)
    except TimeoutError:
        raise errors.MachineUnreachable(
            f"node {node.name} of cluster {cluster.name} did not answer within {_QUICK_S:g} s"
        ) from None
    return ran.stdout.decode(errors="replace").strip()[:_RELEASE_CHARS]


@declare("cluster_start", "POST /v1/clusters/{cluster}/start", role=Role.OPERATOR, waits=True)
async def cluster_start(service: Service, caller: Caller, request: StartCluster) -> Operation:
    """Boot all nodes that do not run, at once; the operation succeeds when every node answers.

    A node that fails is named by the error, and the others are kept running.
    """
    by = actor(caller, "cluster_start")
    room = service.host.clusters
    cluster = await room.records.standing(request.cluster, by)

    async def work(report: Report) -> JsonValue:
        started = await room.life.start(cluster.cluster_id, by, report)
        return started.model_dump(mode="json")

    return await long_call(
        service, caller, "cluster_start", cluster.cluster_id, request.wait_s, work
    )


@declare("cluster_stop", "POST /v1/clusters/{cluster}/stop", role=Role.OPERATOR, waits=True)
async def cluster_stop(service: Service, caller: Caller, request: StopCluster) -> Operation:
    """Stop all nodes, at once; the operation succeeds when none runs any more.

    The reason of a node that did not power off in time says that it was ended by force.
    """
    by = actor(caller, "cluster_stop")
    room = service.host.clusters
    cluster = await room.records.standing(request.cluster, by)

    async def work(report: Report) -> JsonValue:
        stopped = await room.life.stop(
            cluster.cluster_id, by, report, mode=request.mode, deadline_s=request.deadline_s
        )
        return stopped.model_dump(mode="json")

    return await long_call(
        service, caller, "cluster_stop", cluster.cluster_id, request.wait_s, work
    )


@declare(
    "cluster_destroy",
    "POST /v1/clusters/{cluster}/destroy",
    role=Role.OPERATOR,
    effect=Effect.DESTROY,
    waits=True,
)
async def cluster_destroy(service: Service, caller: Caller, request: DestroyCluster) -> Operation:
    """End a cluster. What its nodes had written to disks, and its snapshots, are kept.

    `cluster_define` of the same topology takes them up again, and `delete_disks` deletes them. A
    cluster that has neither is gone at once. Where something cannot be taken away the error names
    it. The operation's result is the cluster as far as it is kept, or null.
    """
    by = actor(caller, "cluster_destroy")
    room = service.host.clusters
    cluster = await room.records.get(request.cluster, by)

    async def work(report: Report) -> JsonValue:
        await report(None, "ends what runs")
        await service.host.campaigns.forsake(cluster.cluster_id)
        kept = await room.making.destroy(cluster.cluster_id, by, delete_disks=request.delete_disks)
        return None if kept is None else kept.model_dump(mode="json")

    return await long_call(
        service, caller, "cluster_destroy", cluster.cluster_id, request.wait_s, work
    )


CALLS: tuple[Call, ...] = (
    cluster_define,
    cluster_schema,
    cluster_list,
    cluster_status,
    cluster_handle,
    cluster_start,
    cluster_stop,
    cluster_destroy,
)
