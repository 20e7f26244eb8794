"""What the profile `microvm-orchestrator-mcp` promises without a machine that comes up.

There is no guest image here, so every task fails soon; what becomes of one that succeeds is for the
system tests.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import git_repos
from calling import House, house
from mcp_peer import ALICE, Peer, connected
from microvm_orchestrator.mcp_server.server import McpFrontEnd

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.anyio

PROFILE = "microvm-orchestrator-mcp"
KEY = "sk-ant-api03-" + "0123456789" * 8
# Less than a client of these tests waits for an answer.
SOON = {"timeout_ms": 3000}
# Only a test that fails waits so long.
PATIENCE_S = 60.0


@dataclass
class Client:
    """A client of that program: every answer is one object, a refusal too."""

    peer: Peer

    async def __call__(self, tool: str, **arguments: object) -> Any:
        result = await self.peer.call(tool, **arguments)
        (block,) = result["content"]
        told = json.loads(block["text"])
        assert result["structuredContent"] == told
        assert result["isError"] == ("error" in told and set(told) == {"error"})
        return told

    async def end(self) -> Any:
        """Wait for the next end of a task, as long as it takes."""
        with anyio.fail_after(PATIENCE_S):
            while (told := await self("wait_next_event", **SOON)) == {"timeout": True}:
                pass
        return told


@dataclass
class Place:
    front: McpFrontEnd
    kept: House
    folder: Path

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[Client]:
        async with connected(self.front, ALICE, PROFILE) as peer:
            yield Client(peer)

    async def repo(self, name: str = "sample", ignored: str = "") -> git_repos.Repo:
        made = git_repos.Repo.make(self.folder / name)
        made.commit({"README": "a sample\n", ".gitignore": ignored})
        await self.kept.ask("repo_add", path=str(made.path))
        return made

    async def key(self) -> None:
        await self.kept.ask("credential_set", name="mine", kind="anthropic-api-key", value=KEY)


@pytest.fixture
async def at(tmp_path: Path) -> AsyncGenerator[Place]:
    (tmp_path / "state").mkdir(mode=0o700)
    async with house(tmp_path / "state") as kept:
        front = McpFrontEnd(kept.service)
        async with front.running():
            yield Place(front, kept, tmp_path)


async def test_the_eight_tools_have_their_names_and_parameters(at: Place) -> None:
    async with at.client() as client:
        tools = (await client.peer.ask("tools/list"))["tools"]
    parameters = {
        tool["name"]: (
            set(tool["inputSchema"].get("properties", {})),
            set(tool["inputSchema"].get("required", [])),
        )
        for tool in tools
    }
    assert parameters == {
        "run_task": ({"description", "repo", "slot"}, {"description"}),
        "get_task_info": ({"task_id"}, {"task_id"}),
        "get_task_logs": ({"task_id"}, {"task_id"}),
        "wait_next_event": ({"timeout_ms"}, set()),
        "cleanup_task": ({"task_id", "delete_ref"}, {"task_id"}),
        "list_repos": (set(), set()),
        "list_tasks": (set(), set()),
        "list_slots": (set(), set()),
    }


async def test_refusals_have_the_sentences_that_its_clients_know(at: Place) -> None:
    async with at.client() as client:
        unknown = await client("run_task", description="x", repo="nowhere")
        none = await client("run_task", description="x")
        await at.repo()
        no_key = await client("run_task", description="x", repo="sample")
        await at.repo("another")
        which = await client("run_task", description="x")
        gone = [
            await client(tool, task_id="t")
            for tool in ("get_task_info", "get_task_logs", "cleanup_task")
        ]
    words = "not registered. Run: microvm-orchestrator allow"
    assert unknown == {"error": f"Repo 'nowhere' {words}"}
    assert none == {"error": f"Repo '' {words}"}
    assert no_key["error"].startswith("No API key found. Set ANTHROPIC_API_KEY or CLAUDE_CODE_OA")
    assert which["error"].endswith("`repo` is one of: sample, another")
    assert gone == [{"error": "Task not found: t"}] * 3


async def test_the_end_of_a_task_is_heard_by_each_client_once(at: Place) -> None:
    await at.repo()
    await at.key()
    async with at.client() as client, at.client() as other:
        await other("list_slots")
        task_id = (await client("run_task", description="do it"))["task_id"]
        event = await client.end()
        nothing = await client("wait_next_event")
        same = await other.end()
    assert (event["task_id"], event["event"], event["type"]) == (task_id, "failed", "failed")
    assert nothing == {"no_running_tasks": True}
    assert same == event
    async with at.client() as later:
        assert await later("wait_next_event") == {"no_running_tasks": True}


async def test_what_ends_while_a_client_is_away_or_breaks_off_is_told_when_it_asks_again(
    at: Place,
) -> None:
    await at.repo()
    await at.key()
    async with at.client() as client:
        broken_off = client.peer.request(
            "tools/call", {"name": "wait_next_event", "arguments": SOON}
        )
        await client.peer.say(broken_off)
        task_id = (await client("run_task", description="do it"))["task_id"]
        # As a client does that was closed while it waited.
    await at.kept.ask("task_wait", task_id=task_id, timeout_s=PATIENCE_S)
    async with at.client() as back:
        event = await back.end()
        again = await back("wait_next_event")
    assert {event.get("task_id"), "no_running_tasks"} == {task_id, *again}


async def test_a_task_is_listed_and_looked_at_in_that_programs_words(at: Place) -> None:
    repo = await at.repo()
    await at.key()
    long = "Do this and that, and then something more, until all of it is done."
    async with at.client() as client:
        task_id = (await client("run_task", description=long, slot=7))["task_id"]
        second = (await client("run_task", description="more", repo="sample"))["task_id"]
        for _ in range(2):
            await client.end()
        listed = {each["task_id"]: each for each in (await client("list_tasks"))["tasks"]}
        info = await client("get_task_info", task_id=task_id)
        slot = (await client("get_task_info", task_id=second))["slot"]
        slots = await client("list_slots")
        repos = (await client("list_repos"))["repos"]
    assert listed[task_id] == {
        "task_id": task_id,
        "status": "failed",
        "description": f"{long[:50]}...",
        "repo": "sample",
    }
    assert set(info) == {
        *("task_id", "description", "status", "slot", "repo_path", "isolated_repo_path"),
        *("created_at", "started_at", "completed_at", "pid", "exit_code", "error", "result"),
    }
    assert (info["description"], info["slot"], slot) == (long, 7, 1)
    assert info["repo_path"] == str(repo.path)
    assert info["error"]
    assert slots["active"] == []
    assert slots["available"] == list(range(1, slots["max_slots"] + 1))
    assert [each["alias"] for each in repos] == ["sample"]
    assert set(repos[0]) == {"alias", "path", "added"}


async def ended(client: Client) -> str:
    """See a task through; its id."""
    task_id = (await client("run_task", description="do it"))["task_id"]
    await client.end()
    return task_id


async def result_in(folder: Path, client: Client, task_id: str) -> dict[str, Any]:
    """See to it that the last of a task's files is written, as whoever asks for its log does."""
    with anyio.fail_after(PATIENCE_S):
        while not (folder / "result.json").exists():
            await client("get_task_logs", task_id=task_id)
    return json.loads((folder / "result.json").read_text())


async def test_the_files_of_a_task_are_in_its_repository_where_git_ignores_them(at: Place) -> None:
    repo = await at.repo(ignored=".microvm/\n")
    await at.key()
    async with at.client() as client:
        task_id = await ended(client)
        folder = repo.path / ".microvm/tasks" / task_id
        result = await result_in(folder, client, task_id)
        log = (await client("get_task_logs", task_id=task_id))["log_path"]
        there = sorted(path.name for path in folder.iterdir())
        await client("cleanup_task", task_id=task_id)
        gone = await client("get_task_logs", task_id=task_id)
    assert result["success"] is False
    assert result["error"]
    assert there == ["result.json", "serial.log", "task.json", "task.md"]
    assert log == str(folder / "serial.log")
    assert not folder.exists()
    assert gone == {"error": f"Log file not found: {log}"}
    assert repo.git("status", "--porcelain") == ""


async def test_the_files_of_a_task_are_in_the_state_directory_where_git_would_see_them(
    at: Place,
) -> None:
    repo = await at.repo()
    await at.key()
    before = git_repos.look_of(repo.path)
    async with at.client() as client:
        task_id = await ended(client)
        folder = at.folder / "state/tasks" / task_id
        await result_in(folder, client, task_id)
        log = (await client("get_task_logs", task_id=task_id))["log_path"]
    assert log == str(folder / "serial.log")
    assert git_repos.look_of(repo.path) == before


async def test_a_link_in_the_repository_leads_no_file_of_a_task_out_of_it(at: Place) -> None:
    repo = await at.repo(ignored=".microvm\n")
    await at.key()
    elsewhere = at.folder / "elsewhere"
    elsewhere.mkdir()
    (repo.path / ".microvm").symlink_to(elsewhere)
    async with at.client() as client:
        task_id = await ended(client)
        log = Path((await client("get_task_logs", task_id=task_id))["log_path"])
    assert log == at.folder / "state/tasks" / task_id / "serial.log"
    assert list(elsewhere.iterdir()) == []


async def test_a_task_that_somebody_put_into_the_group_for_workers_is_none_of_them(
    at: Place,
) -> None:
    made = await at.kept.ask("task_submit", title="for a worker", group=PROFILE)
    async with at.client() as client:
        assert await client("list_tasks") == {"tasks": []}
        told = await client("get_task_info", task_id=made["task_id"])
    assert told == {"error": f"Task not found: {made['task_id']}"}
