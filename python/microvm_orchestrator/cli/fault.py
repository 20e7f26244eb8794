"""`fault`: what is broken on purpose between machines, and what they suffer themselves."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from microvm_orchestrator import errors
from microvm_orchestrator.cli import output
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.options import (
    IdempotencyKey,
    complete_cluster,
    complete_fault,
    complete_machine,
    complete_network,
)

app = typer.Typer(
    help="Faults: bad links between machines, and machines that suffer; injected and healed."
)

BRIEF = ("fault_id", "kind", "state", "network_id", "machines", "heals_at", "created_at")

FaultId = Annotated[
    str,
    typer.Argument(
        metavar="FAULT", help="The fault's id.", autocompletion=complete_fault, show_default=False
    ),
]
OnlyNetwork = Annotated[
    str | None,
    typer.Option(
        "--network",
        metavar="NETWORK",
        help="Only of this network.",
        autocompletion=complete_network,
    ),
]
OnlyCluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="CLUSTER",
        help="Only in its networks and of its nodes, as which machines are named then.",
        autocompletion=complete_cluster,
    ),
]
OnlyMachine = Annotated[
    str | None,
    typer.Option(
        "--machine",
        metavar="MACHINE",
        help="Only what affects this machine.",
        autocompletion=complete_machine,
    ),
]


@command(
    app,
    "inject",
    example="fault inject partition --network lan --group a,b --group c --ttl-s 60\n"
    "fault inject partition --network lan --shape majorities_ring --shuffle 7\n"
    "fault inject impair --network lan --machine a --target b --delay-s 0.1 --loss 0.05 --seed 7\n"
    "fault inject impair --network lan --machine a --mtu 1280\n"
    "fault inject partition --cluster trio --group n1 --group n2,n3\n"
    "fault inject link_down --network lan --machine a\n"
    "fault inject flap --network lan --machine a --down-s 2 --up-s 8 --count 5\n"
    "fault inject dns --network lan --machine a --target resolver\n"
    "fault inject pause --machine a --ttl-s 10\n"
    "fault inject clock_skew --machine a --skew-s -300",
)
def inject(
    here: Session,
    kind: Annotated[
        Literal[
            "partition",
            "impair",
            "link_down",
            "flap",
            "dns",
            "pause",
            "slow_cpu",
            "clock_skew",
            "disk_slow",
            "disk_error",
            "disk_full",
            "memory",
        ],
        typer.Argument(help="What is broken.", show_default=False),
    ],
    network: Annotated[
        str | None,
        typer.Option(
            "--network",
            metavar="NETWORK",
            help="The network's name or id, where it is between machines.",
            autocompletion=complete_network,
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="CLUSTER",
            help="Whose nodes machines are, and whose topology names the network.",
            autocompletion=complete_cluster,
        ),
    ] = None,
    shape: Annotated[
        Literal["groups", "one_way", "halves", "single", "bridge", "majorities_ring", "grudges"]
        | None,
        typer.Option("--shape", help="How a partition parts machines; by default in groups."),
    ] = None,
    groups: Annotated[
        list[str] | None,
        typer.Option("--group", metavar="A,B", help="A group of a partition; may be repeated."),
    ] = None,
    grudges: Annotated[
        list[str] | None,
        typer.Option(
            "--grudge", metavar="A=B,C", help="Whom a machine does not hear; may be repeated."
        ),
    ] = None,
    machine: Annotated[
        str | None,
        typer.Option(
            "--machine",
            metavar="MACHINE",
            help="Single, with its link down, its frames or questions unheard; or that suffers.",
            autocompletion=complete_machine,
        ),
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="MACHINE",
            help="For whom frames or questions are, by default all others; may be repeated.",
            autocompletion=complete_machine,
        ),
    ] = None,
    shuffle: Annotated[
        str | None,
        typer.Option(
            "--shuffle", metavar="SEED", help="Of the order of machines; by default by name."
        ),
    ] = None,
    delay_s: Annotated[
        float | None, typer.Option("--delay-s", metavar="S", help="How late frames come.")
    ] = None,
    jitter_s: Annotated[
        float | None,
        typer.Option("--jitter-s", metavar="S", help="How far delays are from that."),
    ] = None,
    spread: Annotated[
        Literal["uniform", "normal", "pareto"] | None,
        typer.Option("--spread", help="How delays lie around their middle."),
    ] = None,
    loss: Annotated[
        float | None, typer.Option("--loss", metavar="SHARE", help="Lost, from 0 to 1.")
    ] = None,
    loss_correlation: Annotated[
        float | None,
        typer.Option(
            "--loss-correlation",
            metavar="SHARE",
            help="How much the loss of a frame follows that of the one before.",
        ),
    ] = None,
    bursts: Annotated[
        list[float] | None,
        typer.Option(
            "--burst",
            metavar="SHARE",
            help="Twice or more: chances to turn bad and good again, shares lost meanwhile.",
        ),
    ] = None,
    corrupt: Annotated[
        float | None,
        typer.Option("--corrupt", metavar="SHARE", help="With one bit changed, from 0 to 1."),
    ] = None,
    duplicate: Annotated[
        float | None,
        typer.Option("--duplicate", metavar="SHARE", help="Coming twice, from 0 to 1."),
    ] = None,
    reorder: Annotated[
        float | None,
        typer.Option("--reorder", metavar="SHARE", help="Out of their turn, from 0 to 1."),
    ] = None,
    rate_bytes: Annotated[
        int | None,
        typer.Option("--rate-bytes", metavar="N", help="What passes in a second."),
    ] = None,
    mtu: Annotated[
        int | None,
        typer.Option("--mtu", metavar="N", help="Larger packets vanish, and nobody is told."),
    ] = None,
    seed: Annotated[
        str | None,
        typer.Option("--seed", metavar="SEED", help="Repeats the luck of impaired frames."),
    ] = None,
    cpu_share: Annotated[
        float | None,
        typer.Option("--cpu-share", metavar="SHARE", help="Of one processor that is left."),
    ] = None,
    skew_s: Annotated[
        float | None,
        typer.Option("--skew-s", metavar="S", help="How far the clock goes ahead."),
    ] = None,
    disk_bytes_s: Annotated[
        int | None,
        typer.Option("--disk-bytes-s", metavar="N", help="What each disk passes in a second."),
    ] = None,
    disk_operations_s: Annotated[
        int | None,
        typer.Option("--disk-operations-s", metavar="N", help="What each disk passes in a second."),
    ] = None,
    fails: Annotated[
        Literal["reads", "writes", "both"] | None,
        typer.Option("--fails", help="Which of a disk's, by default both."),
    ] = None,
    path: Annotated[
        str | None,
        typer.Option("--path", metavar="PATH", help="A folder of the guest where nothing is free."),
    ] = None,
    memory_mib: Annotated[
        int | None,
        typer.Option("--memory-mib", metavar="N", help="What is taken of the guest's."),
    ] = None,
    down_s: Annotated[
        float | None,
        typer.Option("--down-s", metavar="S", help="How long a flapping link is down at a time."),
    ] = None,
    up_s: Annotated[
        float | None,
        typer.Option("--up-s", metavar="S", help="How long it is up in between."),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("--count", metavar="N", help="How often it is down; for ever by default."),
    ] = None,
    ttl_s: Annotated[
        float | None,
        typer.Option("--ttl-s", metavar="S", help="After which it heals, unless it is renewed."),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="LABEL", help="A name of your own, told again with it."),
    ] = None,
    idempotency_key: IdempotencyKey = None,
) -> None:
    """Break something between the machines of a network, or let one suffer, on purpose.

    It holds through restarts until it is healed, or its time is over.
    """
    given = {
        "cluster": cluster,
        "network": network,
        "kind": kind,
        "shape": shape,
        "groups": groups and [group.split(",") for group in groups],
        "grudges": grudges and dict(_grudge(each) for each in grudges),
        "machine": machine,
        "targets": targets,
        "shuffle": shuffle,
        "delay_s": delay_s,
        "jitter_s": jitter_s,
        "spread": spread,
        "loss": loss,
        "loss_correlation": loss_correlation,
        "bursts": bursts,
        "corrupt": corrupt,
        "duplicate": duplicate,
        "reorder": reorder,
        "rate_bytes": rate_bytes,
        "mtu": mtu,
        "seed": seed,
        "cpu_share": cpu_share,
        "skew_s": skew_s,
        "disk_bytes_s": disk_bytes_s,
        "disk_operations_s": disk_operations_s,
        "fails": fails,
        "path": path,
        "memory_mib": memory_mib,
        "down_s": down_s,
        "up_s": up_s,
        "count": count,
        "ttl_s": ttl_s,
        "label": label,
        "idempotency_key": idempotency_key,
    }
    here.tell("fault_inject", given, output.record)


def _grudge(text: str) -> tuple[str, list[str]]:
    deaf, equals, unheard = text.partition("=")
    if not equals:
        raise errors.InvalidInput(f"--grudge {text} is not written machine=others")
    return deaf, unheard.split(",")


@command(app, "get", example="fault get fault_01k6vq...")
def get(here: Session, fault_id: FaultId) -> None:
    """Look at a fault: where it stands, and what it does to which ways."""
    here.tell("fault_get", {"fault_id": fault_id}, output.record)


@command(app, "list", example="fault list\nfault list --network lan --ended")
def list_(
    here: Session,
    cluster: OnlyCluster = None,
    network: OnlyNetwork = None,
    machine: OnlyMachine = None,
    *,
    ended: Annotated[bool, typer.Option("--ended", help="Also those that have ended.")] = False,
) -> None:
    """List faults, oldest first: yours, or all if you see everything."""
    nothing = "no faults; `fault inject` makes one"
    given = {"cluster": cluster, "network": network, "machine": machine, "ended": ended or None}
    here.tell("fault_list", given, lambda answer: output.page(answer, BRIEF, nothing))


@command(app, "renew", example="fault renew fault_01k6vq... --ttl-s 60")
def renew(
    here: Session,
    fault_id: FaultId,
    ttl_s: Annotated[
        float,
        typer.Option(
            "--ttl-s", metavar="S", help="From now on, after which it heals.", show_default=False
        ),
    ],
) -> None:
    """Let a fault last for some more time, from now on, before it heals by itself."""
    here.tell("fault_renew", {"fault_id": fault_id, "ttl_s": ttl_s}, output.record)


@command(app, "heal", example="fault heal fault_01k6vq...")
def heal(here: Session, fault_id: FaultId) -> None:
    """End a fault, and see that it is gone; one that has ended stays so."""
    here.tell("fault_heal", {"fault_id": fault_id}, output.record)


@command(
    app,
    "heal-all",
    example="fault heal-all\nfault heal-all --network lan\nfault heal-all --cluster trio",
)
def heal_all(
    here: Session,
    cluster: OnlyCluster = None,
    network: OnlyNetwork = None,
    machine: OnlyMachine = None,
) -> None:
    """End all faults that you see, or those of a network, machine or cluster, and count them."""
    here.tell("fault_heal_all", {"cluster": cluster, "network": network, "machine": machine})
