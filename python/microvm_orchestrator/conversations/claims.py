"""The tasks that an agent holds as a worker of the graph: kept while it is busy, then given back.

Above is the life of an agent; below, the store.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.model.agent import AgentState
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.model.task import TaskState
from microvm_orchestrator.store.base import Address, Beat, Ref, Released
from microvm_orchestrator.store.questions import TaskList

if TYPE_CHECKING:
    from collections.abc import Iterable

    from microvm_orchestrator.model.agent import Agent
    from microvm_orchestrator.store.base import Store

# A lease that nobody said anything of lasts longer; one that is shorter is for who says so often.
_RENEW_EVERY_S = 15.0
_PAGE = 100


def worker_of(agent: Agent) -> str:
    """As which worker an agent claims.

    So do those who had its name before, and who have it later. Its token has its id in the place of
    its name, and claims nothing.
    """
    return f"agent:{agent.name}"


async def held_by(agent: Agent, store: Store) -> list[Ref]:
    """The leases that an agent holds."""
    worker = worker_of(agent)
    held: list[Ref] = []
    cursor: str | None = None
    while True:
        asked = TaskList((TaskState.RUNNING,), worker=worker, limit=_PAGE, cursor=cursor)
        page = await store.query(asked, SYSTEM)
        held += [Ref(Address(each.task_id), each.attempt, worker) for each in page.items]
        cursor = page.cursor
        if cursor is None:
            return held


async def renew(agent: Agent, store: Store) -> None:
    """Say for an agent that it is still at what it holds."""
    held = await held_by(agent, store)
    if held:
        await store.renew([Beat(ref) for ref in held], SYSTEM)


async def keep(agent: Agent, store: Store) -> None:
    """Keep what an agent holds, or comes to hold, until this is cancelled.

    A program that runs for long says nothing meanwhile; that it runs, the host sees.
    """
    while True:
        with suppress(errors.Unavailable, errors.NotFound):
            await renew(agent, store)
        await anyio.sleep(_RENEW_EVERY_S)


async def give_back(agent: Agent, store: Store, living: Iterable[Agent]) -> None:
    """Give back what an agent holds who does no more, for others to do.

    One of those who live may have its name by now: what is held then is that one's.
    """
    if agent.works is None or any(_has_taken_over(each, agent) for each in living):
        return
    for ref in await held_by(agent, store):
        with suppress(errors.NotFound):
            await store.settle(ref, Released(f"agent {agent.name} has {agent.state}"), SYSTEM)


def _has_taken_over(living: Agent, agent: Agent) -> bool:
    return (
        living.name == agent.name
        and living.agent_id != agent.agent_id
        # One that has not come up yet has claimed nothing.
        and living.state is not AgentState.STARTING
    )
