"""The campaigns of a daemon: begun, looked at, cancelled, and healed whatever ends them.

A campaign is in the store from before its first fault, and each fault that it injects names it. So
it is known what is to be healed when it ends, when it is cancelled, and when a daemon starts that
finds one nobody ended. A cluster has one at a time. Above stands the service, which makes plans of
schedules; below, a nemesis for each.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.clusters.life import ClusterLife
from microvm_orchestrator.clusters.nemesis import Act, Means, Nemesis, Told, acting
from microvm_orchestrator.clusters.records import ClusterRecords
from microvm_orchestrator.faults.ledger import Ledger
from microvm_orchestrator.faults.plans import Plan
from microvm_orchestrator.model.campaign import CAMPAIGN, Campaign, CampaignState
from microvm_orchestrator.model.cluster import ClusterState
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.operations import Operations, Report
from microvm_orchestrator.store.base import Store, Tell
from microvm_orchestrator.store.every import every_record
from microvm_orchestrator.store.seen import find_seen

# The kind of operation that a campaign is.
OPERATION_KIND = "fault_campaign"
# How many campaigns that have ended are kept to be looked at.
_KEPT = 200


@dataclass(slots=True)
class _Open:
    """A campaign that has not ended."""

    campaign: Campaign
    ended: anyio.Event = field(default_factory=anyio.Event)


class Campaigns:
    """The campaigns of one daemon; they run as long as `running`."""

    def __init__(
        self,
        store: Store,
        records: ClusterRecords,
        life: ClusterLife,
        ledger: Ledger,
        operations: Operations,
    ) -> None:
        self._store = store
        self._records = records
        self._ledger = ledger
        self._operations = operations
        self._open: dict[str, _Open] = {}
        # Clusters that are taken away: nobody needs their nodes again.
        self._forsaken: set[str] = set()
        self._stopping = False
        self._means = Means(
            ledger, life, self._save, store.now, self._wanted, lambda: self._stopping
        )

    async def get(self, campaign_id: str, by: Actor) -> Campaign:
        """Raises: NotFound, also for what `by` cannot see."""
        campaign = await find_seen(self._store, CAMPAIGN, campaign_id, Campaign, by)
        if campaign is None:
            raise errors.NotFound(
                f"no campaign {campaign_id}", hint="fault_campaign_list shows the campaigns"
            )
        return campaign

    async def open(self, campaign: Campaign, acts: Sequence[Act]) -> None:
        """Write down a campaign that is to run.

        Raises: StateForbids while the cluster has another one; FaultNotOffered for what cannot be
            done here.
        """
        for act in acts:
            if isinstance(act, Plan):
                await self._ledger.check(act)
        for other in (each.campaign for each in self._open.values()):
            if other.cluster_id == campaign.cluster_id:
                raise errors.StateForbids(
                    f"cluster {other.cluster} has campaign {other.campaign_id} already, which is "
                    f"{other.state}",
                    hint="fault_campaign_cancel ends it",
                )
        self._known(campaign)
        try:
            # It is begun, or nobody knows of it.
            with anyio.CancelScope(shield=True):
                await self._save(campaign, "opened", {})
        except errors.OrchestratorError:
            del self._open[str(campaign.campaign_id)]
            raise

    async def run(self, campaign: Campaign, acts: Sequence[Act], report: Report) -> Campaign:
        """Take all steps of a campaign that was opened, and heal; also when this is cancelled."""
        nemesis = Nemesis(self._means, campaign, acts)
        end = CampaignState.FAILED
        try:
            await nemesis.through(report)
            end = CampaignState.SUCCEEDED
        except anyio.get_cancelled_exc_class():
            end = CampaignState.INTERRUPTED if self._stopping else CampaignState.CANCELLED
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await nemesis.finish(end)
        return nemesis.campaign

    async def give_up(self, campaign: Campaign) -> None:
        """End a campaign that was opened, and that nobody will run."""
        with anyio.CancelScope(shield=True):
            await Nemesis(self._means, campaign).finish(CampaignState.INTERRUPTED)

    async def cancel(self, campaign: Campaign) -> None:
        """End a campaign, and return when it is healed; one that has ended stays so."""
        known = self._open.get(str(campaign.campaign_id))
        if known is None:
            return
        working = self._operations.at_work(OPERATION_KIND, str(campaign.campaign_id))
        if working is not None:
            await self._operations.cancel(working, acting(campaign))
        await known.ended.wait()

    async def forsake(self, cluster_id: str) -> None:
        """End the campaign of a cluster that is taken away; its nodes are not booted again."""
        self._forsaken.add(cluster_id)
        try:
            for known in list(self._open.values()):
                if known.campaign.cluster_id == cluster_id:
                    await self.cancel(known.campaign)
        finally:
            self._forsaken.discard(cluster_id)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Heal what an earlier daemon left broken; let campaigns run until the block ends.

        It is entered after the operations, so that who is cancelled by the daemon's end knows that.
        """
        records = await every_record(self._store, CAMPAIGN, SYSTEM)
        every = [Campaign.model_validate(record.body) for record in records]
        for old in [each for each in every if each.state.ended][:-_KEPT]:
            await self._store.erase(CAMPAIGN, str(old.campaign_id), SYSTEM)
        async with anyio.create_task_group() as tasks:
            for campaign in every:
                if not campaign.state.ended:
                    self._known(campaign)
                    # Nodes boot meanwhile: nobody waits for that to start the daemon.
                    nemesis = Nemesis(self._means, campaign)
                    tasks.start_soon(nemesis.finish, CampaignState.INTERRUPTED)
            try:
                yield
            finally:
                self._stopping = True
                tasks.cancel_scope.cancel()

    async def _wanted(self, campaign: Campaign) -> bool:
        if campaign.cluster_id in self._forsaken:
            return False
        try:
            cluster = await self._records.get(campaign.cluster_id, acting(campaign))
        except errors.NotFound:
            return False
        return cluster.state is not ClusterState.DESTROYED

    async def _save(self, campaign: Campaign, what: str, told: Told) -> None:
        body = campaign.model_dump(mode="json", exclude_defaults=True)
        more = {"reason": campaign.reason} if campaign.reason else {}
        tell = Tell(what, {"cluster": campaign.cluster, **told, **more}, audited=False)
        record = Record(CAMPAIGN, str(campaign.campaign_id), body)
        await self._store.save(record, acting(campaign), expect=None, tell=tell)
        self._known(campaign)

    def _known(self, campaign: Campaign) -> None:
        name = str(campaign.campaign_id)
        if not campaign.state.ended:
            self._open.setdefault(name, _Open(campaign)).campaign = campaign
        elif name in self._open:
            self._open.pop(name).ended.set()
