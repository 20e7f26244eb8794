"""Budgets of agents over the service: what waits at a limit, what is told, who ends."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from calling import ADMIN, PATIENCE_S, silent
from holding import Holding
from machines import publish_no_image
from microvm_orchestrator import errors
from microvm_orchestrator.model.agent import Agent
from microvm_orchestrator.model.agent_budget import AgentBudget
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.service.as_agent import spawn_as
from microvm_orchestrator.service.calls import Caller
from talking import agent_of, home, kinds, said, spawned, stands

if TYPE_CHECKING:
    from pathlib import Path


async def test_what_is_said_at_a_limit_waits_until_more_may_be_taken(tmp_path: Path) -> None:
    async with home(tmp_path) as here:
        ada = await spawned(here, "ada", turns=1)
        assert (await said(here, ada))["state"] == "failed"
        waiting = await said(here, ada, wait_s=0)
        used_up = "its budget is used up: 1 of 1 turns"
        assert (await stands(here, ada, "idle", used_up))["turns"] == 1
        assert "agent.budget_warning" in await kinds(here, ada)
    async with home(tmp_path) as here:
        message = await here.ask("agent_wait", message_id=waiting["message_id"], timeout_s=0)
        assert message["state"] == "queued"
        raised = await here.ask("agent_budget", agent=ada, turns=2, warn_at=[])
        assert raised["budget"]["turns"] == 2
        asked = {"message_id": waiting["message_id"], "timeout_s": PATIENCE_S}
        assert (await here.ask("agent_wait", **asked))["state"] == "failed"
        found = await stands(here, ada, "idle", "its budget is used up: 2 of 2 turns")
        assert found["turns"] == 2
        assert found["usage"]["wall_s"] > 0
        await here.ask("agent_budget", agent=ada)
        await stands(here, ada, "idle", "")
        await here.ask("agent_end", agent=ada)


async def test_figures_tell_what_became_of_messages_also_after_a_restart_and_the_end(
    tmp_path: Path,
) -> None:
    async with home(tmp_path) as here:
        ada = await spawned(here, "ada")
        assert (await said(here, ada))["state"] == "failed"
        figures = await here.ask("agent_metrics")
        [told] = figures["agents"]
        assert (told["answered"], told["failed"], told["waiting"]) == (0, 1, 0)
        assert sum(told["errors"].values()) == 1
        assert (told["health"], told["success_rate"]) == (50, 0.0)
        assert figures["totals"]["active"] == figures["totals"]["states"]["idle"] == 1
    async with home(tmp_path) as here:
        [again] = (await here.ask("agent_metrics"))["agents"]
        counted = ("failed", "errors", "health", "success_rate", "response")
        assert [again[each] for each in counted] == [told[each] for each in counted]
        await here.ask("agent_end", agent=ada)
        figures = await here.ask("agent_metrics")
        assert (figures["agents"], figures["totals"]["active"]) == ([], 0)
        assert figures["totals"]["taken"]["turns"] == 1
    async with home(tmp_path) as here:
        [after] = (await here.ask("agent_metrics", agent=ada))["agents"]
        assert (after["failed"], after["health"], after["state"]) == (1, None, "ended")


async def test_a_budget_of_a_tree_is_used_by_all_of_it_also_by_those_who_are_gone(
    tmp_path: Path,
) -> None:
    async with home(tmp_path) as here:
        lead = await spawned(here, "lead", tree_turns=2, warn_at=[0.5])
        ada = await spawned(here, "ada", parent=lead)
        bob = await spawned(here, "bob", parent=lead)
        await said(here, ada)
        await here.ask("agent_end", agent=ada)
        await here.ask("agent_delete", agent=ada)
        assert (await here.ask("agent_get", agent=lead))["tree_taken"]["turns"] == 1
        await said(here, bob)
        waiting = [await said(here, each, wait_s=0) for each in (lead, bob)]
        used_up = "budget for it and all below it is used up: 2 of 2 turns"
        await stands(here, lead, "idle", f"its {used_up}")
        await stands(here, bob, "idle", f"agent lead's {used_up}")
        warned = [each for each in await kinds(here, lead) if each == "agent.budget_warning"]
        assert warned == ["agent.budget_warning"]
        await here.ask("agent_budget", agent=lead, tree_turns=4)
        for each in waiting:
            asked = {"message_id": each["message_id"], "timeout_s": PATIENCE_S}
            assert (await here.ask("agent_wait", **asked))["state"] == "failed"
        assert (await here.ask("agent_get", agent=lead))["tree_taken"]["turns"] == 4
        await here.ask("agent_end", agent=lead, cascade=True)


async def test_of_those_who_wait_for_a_budget_no_more_begin_than_it_has_turns(
    tmp_path: Path,
) -> None:
    async with home(tmp_path) as here:
        lead = await spawned(here, "lead", tree_turns=2)
        children = [await spawned(here, name, parent=lead) for name in ("ada", "bob")]
        for each in children:
            await said(here, each)
        waiting = [await said(here, each, wait_s=0) for each in children]
        used_up = "agent lead's budget for it and all below it is used up"
        for each in children:
            await stands(here, each, "idle", f"{used_up}: 2 of 2 turns")
        await here.ask("agent_budget", agent=lead, tree_turns=3)
        for each in children:
            await stands(here, each, "idle", f"{used_up}: 3 of 3 turns")
        asked = [{"message_id": each["message_id"], "timeout_s": 0} for each in waiting]
        told = [(await here.ask("agent_wait", **each))["state"] for each in asked]
        assert sorted(told) == ["failed", "queued"]
        await here.ask("agent_end", agent=lead, cascade=True)


async def test_a_turn_that_one_did_not_take_after_all_is_anothers(tmp_path: Path) -> None:
    held = Holding()
    async with home(tmp_path, held.over) as here:
        lead = await spawned(here, "lead", tree_turns=1)
        ada, bob = [await spawned(here, name, parent=lead) for name in ("ada", "bob")]
        machine = (await agent_of(here, ada))["machine_id"]
        await here.ask("agent_suspend", agent=ada)
        held.hold_save(lambda each: each.id == machine)
        first = await said(here, ada, wait_s=0)
        await held.reached()
        second = await said(here, bob, wait_s=0)
        used_up = "agent lead's budget for it and all below it is used up: 1 of 1 turns"
        await stands(here, bob, "idle", used_up)
        await here.service.host.agents.withdraw(first["message_id"], SYSTEM)
        held.release()
        for each in (first, second):
            asked = {"message_id": each["message_id"], "timeout_s": PATIENCE_S}
            assert (await here.ask("agent_wait", **asked))["state"] == "failed"
        assert (await here.ask("agent_get", agent=lead))["tree_taken"]["turns"] == 1
        await here.ask("agent_end", agent=lead, cascade=True)


async def test_who_is_to_end_at_a_limit_ends_with_all_below_it(tmp_path: Path) -> None:
    async with home(tmp_path) as here:
        lead = await spawned(here, "lead", tree_turns=1, at_limit="end")
        ada = await spawned(here, "ada", parent=lead)
        await said(here, ada)
        reason = "its budget for it and all below it is used up: 1 of 1 turns"
        for each in (lead, ada):
            found = await stands(here, each, "ended", reason)
            assert found["ended_at"] is not None

        async def nothing_left() -> bool:
            return not (await here.ask("machine_list"))["items"]

        await here.until(nothing_left)


async def test_an_agent_spawns_no_child_once_nothing_is_left_for_it(tmp_path: Path) -> None:
    async with home(tmp_path) as here:
        lead = await spawned(here, "lead", tree_turns=2)
        await said(here, lead)
        caller = Caller(principal=ADMIN, via="test", progress=silent)
        agent = Agent.model_validate(await agent_of(here, lead))
        more: dict[str, Any] = {"role": None, "system_prompt": None}
        first = await spawn_as(here.service, caller, agent, "ada", "begin", **more)
        ada = await agent_of(here, "ada")
        assert (ada["budget"]["turns"], ada["budget"]["tree_turns"]) == (1, None)
        asked = {"message_id": first.message_id, "timeout_s": PATIENCE_S}
        assert (await here.ask("agent_wait", **asked))["state"] == "failed"
        with pytest.raises(errors.StateForbids, match="of the turns of lead nothing is left"):
            await spawn_as(here.service, caller, agent, "bob", "begin", **more)
        await here.ask("agent_end", agent=lead, cascade=True)


async def test_one_that_ends_at_its_limit_tells_first_what_came_of_its_last_message(
    tmp_path: Path,
) -> None:
    held = Holding()
    async with home(tmp_path, held.over) as here:
        bob = await spawned(here, "bob")
        ada = await spawned(here, "ada", turns=1, at_limit="end")
        # Its turn is over, and the answer is not written down yet.
        held.hold_save(lambda each: each.id == ada and each.body["turns"] == 1)
        agents = here.service.host.agents
        sent = await agents.send(ada, "Count.", SYSTEM)
        await held.reached()
        await here.go_on()
        held.release()
        told = await agents.settled(sent.message_id, SYSTEM)
        # There is no such program on these machines, which is what came of it.
        wanted = (await said(here, bob))["error"]["code"]
        assert told.error is not None
        assert told.error.code == wanted
        await stands(here, ada, "ended", "its budget is used up: 1 of 1 turns")
        await here.ask("agent_end", agent=bob)


async def test_one_that_is_given_more_while_it_ends_has_ended(tmp_path: Path) -> None:
    held = Holding()
    async with home(tmp_path, held.over) as here:
        ada = await spawned(here, "ada")
        [conversation] = here.service.host.agents.conversations()
        held.hold_save(lambda each: each.id == ada and each.body["state"] == "ended")
        async with anyio.create_task_group() as group:
            group.start_soon(partial(here.ask, "agent_end", agent=ada))
            await held.reached()
            group.start_soon(conversation.standing.allow, AgentBudget(turns=5))
            await anyio.wait_all_tasks_blocked()
            held.release()
        assert (await agent_of(here, ada))["state"] == "ended"


async def test_nothing_is_lost_of_what_those_had_taken_who_are_deleted_at_once(
    tmp_path: Path,
) -> None:
    async with home(tmp_path) as here:
        lead = await spawned(here, "lead")
        children = [await spawned(here, name, parent=lead) for name in ("ada", "bob", "cat")]
        for each in children:
            await said(here, each)
            await here.ask("agent_end", agent=each)
        async with anyio.create_task_group() as group:
            for each in children:
                group.start_soon(partial(here.ask, "agent_delete", agent=each))
        assert (await here.ask("agent_get", agent=lead))["tree_taken"]["turns"] == 3
        await here.ask("agent_end", agent=lead)


async def test_one_may_be_deleted_while_another_is_warned(tmp_path: Path) -> None:
    held = Holding()
    async with home(tmp_path, held.over) as here:
        publish_no_image(here.service.host.images, "broken", "fake.panic")
        lead = await spawned(here, "lead", turns=1)
        told = await here.ask("agent_spawn", image="broken", wait_s=PATIENCE_S)
        assert told["state"] == "failed"
        held.hold_save(lambda each: each.id == lead and bool(each.body["warned"]))
        sent = await said(here, lead, wait_s=0)
        await held.reached()
        await here.ask("agent_delete", agent=told["target"])
        held.release()
        asked = {"message_id": sent["message_id"], "timeout_s": PATIENCE_S}
        assert (await here.ask("agent_wait", **asked))["state"] == "failed"
        await here.ask("agent_end", agent=lead)
