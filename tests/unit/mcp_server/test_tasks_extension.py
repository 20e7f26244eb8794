from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from mcp_peer import ALICE, BOB, PATIENCE_S, TASKS, Peer, connected
from mcp_stage import Stage, front_on, service_on
from microvm_orchestrator.mcp_server.task_records import TTL, KeptTask, TaskShelf, new_task_id
from microvm_orchestrator.mcp_server.tasks_extension import IDENTIFIER
from microvm_orchestrator.model.values import rfc3339

if TYPE_CHECKING:
    from pathlib import Path

    from microvm_orchestrator.mcp_server.server import McpFrontEnd

pytestmark = pytest.mark.anyio


async def finished(peer: Peer, task_id: str) -> dict[str, Any]:
    with anyio.fail_after(PATIENCE_S):
        while True:
            task = await peer.ask("tasks/get", taskId=task_id)
            if task["status"] not in {"working", "input_required"}:
                return task
            await anyio.sleep(0.01)


async def test_the_server_declares_the_extension(front: McpFrontEnd) -> None:
    async with connected(front) as peer:
        discovered = await peer.ask("server/discover")

    assert IDENTIFIER in discovered["capabilities"]["extensions"]


async def test_a_wait_that_is_over_at_once_is_answered_directly(front: McpFrontEnd) -> None:
    async with connected(front, capabilities=TASKS) as peer:
        result = await peer.call("thing_wait", name="quick")

    assert result["resultType"] == "complete"
    assert result["structuredContent"]["name"] == "quick"


async def test_a_longer_wait_becomes_a_task_whose_result_is_the_calls(
    front: McpFrontEnd, stage: Stage
) -> None:
    async with connected(front, capabilities=TASKS) as peer:
        handle = await peer.call("thing_wait", name="slow", reports=2)
        early = await peer.ask("tasks/get", taskId=handle["taskId"])
        stage.go_on.set()
        late = await finished(peer, handle["taskId"])

    assert (handle["resultType"], handle["status"]) == ("task", "working")
    assert (early["status"], early["statusMessage"]) == ("working", "waiting (1 of 2)")
    assert late["status"] == "completed"
    assert late["result"]["structuredContent"]["seen_by"] == ALICE.name
    assert stage.calls == 1


async def test_a_task_goes_on_when_its_client_leaves(front: McpFrontEnd, stage: Stage) -> None:
    async with connected(front, capabilities=TASKS) as peer:
        handle = await peer.call("thing_wait", name="slow")
    stage.go_on.set()
    async with connected(front, capabilities=TASKS) as peer:
        task = await finished(peer, handle["taskId"])

    assert task["status"] == "completed"
    assert not stage.cancelled.is_set()


async def test_a_call_whose_client_left_before_it_had_the_handle_is_ended(
    front: McpFrontEnd, stage: Stage
) -> None:
    async with connected(front, capabilities=TASKS) as peer:
        await peer.say(
            peer.request("tools/call", {"name": "thing_wait", "arguments": {"name": "x"}})
        )
        await stage.started.wait()

    with anyio.fail_after(PATIENCE_S):
        await stage.cancelled.wait()


async def test_a_client_without_the_extension_waits_on_the_line(
    front: McpFrontEnd, stage: Stage
) -> None:
    async with connected(front) as peer:
        request = peer.request("tools/call", {"name": "thing_wait", "arguments": {"name": "slow"}})
        await peer.say(request)
        await stage.started.wait()
        stage.go_on.set()
        answer = await peer.response(request["id"])
        refusal = await peer.refused("tasks/get", taskId="mt_x")

    assert answer["result"]["structuredContent"]["name"] == "slow"
    assert refusal["code"] == -32021
    assert IDENTIFIER in refusal["data"]["requiredCapabilities"]["extensions"]


@pytest.mark.parametrize("method", ["tasks/get", "tasks/cancel", "tasks/update"])
async def test_a_task_is_seen_by_nobody_but_its_owner(
    front: McpFrontEnd, stage: Stage, method: str
) -> None:
    asked: dict[str, Any] = {"inputResponses": {}} if method == "tasks/update" else {}
    async with connected(front, capabilities=TASKS) as peer:
        handle = await peer.call("thing_wait", name="slow")
        async with connected(front, BOB, capabilities=TASKS) as other:
            running = await other.refused(method, taskId=handle["taskId"], **asked)
            stage.go_on.set()
            await finished(peer, handle["taskId"])
            done = await other.refused(method, taskId=handle["taskId"], **asked)
            unknown = await other.refused(method, taskId=new_task_id(), **asked)

    assert running == done == unknown
    assert unknown["code"] == -32602


async def test_a_cancelled_task_ends_its_call_and_stays_cancelled(
    front: McpFrontEnd, stage: Stage
) -> None:
    async with connected(front, capabilities=TASKS) as peer:
        handle = await peer.call("thing_wait", name="slow")
        acknowledged = await peer.ask("tasks/cancel", taskId=handle["taskId"])
        again = await peer.ask("tasks/cancel", taskId=handle["taskId"])
        task = await peer.ask("tasks/get", taskId=handle["taskId"])

    assert acknowledged["resultType"] == again["resultType"] == "complete"
    assert "taskId" not in acknowledged
    assert task["status"] == "cancelled"
    assert stage.cancelled.is_set()


async def test_a_refused_call_completes_its_task_with_the_refusal(
    tmp_path: Path, stage: Stage
) -> None:
    async with front_on(tmp_path) as front, connected(front, capabilities=TASKS) as peer:
        result = await peer.call("thing_wait", name=5)

    assert result["isError"]
    assert stage.calls == 0


async def test_a_result_outlives_the_daemon(tmp_path: Path, stage: Stage) -> None:
    async with front_on(tmp_path) as front, connected(front, capabilities=TASKS) as peer:
        handle = await peer.call("thing_wait", name="slow")
        stage.go_on.set()
        before = await finished(peer, handle["taskId"])
    async with front_on(tmp_path) as front, connected(front, capabilities=TASKS) as peer:
        after = await peer.ask("tasks/get", taskId=handle["taskId"])

    assert after == before
    assert stage.calls == 1


async def test_a_wait_that_a_restart_cut_off_is_made_again_when_its_owner_asks(
    tmp_path: Path, stage: Stage
) -> None:
    async with front_on(tmp_path) as front, connected(front, capabilities=TASKS) as peer:
        handle = await peer.call("thing_wait", name="slow")
    stage.go_on.set()
    async with front_on(tmp_path) as front:
        async with connected(front, BOB, capabilities=TASKS) as other:
            await other.refused("tasks/get", taskId=handle["taskId"])
        assert stage.calls == 1
        async with connected(front, capabilities=TASKS) as peer:
            task = await finished(peer, handle["taskId"])

    assert task["result"]["structuredContent"]["name"] == "slow"
    assert stage.calls == 2


async def test_a_claim_that_a_restart_cut_off_is_not_made_again(
    tmp_path: Path, stage: Stage
) -> None:
    async with front_on(tmp_path) as front, connected(front, capabilities=TASKS) as peer:
        handle = await peer.call("thing_take", name="slow")
    stage.go_on.set()
    async with front_on(tmp_path) as front, connected(front, capabilities=TASKS) as peer:
        task = await peer.ask("tasks/get", taskId=handle["taskId"])
        again = await peer.ask("tasks/get", taskId=handle["taskId"])

    assert task["status"] == "failed"
    assert task["error"]["message"].startswith("unknown-outcome: ")
    assert again == task
    assert stage.calls == 1


async def test_a_task_past_its_time_is_gone_and_its_record_is_dropped(tmp_path: Path) -> None:
    old = KeptTask.new("thing_wait", {"name": "x"}, ALICE.name)
    old.created_at = rfc3339(datetime.now(UTC) - TTL - timedelta(seconds=1))
    old.touch("completed")
    young = KeptTask.new("thing_wait", {"name": "x"}, ALICE.name)
    async with service_on(tmp_path) as service:
        shelf = TaskShelf(service.store)
        for task_id, task in (("mt_old", old), ("mt_young", young)):
            await shelf.save(task_id, task, ALICE)

        assert await shelf.find("mt_old", ALICE) is None
        assert await shelf.drop_expired() == 1
        assert await shelf.find("mt_young", ALICE) == young
