"""Campaigns whose daemon is killed: whatever it was doing, the next one makes all whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from clustering import unreported
from faulting import ALICE, NETWORK, Doom, Ground, Killed, ground
from microvm_orchestrator import errors
from microvm_orchestrator.clusters.campaigns import Campaigns
from microvm_orchestrator.clusters.history import event_of, operations
from microvm_orchestrator.faults.grudges import groups_apart
from microvm_orchestrator.faults.ledger import Ledger
from microvm_orchestrator.faults.plans import link_down, partition
from microvm_orchestrator.model.campaign import Campaign, CampaignState, ScheduledFault
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.operations import Operations

if TYPE_CHECKING:
    from pathlib import Path

    from microvm_orchestrator.clusters.life import ClusterLife
    from microvm_orchestrator.clusters.records import ClusterRecords
    from microvm_orchestrator.store.base import Store

pytestmark = pytest.mark.anyio

# Each begins before the other is over.
SCHEDULE = [
    ScheduledFault(at_s=0.0, for_s=0.02, fault={"kind": "partition"}),
    ScheduledFault(at_s=0.01, for_s=0.02, fault={"kind": "link_down"}),
]
ACTS = [
    partition(NETWORK.network_id, groups_apart([["a", "b"], ["c", "d", "e"]])),
    link_down(NETWORK.network_id, "d", ["a", "b", "c", "d", "e"]),
]


def campaigns(store: Store, ledger: Ledger) -> Campaigns:
    # Who crashes no node asks nothing of clusters.
    records, life = cast("ClusterRecords", None), cast("ClusterLife", None)
    return Campaigns(store, records, life, ledger, Operations(store))


async def killed_at(world: Ground, step: int, campaign: Campaign) -> bool:
    """Run a campaign in a daemon that is killed after so many steps, if it takes as many."""
    doom = Doom()
    ledger = world.doomed(doom)
    await ledger.reconcile()
    await ledger.settle()
    room = campaigns(cast("Store", doom.over(world.store)), ledger)
    doom.comes_at(step)
    try:
        await room.open(campaign, ACTS)
        await room.run(campaign, ACTS, unreported)
    except Killed:
        return True
    return False


async def test_a_daemon_that_is_killed_between_any_two_steps_leaves_nothing_broken(
    tmp_path: Path, whole: bool
) -> None:
    async with ground("switch", tmp_path) as world:
        pristine = await world.dump()
        step, interrupted = 0, 0
        while True:
            campaign = Campaign(
                campaign_id=new_id("campaign"),
                cluster_id="c",
                cluster="trio",
                owner=ALICE.name,
                state=CampaignState.RUNNING,
                schedule=SCHEDULE,
                created_at=moment(await world.store.now()),
            )
            killed = await killed_at(world, step, campaign)
            await world.restart()
            room = campaigns(world.store, world.ledger)
            async with room.running():
                await room.cancel(campaign)
            every = await world.ledger.visible(SYSTEM)
            assert [fault for fault in every if not fault.state.ended] == []
            assert await world.dump() == pristine
            told: Campaign | None = None
            try:
                told = await room.get(str(campaign.campaign_id), SYSTEM)
            except errors.NotFound:
                assert step < 5  # nobody had heard of it
            else:
                assert told.state.ended
                interrupted += told.state is CampaignState.INTERRUPTED
                # All that it had begun has an end, and all that is known of it is there.
                done = operations(
                    event_of(each.model_dump_json(), "the history") for each in told.history
                )
                assert all(each.end is not None or each.outcome == "info" for each in done)
                of_it = {fault.fault_id for fault in every if fault.campaign_id == told.campaign_id}
                assert set(told.fault_ids) <= of_it
            if not killed:
                assert told is not None
                assert told.state is CampaignState.SUCCEEDED
                break
            step += 1 if whole else 7
        assert interrupted > 5
