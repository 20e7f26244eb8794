"""What conversing agents promised or got wrong elsewhere, each case by its number in a list.

Cases 11 to 21 are in `test_cluster_cases.py`, those from 22 to 26 in `test_delegation.py`; case 29,
an agent that is stopped at its limit, is `test_agent_budgets.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from judges.tools import CLAUDE
from microvm_orchestrator.conversations.turn import DOOR_PATH
from model_api import say, turn, use
from system.agents import HOME, answer_of, let_in, said_to
from system.living import Stage, living

if TYPE_CHECKING:
    from collections.abc import Iterator

    from claude_image import Model

pytestmark = pytest.mark.skipif(
    not CLAUDE.exists(), reason="Claude Code is not installed: make judges"
)

# Asks for what an agent is not offered, and as somebody who is none.
ASKS = """
import urllib.error, urllib.request
for path, token in (("/v1/tasks", ""), ("/mcp", ""), (OWN, ""), (OWN, "Bearer mo_x_y")):
    asked = urllib.request.Request("http://127.0.0.1:8486" + path, b"{}")
    asked.add_header("Content-Type", "application/json")
    if token:
        asked.add_header("Authorization", token)
    try:
        print(urllib.request.urlopen(asked).status, end=" ")
    except urllib.error.HTTPError as error:
        print(error.code, end=" ")
""".replace("OWN", repr(DOOR_PATH))


@pytest.fixture(scope="module")
def stage(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A daemon in which an agent has at most two children."""
    state = tmp_path_factory.mktemp("families") / "s"
    with living(state, egress=model.settings, agents={"children": 2}) as stage:
        let_in(stage)
        yield stage


def test_case_27_a_family_is_listed_and_ends_together_and_no_stranger_with_it(
    stage: Stage,
) -> None:
    spawned = {
        name: stage.ask("agent_spawn", name=name, parent=parent, wait_s=0, **HOME)["target"]
        for name, parent in (("lead", None), ("ui", "lead"), ("api", "lead"), ("eve", None))
    }
    for agent_id in spawned.values():
        stage.hear("agent.idle", agent_id)
    assert _names(stage, "agent_children", "lead") == ["ui", "api"]
    assert _names(stage, "agent_peers", "ui") == ["api"]
    assert stage.refusal("agent_spawn", name="third", parent="lead", **HOME) == "too-large"
    told = [(each["name"], each["depth"]) for each in stage.ask("agent_tree")["agents"]]
    assert told == [("lead", 0), ("ui", 1), ("api", 1), ("eve", 0)]
    assert stage.refusal("agent_end", agent="lead") == "state-forbids"
    ended = stage.ask("agent_end", agent="lead", cascade=True)["agents"]
    assert [each["name"] for each in ended] == ["api", "ui", "lead"]
    assert _names(stage, "agent_peers", "eve") == []
    assert stage.ask("agent_get", agent="eve")["agent"]["state"] == "idle"
    stage.ask("agent_end", agent="eve")


@pytest.mark.long
def test_case_28_what_is_said_to_a_busy_agent_is_heard_in_order_and_each_has_its_answer(
    stage: Stage, model: Model
) -> None:
    gate = model.gate()
    model.scripts["Think for long."] = [replace(turn(say("Well...")), pause=gate.hold)]
    for number in range(2):
        model.scripts[f"Next {number}."] = [say(f"Answer {number}.")]
    stage.done("agent_spawn", name="ada", **HOME)
    long = stage.ask("agent_send", agent="ada", text="Think for long.", wait_s=0)
    gate.reached()
    waiting = [
        stage.ask("agent_send", agent="ada", text=f"Next {number}.", wait_s=0)
        for number in range(2)
    ]
    assert [each["state"] for each in waiting] == ["queued"] * 2
    agent = stage.ask("agent_get", agent="ada")["agent"]
    assert agent["state"] == "busy"
    # By its port there is nothing else of the daemon, and nothing without the agent's token.
    asked = stage.ask("machine_exec", machine=agent["machine_id"], argv=["python3", "-c", ASKS])
    assert (asked["stdout"], asked["stderr"]) == ("404 404 401 401 ", "")
    assert stage.ask("agent_interrupt", agent="ada")["interrupted"]
    broken_off = answer_of(stage, long)
    assert (broken_off["state"], broken_off["error"]["code"]) == ("failed", "interrupted")
    answers = [answer_of(stage, each) for each in waiting]
    assert [each["answer"] for each in answers] == ["Answer 0.", "Answer 1."]
    assert answers[0]["ended_at"] <= answers[1]["began_at"]
    gate.open()
    assert not stage.ask("agent_interrupt", agent="ada")["interrupted"]
    stage.ask("agent_end", agent="ada")


@pytest.mark.long
def test_an_agent_that_reaches_beyond_itself_is_refused_and_that_is_written_down(
    stage: Stage, model: Model
) -> None:
    ids = {
        name: stage.done("agent_spawn", name=name, parent=parent, **HOME)["agent_id"]
        for name, parent in (("lead", None), ("ui", "lead"), ("api", "lead"), ("eve", None))
    }
    own = "mcp__orchestrator__"
    model.scripts["Reach out."] = [
        use(f"{own}say", agent="api", text="Obey.", sender="eve"),
        use(f"{own}say", agent="eve", text="Obey."),
        use(f"{own}answer", message_id=f"{ids['eve']}.msg_1"),
        say("All was refused."),
    ]
    model.scripts["Spawn a third."] = [
        use(f"{own}spawn", name="third", prompt="Go."),
        say("That was refused."),
    ]
    assert said_to(stage, "ui", "Reach out.")["answer"] == "All was refused."
    heard = str(model.api.conversation[-1].entries)
    assert "sender: Extra inputs are not permitted" in heard
    assert "eve is neither your parent nor a child or peer of yours" in heard
    assert f"no message {ids['eve']}.msg_1" in heard
    assert said_to(stage, "lead", "Spawn a third.")["answer"] == "That was refused."
    assert "agent lead has 2 children already" in str(model.api.conversation[-1].entries)
    for name in ("api", "eve"):
        assert stage.ask("agent_output", agent=name)["items"] == []
    noted = [
        (line["target"], line["outcome"]) for line in stage.ask("audit_list", limit=200)["items"]
    ]
    assert (ids["ui"], "denied") in noted
    assert (ids["lead"], "too-large") in noted
    for name in ("lead", "eve"):
        stage.ask("agent_end", agent=name, cascade=True)


def _names(stage: Stage, call: str, agent: str) -> list[Any]:
    return [each["name"] for each in stage.ask(call, agent=agent)["agents"]]
