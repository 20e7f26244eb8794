from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from calling import House, house
from mcp_peer import Peer, connected
from microvm_orchestrator.mcp_server.server import INSTRUCTIONS, McpFrontEnd
from microvm_orchestrator.mcp_server.tools import CORE
from microvm_orchestrator.model.access import Principal, Role, Scope
from microvm_orchestrator.service.table import BY_NAME

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

pytestmark = pytest.mark.anyio

VIEWER = Principal("viewer", Role.VIEWER)
STRANGER = Principal("stranger", Role.VIEWER, Scope(everything=False))


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncGenerator[House]:
    async with house(tmp_path) as kept:
        tasks: list[dict[str, Any]] = [
            {"key": "setup", "title": "Set up"},
            {"key": "build", "depends_on": ["setup"]},
        ]
        await kept.ask("graph_submit", group="release-1", tasks=tasks)
        await kept.ask("task_submit", key="alone")
        yield kept


@pytest.fixture
async def front(kept: House) -> AsyncGenerator[McpFrontEnd]:
    front = McpFrontEnd(kept.service)
    async with front.running():
        yield front


async def prompted(peer: Peer, name: str, /, **arguments: str) -> str:
    prompt = await peer.ask("prompts/get", name=name, arguments=arguments)
    (message,) = prompt["messages"]
    assert message["role"] == "user"
    return message["content"]["text"]


async def test_the_prompts_name_their_arguments(front: McpFrontEnd) -> None:
    async with connected(front) as peer:
        prompts = (await peer.ask("prompts/list"))["prompts"]

    assert {
        prompt["name"]: {each["name"]: each["required"] for each in prompt["arguments"]}
        for prompt in prompts
    } == {
        "plan_graph": {"goal": True, "group": False},
        "work_as_worker": {"worker": True, "capabilities": False, "group": False},
        "review_failures": {"group": True},
        "task-analyzer": {"text": True, "name": False, "repo": False, "group": False},
        "conflict-resolver": {"task_id": True, "how": False},
    }


async def test_every_tool_a_text_names_exists(front: McpFrontEnd) -> None:
    async with connected(front) as peer:
        texts = [
            await prompted(peer, "plan_graph", goal="x"),
            await prompted(peer, "work_as_worker", worker="w"),
            await prompted(peer, "review_failures", group="g"),
            await prompted(peer, "task-analyzer", text="- x"),
            await prompted(peer, "conflict-resolver", task_id="t"),
            re.sub(r"\b([a-z]+_[a-z]+)\b", r"`\1`", INSTRUCTIONS),
        ]

    nouns = {call.noun for call in BY_NAME.values()}
    named = {
        name
        for text in texts
        for name in re.findall(r"`([a-z]+_[a-z]+)`", text)
        if name.partition("_")[0] in nouns
    }
    assert named <= BY_NAME.keys()
    assert named >= CORE
    assert BY_NAME.keys() >= CORE


async def test_a_prompt_is_filled_with_what_was_given(front: McpFrontEnd) -> None:
    async with connected(front) as peer:
        given = await prompted(peer, "work_as_worker", worker="w-1", capabilities="$gpu, arm")
        plain = await prompted(peer, "work_as_worker", worker="w-1")

    assert "worker `w-1`" in given
    assert "Your capabilities: $gpu, arm." in given
    assert "Your capabilities: none. Take tasks of: any group." in plain


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("plan_graph", {}, "the prompt plan_graph needs the argument goal"),
        ("plan_graph", {"goal": "  "}, "the prompt plan_graph needs the argument goal"),
        ("plan_party", {"goal": "x"}, "Unknown prompt: plan_party"),
    ],
)
async def test_a_prompt_that_cannot_be_made_is_refused(
    front: McpFrontEnd, name: str, arguments: dict[str, str], sentence: str
) -> None:
    async with connected(front) as peer:
        refusal = await peer.refused("prompts/get", name=name, arguments=arguments)

    assert refusal == {"code": -32602, "message": sentence}


async def test_the_plan_that_the_analyzer_is_asked_for_is_one_that_can_be_submitted(
    front: McpFrontEnd,
) -> None:
    text = "- [ ] Add $login\n  after: #1\n"
    async with connected(front) as peer:
        asked = await prompted(peer, "task-analyzer", text=text, name="work.md")
        example = json.loads(asked.partition("```json\n")[2].partition("```")[0])
        await peer.told("plan_submit", **example)

    assert f"----- work.md\n{text.strip()}\n----- end of work.md" in asked


async def test_the_groups_are_listed_and_the_rest_has_templates(front: McpFrontEnd) -> None:
    async with connected(front) as peer:
        resources = (await peer.ask("resources/list"))["resources"]
        templates = (await peer.ask("resources/templates/list"))["resourceTemplates"]

    assert {each["uri"] for each in resources} == {"group://default", "group://release-1"}
    assert [each["uriTemplate"] for each in templates] == [
        "task://{task_id}",
        "task://{task_id}/history",
        "group://{group}",
    ]


async def test_a_resource_is_what_the_call_behind_it_says(front: McpFrontEnd, kept: House) -> None:
    task = await kept.ask("task_get", task_id="alone")
    read: dict[str, Any] = {}
    async with connected(front, VIEWER) as peer:
        for uri in (
            f"task://{task['task_id']}",
            "task://alone",
            f"task://{task['task_id']}/history",
            "group://release-1",
        ):
            (content,) = (await peer.ask("resources/read", uri=uri))["contents"]
            assert (content["uri"], content["mimeType"]) == (uri, "application/json")
            read[uri] = json.loads(content["text"])

    assert read["task://alone"] == read[f"task://{task['task_id']}"] == task
    assert read[f"task://{task['task_id']}/history"]["items"][0]["kind"] == "task.submitted"
    assert read["group://release-1"]["group"] == "release-1"


@pytest.mark.parametrize(
    "uri", ["task://nowhere", "group://nowhere", "task://", "task://a/b/c", "file:///etc/passwd"]
)
async def test_an_address_that_leads_nowhere_is_not_found(front: McpFrontEnd, uri: str) -> None:
    async with connected(front) as peer:
        refusal = await peer.refused("resources/read", uri=uri)

    assert refusal["code"] == -32602
    assert refusal["message"].startswith("not-found: ")


async def test_what_a_caller_may_not_see_is_neither_read_nor_offered(
    front: McpFrontEnd,
) -> None:
    async with connected(front, STRANGER) as peer:
        refusal = await peer.refused("resources/read", uri="task://alone")
        offered = await completed(peer, "task_id", "")

    assert refusal["message"].startswith("not-found: ")
    assert offered == []


async def completed(peer: Peer, argument: str, typed: str, **chosen: str) -> list[str]:
    answer = await peer.ask(
        "completion/complete",
        ref={"type": "ref/resource", "uri": "task://{task_id}"},
        argument={"name": argument, "value": typed},
        context={"arguments": chosen},
    )
    return answer["completion"]["values"]


async def test_ids_are_completed_from_their_beginning_and_from_keys_and_titles(
    front: McpFrontEnd, kept: House
) -> None:
    ids = {
        key: (await kept.ask("task_get", task_id=key, group=group))["task_id"]
        for key, group in (("alone", "default"), ("setup", "release-1"), ("build", "release-1"))
    }
    async with connected(front) as peer:
        everything = await completed(peer, "task_id", "t_")
        by_key = await completed(peer, "task_id", "bui")
        by_title = await completed(peer, "task_id", "Set u")
        of_group = await completed(peer, "task_id", "", group="release-1")
        nothing = await completed(peer, "task_id", "zzz")

    assert set(everything) == set(ids.values())
    assert by_key == [ids["build"]]
    assert by_title == [ids["setup"]]
    assert set(of_group) == {ids["setup"], ids["build"]}
    assert nothing == []


async def test_groups_are_completed_from_any_part_of_their_name(front: McpFrontEnd) -> None:
    async with connected(front) as peer:
        assert await completed(peer, "group", "EASE") == ["release-1"]
        assert set(await completed(peer, "group", "")) == {"default", "release-1"}
        assert await completed(peer, "something", "x") == []
