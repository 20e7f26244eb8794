"""The tools of the profile `agent` for tasks: for who may use them, and refused to others."""

from __future__ import annotations

import json
from contextlib import aclosing, asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from calling import House, house
from machines import fake_program, publish_no_image
from mcp_http import older, serving
from mcp_peer import PATIENCE_S, Peer, connected
from microvm_orchestrator import places
from microvm_orchestrator.images.store import ImageStore
from microvm_orchestrator.mcp_server.profiles.agent_tasks import TASK_TOOLS
from microvm_orchestrator.mcp_server.server import McpFrontEnd
from microvm_orchestrator.model.access import Principal, Role

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    import httpx2
    from mcp.server.context import CallNext, HandlerResult

    from microvm_orchestrator.mcp_server.callers import Context

pytestmark = pytest.mark.anyio

AGENTS = "/mcp/profiles/agent"
# Waits for a task, and wants to hear how it goes on.
CLAIM = {"name": "claim", "arguments": {"wait_s": 60}, "_meta": {"progressToken": "how"}}


@asynccontextmanager
async def spawned(
    state: Path, **works: object
) -> AsyncGenerator[tuple[House, McpFrontEnd, Principal]]:
    """Let an agent live on a machine that is none."""
    publish_no_image(ImageStore(state / places.IMAGES), "embedded")
    async with house(state, machines={"qemu": str(fake_program(state))}) as here:
        made = await here.ask("agent_spawn", name="ada", **works)
        assert made["state"] == "succeeded", made
        front = McpFrontEnd(here.service)
        who = Principal(f"agent:{made['target']}", Role.VIEWER, token_id="tok_1")
        async with front.running():
            try:
                yield here, front, who
            finally:
                await here.ask("agent_end", agent=made["target"], force=True)


@asynccontextmanager
async def living(state: Path, **works: object) -> AsyncGenerator[tuple[House, Peer]]:
    """Be the program of an agent that lives."""
    async with (
        spawned(state, **works) as (here, front, who),
        connected(front, who, "agent") as peer,
    ):
        yield here, peer


async def messages(answer: httpx2.Response) -> AsyncGenerator[dict[str, Any]]:
    """Hear what comes in an answer that is a stream."""
    async for line in answer.aiter_lines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


@asynccontextmanager
async def claiming(http: httpx2.AsyncClient) -> AsyncGenerator[AsyncGenerator[dict[str, Any]]]:
    """Wait for a task over HTTP, and hear what comes."""
    asked = older("tools/call", CLAIM, "ada")
    async with (
        http.stream("POST", AGENTS, **asked, timeout=PATIENCE_S) as answer,
        aclosing(messages(answer)) as heard,
    ):
        yield heard


async def first_of(heard: AsyncGenerator[dict[str, Any]], here: House) -> dict[str, Any]:
    """Hear the first message; until then, tasks come that are not for this agent."""

    async def stir() -> None:
        for number in count():
            await here.ask("task_submit", key=f"x{number}", capabilities=["gpu"])

    async with anyio.create_task_group() as group:
        group.start_soon(stir)
        first = await anext(heard)
        group.cancel_scope.cancel()
        return first
    raise AssertionError  # nobody else cancels it


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


async def test_one_who_waits_over_http_hears_of_it_and_needs_no_session(
    tmp_path: Path,
) -> None:
    async with (
        spawned(tmp_path, works=True) as (here, front, who),
        serving(front, tmp_path / "door", {"ada": who}) as http,
        claiming(http) as heard,
    ):
        with anyio.fail_after(PATIENCE_S):
            first = await first_of(heard, here)
            assert first["method"] == "notifications/progress"
            assert first["params"]["progressToken"] == "how"
            await here.ask("task_submit", key="y")
            while "result" not in (last := await anext(heard)):
                assert last["method"] == "notifications/progress"
        [claimed] = last["result"]["structuredContent"]["tasks"]
        assert claimed["task"]["key"] == "y"


async def test_one_who_leaves_waits_no_longer_and_is_given_no_task(
    tmp_path: Path,
) -> None:
    async with (
        spawned(tmp_path, works=True) as (here, front, who),
        serving(front, tmp_path / "door", {"ada": who}) as http,
    ):
        over = anyio.Event()

        async def noticed(ctx: Context, call_next: CallNext) -> HandlerResult:
            try:
                return await call_next(ctx)
            finally:
                over.set()

        front.server("agent").middleware.insert(0, noticed)
        with anyio.fail_after(PATIENCE_S):
            async with claiming(http) as heard:
                await first_of(heard, here)
                assert not over.is_set()
            await over.wait()
        await here.ask("task_submit", key="x")
        assert (await here.ask("task_get", task_id="x"))["state"] == "ready"
