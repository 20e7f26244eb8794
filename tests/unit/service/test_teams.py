"""Teams and coordinations over the service, of agents whose machines never come up."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from calling import PATIENCE_S, VIEWER, house
from machines import fake_program, publish_no_image
from microvm_orchestrator import errors, places
from microvm_orchestrator.images.store import ImageStore
from microvm_orchestrator.model.access import Principal, Role, Scope
from microvm_orchestrator.model.coordination import CoordinationKind
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.model.team import TEAM
from microvm_orchestrator.service.calls import Caller
from microvm_orchestrator.service.coordinations import Together
from microvm_orchestrator.service.together_as_agent import coordinate_as, coordination_as
from microvm_orchestrator.store.every import every_record

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from calling import House
    from microvm_orchestrator.model.agent import Agent

BLUE = Principal("blue", Role.OPERATOR, Scope(everything=False))
PAIR = "---\ndescription: Two.\nlead: boss, general, Leads\nmember: ada, {}, Works\n---\nWork.\n"
TASK = {"coordinator": "lead", "task": "Make a clock."}


@asynccontextmanager
async def mute(state: Path, **more: float) -> AsyncGenerator[House]:
    """Keep a service with an image whose machines say nothing."""
    if not (state / places.IMAGES).exists():
        publish_no_image(ImageStore(state / places.IMAGES), "mute", "fake.silent")
    machines: dict[str, object] = {"qemu": str(fake_program(state)), "count": 16, **more}
    async with house(state, machines=machines) as here:
        yield here


async def spawned(here: House, *names: str, parent: str | None = None, **more: Any) -> None:
    for name in names:
        asked = {"name": name, "image": "mute", "wait_s": 0, **more}
        await here.ask("agent_spawn", **asked, **({"parent": parent} if parent else {}))


async def living(here: House) -> list[str]:
    every = (await here.ask("agent_list", limit=200))["items"]
    return [each["name"] for each in every if each["state"] not in {"ended", "failed"}]


async def test_a_team_is_spawned_whole_and_each_is_told_who_it_is(tmp_path: Path) -> None:
    async with mute(tmp_path) as here:
        asked = {"template": "research_analysis_team", "image": "mute", "wait_s": 0}
        begun = await here.ask("team_spawn", **asked, tokens=9, tree_tokens=90)
        assert begun["target"] == "research_analysis"

        async def whole() -> bool:
            return len(await living(here)) == 5

        await here.until(whole)
        agents = {each["name"]: each for each in (await here.ask("agent_list"))["items"]}
        lead = agents["research_analysis-lead"]
        members = [each for each in agents.values() if each is not lead]
        assert {each["parent"] for each in members} == {lead["agent_id"]}
        assert agents["research_analysis-sceptic"]["character"]["role"] == "code_reviewer"
        assert (
            "of a team that research_analysis-lead leads"
            in (agents["research_analysis-writer"]["character"]["system_prompt"])
        )
        # The limit of the tree is the lead's, and so of all.
        limits = {each["name"]: each["budget"]["tree_tokens"] for each in agents.values()}
        assert limits.pop("research_analysis-lead") == 90
        assert set(limits.values()) == {None}
        # A second one has other names.
        second = await here.ask("team_spawn", **asked)
        assert second["target"] == "research_analysis-2"
        for operation in (begun, second):
            await here.ask("operation_cancel", operation_id=operation["operation_id"])
            told = await here.ask("operation_wait", operation_id=operation["operation_id"])
            assert told["operation"]["state"] == "cancelled"
        assert await living(here) == []
        assert await every_record(here.store, TEAM, SYSTEM) == []


async def test_whoever_was_begun_is_ended_again_when_one_of_a_team_fails(tmp_path: Path) -> None:
    folder = tmp_path / "teams"
    folder.mkdir()
    (folder / "pair.md").write_text(PAIR.format("general"))
    (folder / "odd.md").write_text(PAIR.format("no-such-role"))
    async with mute(tmp_path) as here:
        asked = {"image": "mute", "wait_s": 10}
        with pytest.raises(errors.InvalidInput, match="no role no-such-role"):
            await here.ask("team_spawn", template="odd", **asked)
        await spawned(here, "p-ada")
        ended = await here.ask("team_spawn", template="pair", prefix="p", **asked)
        assert (ended["state"], ended["error"]["code"]) == ("failed", "already-exists")
        assert await living(here) == ["p-ada"]
        with pytest.raises(errors.NotFound, match="no team three"):
            await here.ask("team_spawn", template="three", **asked)
        await here.ask("agent_end", agent="p-ada")


async def test_of_a_team_that_cannot_come_up_no_machine_is_left(tmp_path: Path) -> None:
    async with mute(tmp_path) as here:
        publish_no_image(here.service.host.images, "broken", "fake.panic")
        asked = {"template": "data_pipeline", "image": "broken", "wait_s": PATIENCE_S}
        ended = await here.ask("team_spawn", **asked)
        assert (ended["state"], ended["error"]["code"]) == ("failed", "machine-failed")
        assert await living(here) == []
        assert (await here.ask("machine_list"))["items"] == []


async def test_the_next_daemon_ends_a_team_that_was_half_done(tmp_path: Path) -> None:
    async with mute(tmp_path) as here:
        await here.ask("team_spawn", template="data_pipeline", image="mute", wait_s=0)

        async def whole() -> bool:
            return len(await living(here)) == 5

        await here.until(whole)
    async with mute(tmp_path) as here:
        assert await living(here) == []
        assert await every_record(here.store, TEAM, SYSTEM) == []
        [operation] = (await here.ask("operation_list", kind="team_spawn"))["items"]
        assert operation["state"] == "lost"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"participants": ["ada", "ada"]}, "ada is named more than once"),
    ({"participants": ["lead"]}, "lead is named more than once"),
    ({"kind": "parallel", "rounds": 2}, "rounds is for a consensus, and this is parallel"),
    ({"kind": "parallel", "quorum": 1}, "quorum is for a consensus"),
    ({"kind": "consensus", "quorum": 3}, "the quorum is 3, and 2 take part"),
    ({"kind": "consensus", "quorum": 1, "quorum_share": 0.5}, "one or the other"),
    ({"kind": "hierarchical", "ask_coordinator": False}, "nobody divides the task"),
    ({"kind": "consensus", "ask_coordinator": False}, "nobody proposes anything"),
    ({"coordinator": "ada"}, "to ada belongs no agent that stays"),
]


async def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    async with mute(tmp_path) as here:
        await spawned(here, "lead")
        await spawned(here, "ada", "bob", parent="lead")
        for asked, why in REFUSED:
            with pytest.raises(errors.InvalidInput, match=why):
                await here.ask("team_coordinate", **{**TASK, **asked})
        assert (await here.ask("coordination_list"))["items"] == []
        await here.ask("agent_end", agent="lead", cascade=True)


QUORUMS: list[tuple[dict[str, Any], int]] = [
    ({}, 7),
    ({"quorum": 4}, 4),
    ({"quorum_share": 1.0}, 10),
    ({"quorum_share": 0.3}, 3),
    ({"quorum_share": 0.301}, 4),
    ({"quorum_share": 0.001}, 1),
]


async def test_a_quorum_is_a_number_or_a_share(tmp_path: Path) -> None:
    async with mute(tmp_path) as here:
        await spawned(here, "lead")
        names = [f"a{number}" for number in range(10)]
        await spawned(here, *names, parent="lead")
        asked = {"kind": "consensus", "proposal": "x", "step_timeout_s": 0.05}
        for quorum, needed in QUORUMS:
            ended = await here.ask("team_coordinate", **TASK, **asked, **quorum)
            why = ended["error"]["message"]
            assert why == "nobody could be asked for a vote: it gave no answer within 0.05 s"
            found = await here.ask("coordination_get", coordination_id=ended["target"])
            assert found["coordination"]["rules"]["needed"] == needed
            assert [each["name"] for each in found["coordination"]["participants"]] == names
        # Nobody hears any more what nobody waits for.
        for name in names:
            messages = (await here.ask("agent_output", agent=name))["items"]
            # On a slow host the time was over before some were said at all.
            assert {each["state"] for each in messages} <= {"cancelled"}
        await here.ask("agent_end", agent="lead", cascade=True)


async def test_one_that_never_comes_up_is_an_error_of_its_step(tmp_path: Path) -> None:
    async with mute(tmp_path, boot_timeout_s=1.0) as here:
        await spawned(here, "lead")
        await spawned(here, "ada", parent="lead")
        ended = await here.ask("team_coordinate", **TASK, wait_s=60)
        assert (ended["state"], ended["error"]["code"]) == ("failed", "coordination-failed")
        found = await here.ask("coordination_get", coordination_id=ended["target"])
        assert [(each["agent"], each["state"]) for each in found["steps"]] == [("ada", "failed")]
        assert found["steps"][0]["error"]["message"] in ended["error"]["message"]
        assert await living(here) == []


async def test_a_coordination_is_begun_and_seen_by_whose_agents_they_are(tmp_path: Path) -> None:
    async with mute(tmp_path) as here:
        await spawned(here, "lead")
        await spawned(here, "ada", parent="lead")
        await spawned(here, "blue-lead", "blue-ada", by=BLUE)
        with pytest.raises(errors.Denied):
            await here.ask("team_coordinate", **TASK, by=VIEWER)
        with pytest.raises(errors.NotFound):
            await here.ask("team_coordinate", **TASK, by=BLUE)
        with pytest.raises(errors.InvalidInput, match="belong to two owners"):
            await here.ask("team_coordinate", **TASK, participants=["blue-ada"])
        begun = await here.ask("team_coordinate", **TASK, wait_s=0)
        begun_by = (await here.ask("agent_get", agent="lead"))["agent"]["agent_id"]
        with pytest.raises(errors.NotFound):
            await here.ask("coordination_get", coordination_id=begun["target"], by=BLUE)
        assert (await here.ask("coordination_list", by=BLUE))["items"] == []
        listed = await here.ask("coordination_list", state="running", by=VIEWER)
        assert [each["coordination_id"] for each in listed["items"]] == [begun["target"]]
        await here.ask("operation_cancel", operation_id=begun["operation_id"])
        told = await here.ask("operation_wait", operation_id=begun["operation_id"])
        assert told["operation"]["state"] == "cancelled"
        told = await here.ask("coordination_get", coordination_id=begun["target"])
        assert told["coordination"]["state"] == "cancelled"
        assert [each["state"] for each in told["steps"]] == ["cancelled"]
        asked = {"kinds": ["coordination.*", "coordination-step.*"], "limit": 9}
        events = [each["kind"] for each in (await here.ask("event_wait", **asked))["events"]]
        assert events == [
            *("coordination.begun", "coordination-step.asked"),
            *("coordination.cancelled", "coordination-step.cancelled"),
        ]
        for name in ("lead", "blue-lead", "blue-ada"):
            await here.ask("agent_end", agent=name, cascade=True)
        await spawned(here, "eve")
        over = {"coordinator": begun_by, "task": "x", "participants": ["eve"]}
        with pytest.raises(errors.StateForbids, match="agent lead is ended"):
            await here.ask("team_coordinate", **over)
        await here.ask("agent_end", agent="eve")


async def test_an_agent_has_its_own_children_work_together_and_nobody_else(
    tmp_path: Path,
) -> None:
    async with mute(tmp_path) as here:
        await spawned(here, "lead", "peer")
        await spawned(here, "ada", parent="lead")

        async def agent(name: str) -> Agent:
            return await here.service.host.agents.get(name, SYSTEM)

        async def silent(done: float, total: float | None, message: str) -> None:
            del done, total, message

        caller = Caller(Principal("agent:x", Role.VIEWER), "mcp", silent)
        lead = await agent("lead")
        wish = Together(task="Make a clock.", step_timeout_s=0.05)
        for stranger in ("peer", "lead", "nobody"):
            with pytest.raises(errors.Denied, match=f"{stranger} is no child of yours"):
                await coordinate_as(here.service, caller, lead, wish, [stranger], 5)
        refused = (await here.ask("audit_list", limit=200))["items"]
        denied = [each["target"] for each in refused if each["outcome"] == "denied"]
        assert denied == [lead.agent_id] * 3
        with pytest.raises(errors.InvalidInput, match="belongs no agent"):
            await coordinate_as(here.service, caller, await agent("peer"), wish, [], 5)
        divided = wish.model_copy(update={"kind": CoordinationKind.HIERARCHICAL})
        with pytest.raises(errors.InvalidInput, match="nobody divides"):
            await coordinate_as(here.service, caller, lead, divided, [], 5)
        told = await coordinate_as(here.service, caller, lead, wish, [], 10)
        assert told.coordination.state == "failed"
        assert [(each.agent, each.state) for each in told.steps] == [("ada", "failed")]
        found = told.coordination.coordination_id
        assert await coordination_as(here.service, caller, lead, found, 5) == told
        with pytest.raises(errors.NotFound):
            await coordination_as(here.service, caller, await agent("peer"), found, 5)
        for name in ("lead", "peer"):
            await here.ask("agent_end", agent=name, cascade=True)
