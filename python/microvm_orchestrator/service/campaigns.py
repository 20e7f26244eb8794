"""Campaigns of faults in a cluster: drawn from a seed or by hand, run, looked at, cancelled.

A schedule speaks of nodes and networks as the topology names them; here each of its faults becomes
a plan, before the first of them is injected. Above are the front ends; below, the campaigns of this
host.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.clusters.campaign_schedule import CRASH, Ground, drawn, ending_s
from microvm_orchestrator.clusters.campaigns import OPERATION_KIND
from microvm_orchestrator.clusters.life import refuse_incomplete
from microvm_orchestrator.clusters.nemesis import Act, Crash
from microvm_orchestrator.clusters.records import node_of
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.campaign import (
    CAMPAIGN,
    MAX_DURATION_S,
    MAX_FAULTS,
    Campaign,
    CampaignState,
    ForS,
    ScheduledFault,
)
from microvm_orchestrator.model.cluster import Cluster
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.operation import Operation
from microvm_orchestrator.model.records import Record
from microvm_orchestrator.model.values import Flag, moment
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.clusters import ClusterRef, NamedCluster
from microvm_orchestrator.service.faults import InjectFault, Named, plan_in
from microvm_orchestrator.service.operations import USUAL_WAIT_S, WaitS, awaited
from microvm_orchestrator.service.page import ListRequest, PageOf
from microvm_orchestrator.service.records import page_of
from microvm_orchestrator.service.service import Service, actor, parse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from microvm_orchestrator.faults.plans import Plan
    from microvm_orchestrator.operations import Report

# Enough for a few faults of each kind, and for a cluster to come to rest in between.
_USUAL_DURATION_S = 60.0
_USUAL_INTERVAL_S = 5.0
_USUAL_HOLD_S = 5.0
# What is said of drawing, and means nothing for a schedule by hand.
_OF_DRAWING = {"seed", "kinds", "duration_s", "interval_s", "hold_s"}


class RunCampaign(NamedCluster):
    """A campaign: what is broken when, by a seed or by hand."""

    seed: Named | None = Field(
        default=None,
        description="draws the schedule, and the same one again for nodes and networks of the same "
        "names; by default another one each time, which is told",
    )
    kinds: Annotated[list[Named], Field(max_length=100)] = Field(
        default=[],
        description="of the faults that are drawn: by default partition, impair, link_down, flap, "
        "pause and crash, as far as they can be in this cluster; dns, slow_cpu, clock_skew, "
        "disk_slow, disk_error, disk_full and memory too where they are named",
    )
    duration_s: ForS = Field(
        default=_USUAL_DURATION_S, description="within which all that is drawn is over"
    )
    interval_s: ForS = Field(
        default=_USUAL_INTERVAL_S,
        description="from when a fault is over until the next one: half of it to half as much "
        "again, as it is drawn",
    )
    hold_s: ForS = Field(
        default=_USUAL_HOLD_S, description="how long each fault holds, drawn in the same way"
    )
    schedule: Annotated[list[ScheduledFault], Field(max_length=MAX_FAULTS)] = Field(
        default=[], description="by hand instead; faults may be at the same time"
    )
    dry_run: Flag = Field(default=False, description="whether only to tell the schedule")
    wait_s: WaitS = USUAL_WAIT_S


class NamedCampaign(Request):
    """A campaign."""

    campaign_id: Named


class CampaignListRequest(ListRequest):
    """Which campaigns."""

    cluster: ClusterRef | None = Field(default=None, description="only of this cluster")


class CrashFault(Answer):
    """A node to crash by a schedule."""

    kind: str
    machine: Named


@declare(
    "fault_campaign", "POST /v1/campaigns", role=Role.OPERATOR, effect=Effect.DESTROY, waits=True
)
async def fault_campaign(service: Service, caller: Caller, request: RunCampaign) -> Operation:
    """Break a cluster again and again by a schedule, write down what happened, and heal it.

    The schedule is drawn from a seed, or given by hand; `dry_run` only tells it. The operation's
    target is the campaign, which fault_campaign_get shows with its schedule and with a history for
    checkers. What it has broken is healed when it ends, also when it is cancelled, and at the next
    start if the daemon ends meanwhile. A fault that cannot be injected is written down as failed,
    and the others follow.
    """
    by = actor(caller, "fault_campaign")
    cluster = await service.host.clusters.records.standing(request.cluster, by)
    refuse_incomplete(cluster)
    seed, schedule = _schedule(request, _ground(cluster))
    acts = [_act(cluster, number, each) for number, each in enumerate(schedule)]
    campaign = Campaign(
        campaign_id=None if request.dry_run else new_id("campaign"),
        cluster_id=cluster.cluster_id,
        cluster=cluster.name,
        owner=by.name,
        state=CampaignState.DRAWN if request.dry_run else CampaignState.RUNNING,
        seed=seed,
        schedule=schedule,
        created_at=moment(await service.store.now()),
    )
    campaigns = service.host.campaigns

    async def work(report: Report) -> JsonValue:
        ran = campaign if request.dry_run else await campaigns.run(campaign, acts, report)
        return ran.model_dump(mode="json")

    operations = service.host.operations
    target = campaign.campaign_id or cluster.cluster_id
    if not request.dry_run:
        await campaigns.open(campaign, acts)
    try:
        begun = await operations.begin(OPERATION_KIND, target, by, work)
    except BaseException:
        if not request.dry_run:
            await campaigns.give_up(campaign)
        raise
    return await awaited(service, caller, by, begun.operation_id, request.wait_s)


@declare(
    "fault_campaign_get", "GET /v1/campaigns/{campaign_id}", role=Role.VIEWER, effect=Effect.READ
)
async def fault_campaign_get(service: Service, caller: Caller, request: NamedCampaign) -> Campaign:
    """Look at a campaign: its schedule, where it stands, its faults, and what was done when."""
    by = actor(caller, "fault_campaign_get")
    return await service.host.campaigns.get(request.campaign_id, by)


@declare("fault_campaign_list", "GET /v1/campaigns", role=Role.VIEWER, effect=Effect.READ)
async def fault_campaign_list(
    service: Service, caller: Caller, request: CampaignListRequest
) -> PageOf[Campaign]:
    """List campaigns, oldest first: yours, or all if you see everything. Histories are left out."""
    by = actor(caller, "fault_campaign_list")

    async def shown(record: Record) -> Campaign | None:
        campaign = Campaign.model_validate(record.body)
        named = request.cluster in {None, campaign.cluster, campaign.cluster_id}
        if not named or not by.sees_of(campaign.owner):
            return None
        return campaign.model_copy(update={"history": []})

    items, cursor = await page_of(service.store, CAMPAIGN, request, by, shown)
    return PageOf[Campaign](items=items, next_cursor=cursor)


@declare(
    "fault_campaign_cancel",
    "POST /v1/campaigns/{campaign_id}/cancel",
    role=Role.OPERATOR,
    idempotent=True,
    waits=True,
)
async def fault_campaign_cancel(
    service: Service, caller: Caller, request: NamedCampaign
) -> Campaign:
    """End a campaign, and see that what it has broken is whole; one that has ended stays so."""
    by = actor(caller, "fault_campaign_cancel")
    campaigns = service.host.campaigns
    campaign = await campaigns.get(request.campaign_id, by)
    await service.store.note(by, request.campaign_id, "ok")
    await campaigns.cancel(campaign)
    return await campaigns.get(request.campaign_id, by)


def _schedule(request: RunCampaign, ground: Ground) -> tuple[str | None, list[ScheduledFault]]:
    """Draw a schedule, or take that by hand. Raises: InvalidInput, TooLarge."""
    if not request.schedule:
        seed = request.seed or secrets.token_hex(4)
        return seed, drawn(
            seed,
            ground,
            duration_s=request.duration_s,
            interval_s=request.interval_s,
            hold_s=request.hold_s,
            kinds=request.kinds,
        )
    if idle := sorted(_OF_DRAWING & request.model_fields_set):
        raise errors.InvalidInput(f"{idle[0]} is for a schedule that is drawn, and this one is not")
    if ending_s(request.schedule) > MAX_DURATION_S:
        raise errors.InvalidInput(f"a campaign takes at most {MAX_DURATION_S:g} s")
    return None, request.schedule


def _ground(cluster: Cluster) -> Ground:
    topology = cluster.topology
    networks: dict[str, list[str]] = {each.name: [] for each in topology.every_network}
    for node in topology.nodes:
        for nic in topology.nics_of(node):
            networks[nic.name].append(node.name)
    return Ground(
        nodes=sorted(node.name for node in topology.nodes),
        networks={name: sorted(nodes) for name, nodes in networks.items()},
    )


def _act(cluster: Cluster, number: int, scheduled: ScheduledFault) -> Act:
    """Make of a fault what is to be done. Raises: InvalidInput, which names it."""
    try:
        if scheduled.fault.get("kind") == CRASH:
            crash = parse(CrashFault, scheduled.fault)
            return Crash(node_of(cluster, crash.machine).name)
        return _plan(cluster, scheduled.fault)
    except (errors.InvalidInput, errors.NotFound, errors.TooLarge) as error:
        raise errors.InvalidInput(f"schedule[{number}]: {error.message}") from error


def _plan(cluster: Cluster, fault: Mapping[str, JsonValue]) -> Plan:
    """Raises: InvalidInput, NotFound, TooLarge."""
    request = parse(InjectFault, fault)
    if request.ttl_s is not None:
        raise errors.InvalidInput("for_s tells how long it holds, and not ttl_s")
    if request.idempotency_key is not None:
        raise errors.InvalidInput("a fault of a schedule has no idempotency_key")
    if request.cluster is not None:
        raise errors.InvalidInput("a fault of a schedule is in the campaign's own cluster")
    return plan_in(cluster, request)


CALLS: tuple[Call, ...] = (
    fault_campaign,
    fault_campaign_get,
    fault_campaign_list,
    fault_campaign_cancel,
)
