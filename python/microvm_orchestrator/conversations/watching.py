"""What can be seen of an agent from outside: that it is stuck, loops, waits for somebody, is dead.

Nothing here is asked of the agent, and nothing is done. Above is the supervisor, who knows how an
agent stands and what became of its messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microvm_orchestrator.model.agent import AgentState
from microvm_orchestrator.model.supervision import Seen, Sight, Supervise
from microvm_orchestrator.model.values import moment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from microvm_orchestrator.agent_settings import Agents as Settings


@dataclass(frozen=True, slots=True)
class Policy:
    """When something is seen, and what may be done about it, where an agent says nothing else."""

    supervise: Supervise
    stuck_after_s: float
    waiting_after_s: float
    idle_after_s: float
    looping_after: int
    interventions_most: int
    intervene_every_s: float
    look_every_s: float
    # Whether one that nothing has helped ends; else somebody above it is told.
    ends: bool
    # Of this host's own roles, for those who are to help.
    roles: Path

    @classmethod
    def of(cls, settings: Settings, roles: Path) -> Policy:
        return cls(
            supervise=Supervise(settings.supervise),
            stuck_after_s=settings.stuck_after_s,
            waiting_after_s=settings.waiting_after_s,
            idle_after_s=settings.idle_after_s,
            looping_after=settings.looping_after,
            interventions_most=settings.interventions_most,
            intervene_every_s=settings.intervene_every_s,
            look_every_s=settings.look_every_s,
            ends=settings.last_resort == "end",
            roles=roles,
        )


@dataclass(frozen=True, slots=True)
class Glance:
    """How an agent stands at a moment."""

    state: AgentState
    reason: str
    # When it last said something or asked a model, while it is in a turn.
    last_sign: float | None
    # Messages that wait for it.
    waiting: int
    # When it last had to do with a message, or was spawned.
    last_heard: float
    # Whether its last answer asks for something.
    asks: bool
    # With which error the last messages failed, how many of them, and since when.
    error: str
    row: int
    row_since: float
    # It may hear nothing more.
    at_limit: bool


def look(glance: Glance, policy: Policy, now: float) -> Iterator[Seen]:
    """Tell what is seen of an agent, the worst first."""
    if glance.last_sign is not None:
        silent_s = now - glance.last_sign
        if silent_s >= policy.stuck_after_s:
            said = f"in a turn without a word or a request for {policy.stuck_after_s:g} s"
            yield Seen(sight=Sight.STUCK, since=moment(glance.last_sign), what=said)
        return
    if glance.at_limit:
        # It stands as it should, and its reason says so.
        return
    if glance.state is AgentState.SUSPENDED and glance.reason:
        yield Seen(sight=Sight.DEAD, since=moment(glance.last_heard), what=_line(glance.reason))
    if glance.row >= policy.looping_after:
        said = f"its last {policy.looping_after} messages failed with {glance.error}"
        yield Seen(sight=Sight.LOOPING, since=moment(glance.row_since), what=_line(said))
    if glance.waiting or glance.state is not AgentState.IDLE:
        return
    quiet_s = now - glance.last_heard
    if glance.asks:
        if quiet_s >= policy.waiting_after_s:
            said = (
                f"its last answer asks for something, and for {policy.waiting_after_s:g} s nobody "
                "spoke to it"
            )
            yield Seen(sight=Sight.WAITING, since=moment(glance.last_heard), what=said)
    elif quiet_s >= policy.idle_after_s:
        said = f"nothing was said to it for {policy.idle_after_s:g} s"
        yield Seen(sight=Sight.IDLE, since=moment(glance.last_heard), what=said)


def _line(text: str) -> str:
    return " ".join(text.split())[:300]
