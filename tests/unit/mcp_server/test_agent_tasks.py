"""The tools of the profile `agent` for tasks: for who may use them, and refused to others."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from calling import House, house
from machines import fake_program, publish_no_image
from mcp_peer import Peer, connected
from microvm_orchestrator import places
from microvm_orchestrator.images.store import ImageStore
from microvm_orchestrator.mcp_server.profiles.agent_tasks import TASK_TOOLS
from microvm_orchestrator.mcp_server.server import McpFrontEnd
from microvm_orchestrator.model.access import Principal, Role

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def living(state: Path, **works: object) -> AsyncGenerator[tuple[House, Peer]]:
    """Let an agent live on a machine that is none, and be its program."""
    publish_no_image(ImageStore(state / places.IMAGES), "embedded")
    async with house(state, machines={"qemu": str(fake_program(state))}) as here:
        spawned = await here.ask("agent_spawn", name="ada", **works)
        assert spawned["state"] == "succeeded", spawned
        front = McpFrontEnd(here.service)
        who = Principal(f"agent:{spawned['target']}", Role.VIEWER, token_id="tok_1")
        async with front.running(), connected(front, who, "agent") as peer:
            try:
                yield here, peer
            finally:
                await here.ask("agent_end", agent=spawned["target"], force=True)


async def names(peer: Peer) -> set[str]:
    return {tool["name"] for tool in (await peer.ask("tools/list"))["tools"]}


async def test_one_who_works_claims_and_settles_and_gives_back_what_it_holds_when_it_ends(
    tmp_path: Path,
) -> None:
    async with living(tmp_path, works=True, capabilities=["gpu"]) as (here, peer):
        assert await names(peer) >= {"say", *TASK_TOOLS}
        await here.ask("task_submit", key="x", capabilities=["gpu"])
        await here.ask("task_submit", key="y", depends_on=["x"])
        there = await peer.told("tasks")
        assert ([each["key"] for each in there["ready"]], there["yours"]) == (["x"], [])
        [claimed] = (await peer.told("claim"))["tasks"]
        assert claimed["task"]["worker"] == "agent:ada"
        told = await peer.told("progress", task_id="x", message="half", fraction=0.5)
        assert told == {"held": True, "state": "running"}
        done = await peer.told("complete", task_id="x", result={"a": 1})
        assert [each["key"] for each in done["unlocked"]] == ["y"]
        await peer.told("claim")
        await peer.told("release", task_id="y", reason="not now")
        await peer.told("claim")
        failed = await peer.told("fail", task_id="y", message="no", retryable=False)
        assert failed["task"]["state"] == "failed"
        await here.ask("task_submit", key="z")
        await peer.told("claim")
        await here.ask("agent_end", agent="ada")
        assert (await here.ask("task_get", task_id="z"))["state"] == "ready"


async def test_one_who_does_no_tasks_is_offered_none_and_refused_all(tmp_path: Path) -> None:
    async with living(tmp_path) as (here, peer):
        assert not await names(peer) & set(TASK_TOOLS)
        await here.ask("task_submit", key="x")
        given: dict[str, dict[str, object]] = {
            "tasks": {},
            "claim": {},
            "progress": {"task_id": "x"},
            "complete": {"task_id": "x"},
            "fail": {"task_id": "x", "message": "no"},
            "release": {"task_id": "x"},
        }
        assert set(given) == set(TASK_TOOLS)
        for tool, arguments in given.items():
            refused = await peer.call(tool, **arguments)
            assert refused["isError"]
            assert "you do no tasks" in refused["content"][0]["text"]
        lines = (await here.ask("audit_list", limit=100))["items"]
        assert [each["outcome"] for each in lines].count("denied") == len(TASK_TOOLS)
        assert (await here.ask("task_get", task_id="x"))["state"] == "ready"
