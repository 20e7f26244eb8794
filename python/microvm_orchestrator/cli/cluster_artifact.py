"""`cluster artifact-sync` and `node source-build` and the like: builds in the nodes of clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from microvm_orchestrator.cli import failure, output, values
from microvm_orchestrator.cli.artifact_tree import TreeRef
from microvm_orchestrator.cli.cluster import ClusterRef
from microvm_orchestrator.cli.cluster import app as cluster_app
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.node import Env, NodeName
from microvm_orchestrator.cli.node import app as node_app
from microvm_orchestrator.cli.operation import WaitS, see_through, status_of
from microvm_orchestrator.cli.repo import path_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_SYNCED = ("node", "skipped", "sent_files", "sent_bytes", "seconds", "path")
_INSTALLED = ("node", "mode", "exit_code", "timed_out", "seconds")

Nodes = Annotated[
    list[str] | None,
    typer.Option("--node", metavar="NODE", help="Only this one; may be repeated."),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--dest-base",
        metavar="FOLDER",
        help="The folder of the nodes; /opt/vmcluster/artifacts by default.",
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout-s", metavar="SECONDS", help="When it is ended in the node."),
]


@command(
    cluster_app,
    "artifact-sync",
    example=f"cluster artifact-sync example-3node {'0f' * 32} --node worker-0",
)
def artifact_sync(
    here: Session,
    cluster: ClusterRef,
    artifact_id: TreeRef,
    nodes: Nodes = None,
    dest_base: Base = None,
    force: Annotated[
        bool | None,
        typer.Option("--force", help="Also to nodes that have it.", show_default=False),
    ] = None,
    wait_s: WaitS = None,
) -> int:
    """Bring an artifact to all nodes, or to some; exit with 0 if all have it, else 1."""
    given = {
        "cluster": cluster,
        "artifact_id": artifact_id,
        "nodes": nodes or None,
        "dest_base": dest_base,
        "force": force,
    }
    return _in_nodes(here, "cluster_artifact_sync", given, wait_s, _SYNCED)


@command(
    cluster_app,
    "artifact-install",
    example=f"cluster artifact-install example-3node {'0f' * 32} --load",
)
def artifact_install(
    here: Session,
    cluster: ClusterRef,
    artifact_id: TreeRef,
    nodes: Nodes = None,
    dest_base: Base = None,
    mode: Annotated[
        str | None,
        typer.Option(
            "--mode",
            metavar="modprobe_path|make_install|rpm|deb",
            help="How; by default as its build type says.",
        ),
    ] = None,
    load: Annotated[
        bool | None,
        typer.Option("--load", help="Load its modules too.", show_default=False),
    ] = None,
    timeout_s: Timeout = None,
    wait_s: WaitS = None,
) -> int:
    """Install an artifact in all nodes, or in some; exit with 0 if it is in all of them, else 1."""
    given = {
        "cluster": cluster,
        "artifact_id": artifact_id,
        "nodes": nodes or None,
        "dest_base": dest_base,
        "mode": mode,
        "load": load,
        "timeout_s": timeout_s,
    }
    return _in_nodes(here, "cluster_artifact_install", given, wait_s, _INSTALLED)


def _in_nodes(
    here: Session,
    call: str,
    given: Mapping[str, object],
    wait_s: float | None,
    columns: tuple[str, ...],
) -> int:
    def show(told: dict[str, Any]) -> None:
        dealt_with = [each for each in told["nodes"].values() if each["error"] is None]
        if dealt_with:
            output.table(columns, dealt_with)
        for name in told["failed_nodes"]:
            one = told["nodes"][name]
            failure.say(f"{name}: {one['output'] if one['error'] is None else _why(one)}")

    operation = see_through(here, call, given, wait_s, show)
    status = status_of(operation, tell=not here.json)
    result = operation["result"]
    return 1 if status == failure.OK and result and not result["all_succeeded"] else status


def _why(one: dict[str, Any]) -> str:
    return str(one["error"]["message"])


@command(
    node_app,
    "source-sync",
    example="node source-sync example-3node worker-0 ~/src/driver /srv/driver",
)
def source_sync(
    here: Session,
    cluster: ClusterRef,
    node: NodeName,
    local_path: Annotated[
        str,
        typer.Argument(metavar="FOLDER", help="A folder of the daemon's host.", show_default=False),
    ],
    remote_path: Annotated[
        str, typer.Argument(metavar="PATH", help="The folder of the node.", show_default=False)
    ],
    wait_s: WaitS = None,
) -> int:
    """Bring a folder to a node: what differs is sent, and what else is there stays."""
    given = {
        "cluster": cluster,
        "node": node,
        "local_path": path_of(local_path),
        "remote_path": remote_path,
    }
    operation = see_through(here, "node_source_sync", given, wait_s, output.show)
    return status_of(operation, tell=not here.json)


@command(
    node_app,
    "source-build",
    example="node source-build example-3node worker-0 /srv/driver 'make -j2' --binary driver.ko",
)
def source_build(
    here: Session,
    cluster: ClusterRef,
    node: NodeName,
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Where it is built.", show_default=False)
    ],
    command: Annotated[
        str, typer.Argument(metavar="COMMAND", help="Run by /bin/sh -c.", show_default=False)
    ],
    binary: Annotated[
        str | None,
        typer.Option("--binary", metavar="FILE", help="What it makes: digested in the end."),
    ] = None,
    env: Env = None,
    timeout_s: Timeout = None,
    wait_s: WaitS = None,
) -> int:
    """Build in a node, show what was complained of, and exit as the build did."""
    given = {
        "cluster": cluster,
        "node": node,
        "path": path,
        "command": command,
        "binary": binary,
        "env": values.pairs(env, "--env"),
        "timeout_s": timeout_s,
    }
    operation = see_through(here, "node_source_build", given, wait_s, _show_built)
    status = status_of(operation, tell=not here.json)
    result = operation["result"]
    if status != failure.OK or not result:
        return status
    return 124 if result["timed_out"] else 1 if result["exit_code"] is None else result["exit_code"]


def _show_built(built: dict[str, Any]) -> None:
    for each in built["diagnostics"]:
        place = ":".join(str(part) for part in (each["file"], each["line"]) if part is not None)
        output.line(f"{place or built['node']}: {each['severity']}: {each['message']}")
    if not built["diagnostics"] and built["exit_code"] != 0:
        output.line(built["output"])
    if built["binary"] is not None:
        output.line(f"{built['binary']} ({built['binary_size']} bytes)")
