"""The nemesis of one campaign: takes its steps when they are due, tells what happened, heals.

After Jepsen's. Each step is written down before it is taken, and one is over before the next, as
the history of one process has it. What was broken is healed by `finish`, whoever ends it; also by a
nemesis that knows no more than the record. Above stand the campaigns of the daemon; below, the
ledger of faults and the life of nodes.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import anyio
from pydantic import JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.clusters.each import reason
from microvm_orchestrator.clusters.life import ClusterLife
from microvm_orchestrator.faults.ledger import Ledger
from microvm_orchestrator.faults.plans import Plan
from microvm_orchestrator.model.access import Scope
from microvm_orchestrator.model.campaign import Campaign, CampaignEvent, CampaignState
from microvm_orchestrator.model.records import SYSTEM, Actor
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.operations import Report

_HEAL = "heal"


@dataclass(frozen=True, slots=True)
class Crash:
    """A node ends as by a power cut, and is booted again when that is over."""

    node: str


# What a fault of a schedule comes to.
Act = Plan | Crash
Told = dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Means:
    """What a nemesis works with."""

    ledger: Ledger
    life: ClusterLife
    # Writes a campaign down, and tells the journal what of it and more of that.
    save: Callable[[Campaign, str, Told], Awaitable[None]]
    now: Callable[[], Awaitable[float]]
    # Whether nodes of the cluster are to run again: not where it is taken away.
    wanted: Callable[[Campaign], Awaitable[bool]]
    # Whether the daemon ends, which waits for no node to boot.
    stopping: Callable[[], bool]


class _Step(NamedTuple):
    at_s: float
    # What is over ends before anything else begins.
    begins: bool
    number: int


class Nemesis:
    """Who breaks a cluster by a schedule, and heals it."""

    def __init__(self, means: Means, campaign: Campaign, acts: Sequence[Act] = ()) -> None:
        self.campaign = campaign
        self._means = means
        self._acts = acts
        self._by = acting(campaign)
        self._began_ns = time.monotonic_ns()
        # What each number of the schedule came to, while it holds.
        self._holding: dict[int, str] = {}

    async def through(self, report: Report) -> None:
        """Take all steps; a fault that cannot be injected is told of, and the others follow."""
        began, self._began_ns = anyio.current_time(), time.monotonic_ns()
        await self._save("started", started_at=moment(await self._means.now()))
        schedule = self.campaign.schedule
        steps = [_Step(each.at_s, True, number) for number, each in enumerate(schedule)]  # noqa: FBT003 # as named above
        steps += [_Step(e.at_s + e.for_s, False, number) for number, e in enumerate(schedule)]  # noqa: FBT003 # as named above
        for over, step in enumerate(sorted(steps)):
            kind = schedule[step.number].fault["kind"]
            await report(over / len(steps), f"fault {step.number + 1} of {len(schedule)}: {kind}")
            await anyio.sleep_until(began + step.at_s)
            if step.begins:
                await self._break(step.number)
            else:
                await self._mend(step.number)

    async def finish(self, end: CampaignState) -> None:
        """Heal what is broken still, and write down how it ended.

        Where the daemon ends, nodes that were crashed are left to the next one.
        """
        started_at = self.campaign.started_at
        if started_at is not None and not self._acts:
            # An earlier daemon began it, and the clock on the wall is what it left.
            since_s = await self._means.now() - started_at.timestamp()
            self._began_ns = time.monotonic_ns() - round(since_s * 1e9)
        if self.campaign.history and self.campaign.history[-1].type == "invoke":
            last = self.campaign.history[-1]
            self._add("info", last.f, None, "whoever did this was ended meanwhile")
        await self._save(CampaignState.HEALING, state=CampaignState.HEALING)
        wrong = [await self._heal(fault_id) for fault_id in await self._open_faults()]
        if self.campaign.crashed and self._means.stopping():
            return
        wrong += [await self._boot(node) for node in self.campaign.crashed]
        why = "; ".join(filter(None, wrong))
        state = CampaignState.FAILED if why else end
        await self._save(state, state=state, reason=why, ended_at=moment(await self._means.now()))

    # Steps

    async def _break(self, number: int) -> None:
        asked = dict(self.campaign.schedule[number].fault)
        f = str(asked["kind"])
        match self._acts[number]:
            case Crash(node):
                # Told to be crashed from before it is.
                self._change(crashed=[*self.campaign.crashed, node])
                if await self._take(f, asked, partial(self._crash, node, number)):
                    self._change(crashed=[e for e in self.campaign.crashed if e != node])
            case plan:
                named = replace(plan, campaign_id=self.campaign.campaign_id)
                await self._take(f, asked, partial(self._inject, named, number))

    async def _mend(self, number: int) -> None:
        """End what a number of the schedule came to, if it came to anything."""
        held = self._holding.pop(number, None)
        if held is None:
            return
        if isinstance(self._acts[number], Crash):
            await self._boot(held)
        else:
            await self._heal(held)

    async def _inject(self, plan: Plan, number: int) -> Told:
        fault = await self._means.ledger.inject(plan, self._by)
        self._hold(number, fault.fault_id)
        self._change(fault_ids=[*self.campaign.fault_ids, fault.fault_id])
        return {"fault_id": fault.fault_id}

    async def _crash(self, node: str, number: int) -> Told:
        life = self._means.life
        await life.crash(self.campaign.cluster_id, node, self._by, _unheard, restart=False)
        self._hold(number, node)
        return {"machine": node}

    def _hold(self, number: int, held: str) -> None:
        self._holding[number] = held
        self._change(injected=self.campaign.injected + 1)

    async def _heal(self, fault_id: str) -> str:
        async def heal() -> Told:
            fault = await self._means.ledger.heal(fault_id, self._by)
            return {"fault_id": fault_id, "state": fault.state}

        return await self._take(_HEAL, {"fault_id": fault_id}, heal)

    async def _boot(self, node: str) -> str:
        if not await self._means.wanted(self.campaign):
            return ""

        async def boot() -> Told:
            await self._means.life.revive(self.campaign.cluster_id, node, self._by)
            self._change(crashed=[e for e in self.campaign.crashed if e != node])
            return {"machine": node}

        return await self._take(_HEAL, {"machine": node}, boot)

    async def _open_faults(self) -> list[str]:
        """Name what this campaign has broken, also when nobody was told of it."""
        every = await self._means.ledger.visible(self._by)
        return [
            fault.fault_id
            for fault in every
            if fault.campaign_id == self.campaign.campaign_id and not fault.state.ended
        ]

    # What happened

    async def _take(self, f: str, asked: Told, act: Callable[[], Awaitable[Told]]) -> str:
        """Do something between its two events; why it failed."""
        self._add("invoke", f, asked)
        await self._save(f, asked)
        try:
            self._add("ok", f, await act())
            why = ""
        except errors.OrchestratorError as error:
            why = reason(error)
            self._add("fail", f, asked, why)
        await self._save(f"{f}_failed" if why else f"{f}_done", asked)
        return why

    def _add(
        self,
        how: Literal["invoke", "ok", "fail", "info"],
        f: str,
        value: JsonValue,
        error: str | None = None,
    ) -> None:
        history = self.campaign.history
        # A clock on the wall may have been set back.
        at = max(time.monotonic_ns() - self._began_ns, history[-1].time if history else 0)
        event = CampaignEvent(type=how, f=f, value=value, time=at, error=error)
        self._change(history=[*history, event])

    def _change(self, **changes: object) -> None:
        self.campaign = self.campaign.model_copy(update=changes)

    async def _save(self, what: str, told: Told | None = None, **changes: object) -> None:
        self._change(**changes)
        await self._means.save(self.campaign, what, told or {})


def acting(campaign: Campaign) -> Actor:
    """Who does what a campaign does: it was allowed to whoever began it."""
    words = f"campaign {campaign.campaign_id}"
    return Actor(campaign.owner, SYSTEM.role, "campaign", words, Scope())


async def _unheard(fraction: float | None, message: str) -> None:
    """Tell nobody how far a crash is."""
    del fraction, message
