"""`fault campaign`: a cluster broken again and again by a schedule, and healed."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from microvm_orchestrator.cli import output, values
from microvm_orchestrator.cli.cluster import ClusterRef
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.fault import app
from microvm_orchestrator.cli.operation import WaitS, follow
from microvm_orchestrator.cli.options import Cursor, Limit, complete_campaign, complete_cluster

__all__ = ["app"]

BRIEF = ("campaign_id", "cluster", "state", "seed", "injected", "created_at", "ended_at")

CampaignId = Annotated[
    str,
    typer.Argument(
        metavar="CAMPAIGN",
        help="The campaign's id.",
        autocompletion=complete_campaign,
        show_default=False,
    ),
]


@command(
    app,
    "campaign",
    example="fault campaign trio --seed 7 --duration-s 30 --dry-run\n"
    "fault campaign trio --seed 7 --kind partition --kind crash --hold-s 10\n"
    "fault campaign trio --schedule @faults.json",
)
def campaign(
    here: Session,
    cluster: ClusterRef,
    seed: Annotated[
        str | None,
        typer.Option("--seed", metavar="SEED", help="Draws the same schedule again."),
    ] = None,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--kind", metavar="KIND", help="Of faults to draw, by default all; may be repeated."
        ),
    ] = None,
    duration_s: Annotated[
        float | None,
        typer.Option("--duration-s", metavar="S", help="Within which it is over; 60 by default."),
    ] = None,
    interval_s: Annotated[
        float | None,
        typer.Option("--interval-s", metavar="S", help="About so long before a fault; 5."),
    ] = None,
    hold_s: Annotated[
        float | None,
        typer.Option("--hold-s", metavar="S", help="About how long each fault holds; 5."),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule", metavar="JSON", help="By hand instead: JSON, or @FILE, or - for stdin."
        ),
    ] = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell the schedule.", show_default=False)
    ] = False,
    wait_s: WaitS = None,
) -> int:
    """Break a cluster again and again by a schedule, and heal it at the end whatever happens."""
    given = {
        "cluster": cluster,
        "seed": seed,
        "kinds": kinds or None,
        "duration_s": duration_s,
        "interval_s": interval_s,
        "hold_s": hold_s,
        "schedule": values.json_value(schedule, "--schedule"),
        "dry_run": dry_run or None,
    }
    return follow(here, "fault_campaign", given, wait_s, _show)


@command(app, "campaign-get", example="fault campaign-get campaign_01k6vq...")
def campaign_get(here: Session, campaign_id: CampaignId) -> None:
    """Look at a campaign: its schedule, where it stands, and what was done when."""
    here.tell("fault_campaign_get", {"campaign_id": campaign_id}, _show)


@command(app, "campaign-list", example="fault campaign-list --cluster trio")
def campaign_list(
    here: Session,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster",
            metavar="CLUSTER",
            help="Only of this cluster.",
            autocompletion=complete_cluster,
        ),
    ] = None,
    limit: Limit = None,
    cursor: Cursor = None,
) -> None:
    """List campaigns, oldest first: yours, or all if you see everything."""
    nothing = "no campaigns; `fault campaign CLUSTER` runs one"
    given = {"cluster": cluster, "limit": limit, "cursor": cursor}
    here.tell("fault_campaign_list", given, lambda answer: output.page(answer, BRIEF, nothing))


@command(app, "campaign-cancel", example="fault campaign-cancel campaign_01k6vq...")
def campaign_cancel(here: Session, campaign_id: CampaignId) -> None:
    """End a campaign, and see that what it has broken is whole again."""
    here.tell("fault_campaign_cancel", {"campaign_id": campaign_id}, _show)


def _show(campaign: dict[str, Any]) -> None:
    """Show a campaign: what it is, its schedule, and what was done."""
    tables = ("schedule", "history")
    output.record({name: item for name, item in campaign.items() if name not in tables})
    rows = [
        {
            "at_s": each["at_s"],
            "for_s": each["for_s"],
            "kind": each["fault"]["kind"],
            "what": _words(each["fault"], but="kind"),
        }
        for each in campaign["schedule"]
    ]
    output.line("")
    output.table(("at_s", "for_s", "kind", "what"), rows)
    done = [
        {
            "seconds": f"{each['time'] / 1e9:.3f}",
            "what": each["f"],
            "came": each["type"],
            "about": each["error"] or _words(each["value"], but="kind"),
        }
        for each in campaign["history"]
    ]
    if done:
        output.line("")
        output.table(("seconds", "what", "came", "about"), done)


def _words(fault: dict[str, Any] | None, but: str = "") -> str:
    return " ".join(
        f"{name}={output.cell(name, item)}" for name, item in (fault or {}).items() if name != but
    )
