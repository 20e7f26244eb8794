from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from mcp_peer import connected
from mcp_stage import TABLE

if TYPE_CHECKING:
    from microvm_orchestrator.mcp_server.server import McpFrontEnd

pytestmark = pytest.mark.anyio


async def test_the_tools_are_the_table_in_its_order(front: McpFrontEnd) -> None:
    async with connected(front) as peer:
        tools = (await peer.ask("tools/list"))["tools"]

    assert [tool["name"] for tool in tools] == list(TABLE)
    look = tools[0]
    assert look["title"] == "Look at a thing"
    assert look["description"] == "Look at a thing.\n\nIt says who looked."
    assert look["inputSchema"]["required"] == ["name"]
    assert look["inputSchema"]["additionalProperties"] is False
    assert look["outputSchema"]["properties"]["seen_by"] == {"type": "string"}


async def test_a_tool_says_what_it_does_to_the_world(front: McpFrontEnd) -> None:
    async with connected(front) as peer:
        tools = {tool["name"]: tool for tool in (await peer.ask("tools/list"))["tools"]}

    hints = {
        name: tuple(
            tool["annotations"][f"{hint}Hint"] for hint in ("readOnly", "destructive", "idempotent")
        )
        for name, tool in tools.items()
    }
    assert hints["thing_look"] == (True, False, True)
    assert hints["thing_take"] == (False, False, False)
    assert hints["thing_break"] == (False, True, False)
    assert not any(tool["annotations"]["openWorldHint"] for tool in tools.values())


async def test_a_list_may_be_longer_than_clients_show_by_default(front: McpFrontEnd) -> None:
    async with connected(front) as peer:
        tools = {tool["name"]: tool for tool in (await peer.ask("tools/list"))["tools"]}

    assert tools["thing_list"]["_meta"]["anthropic/maxResultSizeChars"] >= 100_000
    assert "_meta" not in tools["thing_break"]


async def test_an_answer_is_the_same_as_data_and_as_compact_text(front: McpFrontEnd) -> None:
    async with connected(front) as peer:
        result = await peer.call("thing_look", name="stone")

    (block,) = result["content"]
    whole = {"name": "stone", "seen_by": "alice", "note": None, "detail": {"a": [1, None]}}
    assert result["structuredContent"] == whole
    assert block["text"] == json.dumps(whole, separators=(",", ":"))


async def test_a_refusal_is_its_code_its_sentence_and_the_next_step(front: McpFrontEnd) -> None:
    async with connected(front) as peer:
        result = await peer.call("thing_look", name="missing")

    assert result["isError"]
    assert "structuredContent" not in result
    assert [block["text"] for block in result["content"]] == [
        "not-found: no thing is named missing\n\nhint: call thing_list"
    ]


@pytest.mark.parametrize("arguments", [{}, {"name": 5}, {"name": "x", "nmae": "y"}])
async def test_arguments_that_do_not_fit_are_told_in_our_words(
    front: McpFrontEnd, arguments: dict[str, object]
) -> None:
    async with connected(front) as peer:
        result = await peer.call("thing_look", **arguments)

    assert result["isError"]
    assert result["content"][0]["text"].startswith("invalid-input: ")
    assert "pydantic" not in result["content"][0]["text"]


async def test_a_bug_of_ours_is_told_without_its_story(front: McpFrontEnd) -> None:
    async with connected(front) as peer:
        result = await peer.call("thing_look", name="cracked")

    assert result["isError"]
    assert result["content"][0]["text"].startswith("internal-error: thing_look failed")
    assert "secret" not in result["content"][0]["text"]


async def test_an_unknown_tool_is_an_error_of_the_protocol(front: McpFrontEnd) -> None:
    async with connected(front) as peer:
        refusal = await peer.refused("tools/call", name="thing_sing", arguments={})

    assert refusal == {"code": -32602, "message": "Unknown tool: thing_sing"}


async def test_only_the_discovery_carries_the_icon(front: McpFrontEnd) -> None:
    key = "io.modelcontextprotocol/serverInfo"
    async with connected(front) as peer:
        discovered = await peer.ask("server/discover")
        called = await peer.call("thing_look", name="stone")

    assert discovered["_meta"][key]["icons"][0]["src"].startswith("data:image/svg+xml;base64,")
    assert called["_meta"][key] == {
        "name": "microvm-orchestrator",
        "version": discovered["_meta"][key]["version"],
    }
