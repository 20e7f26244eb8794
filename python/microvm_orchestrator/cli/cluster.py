"""`cluster`: machines that are raised, saved and ended together."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from microvm_orchestrator import errors
from microvm_orchestrator.cli import failure, output, values
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.operation import WaitS, follow
from microvm_orchestrator.cli.options import Cursor, Limit, complete_cluster

app = typer.Typer(help="Clusters: machines and networks that are raised together.")

BRIEF = ("cluster_id", "name", "state", "nodes", "owner", "created_at")
_NODE = ("name", "role", "state", "reachable", "addresses", "reason")
_HANDLE = ("name", "role", "machine", "addresses", "user", "kernel_version")
_SAVED = ("snapshot", "baseline", "state", "memory", "skew_s", "pause_s", "created_at")

ClusterRef = Annotated[
    str,
    typer.Argument(
        metavar="CLUSTER",
        help="The cluster's name or id.",
        autocompletion=complete_cluster,
        show_default=False,
    ),
]
SnapshotName = Annotated[
    str,
    typer.Argument(
        metavar="SNAPSHOT",
        help="The snapshot's name; `baseline` is the one that the topology calls so.",
        show_default=False,
    ),
]


@command(
    app,
    "define",
    example="cluster define --file example-3node.yaml\ncluster define example-3node",
)
def define(
    here: Session,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="A topology that the daemon has by name.", show_default=False
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file", "-f", metavar="FILE", help="A topology of here, in YAML; - is standard input."
        ),
    ] = None,
) -> None:
    """Make a cluster as a topology says: its networks, and a machine for each node.

    Define it again as often as you like: what is missing is made, what is there stays as it is.
    """
    if (name is None) == (file is None):
        raise errors.InvalidInput("say which topology: its NAME, or --file FILE")
    given = {"name": name, "topology": None if file is None else values.content(file)}
    here.tell("cluster_define", given, _show_defined)


def _show_defined(answer: dict[str, Any]) -> None:
    output.table(("name", "role", "backend", "machine_id"), answer["nodes"])
    _say_notes(answer)


@command(app, "schema", example="cluster schema > topology.schema.json")
def schema(here: Session) -> None:
    """Print what a topology may say, as a JSON schema."""
    here.tell("cluster_schema", {}, lambda answer: output.emit_value(answer["json_schema"]))


@command(app, "list", example="cluster list")
def list_(here: Session, limit: Limit = None, cursor: Cursor = None) -> None:
    """List clusters, oldest first: yours, or all if you see everything."""
    nothing = "no clusters; `cluster define --file FILE` makes one"
    given = {"limit": limit, "cursor": cursor}
    here.tell("cluster_list", given, lambda answer: output.page(answer, BRIEF, nothing))


@command(app, "status", example="cluster status example-3node")
def status(here: Session, cluster: ClusterRef) -> None:
    """Look at a cluster: how each node is, and whether its guest answers now."""
    here.tell("cluster_status", {"cluster": cluster}, _show_status)


def _show_status(answer: dict[str, Any]) -> None:
    rows = [
        {**node, "addresses": [text for each in node["addresses"].values() for text in each]}
        for node in answer["nodes"]
    ]
    output.table(_NODE, rows)
    _say_notes(answer)


def _say_notes(answer: dict[str, Any]) -> None:
    for note in answer["notes"]:
        failure.say(note)


@command(app, "handle", example="cluster handle example-3node --json")
def handle(
    here: Session,
    cluster: ClusterRef,
    key: Annotated[
        bool | None,
        typer.Option("--key", help="Tell where the key for nodes with an SSH server lies."),
    ] = None,
) -> None:
    """Tell what it takes to use a cluster: names, addresses, kernels. All its nodes have to run."""
    here.tell("cluster_handle", {"cluster": cluster, "key": key}, _show_handle)


def _show_handle(answer: dict[str, Any]) -> None:
    rows = [
        {**node, "addresses": [text for each in node["addresses"].values() for text in each]}
        for node in answer["nodes"]
    ]
    output.table(_HANDLE, rows)


@command(app, "start", example="cluster start example-3node")
def start(here: Session, cluster: ClusterRef, wait_s: WaitS = None) -> int:
    """Boot all nodes that do not run, at once; a node that fails is named, the others are kept."""
    return follow(here, "cluster_start", {"cluster": cluster}, wait_s, _show_status)


@command(
    app,
    "stop",
    example="cluster stop example-3node\ncluster stop example-3node --mode destroy",
)
def stop(
    here: Session,
    cluster: ClusterRef,
    mode: Annotated[
        Literal["shutdown", "destroy"] | None,
        typer.Option(
            "--mode",
            help="Let guests power off, or end them as a power cut would.",
            show_default=False,
        ),
    ] = None,
    deadline_s: Annotated[
        float | None,
        typer.Option(
            "--deadline-s",
            metavar="SECONDS",
            help="How long a guest may take before it is ended by force; 60 by default.",
        ),
    ] = None,
    wait_s: WaitS = None,
) -> int:
    """Stop all nodes, at once; this ends when none runs any more."""
    given = {"cluster": cluster, "mode": mode, "deadline_s": deadline_s}
    return follow(here, "cluster_stop", given, wait_s, _show_status)


@command(
    app,
    "destroy",
    example="cluster destroy example-3node\ncluster destroy example-3node --delete-disks",
)
def destroy(
    here: Session,
    cluster: ClusterRef,
    delete_disks: Annotated[
        bool | None,
        typer.Option(
            "--delete-disks", help="Delete its disks and snapshots too.", show_default=False
        ),
    ] = None,
    wait_s: WaitS = None,
) -> int:
    """End a cluster; its disks and snapshots are kept for who defines it again."""
    given = {"cluster": cluster, "delete_disks": delete_disks}
    return follow(here, "cluster_destroy", given, wait_s, _show_kept)


def _show_kept(answer: dict[str, Any] | None) -> None:
    if answer is not None:
        output.line(
            f"its disks and snapshots are kept; `cluster define {answer['name']}` or "
            f"`cluster destroy {answer['name']} --delete-disks`"
        )


@command(
    app,
    "snapshot-create",
    example="cluster snapshot-create example-3node clean\n"
    "cluster snapshot-create example-3node disks --no-memory",
)
def snapshot_create(
    here: Session,
    cluster: ClusterRef,
    snapshot: SnapshotName,
    memory: Annotated[
        bool | None,
        typer.Option(
            "--memory/--no-memory",
            help="With what the nodes have in memory; without, they write it down, and boot later.",
            show_default=False,
        ),
    ] = None,
    wait_s: WaitS = None,
) -> int:
    """Save all nodes of a cluster at one moment, with memory and disks; they go on."""
    given = {"cluster": cluster, "snapshot": snapshot, "memory": memory}
    return follow(here, "cluster_snapshot_create", given, wait_s, _show_saved)


def _show_saved(answer: dict[str, Any]) -> None:
    output.table(_SAVED, [answer])


@command(app, "snapshot-list", example="cluster snapshot-list example-3node")
def snapshot_list(here: Session, cluster: ClusterRef) -> None:
    """List the snapshots of a cluster, oldest first."""
    here.tell(
        "cluster_snapshot_list",
        {"cluster": cluster},
        lambda answer: output.page(answer, _SAVED, "no snapshots"),
    )


@command(app, "snapshot-revert", example="cluster snapshot-revert example-3node clean")
def snapshot_revert(
    here: Session, cluster: ClusterRef, snapshot: SnapshotName, wait_s: WaitS = None
) -> int:
    """Put all nodes of a cluster back to where they were saved; what came after is lost."""
    given = {"cluster": cluster, "snapshot": snapshot}
    return follow(here, "cluster_snapshot_revert", given, wait_s, _show_status)


@command(app, "snapshot-delete", example="cluster snapshot-delete example-3node clean")
def snapshot_delete(here: Session, cluster: ClusterRef, snapshot: SnapshotName) -> None:
    """Delete a snapshot of a cluster, be it the newest; the cluster runs on."""
    here.tell("cluster_snapshot_delete", {"cluster": cluster, "snapshot": snapshot})


@command(app, "snapshot-branch", example="cluster snapshot-branch example-3node clean copy")
def snapshot_branch(
    here: Session,
    cluster: ClusterRef,
    snapshot: SnapshotName,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What the copy is called.", show_default=False)
    ],
    wait_s: WaitS = None,
) -> int:
    """Start a copy of a whole cluster where it was saved, in networks of its own."""
    given = {"cluster": cluster, "snapshot": snapshot, "name": name}
    return follow(here, "cluster_snapshot_branch", given, wait_s, _show_status)
