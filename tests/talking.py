"""Agents on a service without real machines, for tests.

The guests here have no program of an agent in them. So every message fails as soon as it is heard,
which is a turn as well.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from calling import PATIENCE_S, house
from machines import fake_program, publish_no_image
from microvm_orchestrator.model.agent import Agent, AgentState, Character, Home
from microvm_orchestrator.model.agent_budget import AgentBudget
from microvm_orchestrator.model.values import moment

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from calling import House
    from microvm_orchestrator.store.base import Store


def plain_agent(name: str, parent: str | None = None, **more: Any) -> Agent:
    """Give an agent that is idle and has nothing but its name, as it is written down."""
    plain = {
        "agent_id": name,
        "name": name,
        "owner": "alice",
        "parent": parent,
        "state": AgentState.IDLE,
        "machine_id": f"m_{name}",
        "character": Character(),
        "home": Home(),
        "budget": AgentBudget(),
        "created_at": moment(0.0),
    }
    return Agent.model_validate({**plain, **more})


@asynccontextmanager
async def home(
    tmp_path: Path, over: Callable[[Store], Store] = lambda store: store, **settings: object
) -> AsyncGenerator[House]:
    machines: dict[str, object] = {"qemu": str(fake_program(tmp_path))}
    async with house(tmp_path, over, machines=machines, agents=settings) as here:
        if not here.service.host.images.list():
            publish_no_image(here.service.host.images, "mute")
        yield here


async def spawned(here: House, name: str, **wish: Any) -> str:
    told = await here.ask("agent_spawn", name=name, image="mute", wait_s=PATIENCE_S, **wish)
    assert told["state"] == "succeeded", told
    return str(told["target"])


async def said(here: House, agent: str, wait_s: float = PATIENCE_S) -> dict[str, Any]:
    return await here.ask("agent_send", agent=agent, text="hello", wait_s=wait_s)


async def agent_of(here: House, agent: str) -> dict[str, Any]:
    found: dict[str, Any] = (await here.ask("agent_get", agent=agent))["agent"]
    return found


async def stands(here: House, agent: str, state: str, reason: str) -> dict[str, Any]:
    async def so() -> bool:
        found = await agent_of(here, agent)
        return (found["state"], found["reason"]) == (state, reason)

    await here.until(so)
    return await agent_of(here, agent)


async def kinds(here: House, agent: str) -> list[str]:
    events = (await here.ask("event_wait", subjects=[agent], limit=1000))["events"]
    return [each["kind"] for each in events]
