"""Looks after agents: sees who does not get on, tells of it, and helps where that was asked for.

An agent that is only watched is touched by nothing here: events tell what is seen. One for which
`supervise` is `act` is helped, each time in the next way of what is seen, a few times and not too
often; then somebody above it is told, and no more is done before somebody speaks to it. What is
done is written down before it is done. One task of a daemon, and its clock is given to it. Above
are the agents of this host; below, what can be seen of one.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.to_thread

from microvm_orchestrator import errors, log
from microvm_orchestrator.agents.roles.shelf import read_shelf
from microvm_orchestrator.conversations.watching import Glance, Policy, look
from microvm_orchestrator.model.supervision import Deed, Observation, Seen, Sight, Supervise
from microvm_orchestrator.model.values import moment

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from datetime import datetime

    from anyio.abc import TaskGroup

    from microvm_orchestrator.conversations.accounts import Accounts
    from microvm_orchestrator.conversations.tally import Tallies
    from microvm_orchestrator.model.agent import Agent, Message
    from microvm_orchestrator.model.agent_role import AgentRole

_log = log.get(__name__)

# What is done the first time, the second, the third; the last is done from then on.
_WAYS = {
    # What is said to it is not heard before its turn is over.
    Sight.STUCK: (Deed.INTERRUPT,),
    Sight.LOOPING: (Deed.GUIDANCE, Deed.HELPER, Deed.GUIDANCE),
    Sight.WAITING: (Deed.STATUS_CHECK, Deed.GUIDANCE),
    Sight.IDLE: (Deed.STATUS_CHECK,),
    # A message starts its machine again.
    Sight.DEAD: (Deed.STATUS_CHECK,),
}
_LAST = (Deed.ESCALATE, Deed.END)
# Of the name of one who is to help, so much is of the one that it helps.
_NAME_MOST = 40
HELPER_ROLE = "debugger"


class Watched(Protocol):
    """Where it is written down what is seen of an agent."""

    async def observe(self, told: Observation) -> None:
        """Write down what was seen and is done."""
        ...


class Supervised(Protocol):
    """An agent that lives, as its supervisor knows it."""

    @property
    def agent(self) -> Agent:
        """What is written down of it."""
        ...

    @property
    def waiting(self) -> int:
        """How many messages wait for it."""
        ...

    @property
    def standing(self) -> Watched:
        """How it stands."""
        ...

    async def break_off(self, why: str) -> None:
        """Break off the turn that it is in."""
        ...


class Host(Protocol):
    """The agents of a host."""

    def conversations(self) -> Sequence[Supervised]:
        """Give those who live."""
        ...

    async def tell(self, agent_id: str, text: str) -> Message:
        """Say something to an agent, as the host."""
        ...

    async def help_with(self, agent: Agent, name: str, prompt: str, role: AgentRole) -> None:
        """Spawn a child of an agent that takes on a role, and tell it something.

        Raises: StateForbids where nothing is left for it; as `spawn`.
        """
        ...

    async def retire(self, agent_id: str, reason: str) -> None:
        """End an agent with all below it."""
        ...


class Supervisor:
    """The one who looks after them."""

    def __init__(
        self,
        host: Host,
        accounts: Accounts,
        tallies: Tallies,
        policy: Policy,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._host = host
        self._accounts = accounts
        self._tallies = tallies
        self._policy = policy
        self._clock = clock
        # What was seen of each agent the last time.
        self._seen: dict[str, dict[Sight, Seen]] = {}
        # Of what was told last, and since when it was so: it may be out of sight for a turn.
        self._told: dict[str, dict[Sight, datetime]] = {}
        # Those about whom something is being done.
        self._helped: set[str] = set()

    def seen(self, agent_id: str) -> list[Seen]:
        """Tell what is seen of an agent, the worst first."""
        return list(self._seen.get(agent_id, {}).values())

    def policy_of(self, agent: Agent) -> Supervise:
        return agent.supervise or self._policy.supervise

    async def watch(self) -> None:
        """Look again and again, until this is cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                try:
                    await self.look(tasks)
                except errors.OrchestratorError as error:
                    _log.warning("agents_not_seen", reason=error.message)
                await anyio.sleep(self._policy.look_every_s)

    async def look(self, tasks: TaskGroup) -> None:
        """Look once at all that live; what is done about one is done beside the others."""
        now = self._clock()
        living = self._host.conversations()
        for agent_id in set(self._seen) - {each.agent.agent_id for each in living}:
            del self._seen[agent_id]
            self._told.pop(agent_id, None)
        for each in living:
            agent_id = each.agent.agent_id
            if each.agent.over or agent_id in self._helped:
                continue
            policy = self.policy_of(each.agent)
            told = self._told.setdefault(agent_id, {})
            found = (
                {}
                if policy is Supervise.OFF
                else {seen.sight: seen for seen in look(self._glance(each), self._policy, now)}
            )
            for sight, seen in found.items():
                if told.get(sight) != seen.since:
                    told[sight] = seen.since
                    await each.standing.observe(
                        Observation(at=moment(now), sight=sight, what=seen.what)
                    )
            self._seen[agent_id] = found
            todo = self._to_do(each.agent, found) if policy is Supervise.ACT else None
            if todo is not None:
                deed, seen = todo
                self._helped.add(agent_id)
                tasks.start_soon(partial(self._do, each, deed, seen, moment(now)))

    def _glance(self, each: Supervised) -> Glance:
        agent = each.agent
        tally = self._tallies.find(agent.agent_id)
        last = agent.created_at.timestamp()
        if tally is not None and tally.last_at is not None:
            last = tally.last_at
        return Glance(
            state=agent.state,
            reason=agent.reason,
            last_sign=self._accounts.last_sign(agent.agent_id),
            waiting=each.waiting,
            last_heard=last,
            asks=tally is not None and tally.asks,
            error=tally.row_code if tally else "",
            row=tally.row if tally else 0,
            row_since=tally.row_since if tally else last,
            at_limit=self._accounts.reached(agent.agent_id) is not None,
        )

    def _to_do(self, agent: Agent, found: dict[Sight, Seen]) -> tuple[Deed, Seen] | None:
        seen = next(iter(found.values()), None)
        if seen is None:
            return None
        made = self._made(agent)
        if made and (
            made[-1].deed in _LAST
            or self._clock() - made[-1].at.timestamp() < self._policy.intervene_every_s
        ):
            return None
        if len(made) >= self._policy.interventions_most:
            return (Deed.END if self._policy.ends else Deed.ESCALATE), seen
        ways = _WAYS[seen.sight]
        return ways[min(len(made), len(ways) - 1)], seen

    def _made(self, agent: Agent) -> list[Observation]:
        """What was done about an agent since somebody spoke to it."""
        tally = self._tallies.find(agent.agent_id)
        spoken_to = tally.spoken_to_at if tally else None
        return [
            each
            for each in agent.watched
            if each.deed not in {Deed.NONE, Deed.REFUSED}
            and (spoken_to is None or each.at.timestamp() >= spoken_to)
        ]

    def left(self, agent: Agent) -> int:
        """How often it may still be helped before somebody is told."""
        return max(0, self._policy.interventions_most - len(self._made(agent)))

    async def _do(self, each: Supervised, deed: Deed, seen: Seen, at: datetime) -> None:
        told = Observation(at=at, sight=seen.sight, what=seen.what, deed=deed)
        try:
            await each.standing.observe(told)
            try:
                await self._deed(each, deed, seen)
            except errors.OrchestratorError as error:
                reason = " ".join(error.message.split())[:300]
                await each.standing.observe(told.model_copy(update={"error": reason}))
        except errors.OrchestratorError as error:
            _log.warning("agent_not_helped", agent=each.agent.agent_id, reason=error.message)
        except Exception as error:  # noqa: BLE001 - a bug, or a full disk, must not end the others
            _log.error("agent_not_helped", agent=each.agent.agent_id, exc_info=error)
        finally:
            self._helped.discard(each.agent.agent_id)

    def _deed(self, each: Supervised, deed: Deed, seen: Seen) -> Coroutine[None, None, object]:
        agent = each.agent
        match deed:
            case Deed.STATUS_CHECK:
                return self._host.tell(agent.agent_id, _STATUS_CHECK.format(what=seen.what))
            case Deed.GUIDANCE:
                text = _GUIDANCE.format(what=seen.what, advice=_ADVICE[seen.sight])
                return self._host.tell(agent.agent_id, text)
            case Deed.HELPER:
                text = _HELP.format(name=agent.name, what=seen.what)
                return self._help(agent, text)
            case Deed.INTERRUPT:
                return each.break_off(f"its turn was broken off by its supervisor: {seen.what}")
            case Deed.END:
                return self._host.retire(
                    agent.agent_id, f"its supervisor could not help it: {seen.what}"
                )
            case _:
                return self._escalate(agent, seen)

    async def _help(self, agent: Agent, text: str) -> None:
        shelf = await anyio.to_thread.run_sync(read_shelf, self._policy.roles)
        number = sum(1 for each in agent.watched if each.deed is Deed.HELPER)
        name = f"{agent.name[:_NAME_MOST]}-helper-{number}"
        await self._host.help_with(agent, name, text, shelf.find(HELPER_ROLE))

    async def _escalate(self, agent: Agent, seen: Seen) -> None:
        """Tell whom it belongs to; where there is nobody, the event tells people."""
        living = {each.agent.agent_id for each in self._host.conversations() if not each.agent.over}
        if agent.parent in living:
            await self._host.tell(agent.parent, _ESCALATE.format(name=agent.name, what=seen.what))


_STATUS_CHECK = (
    "The supervisor of this host asks how you stand. Seen from outside: {what}. Say in a few "
    "sentences what you have done, what you are doing, and what you need from whom."
)
_GUIDANCE = (
    "The supervisor of this host has seen this of you: {what}. {advice} Say what you do now."
)
_ADVICE = {
    Sight.LOOPING: "Do not try the same once more: find out why it fails, and go another way.",
    Sight.WAITING: "If you can decide it yourself, decide it, say so, and go on; if not, ask the "
    "one who can by name.",
}
_HELP = (
    "You are to help agent {name}, who is your parent. Seen from outside: {what}. Find out why, "
    "and tell it what to do with the tool `say`, without waiting for an answer."
)
_ESCALATE = (
    "The supervisor of this host could not help agent {name}, who belongs to you. Seen from "
    "outside: {what}. Decide what becomes of it and of its work."
)
