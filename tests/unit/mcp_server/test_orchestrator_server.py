"""The acceptance cases of the program whose tools this profile serves."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from calling import House, house
from mcp_peer import ALICE, Peer, connected
from microvm_orchestrator.mcp_server.server import McpFrontEnd
from microvm_orchestrator.model.access import Principal, Role

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

pytestmark = pytest.mark.anyio

PROFILE = "orchestrator-server"


@dataclass
class Client:
    """A client of that program: gives what a tool returned, or the sentence it was refused with."""

    peer: Peer

    async def __call__(self, tool: str, **arguments: object) -> Any:
        request = self.peer.request("tools/call", {"name": tool, "arguments": arguments})
        answer = await self.peer.exchange(request)
        if "error" in answer:
            assert answer["error"]["code"] == -32600
            return answer["error"]["message"]
        assert "structuredContent" not in answer["result"]
        (block,) = answer["result"]["content"]
        shown = json.loads(block["text"])
        assert block["text"] == json.dumps(shown, indent=2, ensure_ascii=False)
        return shown


@dataclass
class Place:
    front: McpFrontEnd
    kept: House

    @asynccontextmanager
    async def client(self, principal: Principal = ALICE) -> AsyncGenerator[Client]:
        async with connected(self.front, principal, PROFILE) as peer:
            yield Client(peer)


@asynccontextmanager
async def place(path: Path) -> AsyncGenerator[Place]:
    async with house(path) as kept:
        front = McpFrontEnd(kept.service)
        async with front.running():
            yield Place(front, kept)


@pytest.fixture
async def at(tmp_path: Path) -> AsyncGenerator[Place]:
    async with place(tmp_path) as at:
        yield at


async def test_the_seven_tools_have_their_names_and_parameters(at: Place) -> None:
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
        "create_task": ({"id", "description", "dependencies"}, {"id", "description"}),
        "update_task": ({"task_id", "description", "dependencies"}, {"task_id"}),
        "delete_task": ({"task_id"}, {"task_id"}),
        "get_next_task": ({"instance_id"}, {"instance_id"}),
        "complete_task": (
            {"task_id", "instance_id", "result"},
            {"task_id", "instance_id", "result"},
        ),
        "get_task_status": (set(), set()),
        "get_task_details": ({"task_id"}, {"task_id"}),
    }


async def test_a_task_goes_from_pending_over_in_progress_to_completed(at: Place) -> None:
    async with at.client() as client:
        created = await client("create_task", id="setup", description="Set up")
        await client("create_task", id="build", description="Build", dependencies=["setup"])
        claimed = await client("get_next_task", instance_id="worker-1")
        nothing = await client("get_next_task", instance_id="worker-2")
        done = await client(
            "complete_task", task_id="setup", instance_id="worker-1", result="ready"
        )
        status = await client("get_task_status")
        details = await client("get_task_details", task_id="setup")

    setup = {"id": "setup", "description": "Set up"}
    build = {"id": "build", "description": "Build", "dependencies": ["setup"]}
    finished = {**setup, "status": "completed", "assignedTo": "worker-1", "result": "ready"}
    assert created == {**setup, "status": "pending"}
    assert claimed == {**setup, "status": "in_progress", "assignedTo": "worker-1"}
    assert nothing == {"status": "no_tasks"}
    assert done == {
        "completed_task": finished,
        "unlocked_tasks": [{**build, "status": "pending"}],
    }
    assert status == [finished, {**build, "status": "pending"}]
    assert details == finished


async def test_what_was_never_created_is_not_found(at: Place) -> None:
    async with at.client() as client:
        assert await client("get_task_status") == []
        assert await client("get_task_details", task_id="x") == "Task x not found"
        assert await client("update_task", task_id="x", description="") == "Task x not found"
        assert await client("delete_task", task_id="x") == "Task x not found"
        refusal = await client("complete_task", task_id="x", instance_id="i", result="r")
        assert refusal == "Task x not found"


async def test_an_id_is_taken_once(at: Place) -> None:
    async with at.client() as client:
        await client("create_task", id="a", description="A")
        refusal = await client("create_task", id="a", description="again")

    assert refusal == "Task a already exists"


@pytest.mark.parametrize("name", ["constructor", "__proto__", "2", "a b", "ä/ö"])
async def test_any_text_is_an_id(at: Place, name: str) -> None:
    async with at.client() as client:
        await client("create_task", id=name, description="odd")
        claimed = await client("get_next_task", instance_id=name)

    assert (claimed["id"], claimed["assignedTo"]) == (name, name)


@pytest.mark.parametrize("dependency", ["missing", "self"])
async def test_a_dependency_must_be_there_before(at: Place, dependency: str) -> None:
    async with at.client() as client:
        refusal = await client("create_task", id="self", description="x", dependencies=[dependency])
        status = await client("get_task_status")

    assert refusal == f"Dependency task {dependency} not found"
    assert status == []


async def test_a_diamond_is_taken_and_a_cycle_refused(at: Place) -> None:
    async with at.client() as client:
        for name, needs in (("a", []), ("b", ["a"]), ("c", ["a"]), ("d", ["b", "c"])):
            await client("create_task", id=name, description=name, dependencies=needs)
        for needs in (["d"], ["a"]):
            refusal = await client("update_task", task_id="a", dependencies=needs)
            assert refusal == "Dependencies would create a cycle"
        refusal = await client("update_task", task_id="d", dependencies=["nowhere"])
        assert refusal == "Dependency task nowhere not found"
        loosened = await client("update_task", task_id="d", dependencies=[])

    assert loosened == {"id": "d", "description": "d", "status": "pending"}


async def test_a_task_is_updated_only_while_it_is_pending(at: Place) -> None:
    async with at.client() as client:
        await client("create_task", id="a", description="A")
        changed = await client("update_task", task_id="a", description="B")
        await client("get_next_task", instance_id="i")
        running = await client("update_task", task_id="a", description="C")
        await client("complete_task", task_id="a", instance_id="i", result="r")
        done = await client("update_task", task_id="a", description="D")

    assert changed["description"] == "B"
    assert running == "Cannot update task a in in_progress state"
    assert done == "Cannot update task a in completed state"


async def test_a_task_others_depend_on_is_kept_and_they_are_named(at: Place) -> None:
    async with at.client() as client:
        for name, needs in (("a", []), ("b", ["a"]), ("c", ["a"]), ("d", ["b"])):
            await client("create_task", id=name, description=name, dependencies=needs)
        pending = await client("delete_task", task_id="a")
        await client("get_next_task", instance_id="i")
        running = await client("delete_task", task_id="a")
        gone = [await client("delete_task", task_id=name) for name in ("d", "b", "c", "a")]

    assert pending == running == "Cannot delete task a as it has dependent tasks: b, c"
    assert gone == [{"deleted": name} for name in ("d", "b", "c", "a")]


async def test_only_the_instance_that_has_a_task_completes_it_and_only_once(at: Place) -> None:
    words = {"task_id": "a", "result": "r"}
    async with at.client() as client:
        await client("create_task", id="a", description="A")
        early = await client("complete_task", instance_id="i", **words)
        await client("get_next_task", instance_id="i")
        other = await client("complete_task", instance_id="j", **words)
        first = await client("complete_task", instance_id="i", **words)
        again = await client("complete_task", instance_id="i", **words)
        late = await client("complete_task", instance_id="j", **words)

    assert early == "Task a is not assigned to instance i"
    assert other == late == "Task a is not assigned to instance j"
    assert first["completed_task"]["result"] == "r"
    assert again == "Task a is already completed"


async def test_two_instances_at_once_never_get_the_same_task(at: Place) -> None:
    got: dict[str, list[str]] = {"left": [], "right": []}

    async def work(instance: str) -> None:
        async with at.client() as client:
            while True:
                task = await client("get_next_task", instance_id=instance)
                if "id" not in task:
                    return
                got[instance].append(task["id"])
                await client("complete_task", task_id=task["id"], instance_id=instance, result="")

    async with at.client() as client:
        for number in range(40):
            await client("create_task", id=str(number), description="x")
    async with anyio.create_task_group() as group:
        for instance in got:
            group.start_soon(work, instance)

    assert sorted(got["left"] + got["right"], key=int) == [str(number) for number in range(40)]


async def test_the_instance_of_another_worker_is_another_instance(at: Place) -> None:
    one, two = Principal("one", Role.WORKER), Principal("two", Role.WORKER)
    async with at.client() as client:
        await client("create_task", id="a", description="A")
    async with at.client(one) as mine, at.client(two) as theirs:
        claimed = await mine("get_next_task", instance_id="same")
        refusal = await theirs("complete_task", task_id="a", instance_id="same", result="r")
        done = await mine("complete_task", task_id="a", instance_id="same", result="r")

    assert claimed["assignedTo"] == done["completed_task"]["assignedTo"] == "same"
    assert refusal == "Task a is not assigned to instance same"


async def test_tasks_outlive_the_daemon(tmp_path: Path) -> None:
    async with place(tmp_path) as at, at.client() as client:
        await client("create_task", id="a", description="A")
        await client("get_next_task", instance_id="i")
    async with place(tmp_path) as at, at.client() as client:
        done = await client("complete_task", task_id="a", instance_id="i", result="r")

    assert done["completed_task"]["status"] == "completed"


async def test_a_claim_is_for_a_day_and_every_word_of_its_instance_renews_it(at: Place) -> None:
    async def ends() -> str:
        task = await at.kept.ask("task_get", task_id="a", group=PROFILE)
        return task["lease_expires_at"]

    async with at.client() as client:
        await client("create_task", id="a", description="A")
        await client("create_task", id="b", description="B")
        await client("get_next_task", instance_id="i")
        first = await ends()
        await client("get_next_task", instance_id="i")
        second = await ends()
        await client("complete_task", task_id="b", instance_id="i", result="")
        third = await ends()

    task = await at.kept.ask("task_get", task_id="a", group=PROFILE)
    assert task["lease_s"] == 86_400
    assert first < second < third


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("create_task", {"description": "no id"}),
        ("create_task", {"id": "", "description": ""}),
        # It reads as an id of ours.
        ("create_task", {"id": "t_" + "0" * 26, "description": ""}),
        ("create_task", {"id": "a", "description": "x", "dependencies": "b"}),
        ("get_next_task", {}),
        ("get_next_task", {"instance_id": "i" * 100}),
    ],
)
async def test_arguments_that_do_not_fit_are_refused(
    at: Place, tool: str, arguments: dict[str, object]
) -> None:
    async with at.client() as client:
        refusal = await client(tool, **arguments)

    assert refusal.startswith("invalid-input: ")


async def test_an_unknown_tool_is_an_unknown_method(at: Place) -> None:
    async with connected(at.front, profile=PROFILE) as peer:
        refusal = await peer.refused("tools/call", name="task_get", arguments={})

    assert refusal == {"code": -32601, "message": "Unknown tool: task_get"}
