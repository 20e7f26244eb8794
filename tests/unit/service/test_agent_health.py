"""Agents that are looked after, over the service: what is seen, what is done, who may not wait."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest

from calling import ADMIN, PATIENCE_S, silent
from microvm_orchestrator import errors
from microvm_orchestrator.model.agent import Agent
from microvm_orchestrator.model.coordination import CoordinationKind
from microvm_orchestrator.model.supervision import Observation, Sight
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.service.as_agent import say_as, wait_as
from microvm_orchestrator.service.calls import Caller
from microvm_orchestrator.service.coordinations import Together
from microvm_orchestrator.service.together_as_agent import coordinate_as
from talking import agent_of, home, kinds, said, spawned

if TYPE_CHECKING:
    from pathlib import Path


async def test_one_that_fails_again_and_again_is_helped_and_its_parent_is_told(
    tmp_path: Path,
) -> None:
    async with home(
        tmp_path, look_every_s=0.1, intervene_every_s=0.1, interventions_most=1
    ) as here:
        lead = await spawned(here, "lead", supervise="off")
        ada = await spawned(here, "ada", parent=lead)
        for _ in range(3):
            assert (await said(here, ada))["state"] == "failed"

        async def is_seen() -> bool:
            told = await here.ask("agent_health", agent=ada)
            return [each["sight"] for each in told["seen"]] == ["looping"]

        await here.until(is_seen)
        watched = await here.ask("agent_health", agent=ada)
        # It failed three times in a row, and that is seen too.
        assert (watched["supervise"], watched["health"]) == ("watch", 0)
        assert (await here.ask("agent_output", agent=lead))["items"] == []
        await here.ask("agent_supervise", agent=ada, supervise="act")

        async def is_told() -> bool:
            return bool((await here.ask("agent_output", agent=lead))["items"])

        await here.until(is_told)
        told = await here.ask("agent_health", agent=ada)
        assert [each["deed"] for each in told["watched"]] == ["none", "guidance", "escalate"]
        assert told["interventions_left"] == 0
        [message] = (await here.ask("agent_output", agent=lead))["items"]
        assert message["sender"] == "system"
        assert "could not help agent ada" in message["text"]
        heard = await kinds(here, ada)
        assert (heard.count("agent.seen"), heard.count("agent.intervened")) == (1, 2)
        await here.ask("agent_end", agent=lead, cascade=True, force=True)


async def test_two_that_would_wait_for_each_other_are_told_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    async with home(tmp_path) as here:
        # It has heard what it may, so that what is said to it waits.
        lead = await spawned(here, "lead", turns=1)
        ada = await spawned(here, "ada", parent=lead)
        await said(here, lead)
        agents = here.service.host.agents
        caller = Caller(principal=ADMIN, via="test", progress=silent)
        agent = Agent.model_validate(await agent_of(here, ada))
        with agents.care.waits.waiting(lead, ada):
            message = await say_as(here.service, caller, agent, "lead", "And you?", tell_back=False)
            with pytest.raises(errors.StateForbids, match="you would wait for lead, who waits for"):
                await wait_as(here.service, caller, agent, message.message_id, PATIENCE_S)
            # To ask how it stands is no wait.
            told = await wait_as(here.service, caller, agent, message.message_id, 0)
            assert told.state == "queued"
        [seen] = (await here.ask("agent_health", agent=ada))["watched"]
        assert (seen["sight"], seen["deed"]) == ("deadlock", "refused")
        assert seen["what"] == "it would have waited for lead, who waits for it"
        await here.ask("agent_budget", agent=lead)
        heard = await wait_as(here.service, caller, agent, message.message_id, PATIENCE_S)
        assert heard.state == "failed"
        await here.ask("agent_end", agent=lead, cascade=True)


async def test_who_is_waited_for_has_nobody_that_waits_for_it_work_together(
    tmp_path: Path,
) -> None:
    async with home(tmp_path) as here:
        lead = await spawned(here, "lead")
        ada = await spawned(here, "ada", parent=lead)
        bob = await spawned(here, "bob", parent=lead)
        agents = here.service.host.agents
        caller = Caller(principal=ADMIN, via="test", progress=silent)
        leading = Agent.model_validate(await agent_of(here, lead))
        wish = Together(task="Make a clock.", kind=CoordinationKind.PARALLEL)
        with agents.care.waits.waiting(ada, lead):
            with pytest.raises(errors.StateForbids, match="you would wait for ada, who waits for"):
                await coordinate_as(here.service, caller, leading, wish, [], PATIENCE_S)
            assert (await here.ask("coordination_list"))["items"] == []
            [seen] = (await here.ask("agent_health", agent=lead))["watched"]
            assert (seen["sight"], seen["deed"]) == ("deadlock", "refused")
            # Without waiting, or with others, it harms nobody.
            await coordinate_as(here.service, caller, leading, wish, ["ada"], 0)
            await coordinate_as(here.service, caller, leading, wish, ["bob"], PATIENCE_S)
        assert [each["text"][:5] for each in (await here.ask("agent_output", agent=bob))["items"]]
        await here.ask("agent_end", agent=lead, cascade=True, force=True)


async def test_a_helper_is_told_what_is_wrong_and_ends_by_itself(tmp_path: Path) -> None:
    async with home(
        tmp_path, look_every_s=0.1, intervene_every_s=0.1, interventions_most=2
    ) as here:
        ada = await spawned(here, "ada", supervise="act")
        for _ in range(3):
            assert (await said(here, ada))["state"] == "failed"

        async def is_over() -> bool:
            told = (await here.ask("agent_list"))["items"]
            return [each["state"] for each in told if each["name"] == "ada-helper-1"] == ["ended"]

        await here.until(is_over)
        [helper] = [
            each
            for each in (await here.ask("agent_list"))["items"]
            if each["name"] == "ada-helper-1"
        ]
        assert (helper["parent"], helper["ephemeral"]) == (ada, True)
        assert helper["character"]["role"] == "debugger"
        [message] = (await here.ask("agent_output", agent=helper["agent_id"]))["items"]
        assert "You are to help agent ada" in message["text"]
        await here.ask("agent_end", agent=ada, cascade=True, force=True)


async def test_who_is_asked_in_a_coordination_does_not_wait_for_who_waits_for_its_end(
    tmp_path: Path,
) -> None:
    async with home(tmp_path) as here:
        # They have heard what they may, so that what is said to them waits.
        lead = await spawned(here, "lead", turns=1)
        ada = await spawned(here, "ada", parent=lead, turns=1)
        await said(here, lead)
        await said(here, ada)
        caller = Caller(principal=ADMIN, via="test", progress=silent)
        leading = Agent.model_validate(await agent_of(here, lead))
        asked = Agent.model_validate(await agent_of(here, ada))

        async def is_asked() -> bool:
            return len((await here.ask("agent_output", agent=ada))["items"]) == 2

        async with anyio.create_task_group() as group:
            wish = Together(task="Make a clock.", kind=CoordinationKind.PARALLEL)
            group.start_soon(
                coordinate_as, here.service, caller, leading, wish, ["ada"], PATIENCE_S
            )
            await here.until(is_asked)
            message = await say_as(here.service, caller, asked, "lead", "How?", tell_back=False)
            with pytest.raises(errors.StateForbids, match="for lead, who waits for you, and"):
                await wait_as(here.service, caller, asked, message.message_id, PATIENCE_S)
            group.cancel_scope.cancel()
        await here.ask("agent_end", agent=lead, cascade=True, force=True)


async def test_one_that_is_seen_to_while_it_ends_has_ended(tmp_path: Path) -> None:
    async with home(tmp_path) as here:
        ada = await spawned(here, "ada")
        agents = here.service.host.agents
        [conversation] = agents.conversations()
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(partial(here.ask, "agent_end", agent=ada))
                number = 0
                while not conversation.agent.over:
                    number += 1
                    seen = Observation(at=moment(0.0), sight=Sight.IDLE, what=f"for {number} s")
                    await conversation.standing.observe(seen)
        assert (await agent_of(here, ada))["state"] == "ended"


async def test_one_that_is_woken_while_it_ends_has_ended_and_leaves_no_machine(
    tmp_path: Path,
) -> None:
    async with home(tmp_path) as here:
        ada = await spawned(here, "ada")
        told = await here.ask("agent_suspend", agent=ada, wait_s=PATIENCE_S)
        assert told["state"] == "succeeded"

        async def wake() -> None:
            with suppress(errors.OrchestratorError):
                await here.ask("agent_resume", agent=ada)

        async def is_starting() -> bool:
            [machine] = (await here.ask("machine_list"))["items"]
            return machine["state"] in {"starting", "running"}

        async with anyio.create_task_group() as group:
            group.start_soon(wake)
            await here.until(is_starting)
            await here.ask("agent_end", agent=ada)
        assert (await agent_of(here, ada))["state"] == "ended"
        assert (await here.ask("machine_list"))["items"] == []
