"""How an agent stands, as it is written down.

Whatever becomes known of it goes through here, one change after the other, and is in the store
before anybody acts on it. Above are the life of an agent, its work and those who watch over it;
below, the records.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator.conversations.accounts import inherited
from microvm_orchestrator.model.agent import AgentState
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.model.supervision import Deed
from microvm_orchestrator.model.values import moment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import JsonValue

    from microvm_orchestrator.conversations.accounts import Threshold
    from microvm_orchestrator.conversations.records import AgentRecords
    from microvm_orchestrator.model.agent import Agent
    from microvm_orchestrator.model.agent_budget import AgentBudget, Taken
    from microvm_orchestrator.model.records import Actor
    from microvm_orchestrator.model.supervision import Observation, Supervise

_REASON = 1000
# As much is kept of what was seen of it.
_WATCHED_MOST = 20


class Standing:
    """The record of one agent that lives."""

    def __init__(
        self, agent: Agent, records: AgentRecords, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self.agent = agent
        self._records = records
        self._on_change = on_change
        # One at a time reads and writes it.
        self._writing = anyio.Lock()

    async def change(
        self,
        state: AgentState,
        reason: str = "",
        *,
        of_work: Mapping[str, object] | None = None,
        **known: object,
    ) -> None:
        """Write down how it stands, where that is new."""
        reason = reason[:_REASON]
        told: dict[str, JsonValue] = {"reason": reason} if reason else {}
        known = {"state": state, "reason": reason, **known}
        await self._write(f"{state}", told, known, of_work)

    async def end(self, reason: str, by: Actor, **known: object) -> Agent:
        """Write down that it is over, and why."""
        over = {"state": AgentState.ENDED, "reason": reason[:_REASON], **known}
        over["ended_at"] = moment(time.time())
        await self._write("ended", {}, over, by=by)
        return self.agent

    async def keep(self, what: str, told: Mapping[str, JsonValue], **known: object) -> None:
        """Write down what has become known of its work, where that is new."""
        await self._write(what, told, {}, known)

    async def allow(self, budget: AgentBudget) -> Agent:
        """Give it another budget, from now on."""
        # How it stands may be changing at this moment.
        await self._write("allowed", {}, {"budget": budget, "warned": []})
        return self.agent

    async def warn(self, told: Threshold) -> None:
        """Tell that a share of its budget is reached; once of each."""
        await self._write(
            "budget_warning",
            {
                "measure": told.measure,
                "tree": told.tree,
                "share": told.share,
                "used": told.used,
                "limit": told.limit,
            },
            {"warned": [*self.agent.warned, told.key]},
        )

    async def inherit(self, child: str, total: Taken) -> None:
        """Count for good what a child that is deleted has taken."""
        await self._write(
            "inherited", {}, inherited(self.agent, child, total, self._records.accounts)
        )

    async def observe(self, told: Observation) -> None:
        """Write down what was seen of it and is done, or why that could not be done."""
        last = self.agent.watched
        if told.error is not None:
            last = [each for each in last if each.at != told.at or each.deed is not told.deed]
        body: dict[str, JsonValue] = {"sight": told.sight, "seen": told.what}
        if told.deed is not Deed.NONE:
            body["deed"] = told.deed
        if told.error is not None:
            body["error"] = told.error
        what = "seen" if told.deed is Deed.NONE else "intervened"
        await self._write(what, body, {"watched": [*last, told][-_WATCHED_MOST:]})

    async def supervise(self, how: Supervise | None) -> Agent:
        """Have done from now on what somebody wants, if it does not get on."""
        await self._write("supervised", {"supervise": how}, {"supervise": how})
        return self.agent

    async def _write(
        self,
        what: str,
        told: Mapping[str, JsonValue],
        known: Mapping[str, object],
        of_work: Mapping[str, object] | None = None,
        by: Actor | None = None,
    ) -> None:
        """Write down what is new; `by` somebody it is a deed, which is audited."""
        async with self._writing:
            agent = self.agent.model_copy(update=known)
            if of_work and agent.work is not None:
                work = agent.work.model_copy(update=of_work)
                agent = agent.model_copy(update={"work": work})
            if agent == self.agent:
                return
            with anyio.CancelScope(shield=True):
                await self._records.save(agent, by or SYSTEM, what, told, audited=by is not None)
            self.agent = agent
        self._on_change()
