"""What each agent has taken at this moment, alone and with all below it, and what it may take.

The figures of records are those of the last turn that is over; here are those of turns that last,
as the way out and the clock tell them. Whatever was taken once is never given back: not by a
restart of the daemon, and not by the end of a child. Above are whoever lets agents work; below,
their records.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator.egress.budget import Exhausted
from microvm_orchestrator.model.agent_budget import (
    AgentBudget,
    AgentMeasure,
    AtLimit,
    Taken,
    field_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterator, Sequence

    from microvm_orchestrator.model.agent import Agent, Message
    from microvm_orchestrator.model.run import Usage

_EVERY = tuple(AgentMeasure)
_OF_MODELS = (AgentMeasure.TOKENS, AgentMeasure.COST_USD)


@dataclass(frozen=True, slots=True)
class Reached:
    """A limit that is reached."""

    agent_id: str
    name: str
    measure: AgentMeasure
    tree: bool
    used: float
    limit: float
    at_limit: AtLimit

    def whose(self, agent_id: str) -> str:
        """Name the budget to the agent whose it is, or to one below it."""
        whose = "its" if agent_id == self.agent_id else f"agent {self.name}'s"
        return f"{whose} budget for it and all below it" if self.tree else f"{whose} budget"

    def seen_by(self, agent_id: str) -> str:
        """Say it to the agent whose limit it is, or to one below it."""
        used = f"{self.used:.10g} of {self.limit:.10g} {self.measure}"
        return f"{self.whose(agent_id)} is used up: {used}"


@dataclass(frozen=True, slots=True)
class Threshold:
    """A share of a limit that is reached, and of which nobody was told yet."""

    share: float
    measure: AgentMeasure
    tree: bool
    used: float
    limit: float

    @property
    def key(self) -> str:
        """How the record of the agent names it."""
        return f"{field_of(self.measure, tree=self.tree)} {self.share:g}"


@dataclass(slots=True)
class _Account:
    name: str
    parent: str | None
    budget: AgentBudget
    over: bool
    taken: Taken
    gone: Taken
    counted: frozenset[str]
    warned: frozenset[str]
    # When the turn began that it is in.
    began: float | None = None
    # What it has taken of models by now, while it is in a turn.
    meter: Callable[[], Usage] | None = None
    # Whether it is in the middle of a message, of which not all is written down.
    hears: bool = False
    # When it last said something or asked a model.
    sign: float = 0.0
    children: set[str] = field(default_factory=set[str])


class Accounts:
    """The accounts of all agents of a daemon that are written down."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        # Of children of whom is known before their parents are.
        self._orphans: dict[str, set[str]] = {}
        self.news = anyio.Event()

    def _tell(self) -> None:
        self.news.set()
        self.news = anyio.Event()

    # What is written down

    def learn(self, agent: Agent) -> None:
        """Take over what the record of an agent says by now."""
        account = self._accounts.get(agent.agent_id)
        told = taken_of(agent.usage, agent.turns)
        if account is None:
            account = _Account(
                name=agent.name,
                parent=agent.parent,
                budget=agent.budget,
                over=agent.over,
                taken=told,
                gone=agent.gone,
                counted=frozenset(agent.counted),
                warned=frozenset(agent.warned),
                children=self._orphans.pop(agent.agent_id, set()),
            )
            self._accounts[agent.agent_id] = account
            self._children_of(agent.parent).add(agent.agent_id)
        else:
            if account.budget != agent.budget:
                self._tell()
            account.taken |= told
            account.budget, account.over = agent.budget, agent.over
            account.gone, account.counted = agent.gone, frozenset(agent.counted)
            account.warned = frozenset(agent.warned)

    def _children_of(self, parent: str | None) -> set[str]:
        if parent is None:
            return set()
        account = self._accounts.get(parent)
        return self._orphans.setdefault(parent, set()) if account is None else account.children

    def recount(self, agent_id: str, messages: Sequence[Message], usage: Usage) -> None:
        """Count anew what its record may not say, as the daemon ended in the middle of a turn."""
        begun = [each for each in messages if each.began_at is not None]
        wall_s = sum(
            max(0.0, (each.ended_at - each.began_at).total_seconds())
            for each in begun
            if each.began_at is not None and each.ended_at is not None
        )
        counted = usage.model_copy(update={"wall_s": wall_s})
        self._accounts[agent_id].taken |= taken_of(counted, len(begun))

    def forget(self, agent_id: str) -> None:
        account = self._accounts.pop(agent_id, None)
        if account is not None:
            self._children_of(account.parent).discard(agent_id)
            self._orphans.pop(agent_id, None)

    def knows(self, agent_id: str) -> bool:
        return agent_id in self._accounts

    # What happens

    @contextmanager
    def place(self, agent_id: str) -> Generator[None]:
        """Count a turn before it begins, so that no other takes its place; or not, if it fails."""
        account = self._accounts[agent_id]
        account.taken += Taken(turns=1)
        try:
            yield
        except BaseException:
            turns = account.taken.turns - 1
            account.taken = account.taken.model_copy(update={"turns": turns})
            raise

    def turn_began(self, agent_id: str, at: float) -> None:
        """Have the time of a turn count from now on."""
        self._accounts[agent_id].began = at
        self.sign(agent_id)
        self._tell()

    def sign(self, agent_id: str) -> None:
        """Hear that an agent said something, or asked a model."""
        self._accounts[agent_id].sign = self._clock()

    def last_sign(self, agent_id: str) -> float | None:
        """When an agent was last heard of in the turn that it is in; None if it is in none."""
        account = self._accounts[agent_id]
        return None if account.began is None else account.sign

    def metered(self, agent_id: str, meter: Callable[[], Usage]) -> None:
        """Ask this what an agent has taken of models, while its turn lasts."""
        self._accounts[agent_id].meter = meter

    def turn_over(self, agent_id: str) -> None:
        """Take what a turn has taken for good."""
        account = self._accounts[agent_id]
        account.taken = self.taken(agent_id)
        account.began = account.meter = None
        self._tell()

    @contextmanager
    def hearing(self, agent_id: str) -> Generator[None]:
        """Have it known that an agent is in the middle of a message, until the block ends."""
        account = self._accounts[agent_id]
        account.hears = True
        try:
            yield
        finally:
            account.hears = False
            self._tell()

    def in_message(self) -> list[str]:
        """The agents that are in the middle of a message: their turn, and what follows it."""
        return [each for each, account in self._accounts.items() if account.hears]

    def in_turn(self) -> list[str]:
        """The agents that are in a turn."""
        return [each for each, account in self._accounts.items() if account.began is not None]

    # What is known

    def taken(self, agent_id: str) -> Taken:
        """Tell what an agent has taken in its life; nothing, if it is not written down."""
        account = self._accounts.get(agent_id)
        if account is None:
            return Taken()
        taken = account.taken
        if account.meter is not None:
            taken |= taken_of(account.meter(), 0)
        if account.began is not None:
            taken += Taken(wall_s=round(max(0.0, self._clock() - account.began), 3))
        return taken

    def of_tree(self, agent_id: str) -> Taken:
        """Tell what an agent and all below it have taken, those who ended and are gone too."""
        account = self._accounts.get(agent_id)
        if account is None:
            return Taken()
        total = self.taken(agent_id) + account.gone
        for child in account.children - account.counted:
            total += self.of_tree(child)
        return total

    def _line(self, agent_id: str) -> Iterator[str]:
        """An agent, and those above it."""
        above: str | None = agent_id
        while above is not None and above in self._accounts:
            yield above
            above = self._accounts[above].parent

    def below(self, agent_id: str) -> list[str]:
        """An agent, and all below it who are written down."""
        told = [agent_id]
        for each in told:
            told += sorted(self._accounts[each].children)
        return told

    def _limits(
        self, agent_id: str, measures: Collection[AgentMeasure], *, tree: bool
    ) -> Iterator[tuple[AgentMeasure, float, float]]:
        """The limits of an agent: of what, how much was taken, and how much may be."""
        budget = self._accounts[agent_id].budget
        taken: Taken | None = None
        for measure in measures:
            limit = budget.of(measure, tree=tree)
            if limit is not None:
                taken = taken or (self.of_tree(agent_id) if tree else self.taken(agent_id))
                yield measure, taken.of(measure), limit

    def own_reached(
        self, agent_id: str, measures: Collection[AgentMeasure] = _EVERY
    ) -> Iterator[Reached]:
        """Tell of the limits that an agent itself has, and that are reached."""
        account = self._accounts[agent_id]
        for tree in (False, True):
            for measure, used, limit in self._limits(agent_id, measures, tree=tree):
                if used >= limit:
                    at_limit = account.budget.at_limit
                    yield Reached(agent_id, account.name, measure, tree, used, limit, at_limit)

    def reached(self, agent_id: str, measures: Collection[AgentMeasure] = _EVERY) -> Reached | None:
        """Tell of a limit that keeps an agent from another turn: its own, or one above it."""
        for each in self._line(agent_id):
            for found in self.own_reached(each, measures):
                if each == agent_id or found.tree:
                    return found
        return None

    def of_models(self, agent_id: str) -> Exhausted | None:
        """Tell whether a request of an agent to a model may go out."""
        # What it has taken by now may be worth a word.
        self._tell()
        self.sign(agent_id)
        found = self.reached(agent_id, _OF_MODELS)
        if found is None:
            return None
        measure = "tokens" if found.measure is AgentMeasure.TOKENS else "cost_usd"
        return Exhausted(measure, found.used, found.limit, found.whose(agent_id))

    def wall_left_s(self, agent_id: str) -> float | None:
        """Tell how long a turn may go on, were it alone; None for any time."""
        left: list[float] = []
        for each in self._line(agent_id):
            for tree in (False, True) if each == agent_id else (True,):
                limits = self._limits(each, (AgentMeasure.WALL_S,), tree=tree)
                left += [limit - used for _, used, limit in limits]
        return min(left, default=None)

    def warnings(self, agent_id: str) -> list[Threshold]:
        """Tell of shares of its limits that are reached, and of which nobody was told yet."""
        account = self._accounts[agent_id]
        found = [
            Threshold(share, measure, tree, used, limit)
            for tree in (False, True)
            for measure, used, limit in self._limits(agent_id, _EVERY, tree=tree)
            for share in sorted(account.budget.warn_at)
            if used >= share * limit
        ]
        return [each for each in found if each.key not in account.warned]

    def for_child(self, agent_id: str) -> tuple[AgentBudget, AgentMeasure | None]:
        """The budget of a child that an agent spawns: as its own, and no more than is left above.

        Also given: of what nothing is left.
        """
        own = self._accounts[agent_id].budget
        told: dict[str, float] = {}
        for measure in AgentMeasure:
            least = own.of(measure, tree=False)
            for each in self._line(agent_id):
                for _, used, limit in self._limits(each, (measure,), tree=True):
                    if used >= limit:
                        return own, measure
                    least = limit - used if least is None else min(least, limit - used)
            if least is not None:
                told[measure] = least
        plain = AgentBudget(at_limit=own.at_limit, warn_at=own.warn_at)
        return plain.model_copy(update=told), None


def taken_of(usage: Usage, turns: int) -> Taken:
    return Taken(
        tokens=usage.tokens_in + usage.tokens_out + usage.tokens_cached,
        cost_usd=usage.cost_usd or 0.0,
        turns=turns,
        wall_s=usage.wall_s,
    )


def inherited(parent: Agent, child: str, total: Taken, accounts: Accounts) -> dict[str, object]:
    """What a parent's record says once it counts for good what a child has taken.

    A child may still be written down then, if the daemon ended before it was forgotten; it does not
    count twice.
    """
    if child in parent.counted:
        return {}
    counted = [each for each in parent.counted if accounts.knows(each)]
    return {"gone": parent.gone + total, "counted": [*counted, child]}
