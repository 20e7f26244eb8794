"""Agents with budgets in real machines: they stop within one turn of a limit, and go on after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from judges.tools import CLAUDE
from model_api import say, use
from system.agents import HOME, answer_of, said_to

if TYPE_CHECKING:
    from claude_image import Model
    from system.living import Stage

pytestmark = pytest.mark.skipif(
    not CLAUDE.exists(), reason="Claude Code is not installed: make judges"
)

# What one answer of the scripted model takes.
ANSWER = 1250


@pytest.mark.long
def test_a_runaway_agent_stops_at_its_limit_and_hears_what_waits_after_a_raise(
    stage: Stage, model: Model
) -> None:
    # The last turn of a script is repeated, for ever.
    model.scripts["Run away."] = [use("Bash", command="true")]
    model.scripts["Are you there?"] = [say("I am.")]
    ada = stage.done("agent_spawn", name="ada", tokens=3000, warn_at=[0.1, 0.8], **HOME)["agent_id"]
    stopped = said_to(stage, "ada", "Run away.")
    assert stopped["state"] == "failed", stopped
    assert stopped["error"]["code"] == "budget-exhausted"
    waiting = stage.ask("agent_send", agent="ada", text="Are you there?", wait_s=0)
    found = stage.ask("agent_get", agent="ada")
    tokens = found["taken"]["tokens"]
    assert 3000 <= tokens < 3000 + ANSWER
    assert stopped["error"]["message"] == f"its budget is used up: {tokens} of 3000 tokens"
    assert (found["agent"]["state"], found["agent"]["reason"]) == (
        "idle",
        stopped["error"]["message"],
    )
    message = stage.ask("agent_wait", message_id=waiting["message_id"], timeout_s=0)
    assert message["state"] == "queued"
    assert stage.told(ada).count("agent.budget_warning") == 2
    stage.ask("agent_budget", agent="ada", tokens=100_000)
    assert answer_of(stage, waiting)["answer"] == "I am."
    [ended] = stage.ask("agent_end", agent="ada")["agents"]
    assert ended["turns"] == 2
    assert ended["usage"]["wall_s"] > 0


@pytest.mark.long
def test_a_budget_of_a_tree_holds_over_children_also_when_they_are_gone(
    stage: Stage, model: Model
) -> None:
    model.scripts["Spend."] = [say("Spent.")]
    model.scripts["Run away."] = [use("Bash", command="true")]
    limit = 3 * ANSWER
    stage.done("agent_spawn", name="lead", tree_tokens=limit, **HOME)
    for child in ("ada", "bob"):
        stage.done("agent_spawn", name=child, parent="lead", **HOME)
    assert said_to(stage, "ada", "Spend.")["state"] == "answered"
    gone = stage.ask("agent_get", agent="ada")["taken"]["tokens"]
    ended = stage.ask("agent_end", agent="ada")["agents"][0]["agent_id"]
    stage.ask("agent_delete", agent=ended)
    assert stage.ask("agent_get", agent="lead")["tree_taken"]["tokens"] == gone
    stopped = said_to(stage, "bob", "Run away.")
    assert stopped["state"] == "failed", stopped
    assert stopped["error"]["code"] == "budget-exhausted"
    assert "agent lead's budget for it and all below it" in stopped["error"]["message"]
    total = stage.ask("agent_get", agent="lead")["tree_taken"]["tokens"]
    assert limit <= total < limit + ANSWER
    waiting = [
        stage.ask("agent_send", agent=each, text="Spend.", wait_s=0) for each in ("lead", "bob")
    ]
    for each in waiting:
        told = stage.ask("agent_wait", message_id=each["message_id"], timeout_s=0)
        assert told["state"] == "queued"
    stage.ask("agent_budget", agent="lead", tree_tokens=100_000)
    assert [answer_of(stage, each)["answer"] for each in waiting] == ["Spent."] * 2
    stage.ask("agent_end", agent="lead", cascade=True)


@pytest.mark.long
def test_a_turn_that_takes_too_long_is_broken_off(stage: Stage, model: Model) -> None:
    model.scripts["Sleep."] = [use("Bash", command="sleep 1000"), say("I slept.")]
    model.scripts["Awake?"] = [say("Awake.")]
    stage.done("agent_spawn", name="ada", wall_s=20.0, **HOME)
    stopped = said_to(stage, "ada", "Sleep.")
    assert stopped["state"] == "failed", stopped
    assert stopped["error"]["code"] == "budget-exhausted"
    assert "of 20 wall_s" in stopped["error"]["message"]
    stage.ask("agent_budget", agent="ada")
    assert said_to(stage, "ada", "Awake?")["answer"] == "Awake."
    stage.ask("agent_end", agent="ada")
