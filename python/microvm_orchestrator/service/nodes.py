"""Nodes of clusters: commands in one or in many at once, and crashes.

Above are the front ends; below, the clusters and the commands of this host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.clusters.each import each
from microvm_orchestrator.clusters.records import node_of, nodes_of
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.cluster import Cluster
from microvm_orchestrator.model.exec import ExecState
from microvm_orchestrator.model.operation import Operation
from microvm_orchestrator.model.records import Actor
from microvm_orchestrator.model.task import TaskError
from microvm_orchestrator.model.topology import MAX_NODES, Backend, TopologyNode
from microvm_orchestrator.model.values import MAX_TEXT, Flag, Line
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, declare
from microvm_orchestrator.service.clusters import NamedCluster
from microvm_orchestrator.service.execs import (
    MAX_OUTPUT,
    ExecAnswer,
    ExecId,
    RunCommand,
    VariableName,
    Word,
    perform,
)
from microvm_orchestrator.service.operations import USUAL_WAIT_S, WaitS, long_call
from microvm_orchestrator.service.service import Service, actor

if TYPE_CHECKING:
    from microvm_orchestrator.operations import Report

_USUAL_TIMEOUT_S = 30.0
_MAX_TIMEOUT_S = 3500.0
# From when a command's time is up until it has been ended: TERM, 2 s, KILL, and the news of it.
_END_S = 10.0
_MAX_WORDS = 4096

NodeName = Annotated[str, Field(min_length=1, max_length=64)]


class NamedNode(NamedCluster):
    """A node of a cluster."""

    node: NodeName


class CrashNode(NamedNode):
    """A node to crash."""

    restart: Flag = Field(default=True, description="whether it is booted again")
    wait_s: WaitS = USUAL_WAIT_S


class _NodeCommand(NamedCluster):
    """A command for nodes."""

    argv: Annotated[list[Word], Field(min_length=1, max_length=_MAX_WORDS)] | None = Field(
        default=None, description="a program and its words, as they are: no shell reads them"
    )
    script: Word | None = Field(
        default=None, description="instead of argv: run by /bin/sh -c, byte for byte"
    )
    env: Annotated[dict[VariableName, Word], Field(max_length=256)] = Field(
        default={}, description="over what the topology says for the cluster and the node"
    )
    cwd: Line | None = Field(default=None, description="by default the user's home")
    user: Line | None = Field(
        default=None,
        description="by default the topology's `ssh.user`, or the login of a disk's image",
    )
    timeout_s: Annotated[float, Field(strict=True, gt=0, le=_MAX_TIMEOUT_S)] = Field(
        default=_USUAL_TIMEOUT_S,
        description="after so long it is ended in the node with all of its session; what it had "
        "said by then is kept",
    )
    output_cap: Annotated[int, Field(strict=True, ge=0, le=MAX_OUTPUT)] = Field(
        default=1 << 16,
        description="how many bytes of stdout and of stderr the answer holds: the last ones",
    )


class NodeCommand(_NodeCommand):
    """A command for a node."""

    node: NodeName
    stdin: Annotated[str, Field(max_length=MAX_TEXT)] | None = Field(
        default=None, description="its whole input; without it, none"
    )
    exec_id: ExecId | None = Field(
        default=None,
        description="an id of your own: the command is begun at most once, however often it is "
        "asked for",
    )


class NodesCommand(_NodeCommand):
    """A command for several nodes at once."""

    nodes: Annotated[list[NodeName], Field(max_length=MAX_NODES)] = Field(
        default=[], description="only these; by default all"
    )
    require_all: Flag = Field(
        default=True,
        description="whether it is begun nowhere unless all of these nodes run",
    )


class NodeResult(Answer):
    """What became of a command in a node: how it ended, or why that is not known."""

    ran: ExecAnswer | None
    error: TaskError | None


class NodesRan(Answer):
    """What became of a command in several nodes."""

    results: dict[str, NodeResult] = Field(description="by the nodes' names")
    all_succeeded: bool = Field(description="it exited with 0 in every node")
    failed_nodes: list[str] = Field(description="those in which it did not")


@declare(
    "node_exec", "POST /v1/clusters/{cluster}/nodes/{node}/exec", role=Role.OPERATOR, waits=True
)
async def node_exec(service: Service, caller: Caller, request: NodeCommand) -> ExecAnswer:
    """Run a command in a node, and tell how it ended and what it said.

    A node that does not run is an error, whatever the command; a command that exits with another
    status than 0 is none. It is begun at most once. `machine_exec` follows longer ones.
    """
    by = actor(caller, "node_exec")
    cluster = await service.host.clusters.records.standing(request.cluster, by)
    stdin = {"stdin": request.stdin, "exec_id": request.exec_id}
    return await _run(service, caller, cluster, request.node, request, by, stdin)


@declare("node_exec_all", "POST /v1/clusters/{cluster}/exec", role=Role.OPERATOR, waits=True)
async def node_exec_all(service: Service, caller: Caller, request: NodesCommand) -> NodesRan:
    """Run a command in several nodes at once, and tell for each how it ended, or what failed.

    With `require_all` it is begun nowhere unless all of them run. Without, a node that does not run
    has an error in its place.
    """
    by = actor(caller, "node_exec_all")
    room = service.host.clusters
    cluster = await room.records.standing(request.cluster, by)
    names = [node.name for node in nodes_of(cluster, request.nodes)]
    if request.require_all:
        dead = await each(names, lambda name: room.life.alive(cluster, name))
        if dead.failed:
            raise errors.NodesFailed(
                f"nothing was begun, as not all nodes run: {dead.told()}",
                hint="cluster_start starts them; with require_all=false the others go ahead",
            )
    await service.store.note(by, cluster.cluster_id, "ok")
    # One deed, in however many nodes.
    inner = Actor(by.name, by.role, "cluster", f"cluster {cluster.name}", by.scope)

    async def run(name: str) -> ExecAnswer:
        return await _run(service, caller, cluster, name, request, inner, {})

    ran = await each(names, run)
    results = {
        name: NodeResult(ran=ran.done[name], error=None)
        if name in ran.done
        else NodeResult(ran=None, error=TaskError.of(ran.failed[name]))
        for name in names
    }
    failed = [name for name in names if name in ran.failed or ran.done[name].exit_code != 0]
    return NodesRan(results=results, all_succeeded=not failed, failed_nodes=failed)


async def _run(
    service: Service,
    caller: Caller,
    cluster: Cluster,
    name: str,
    request: _NodeCommand,
    by: Actor,
    more: dict[str, str | None],
) -> ExecAnswer:
    """Raises: NotFound, MachineUnreachable, UnknownOutcome, and as `machine_exec`."""
    machine = await service.host.clusters.life.alive(cluster, name)
    asked = next(node for node in cluster.topology.nodes if node.name == name)
    command = RunCommand.model_validate(
        {
            "machine": machine.machine_id,
            "argv": request.argv,
            "script": request.script,
            "env": {**cluster.topology.env_of(asked), **request.env},
            "cwd": request.cwd,
            "user": request.user or _user(cluster, asked),
            "timeout_s": request.timeout_s,
            "output_cap": request.output_cap,
            "wait_s": request.timeout_s + _END_S,
            **more,
        }
    )
    try:
        answer = await perform(service, caller, command, by)
    except errors.StateForbids as error:
        # It ran a moment ago.
        raise errors.MachineUnreachable(error.message, hint=error.hint) from error
    if answer.state is ExecState.RUNNING:
        raise errors.UnknownOutcome(
            f"node {name} of cluster {cluster.name} did not tell within {_END_S:g} s of its "
            f"timeout what became of command {answer.exec_id}",
            hint="exec_wait waits on; exec_output shows what it has said",
        )
    return answer


def _user(cluster: Cluster, node: TopologyNode) -> str | None:
    """Tell who runs commands in a node; where its image has a login of its own, that one does."""
    topology = cluster.topology
    return topology.ssh.user if topology.backend_of(node) is Backend.MICROVM else None


@declare(
    "node_crash",
    "POST /v1/clusters/{cluster}/nodes/{node}/crash",
    role=Role.OPERATOR,
    effect=Effect.DESTROY,
    waits=True,
)
async def node_crash(service: Service, caller: Caller, request: CrashNode) -> Operation:
    """End a node as a power cut would, and boot it again unless told otherwise.

    The operation's result tells how the node is; with a restart it succeeds when the node answers.
    One that does not run cannot crash.
    """
    by = actor(caller, "node_crash")
    room = service.host.clusters
    cluster = await room.records.standing(request.cluster, by)
    node = node_of(cluster, request.node)

    async def work(report: Report) -> JsonValue:
        told = await room.life.crash(
            cluster.cluster_id, node.name, by, report, restart=request.restart
        )
        return told.model_dump(mode="json")

    return await long_call(service, caller, "node_crash", node.machine_id, request.wait_s, work)


CALLS: tuple[Call, ...] = (node_exec, node_exec_all, node_crash)
