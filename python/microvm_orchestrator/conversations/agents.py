"""The agents of this host: each lives until somebody ends it, whatever becomes of this daemon.

Above are the host and the service; below, one agent's life.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import anyio.to_thread

from microvm_orchestrator import errors
from microvm_orchestrator.conversations import family
from microvm_orchestrator.conversations.answers import settled, telling_back
from microvm_orchestrator.conversations.care import Care
from microvm_orchestrator.conversations.conversation import Conversation
from microvm_orchestrator.conversations.ephemeral import see_off
from microvm_orchestrator.conversations.fit import refuse_unfit
from microvm_orchestrator.conversations.home import acting, remove_home
from microvm_orchestrator.conversations.keeper import Keeper
from microvm_orchestrator.conversations.leaving import (
    collect_last,
    leave_nothing,
    refuse_busy,
    refuse_family,
    see_out,
)
from microvm_orchestrator.conversations.left import find_left
from microvm_orchestrator.conversations.living import Living
from microvm_orchestrator.conversations.records import new_message_id
from microvm_orchestrator.conversations.spawn import Spawn, copy_of, spawned
from microvm_orchestrator.conversations.standing import Standing
from microvm_orchestrator.conversations.workplace import assigned, forget_work, home_for
from microvm_orchestrator.model.agent import (
    OVER,
    Agent,
    AgentState,
    Home,
    Message,
    MessageState,
)
from microvm_orchestrator.model.agent_work import AgentWork, Brought
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.records import SYSTEM, Actor
from microvm_orchestrator.model.run import Merge
from microvm_orchestrator.model.values import moment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from microvm_orchestrator.conversations.accounts import Accounts
    from microvm_orchestrator.conversations.ground import AgentGround, Door
    from microvm_orchestrator.conversations.tally import Tallies
    from microvm_orchestrator.model.agent_budget import AgentBudget


class Agents:
    """The agents of one daemon; they live on after `running`."""

    def __init__(self, ground: AgentGround) -> None:
        self._ground = ground
        self._records = ground.records
        self._accounts = ground.records.accounts
        self.care = Care(self, self._records, self._conversation, ground.supervision)
        self._living: dict[str, Living] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        # Between looking whether a name is free and taking it.
        self._naming = anyio.Lock()
        # Those who are being ended, each as often as somebody does so.
        self._closed: list[str] = []
        # One at a time is counted for good by the one above it.
        self._bequeathing = anyio.Lock()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Let agents hear what is said to them until the block ends. Their machines go on."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            await self._take_up()
            tasks.start_soon(Keeper(self, self._accounts).keep)
            tasks.start_soon(self.care.supervisor.watch)
            try:
                yield
            finally:
                self._tasks = None
                tasks.cancel_scope.cancel()

    async def _take_up(self) -> None:
        """Go on with the agents that an earlier daemon left, and with what was said to them."""
        left = await find_left(self._ground)
        # All at once: whoever is to hear an answer that one of them gives must be there by then.
        for agent, unsettled in left.living:
            self._take_on(agent, unsettled)
        for message in left.untold:
            await self._tell_back(message)
        if self._tasks is not None:
            who_lives = partial(self.living, SYSTEM)
            self._tasks.start_soon(
                see_out, left.half_over, self._settle_rest, self._ground, who_lives
            )
        # None is done before all are there who belong to it, or owe it an answer.
        for living in list(self._living.values()):
            self._watch_for_end(living.conversation)

    def _watch_for_end(self, conversation: Conversation) -> None:
        if self._tasks is not None and conversation.agent.ephemeral:
            self._tasks.start_soon(see_off, conversation, self)

    def _take_on(self, agent: Agent, unsettled: Sequence[Message]) -> Living:
        if self._tasks is None:
            raise errors.Stopping("the daemon takes on no more agents")
        living = Living(Conversation(agent, self._ground, unsettled, self._tell_back))
        self._living[agent.agent_id] = living
        self._tasks.start_soon(self._live, living)
        return living

    def _live_on(self, living: Living) -> None:
        """Let one live whose end was begun, and could not be written down."""
        if self._tasks is not None and living.over.is_set():
            living.scope, living.over = anyio.CancelScope(), anyio.Event()
            self._tasks.start_soon(self._live, living)

    async def _live(self, living: Living) -> None:
        try:
            with living.scope:
                await living.conversation.live()
                self._wake_above(living.conversation.agent)
                # It never came up, and hears nothing of what was said to it meanwhile.
                with contextlib.suppress(errors.Unavailable):
                    await self._settle_rest(living.conversation.agent)
        finally:
            living.over.set()

    @property
    def door(self) -> Door:
        """Where agents ask from their machines."""
        return self._ground.door

    @property
    def accounts(self) -> Accounts:
        """What each agent has taken, and may."""
        return self._accounts

    @property
    def tallies(self) -> Tallies:
        """What became of what was said to those who live, or ended since the daemon came up."""
        return self._records.tallies

    def waiting(self, agent: Agent) -> int:
        """How many messages wait for an agent, with the one that it hears."""
        living = self._living.get(agent.agent_id)
        return living.conversation.waiting if living else 0

    def conversations(self) -> Sequence[Conversation]:
        """Give those who live."""
        return [each.conversation for each in self._living.values()]

    # What is known

    async def visible(self, by: Actor) -> list[Agent]:
        return await self._records.visible(by)

    async def get(self, reference: str, by: Actor) -> Agent:
        """Find an agent by its id, or one that lives by its name.

        Raises: NotFound, also for what `by` cannot see.
        """
        found = await self._records.find(reference, by)
        if found is None:
            found = next((each for each in self.living(by) if each.name == reference), None)
        if found is None:
            raise errors.NotFound(f"no agent {reference[:100]}", hint="agent_list shows the agents")
        return found

    def living(self, by: Actor) -> list[Agent]:
        """The agents that live and that somebody may know of, oldest first."""
        known = [each.agent for each in self.conversations()]
        return [each for each in known if not each.over and by.sees_of(each.owner)]

    def tree(self, by: Actor) -> list[tuple[Agent, int]]:
        """Agents that live, with how deep they stand, each behind its parent."""
        return family.tree(self.living(by))

    async def children(self, reference: str, by: Actor) -> list[Agent]:
        """Raises: NotFound."""
        agent = await self.get(reference, by)
        return family.children(self.living(by), agent)

    async def peers(self, reference: str, by: Actor) -> list[Agent]:
        """Raises: NotFound."""
        agent = await self.get(reference, by)
        return family.peers(self.living(by), agent)

    def kin(self, agent: Agent) -> list[tuple[str, Agent]]:
        """Whom an agent may talk to, each with what it is to it: parent, child or peer."""
        return family.kin(self.living(acting(agent)), agent)

    async def messages(self, reference: str, by: Actor) -> list[Message]:
        """All that was said to an agent, in order. Raises: NotFound."""
        agent = await self.get(reference, by)
        return await self._records.messages(agent.agent_id, by)

    async def message_behind(self, agent: Agent, message_id: str, by: Actor) -> Message | None:
        """What was said to an agent next; an empty id is before all of it."""
        return await self._records.message_behind(agent.agent_id, message_id, by)

    async def message(self, message_id: str, by: Actor) -> Message:
        """Raises: NotFound."""
        return await self._records.message(message_id, by)

    async def name_of(self, agent_id: str) -> str:
        """Raises: NotFound."""
        return (await self.get(agent_id, SYSTEM)).name

    def saying(self, agent_id: str) -> str:
        """What an agent says at this moment; nothing if it is not busy."""
        living = self._living.get(agent_id)
        return living.conversation.saying if living else ""

    def output(self, message: Message) -> Path:
        """The file with what an agent's program said while it heard a message."""
        return self._ground.output(message.message_id)

    async def awake(self, reference: str, by: Actor) -> Agent:
        """Have an agent's machine run, as for a message. Raises: NotFound, StateForbids."""
        conversation = self._conversation(await self.get(reference, by))
        await conversation.awake()
        return conversation.agent

    def _conversation(self, agent: Agent) -> Conversation:
        living = self._living.get(agent.agent_id)
        if living is None or agent.over:
            raise errors.StateForbids(
                f"agent {agent.name} is {agent.state}"
                + (f": {agent.reason}" if agent.reason else "")
            )
        return living.conversation

    # Verbs

    async def spawn(self, wish: Spawn, by: Actor) -> Agent:
        """Write an agent down, and begin to make its machine ready.

        Raises: AlreadyExists for a name that an agent has who lives; NotFound for an image or a
            parent; StateForbids for a parent that is over; TooLarge for a family that would be;
            NotOffered for what its program or its image has not.
        """
        home, work = await self._assigned(wish, by)
        image = await self._ground.image(home.image)
        refuse_unfit(wish.character, wish.role_prompt, image)
        parent = None if wish.parent is None else await self.get(wish.parent, by)
        if parent is not None:
            self._conversation(parent)
        agent = spawned(wish, home, work, parent, by)
        await self._write_down(agent, by)
        return agent

    async def _assigned(self, wish: Spawn, by: Actor) -> tuple[Home, AgentWork | None]:
        """Say where an agent lives and works. Raises: NotFound, InvalidInput."""
        if wish.assignment is None:
            return wish.home, None
        repo, work = await assigned(wish.assignment, self._ground, by)
        return home_for(wish.home, repo), work

    async def _write_down(self, agent: Agent, by: Actor) -> None:
        """Write a new agent down, and let it live. Raises: AlreadyExists, TooLarge."""
        async with self._naming:
            living = self.living(SYSTEM)
            if any(each.name == agent.name for each in living):
                raise errors.AlreadyExists(f"an agent {agent.name} lives already")
            if agent.parent is not None:
                parent = next((each for each in living if each.agent_id == agent.parent), None)
                if parent is None or parent.agent_id in self._closed:
                    called = agent.parent if parent is None else parent.name
                    raise errors.StateForbids(f"agent {called} ends, and so would its child")
                family.refuse_more(living, parent, self._ground.families)
            await anyio.Path(self._ground.of(agent.agent_id)).mkdir(parents=True, exist_ok=True)
            # Whoever leaves now leaves nobody who is written down and never comes up.
            with anyio.CancelScope(shield=True):
                await self._records.save(agent, by, "spawned", expect=0)
            self._watch_for_end(self._take_on(agent, []).conversation)

    async def up(self, agent_id: str) -> Agent:
        """Wait until an agent can be talked to. Raises: MachineFailed when it never could."""
        living = self._living.get(agent_id)
        if living is None:
            agent = await self.get(agent_id, SYSTEM)
        else:
            agent = await living.conversation.up()
        # An ephemeral one may have done by now what it was told first.
        if agent.over and not agent.turns:
            raise errors.MachineFailed(f"agent {agent.name} is {agent.state}: {agent.reason}")
        return agent

    async def send(
        self,
        reference: str,
        text: str,
        by: Actor,
        *,
        sender: Agent | None = None,
        message_id: str | None = None,
        tell_back: bool = False,
    ) -> Message:
        """Say something to an agent, who hears it when it has answered all before.

        Who brings a `message_id`, of `new_message_id`, says the same once however often it asks.
        With `tell_back` the agent who says it hears the answer, as a message of its own.

        Raises: NotFound, StateForbids, Unavailable when too much waits.
        """
        if message_id is not None:
            with contextlib.suppress(errors.NotFound):
                return await self._records.message(message_id, by)
        agent = await self.get(reference, by)
        conversation = self._conversation(agent)
        message = Message(
            message_id=message_id or new_message_id(agent.agent_id),
            agent_id=agent.agent_id,
            owner=agent.owner,
            sender=by.name if sender is None else sender.agent_id,
            sender_agent=sender and sender.name,
            text=text,
            state=MessageState.QUEUED,
            tell_back=tell_back,
            created_at=moment(time.time()),
        )
        with conversation.room.kept(text):
            await self._hand_over(message, conversation, by, audited=True)
        return message

    async def _hand_over(
        self, message: Message, conversation: Conversation, by: Actor, *, audited: bool = False
    ) -> None:
        # Whoever leaves now leaves no message that is written down and never heard.
        with anyio.CancelScope(shield=True):
            await self._records.save_message(message, by, "queued", audited=audited, expect=0)
            conversation.hears(message)
            if conversation.agent.over:
                # By then it may have been gone through what waited for it.
                await self._settle_rest(conversation.agent)

    async def settled(self, message_id: str, by: Actor) -> Message:
        """Wait until a message is answered, or never will be. Raises: NotFound."""
        return await self._records.settled(message_id, by)

    async def withdraw(self, message_id: str, by: Actor) -> None:
        """Have a message heard no more: one that waits is cancelled, a turn broken off.

        Raises: NotFound.
        """
        message = await self._records.message(message_id, by)
        living = self._living.get(message.agent_id)
        if living is not None and not message.settled:
            await living.conversation.withdraw(message_id)

    async def _tell_back(self, answered: Message) -> None:
        """Have the agent who said something hear the answer, if it lives."""
        living = self._living.get(answered.sender)
        if answered.told_back is None or living is None or living.conversation.agent.over:
            return
        # Also when whoever answered is ended meanwhile.
        with anyio.CancelScope(shield=True):
            name = await self.name_of(answered.agent_id)
            message = telling_back(answered, name, living.conversation.agent)
            try:
                await self._hand_over(message, living.conversation, SYSTEM)
            except errors.AlreadyExists:
                # It was told while the turn went on; one who is ephemeral may have stayed for that.
                living.conversation.wake()

    async def reply(self, message_id: str, text: str, by: Actor) -> Message:
        """Answer a message in its agent's place: one that waits is heard no more.

        Raises: NotFound, StateForbids.
        """
        message = await self.message(message_id, by)
        agent = await self.get(message.agent_id, by)
        return await self._conversation(agent).reply(message_id, text, by)

    async def reply_as(self, agent: Agent, text: str, by: Actor) -> Message:
        """Answer, as an agent, what it hears now. Raises: StateForbids if it has answered."""
        return await self._conversation(agent).reply(None, text, by)

    async def branch(self, reference: str, name: str | None, by: Actor) -> Agent:
        """Begin to start a copy of an agent, with its machine and its conversation as they are.

        It is saved between two turns, and goes on. Raises: NotFound, AlreadyExists; StateForbids
        for one whose machine does not run; what machines raise.
        """
        first = await self.get(reference, by)
        conversation = self._conversation(first)
        agent_id, snapshot_id = new_id("a"), new_id("s")
        await conversation.save(snapshot_id)
        agent = copy_of(conversation.agent, agent_id, name, snapshot_id)
        try:
            await self._write_down(agent, by)
        except BaseException:
            with anyio.CancelScope(shield=True), contextlib.suppress(errors.Unavailable):
                await self._ground.snapshots.forget(snapshot_id, SYSTEM)
            raise
        return agent

    async def collect(self, reference: str, policy: Merge | None, by: Actor) -> Brought:
        """Bring home what an agent committed by now, once it is idle, and merge it.

        Raises: NotFound, StateForbids; what keeps its commits from coming.
        """
        return await self._conversation(await self.get(reference, by)).collect(policy)

    async def look(self, agent: Agent) -> Agent:
        """Take in what an agent committed by now, and give it as it is then."""
        conversation = self._conversation(agent)
        await conversation.look()
        return conversation.agent

    async def allow(self, reference: str, budget: AgentBudget, by: Actor) -> Agent:
        """Give an agent another budget, from now on. Raises: NotFound, StateForbids."""
        agent = await self.get(reference, by)
        conversation = self._conversation(agent)
        await self._records.note(agent, by)
        agent = await conversation.standing.allow(budget)
        for each in self.conversations():
            # It may be one above them whose budget kept them from hearing what waits.
            each.wake()
        return agent

    async def interrupt(self, reference: str, by: Actor) -> bool:
        """Break off the turn that an agent is in; false if it is in none. Raises: NotFound."""
        agent = await self.get(reference, by)
        await self._records.note(agent, by)
        return await self._conversation(agent).interrupt()

    async def suspend(self, reference: str, by: Actor) -> Agent:
        """Stop an agent's machine once it is idle; the next message starts it again.

        Raises: NotFound, StateForbids.
        """
        agent = await self.get(reference, by)
        conversation = self._conversation(agent)
        conversation.suspend()
        return await conversation.until(AgentState.SUSPENDED, *OVER)

    async def end(
        self,
        reference: str,
        by: Actor,
        *,
        force: bool,
        cascade: bool,
        collect: bool = True,
        reason: str = "",
        still: Callable[[], bool] = lambda: True,
    ) -> list[Agent]:
        """End an agent with its machine; what was said is kept, and what waits is never heard.

        What it did on a repository is brought home first, unless it is not to be collected; where
        that fails it ends by `force` alone.

        One that is busy ends by `force` alone, one to whom others belong with them by `cascade`:
        those below it end first, and all are given. With `still`, only if that is so at the last
        moment. Raises: NotFound, StateForbids.
        """
        async with self._ending(await self.get(reference, by)) as (*below, agent):
            if not cascade:
                refuse_family(agent, below)
            ending, salvaged = [*below, agent], force and collect
            if not force:
                refuse_busy(ending)
                living = [self._living[a.agent_id] for a in ending if a.agent_id in self._living]
                if collect:
                    for each in living:
                        await collect_last(each.conversation)
                refuse_busy(each.conversation.agent for each in living)
            if not still():
                raise errors.StateForbids(f"agent {agent.name} has something to do again")
            return [await self._end(each, by, reason, salvaged=salvaged) for each in ending]
        raise AssertionError  # what is left by an error is not left here

    @contextlib.asynccontextmanager
    async def _ending(self, agent: Agent) -> AsyncGenerator[list[Agent]]:
        """Give all below an agent and itself, as they end; nobody is spawned below meanwhile."""
        async with self._naming:
            below = family.below(self.living(SYSTEM), agent)
            ending = [*reversed(below), agent]
            self._closed += [each.agent_id for each in ending]
        try:
            yield ending
        finally:
            for each in ending:
                self._closed.remove(each.agent_id)

    async def retire(self, agent_id: str, reason: str) -> None:
        """End an agent with all below it, as this host: whoever it is that looks after them."""
        async with self._ending(await self.get(agent_id, SYSTEM)) as ending:
            for each in ending:
                await self._end(each, SYSTEM, reason, salvaged=True)

    async def _end(self, agent: Agent, by: Actor, reason: str, *, salvaged: bool) -> Agent:
        living = self._living.get(agent.agent_id)
        lost, end = "", Standing(agent, self._records).end
        try:
            if living is not None:
                lost = await living.fall_silent(salvaged=salvaged)
                agent, end = living.conversation.agent, living.conversation.end
            with anyio.CancelScope(shield=True):
                if agent.over:
                    await self._records.note(agent, by)
                else:
                    agent = await end("; ".join(filter(None, (reason, lost))), by)
        except BaseException:
            if living is not None:
                self._live_on(living)
            raise
        with anyio.CancelScope(shield=True):
            await self._settle_rest(agent)
            await leave_nothing(agent, self._ground, self.living(SYSTEM))
            self._living.pop(agent.agent_id, None)
        self._wake_above(agent)
        return agent

    def _wake_above(self, agent: Agent) -> None:
        """One who is ephemeral may have stayed for this one alone, who is over."""
        above = self._living.get(agent.parent or "")
        if above is not None:
            above.conversation.wake()

    async def _settle_rest(self, agent: Agent) -> None:
        for message in await self._records.messages(agent.agent_id, SYSTEM):
            if not message.settled:
                cancelled = settled(message, MessageState.CANCELLED)
                await self._records.save_message(cancelled, SYSTEM, "cancelled")
                await self._tell_back(cancelled)

    async def delete(self, reference: str, by: Actor) -> Agent:
        """Forget an agent that is over, with all that was said. Raises: NotFound, StateForbids."""
        agent = await self.get(reference, by)
        if not agent.over:
            raise errors.StateForbids(f"agent {agent.name} is {agent.state}", hint="end it first")
        await remove_home(agent, self._ground)
        await forget_work(agent, self._ground)
        await anyio.to_thread.run_sync(shutil.rmtree, self._ground.of(agent.agent_id), True)  # noqa: FBT003  # run_sync passes positions only
        async with self._bequeathing:
            await self._bequeath(agent)
        await self._records.erase(agent, by)
        self._living.pop(agent.agent_id, None)
        return agent

    async def _bequeath(self, agent: Agent) -> None:
        """Have the one above count for good what an agent and all below it have taken."""
        total = self._accounts.of_tree(agent.agent_id)
        with contextlib.suppress(errors.NotFound):
            parent = await self.get(agent.parent or "", SYSTEM)
            living = self._living.get(parent.agent_id)
            heir = living.conversation.standing if living else Standing(parent, self._records)
            await heir.inherit(agent.agent_id, total)
