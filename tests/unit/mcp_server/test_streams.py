from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anyio
import pytest

from mcp_peer import ALICE, PATIENCE_S, connected
from microvm_orchestrator.mcp_server.json_lines import MAX_MESSAGE_BYTES, MAX_UNANSWERED

if TYPE_CHECKING:
    from mcp_stage import Stage
    from microvm_orchestrator.mcp_server.server import McpFrontEnd

pytestmark = pytest.mark.anyio


async def test_one_line_in_is_one_line_out(front: McpFrontEnd) -> None:
    async with connected(front) as peer:
        result = await peer.call("thing_look", name="stone")

    assert result["structuredContent"]["seen_by"] == ALICE.name


async def test_a_client_of_the_older_protocol_shakes_hands_first(front: McpFrontEnd) -> None:
    hello = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "t", "version": "1"},
    }
    async with connected(front) as peer:
        greeting = await peer.exchange(
            {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
        )
        await peer.say({"jsonrpc": "2.0", "method": "notifications/initialized"})
        answer = await peer.exchange(
            {
                "jsonrpc": "2.0",
                "id": 2,
                "method": "tools/call",
                "params": {"name": "thing_look", "arguments": {"name": "stone"}},
            }
        )

    assert greeting["result"]["serverInfo"]["name"] == "microvm-orchestrator"
    assert "task_claim" in greeting["result"]["instructions"]
    assert answer["result"]["structuredContent"]["name"] == "stone"


@pytest.mark.parametrize(
    ("line", "code", "request_id"),
    [
        (b"{not json", -32700, None),
        (b"\xff\xfe", -32700, None),
        (b"[]", -32600, None),
        (b'"text"', -32600, None),
        (b'{"jsonrpc":"1.0","id":7,"method":"ping"}', -32600, 7),
        (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":"x","method":5}', -32600, "x"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", -32700, None),
    ],
)
async def test_a_line_that_is_no_message_is_answered_and_the_next_one_is_served(
    front: McpFrontEnd, line: bytes, code: int, request_id: object
) -> None:
    async with connected(front) as peer:
        await peer.say(line)
        refusal = await peer.hear()
        served = await peer.call("thing_look", name="stone")

    assert (refusal["error"]["code"], refusal["id"]) == (code, request_id)
    assert not served["isError"]


@pytest.mark.parametrize(
    ("head", "tail", "request_id"),
    [
        ('{"jsonrpc":"2.0","id":41,"method":"tools/call","params":{"x":"', '"}}', 41),
        ('{"id":"a-1","jsonrpc":"2.0","params":{"x":"', '"}}', "a-1"),
        ('{"method":"tools/call","params":{"x":"', '"},"jsonrpc":"2.0","id":42}', 42),
        # An id inside the parameters is not the message's.
        ('{"method":"tools/call","params":{"x":"', '","id":43}}', None),
    ],
)
async def test_a_message_too_long_is_refused_by_its_id_and_the_next_one_is_served(
    front: McpFrontEnd, head: str, tail: str, request_id: object
) -> None:
    line = (head + "x" * 2 * MAX_MESSAGE_BYTES + tail).encode()
    async with connected(front) as peer:
        await peer.say(line)
        refusal = await peer.hear()
        served = await peer.call("thing_look", name="stone")

    assert refusal["id"] == request_id
    assert refusal["error"]["message"].startswith("too-large: ")
    assert not served["isError"]


async def test_a_message_of_the_longest_allowed_size_is_served(front: McpFrontEnd) -> None:
    async with connected(front) as peer:
        message = peer.request("tools/call", {"name": "thing_look", "arguments": {"name": ""}})
        room = MAX_MESSAGE_BYTES - len(json.dumps(message))
        message["params"]["arguments"]["name"] = "n" * room
        answer = await peer.exchange(message)

    assert len(answer["result"]["structuredContent"]["name"]) == room


async def test_many_requests_in_one_write_are_each_answered(front: McpFrontEnd) -> None:
    async with connected(front) as peer:
        requests = [
            peer.request("tools/call", {"name": "thing_look", "arguments": {"name": str(n)}})
            for n in range(50)
        ]
        await peer.say(b"\n".join(json.dumps(request).encode() for request in requests))
        heard = {(await peer.hear())["id"] for _ in requests}

    assert heard == {request["id"] for request in requests}


async def test_a_client_that_closes_its_side_still_reads_its_answers(front: McpFrontEnd) -> None:
    async with connected(front) as peer:
        request = peer.request("tools/call", {"name": "thing_look", "arguments": {"name": "x"}})
        await peer.say(request)
        await peer.stream.send_eof()
        answer = await peer.response(request["id"])

    assert answer["result"]["structuredContent"]["name"] == "x"


async def test_a_waiting_call_ends_when_its_client_leaves(front: McpFrontEnd, stage: Stage) -> None:
    async with connected(front) as peer:
        await peer.say(
            peer.request("tools/call", {"name": "thing_wait", "arguments": {"name": "x"}})
        )
        await stage.started.wait()

    with anyio.fail_after(PATIENCE_S):
        await stage.cancelled.wait()


async def test_a_waiting_call_ends_when_its_client_cancels_it(
    front: McpFrontEnd, stage: Stage
) -> None:
    async with connected(front) as peer:
        request = peer.request("tools/call", {"name": "thing_wait", "arguments": {"name": "x"}})
        await peer.say(request)
        await stage.started.wait()
        await peer.say(
            {
                "jsonrpc": "2.0",
                "method": "notifications/cancelled",
                "params": {"requestId": request["id"]},
            }
        )
        with anyio.fail_after(PATIENCE_S):
            await stage.cancelled.wait()
        served = await peer.call("thing_look", name="stone")

    assert not served["isError"]


async def test_a_waiting_call_reports_progress_seldom_and_growing(
    front: McpFrontEnd, stage: Stage
) -> None:
    async with connected(front) as peer:
        request = peer.request(
            "tools/call",
            {"name": "thing_wait", "arguments": {"name": "x", "reports": 100}},
            progressToken="p",
        )
        await peer.say(request)
        await stage.started.wait()
        stage.go_on.set()
        await peer.response(request["id"])

    reports = [heard["params"] for heard in peer.aside if heard["method"].endswith("/progress")]
    assert [report["message"] for report in reports] == ["waiting"]
    assert reports[0]["progressToken"] == "p"


async def test_a_client_that_asks_without_end_is_refused_and_served_again_later(
    front: McpFrontEnd, stage: Stage
) -> None:
    async with connected(front) as peer:
        waits = [
            peer.request("tools/call", {"name": "thing_wait", "arguments": {"name": "x"}})
            for _ in range(MAX_UNANSWERED + 1)
        ]
        await peer.say(b"\n".join(json.dumps(wait).encode() for wait in waits))
        refusal = await peer.hear()
        for wait in waits[:2]:
            await peer.say(
                {
                    "jsonrpc": "2.0",
                    "method": "notifications/cancelled",
                    "params": {"requestId": wait["id"]},
                }
            )
        await stage.cancelled.wait()
        served = await peer.call("thing_look", name="stone")

    assert refusal["id"] == waits[-1]["id"]
    assert refusal["error"]["message"].startswith("unavailable: ")
    assert not served["isError"]


async def test_an_unknown_profile_is_answered_with_those_there_are(front: McpFrontEnd) -> None:
    async with connected(front, profile="nonsense") as peer:
        refusal = await peer.refused("tools/list")

    assert refusal["message"].startswith("not-found: no profile is named nonsense")
    assert "default" in refusal["message"]


async def test_a_handshake_on_a_connection_that_needs_none_is_told_so(front: McpFrontEnd) -> None:
    async with connected(front) as peer:
        await peer.ask("server/discover")
        answer = await peer.exchange({"jsonrpc": "2.0", "id": 9, "method": "initialize"})
        served = await peer.call("thing_look", name="stone")

    assert answer["error"]["code"] == -32022
    assert answer["error"]["data"]["supported"] == ["2026-07-28"]
    assert not served["isError"]


async def test_a_request_of_an_unknown_revision_is_told_which_are_served(
    front: McpFrontEnd,
) -> None:
    async with connected(front) as peer:
        request = peer.request("server/discover", {})
        request["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] = "2099-01-01"
        answer = await peer.exchange(request)

    assert answer["error"]["code"] == -32022
    assert "2026-07-28" in answer["error"]["data"]["supported"]
