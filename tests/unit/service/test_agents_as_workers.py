"""Agents as workers of the task graph: what they may claim, as whom, and what becomes of it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from calling import ADMIN, PATIENCE_S, House, house, silent
from machines import publish_no_image
from microvm_orchestrator import errors
from microvm_orchestrator.conversations.claims import give_back, renew
from microvm_orchestrator.model.access import Principal, Role, Scope
from microvm_orchestrator.model.agent import Agent, AgentState, Character
from microvm_orchestrator.model.agent_claims import Works
from microvm_orchestrator.model.task import TaskError, TaskProgress
from microvm_orchestrator.service import as_worker
from microvm_orchestrator.service.calls import Caller
from microvm_orchestrator.store.base import Done, Failed, Released
from talking import agent_of, home, plain_agent

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from microvm_orchestrator.service.work import ClaimAnswer

ALICE = Principal("alice", Role.OPERATOR, Scope(everything=False))
BOB = Principal("bob", Role.OPERATOR, Scope(everything=False))


def agent(name: str = "ada", owner: Principal = ALICE, **works: Any) -> Agent:
    return plain_agent(
        name,
        agent_id=f"a_{name}",
        owner=owner.name,
        character=Character(role="tester"),
        works=Works(scope=owner.scope, **works),
    )


@dataclass(frozen=True)
class Worker:
    """An agent that asks from its machine."""

    here: House
    agent: Agent

    @property
    def caller(self) -> Caller:
        token = Principal(f"agent:{self.agent.agent_id}", Role.VIEWER, token_id="tok_1")
        return Caller(token, "mcp", silent)

    async def sees(self) -> tuple[list[str | None], list[str | None]]:
        yours, ready = await as_worker.claimable_as(
            self.here.service, self.caller, self.agent, limit=50
        )
        return [each.key for each in yours], [each.key for each in ready]

    async def claims(self, *groups: str) -> ClaimAnswer:
        given: dict[str, Any] = {"groups": list(groups), "wait_s": 0.0, "lease_s": None}
        return await as_worker.claim_as(self.here.service, self.caller, self.agent, **given)

    async def gets(self, *groups: str) -> list[str | None]:
        return [each.task.key for each in (await self.claims(*groups)).tasks]

    async def settles(self, task: str, outcome: Done | Failed | Released) -> list[str | None]:
        answer = await as_worker.settle_as(
            self.here.service, self.caller, self.agent, "task_complete", task, outcome
        )
        return [each.key for each in answer.unlocked]


@asynccontextmanager
async def working(tmp_path: Path, asks: Agent) -> AsyncGenerator[tuple[House, Worker]]:
    async with house(tmp_path) as here:
        yield here, Worker(here, asks)


async def submitted(here: House, key: str, by: Principal = ALICE, **more: Any) -> None:
    await here.ask("task_submit", key=key, by=by, **more)


async def state_of(here: House, task: str, group: str = "default") -> tuple[str, str | None]:
    told = await here.ask("task_get", task_id=task, group=group)
    return told["state"], told["worker"]


async def test_it_does_one_task_after_the_other_and_frees_what_waits_for_them(
    tmp_path: Path,
) -> None:
    async with working(tmp_path, agent()) as (here, ada):
        await submitted(here, "first")
        await submitted(here, "second", depends_on=["first"])
        assert await ada.sees() == ([], ["first"])
        assert await ada.gets() == ["first"]
        assert await state_of(here, "first") == ("running", "agent:ada")
        assert await ada.sees() == (["first"], [])
        told = TaskProgress(fraction=0.5, message="half")
        renewed = await as_worker.beat_as(here.service, ada.caller, ada.agent, "first", told)
        assert renewed.held
        assert (await here.ask("task_get", task_id="first"))["progress"]["message"] == "half"
        assert await ada.settles("first", Done({"answer": 1})) == ["second"]
        assert await ada.gets() == ["second"]
        await ada.settles("second", Failed(TaskError(message="no"), retryable=False))
        assert await state_of(here, "second") == ("failed", "agent:ada")
        assert (await ada.claims()).verdict == "all_done"


async def test_it_is_offered_what_its_owner_may_see_and_it_can_do(tmp_path: Path) -> None:
    mine = agent(groups=["g"], capabilities=["gpu"])
    async with working(tmp_path, mine) as (here, ada):
        await submitted(here, "theirs", by=BOB, group="g")
        await submitted(here, "elsewhere")
        await submitted(here, "by-role", group="g", role="tester")
        await submitted(here, "other-role", group="g", role="writer")
        await submitted(here, "able", group="g", capabilities=["gpu"])
        await submitted(here, "unable", group="g", capabilities=["gpu", "big"])
        assert await ada.sees() == ([], ["by-role", "able"])
        assert [*await ada.gets("g"), *await ada.gets(), *await ada.gets()] == ["by-role", "able"]
        with pytest.raises(errors.Denied, match="you do tasks of g only"):
            await ada.claims("default")


async def test_who_may_not_and_what_is_not_its_own_is_refused_and_audited(tmp_path: Path) -> None:
    async with working(tmp_path, agent()) as (here, ada):
        await submitted(here, "x")
        eve = Worker(here, agent("eve").model_copy(update={"works": None}))
        with pytest.raises(errors.Denied, match="you do no tasks"):
            await eve.gets()
        await here.ask("task_claim", worker="other")
        with pytest.raises(errors.Denied, match="is not yours"):
            await ada.settles("x", Done())
        assert await state_of(here, "x") == ("running", "other")
        lines = (await here.ask("audit_list", limit=50))["items"]
        refused = [
            (each["target"], each["action"]) for each in lines if each["outcome"] == "denied"
        ]
        assert sorted(refused) == [("a_ada", "agent ada"), ("a_eve", "agent eve")]
        # Another agent of the same owner is another worker.
        await submitted(here, "y")
        bob = Worker(here, agent("bob"))
        assert await bob.gets() == ["y"]
        with pytest.raises(errors.Denied, match="is not yours"):
            await ada.settles("y", Released())


async def test_what_it_holds_is_kept_and_is_for_others_once_it_has_ended(tmp_path: Path) -> None:
    async with working(tmp_path, agent()) as (here, ada):
        for key in ("one", "two"):
            await submitted(here, key)
            assert await ada.gets() == [key]
        await renew(ada.agent, here.store)
        ended = ada.agent.model_copy(update={"state": AgentState.ENDED})
        await give_back(ended, here.store, [])
        assert [await state_of(here, key) for key in ("one", "two")] == [("ready", None)] * 2
        told = await here.ask("event_wait", kinds=["task.released"], limit=10)
        assert [each["body"]["reason"] for each in told["events"]] == ["agent ada has ended"] * 2
        assert [*await Worker(here, agent("bob")).gets()] == ["one"]


async def test_what_one_holds_is_not_given_back_for_one_who_had_its_name_before(
    tmp_path: Path,
) -> None:
    async with home(tmp_path) as here:
        publish_no_image(here.service.host.images, "broken", "fake.panic")
        asked = {"name": "ada", "works": True, "wait_s": PATIENCE_S}
        failed = await here.ask("agent_spawn", image="broken", **asked)
        assert failed["state"] == "failed"
        second = await here.ask("agent_spawn", image="mute", **asked)
        assert second["state"] == "succeeded"
        found = Agent.model_validate(await agent_of(here, second["target"]))
        await here.ask("task_submit", key="one")
        assert await Worker(here, found).gets() == ["one"]
        await here.ask("agent_end", agent=failed["target"])
        assert await state_of(here, "one") == ("running", "agent:ada")
        await here.ask("agent_end", agent="ada")
        assert await state_of(here, "one") == ("ready", None)


@pytest.mark.parametrize(
    ("works", "groups", "got"),
    [
        (None, [], ["g", "h"]),
        (True, ["g"], ["g"]),
        (False, [], None),
    ],
)
async def test_a_child_may_do_what_its_parent_may_or_less(
    tmp_path: Path, *, works: bool | None, groups: list[str], got: list[str] | None
) -> None:
    async with working(tmp_path, agent(groups=["g", "h"])) as (here, ada):
        found = await as_worker.works_for(
            here.service, ada.caller, ada.agent, works=works, groups=groups
        )
        assert (found and found.groups) == got
        with pytest.raises(errors.Denied, match="you do tasks of g, h only"):
            await as_worker.works_for(
                here.service, ada.caller, ada.agent, works=True, groups=["else"]
            )
        plain = ada.agent.model_copy(update={"works": None})
        with pytest.raises(errors.Denied, match="you do no tasks"):
            await as_worker.works_for(here.service, ada.caller, plain, works=True, groups=[])


async def test_groups_and_capabilities_are_for_those_who_work(tmp_path: Path) -> None:
    async with house(tmp_path) as here:
        with pytest.raises(errors.InvalidInput, match="for agents with `works`"):
            await here.ask("agent_spawn", groups=["g"], by=ADMIN, wait_s=0)
        with pytest.raises(errors.InvalidInput, match="speak of a `repo`"):
            await here.ask("agent_spawn", base="main", by=ADMIN, wait_s=0)
