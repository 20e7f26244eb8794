"""Who looks after agents: what is told, what is done, how often, and who hears of it in the end.

The agents here are records that a script changes, and time is what the script says.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import anyio
import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.conversations.accounts import Accounts
from microvm_orchestrator.conversations.supervisor import Supervisor
from microvm_orchestrator.conversations.tally import Tallies
from microvm_orchestrator.model.agent import AgentState, Message, MessageState
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.model.supervision import Deed, Observation, Sight, Supervise
from microvm_orchestrator.model.task import TaskError
from microvm_orchestrator.model.values import moment
from unit.conversations.test_accounts import agent
from unit.conversations.test_watching import POLICY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microvm_orchestrator.conversations.watching import Policy
    from microvm_orchestrator.model.agent import Agent
    from microvm_orchestrator.model.agent_role import AgentRole


@dataclass
class Scripted:
    """An agent that stands as the script says."""

    agent: Agent
    room: Room
    waiting: int = 0
    broken_off: list[str] = field(default_factory=list[str])

    @property
    def standing(self) -> Scripted:
        return self

    async def observe(self, told: Observation) -> None:
        watched = [*self.agent.watched, told]
        if told.error is not None:
            watched = [*self.agent.watched[:-1], told]
        self.agent = self.agent.model_copy(update={"watched": watched})

    async def break_off(self, why: str) -> None:
        self.broken_off.append(why)

    def stands(self, state: AgentState, reason: str = "") -> None:
        self.agent = self.agent.model_copy(update={"state": state, "reason": reason})
        self.room.accounts.learn(self.agent)

    @property
    def done(self) -> list[tuple[Sight, Deed]]:
        return [(each.sight, each.deed) for each in self.agent.watched]


class Room:
    """A host with scripted agents, and a clock that is moved by hand."""

    def __init__(self, policy: Policy = POLICY) -> None:
        self.now = 1000.0
        self.accounts = Accounts(lambda: self.now)
        self.tallies = Tallies()
        self.agents: dict[str, Scripted] = {}
        self.told: list[tuple[str, str]] = []
        self.helpers: list[str] = []
        self.retired: list[str] = []
        self.full = False
        self.fails = False
        self.supervisor = Supervisor(self, self.accounts, self.tallies, policy, lambda: self.now)

    def add(
        self, name: str, supervise: Supervise | None = Supervise.ACT, parent: str | None = None
    ) -> Scripted:
        update = {"supervise": supervise, "created_at": moment(self.now)}
        made = Scripted(agent(name, parent).model_copy(update=update), self)
        self.agents[name] = made
        self.accounts.learn(made.agent)
        return made

    def heard(
        self, name: str, answer: str = "", code: str | None = None, sender: str = "alice"
    ) -> None:
        """Let an agent have heard a message that was said at this moment."""
        self.tallies.note(
            Message(
                message_id=f"{name}.{self.now}",
                agent_id=name,
                owner="alice",
                sender=sender,
                text="x",
                state=MessageState.FAILED if code else MessageState.ANSWERED,
                answer=answer or None,
                error=TaskError(code=code, message="x") if code else None,
                created_at=moment(self.now),
                began_at=moment(self.now),
                ended_at=moment(self.now) + timedelta(seconds=1),
            )
        )

    async def looks(self, after_s: float = 0.0) -> None:
        """Look after some time, and see what is done through."""
        self.now += after_s
        async with anyio.create_task_group() as tasks:
            await self.supervisor.look(tasks)

    def conversations(self) -> Sequence[Scripted]:
        return list(self.agents.values())

    async def tell(self, agent_id: str, text: str) -> Message:
        self.told.append((agent_id, text))
        return Message(
            message_id="x",
            agent_id=agent_id,
            owner="alice",
            sender=SYSTEM.name,
            text=text,
            state=MessageState.QUEUED,
            created_at=moment(self.now),
        )

    async def help_with(self, agent: Agent, name: str, prompt: str, role: AgentRole) -> None:
        if self.full:
            raise errors.TooLarge("agent ada has 16 children already")
        assert (agent.name in prompt, role.name) == (True, "debugger")
        self.helpers.append(name)

    async def retire(self, agent_id: str, reason: str) -> None:
        assert reason
        if self.fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.retired.append(agent_id)


async def test_one_that_is_stuck_is_broken_off_and_told_of_once() -> None:
    room = Room()
    ada = room.add("ada")
    ada.stands(AgentState.BUSY)
    room.accounts.turn_began("ada", room.now)
    await room.looks(299)
    assert ada.done == []
    await room.looks(1)
    assert ada.done == [(Sight.STUCK, Deed.NONE), (Sight.STUCK, Deed.INTERRUPT)]
    [why] = ada.broken_off
    assert why.endswith("in a turn without a word or a request for 300 s")
    # It takes its time to end.
    await room.looks(10)
    assert len(ada.broken_off) == 1
    assert [each.sight for each in room.supervisor.seen("ada")] == [Sight.STUCK]
    room.accounts.turn_over("ada")
    ada.stands(AgentState.IDLE)
    await room.looks(100)
    assert room.supervisor.seen("ada") == []


async def test_one_that_speaks_or_asks_a_model_is_not_stuck() -> None:
    room = Room()
    ada = room.add("ada")
    room.accounts.turn_began("ada", room.now)
    for _ in range(5):
        await room.looks(200)
        room.accounts.of_models("ada")
    for _ in range(5):
        await room.looks(200)
        room.accounts.sign("ada")
    assert ada.done == []


@pytest.mark.parametrize("policy", [Supervise.WATCH, None])
async def test_one_that_is_only_watched_is_touched_by_nobody(policy: Supervise | None) -> None:
    room = Room()
    ada = room.add("ada", policy)
    for _ in range(5):
        room.heard("ada", code="model-failed")
    room.accounts.turn_began("ada", room.now)
    await room.looks(5000)
    room.accounts.turn_over("ada")
    await room.looks(5000)
    sights = [Sight.STUCK, Sight.LOOPING, Sight.IDLE]
    assert ada.done == [(sight, Deed.NONE) for sight in sights]
    assert (room.told, room.helpers, ada.broken_off) == ([], [], [])


async def test_nobody_looks_at_one_that_is_let_alone() -> None:
    room = Room()
    ada = room.add("ada", Supervise.OFF)
    room.accounts.turn_began("ada", room.now)
    await room.looks(5000)
    assert (ada.done, room.supervisor.seen("ada")) == ([], [])


async def test_one_that_loops_is_guided_helped_and_then_whom_it_belongs_to_is_told() -> None:
    room = Room()
    room.add("lead", Supervise.OFF)
    ada = room.add("ada", parent="lead")
    for _ in range(3):
        room.heard("ada", code="model-failed")
    await room.looks()
    assert ada.done == [(Sight.LOOPING, Deed.NONE), (Sight.LOOPING, Deed.GUIDANCE)]
    # What it was told fails as well; before a minute is over nothing more is done.
    room.heard("ada", code="model-failed", sender=SYSTEM.name)
    await room.looks(59)
    assert len(ada.done) == 2
    await room.looks(1)
    assert room.helpers == ["ada-helper-1"]
    await room.looks(60)
    await room.looks(60)
    deeds = [deed for _, deed in ada.done]
    assert deeds == [Deed.NONE, Deed.GUIDANCE, Deed.HELPER, Deed.GUIDANCE, Deed.ESCALATE]
    assert [name for name, _ in room.told] == ["ada", "ada", "lead"]
    assert "could not help agent ada" in room.told[-1][1]
    # Nothing more is done, however long that lasts.
    await room.looks(9000)
    assert [deed for _, deed in ada.done if deed is not Deed.NONE][-1] is Deed.ESCALATE
    # Until somebody speaks to it.
    assert room.supervisor.left(ada.agent) == 0
    room.heard("ada", code="model-failed")
    assert room.supervisor.left(ada.agent) == 3
    await room.looks(60)
    assert ada.done[-1] == (Sight.LOOPING, Deed.GUIDANCE)


async def test_one_with_nobody_above_it_is_told_of_by_an_event_alone() -> None:
    room = Room(replace(POLICY, interventions_most=1))
    ada = room.add("ada")
    room.heard("ada", answer="Shall I go on?")
    await room.looks(121)
    assert ada.done == [(Sight.WAITING, Deed.NONE), (Sight.WAITING, Deed.STATUS_CHECK)]
    await room.looks(60)
    assert ada.done[-1] == (Sight.WAITING, Deed.ESCALATE)
    assert [name for name, _ in room.told] == ["ada"]


async def test_one_that_nothing_has_helped_ends_where_that_was_asked_for() -> None:
    room = Room(replace(POLICY, interventions_most=1, ends=True))
    ada = room.add("ada")
    await room.looks(3600)
    await room.looks(60)
    assert ada.done == [
        (Sight.IDLE, Deed.NONE),
        (Sight.IDLE, Deed.STATUS_CHECK),
        (Sight.IDLE, Deed.END),
    ]
    assert room.retired == ["ada"]


async def test_one_that_this_host_cannot_end_keeps_nobody_from_looking_after_others() -> None:
    room = Room(replace(POLICY, interventions_most=1, ends=True))
    ada = room.add("ada")
    room.fails = True
    await room.looks(3600)
    await room.looks(60)
    assert (ada.done[-1], room.retired) == ((Sight.IDLE, Deed.END), [])
    room.fails = False
    room.add("bob")
    await room.looks(3600)
    await room.looks(60)
    assert room.retired == ["bob"]


async def test_one_whose_machine_died_is_asked_how_it_stands_which_starts_it_again() -> None:
    room = Room()
    ada = room.add("ada")
    ada.stands(AgentState.SUSPENDED, "its machine is crashed")
    await room.looks(1)
    assert ada.done == [(Sight.DEAD, Deed.NONE), (Sight.DEAD, Deed.STATUS_CHECK)]
    assert room.told[0][0] == "ada"


async def test_why_nothing_could_be_done_is_written_down() -> None:
    room = Room()
    room.full = True
    ada = room.add("ada")
    for _ in range(3):
        room.heard("ada", code="model-failed")
    await room.looks()
    await room.looks(60)
    last = ada.agent.watched[-1]
    assert (last.deed, last.error) == (Deed.HELPER, "agent ada has 16 children already")
    assert room.helpers == []


async def test_what_was_done_before_a_restart_counts() -> None:
    room = Room()
    ada = room.add("ada")
    room.heard("ada", answer="Shall I?")
    await room.looks(121)
    again = Room()
    again.now = room.now
    again.agents = {"ada": Scripted(ada.agent, again)}
    again.accounts.learn(ada.agent)
    again.tallies = room.tallies
    again.supervisor = Supervisor(again, again.accounts, again.tallies, POLICY, lambda: again.now)
    assert again.supervisor.left(ada.agent) == 2
    await again.looks(59)
    assert again.told == []
    await again.looks(1)
    assert [name for name, _ in again.told] == ["ada"]
