"""Teams in real machines: the real Claude Code, coordinated, against a scripted model."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import hosted
from judges.tools import CLAUDE
from microvm_orchestrator import places
from model_api import say, turn
from system.agents import HOME, let_in
from system.living import Stage, furnish, staged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from claude_image import Model

pytestmark = pytest.mark.skipif(
    not CLAUDE.exists(), reason="Claude Code is not installed: make judges"
)

# Several turns one after the other; only a test that fails waits so long.
PATIENCE_S = 900.0
SHOP = """---
description: Builds shops.
lead: architect, architect, Decides what the parts promise each other
member: ui, frontend_developer, Builds what people see
member: api, backend_developer, Builds what answers behind it
---
You build shops, and say to each other what you need.
"""
PLAN = {
    "parts": [
        {"agent": "shop-api", "task": "Serve the orders as JSON."},
        {"agent": "shop-ui", "task": "Draw the orders on a page."},
    ]
}


@pytest.fixture(autouse=True)
def _forgets(model: Model) -> None:
    """Each test has scripts of its own: their words occur in what others are told as well."""
    model.scripts.clear()


def as_json(value: object) -> str:
    return f"So it is.\n\n```json\n{json.dumps(value)}\n```\n"


def vote(choice: str, reason: str) -> list[Any]:
    return [say(as_json({"vote": choice, "reason": reason}))]


@pytest.fixture(scope="module")
def shop(stage: Stage) -> Iterator[str]:
    """Give a module a team of an architect, a frontend and a backend; the lead's name."""
    folder = stage.daemon.state_dir / places.TEAMS
    folder.mkdir()
    (folder / "shop.md").write_text(SHOP)
    team = stage.done("team_spawn", template="shop", prefix="shop", **HOME)
    told = [(each["name"], each["character"]["role"]) for each in [team["lead"], *team["members"]]]
    assert told == [
        ("shop-architect", "architect"),
        ("shop-ui", "frontend_developer"),
        ("shop-api", "backend_developer"),
    ]
    assert {each["parent"] for each in team["members"]} == {team["lead"]["agent_id"]}
    yield "shop-architect"
    ended = stage.ask("agent_end", agent="shop-architect", force=True, cascade=True)["agents"]
    assert len(ended) == 3


def coordinated(stage: Stage, **asked: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Have agents work together to the end; the coordination, and its steps."""
    begun = stage.ask("team_coordinate", wait_s=0, **asked)
    result = result_of(stage, begun)
    told = stage.ask("coordination_get", coordination_id=result["coordination_id"])
    assert told["coordination"] == result
    return result, told["steps"]


def result_of(stage: Stage, begun: dict[str, Any]) -> dict[str, Any]:
    """Wait for the end of a coordination that succeeds."""
    asked = {"operation_id": begun["operation_id"], "timeout_s": PATIENCE_S}
    operation = stage.ask("operation_wait", **asked)["operation"]
    assert operation["state"] == "succeeded", operation
    result: dict[str, Any] = operation["result"]
    return result


def check_replies(stage: Stage, steps: list[dict[str, Any]]) -> None:
    """See that the answer of each step is what its agent has said to that very message."""
    for step in steps:
        items = stage.ask("agent_output", agent=step["agent"], limit=200)["items"]
        [message] = [each for each in items if each["message_id"] == step["message_id"]]
        assert (message["state"], message["answer"]) == ("answered", step["answer"])


@pytest.mark.long
def test_an_architect_divides_a_task_and_joins_what_frontend_and_backend_answer(
    stage: Stage, model: Model, shop: str
) -> None:
    model.scripts["Make one result of it"] = [say("A shop with orders.")]
    model.scripts["Divide it among them."] = [say(as_json(PLAN))]
    model.scripts["Serve the orders as JSON."] = [say("GET /orders answers.")]
    model.scripts["Draw the orders on a page."] = [say("The page shows them.")]
    ended, steps = coordinated(stage, coordinator=shop, task="Orders.", kind="hierarchical")
    assert (ended["state"], ended["result"]) == ("succeeded", "A shop with orders.")
    assert [(each["part"], each["agent"], each["state"]) for each in steps] == [
        ("divide", "shop-architect", "answered"),
        ("work", "shop-api", "answered"),
        ("work", "shop-ui", "answered"),
        ("sum_up", "shop-architect", "answered"),
    ]
    check_replies(stage, steps)
    [whole] = [
        each["text"]
        for each in stage.ask("agent_output", agent=shop)["items"]
        if each["message_id"] == steps[-1]["message_id"]
    ]
    assert whole.index("GET /orders answers.") < whole.index("The page shows them.")
    # Each knows who it is, and with whom; the lead knows what all are for.
    lead = stage.ask("agent_get", agent=shop)["agent"]["character"]["system_prompt"]
    assert "- shop-ui (frontend_developer): Builds what people see" in lead
    member = stage.ask("agent_get", agent="shop-ui")["agent"]["character"]["system_prompt"]
    assert member.startswith("You are shop-ui, of a team that shop-architect leads.")
    kinds = stage.ask("event_wait", kinds=["coordination-step.*"], limit=100)["events"]
    assert (
        sorted(each["kind"].partition(".")[2] for each in kinds) == ["answered"] * 4 + ["asked"] * 4
    )


@pytest.mark.long
def test_all_work_in_parallel_and_the_lead_hears_what_each_has_answered(
    stage: Stage, model: Model, shop: str
) -> None:
    model.scripts["Make one result of it"] = [say("Both agree on June.")]
    gates = [model.gate(), model.gate()]
    for name, gate in zip(("shop-ui", "shop-api"), gates, strict=True):
        model.scripts[f"You are {name}, and take part"] = [
            replace(turn(say(f"June, says {name}.")), pause=gate.hold)
        ]
    begun = stage.ask("team_coordinate", coordinator=shop, task="When?", kind="parallel", wait_s=0)
    # Both are in their turn at the same time.
    for gate in gates:
        gate.reached()
    for gate in gates:
        gate.open()
    assert result_of(stage, begun)["result"] == "Both agree on June."
    steps = stage.ask("coordination_get", coordination_id=begun["target"])["steps"]
    assert [each["answer"] for each in steps[:2]] == [
        "June, says shop-ui.",
        "June, says shop-api.",
    ]
    check_replies(stage, steps)


@pytest.mark.long
def test_votes_find_a_consensus_with_dissent_or_none(stage: Stage, model: Model, shop: str) -> None:
    model.scripts["They will vote on a proposal of yours."] = [say("Ship in May.")]
    model.scripts["Your proposal did not find"] = [say("Ship in June.")]
    model.scripts["shop-ui, this is round 1 of"] = vote("disagree", "The page is not ready.")
    model.scripts["shop-api, this is round 1 of"] = [say("I would say yes, in general.")]
    model.scripts["shop-ui, this is round 2 of"] = vote("agree", "June is well.")
    model.scripts["shop-api, this is round 2 of"] = vote("disagree", "The server needs July.")
    asked = {"coordinator": shop, "task": "Decide when.", "kind": "consensus"}
    ended, steps = coordinated(stage, **asked, quorum=1)
    assert (ended["outcome"], ended["result"]) == ("consensus", "Ship in June.")
    assert [(each["agree"], each["disagree"], each["none"]) for each in ended["tallies"]] == [
        (0, 1, 1),
        (1, 1, 0),
    ]
    assert ended["dissent"] == [
        {"agent": "shop-api", "vote": "disagree", "reason": "The server needs July."}
    ]
    unread = next(each for each in steps if each["state"] == "unreadable")
    assert (unread["agent"], unread["round"]) == ("shop-api", 1)
    check_replies(stage, steps)
    ended, _ = coordinated(stage, **asked, rounds=2, quorum_share=1.0)
    assert (ended["state"], ended["outcome"]) == ("succeeded", "no_consensus")
    assert [each["agent"] for each in ended["dissent"]] == ["shop-api"]


@pytest.mark.long
def test_a_daemon_that_is_killed_amid_a_coordination_ends_it_when_it_is_up_again(
    model: Model, tmp_path: Path
) -> None:
    state = tmp_path / "s"
    furnish(state)
    gate = model.gate()
    model.scripts["Make one result of it"] = [say("A clock.")]
    model.scripts["You are ada, and take part"] = [
        replace(turn(say("A dial, by ada.")), pause=gate.hold)
    ]
    model.scripts["You are bob, and take part"] = [say("Two hands, by bob.")]
    with staged(state, egress=model.settings) as stage:
        let_in(stage)
        stage.done("agent_spawn", name="lead", **HOME)
        for name in ("ada", "bob"):
            stage.done("agent_spawn", name=name, parent="lead", **HOME)
        asked = {"coordinator": "lead", "task": "Make a clock.", "participants": ["ada", "bob"]}
        begun = stage.ask("team_coordinate", **asked, wait_s=0)
        gate.reached()
        stage.daemon.kill()
    gate.open()
    with staged(state, egress=model.settings) as stage:
        # The very operation that was begun before.
        assert result_of(stage, begun)["result"] == "A clock."
        steps = stage.ask("coordination_get", coordination_id=begun["target"])["steps"]
        assert [each["answer"] for each in steps] == [
            "A dial, by ada.",
            "Two hands, by bob.",
            "A clock.",
        ]
        check_replies(stage, steps)
        for name in ("lead", "ada", "bob"):
            assert len(stage.ask("agent_output", agent=name)["items"]) == 1
        stage.ask("agent_end", agent="lead", cascade=True)
        stage.clear()
    assert hosted.left(state) == []
