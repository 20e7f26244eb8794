"""Agents that live in real machines: the real Claude Code, talked to, against a scripted model."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import hosted
from judges.tools import CLAUDE
from microvm_orchestrator.lifecycle.guest import HOME as HOME_OF_AGENT
from model_api import say, turn, use
from system.agents import HOME, answer_of, let_in, said_to
from system.living import Stage, furnish, staged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from claude_image import Model

pytestmark = pytest.mark.skipif(
    not CLAUDE.exists(), reason="Claude Code is not installed: make judges"
)


@pytest.fixture
def ada(stage: Stage) -> Iterator[str]:
    agent = stage.done("agent_spawn", name="ada", role="security", **HOME)
    assert (agent["name"], agent["state"]) == ("ada", "idle")
    yield "ada"
    [ended] = stage.ask("agent_end", agent="ada", force=True)["agents"]
    assert ended["state"] == "ended"
    stage.ask("agent_delete", agent=ended["agent_id"])


def heard(model: Model) -> str:
    """All of the conversation that came with the last request of one."""
    return json.dumps(model.api.conversation[-1].entries)


def test_an_agent_knows_what_was_said_before_also_when_it_was_suspended(
    stage: Stage, model: Model, ada: str
) -> None:
    model.scripts["The word is plover."] = [
        use("Write", file_path="/workspace/word", content="plover\n"),
        say("I keep it."),
    ]
    model.scripts["Which word"] = [say("plover")]
    first = said_to(stage, ada, "The word is plover.")
    assert (first["state"], first["answer"]) == ("answered", "I keep it.")
    role = stage.ask("role_get", name="security_analyst")
    assert json.dumps(role["prompt"])[1:-1] in json.dumps(model.api.conversation[-1].body["system"])
    agent = stage.ask("agent_get", agent=ada)["agent"]
    assert agent["usage"]["requests"] >= 2
    assert stage.done("agent_suspend", agent=ada)["state"] == "suspended"
    assert stage.ask("machine_get", machine=agent["machine_id"])["state"] == "stopped"
    second = said_to(stage, ada, "Which word was it?")
    assert (second["state"], second["answer"]) == ("answered", "plover")
    assert "The word is plover." in heard(model)
    assert stage.said(agent["machine_id"], "cat /workspace/word") == "plover\n"
    told = stage.ask("agent_output", agent=ada)["items"]
    assert [each["text"] for each in told] == ["The word is plover.", "Which word was it?"]


@pytest.mark.long
def test_one_whose_machine_is_killed_is_suspended_and_has_forgotten_nothing(
    stage: Stage, model: Model, ada: str
) -> None:
    model.scripts["The bird is a dunlin."] = [say("A dunlin.")]
    model.scripts["Which bird"] = [say("dunlin")]
    said_to(stage, ada, "The bird is a dunlin.")
    agent = stage.ask("agent_get", agent=ada)["agent"]
    os.kill(hosted.processes(stage.daemon.state_dir)[agent["machine_id"]], signal.SIGKILL)
    stage.hear("agent.suspended", agent["agent_id"])
    told = stage.ask("agent_get", agent=ada)["agent"]
    assert "its machine is crashed" in told["reason"]
    assert said_to(stage, ada, "Which bird?")["answer"] == "dunlin"
    assert "The bird is a dunlin." in heard(model)
    # One whose program never came to write down what was said begins anew.
    stage.said(agent["machine_id"], f"rm -r {HOME_OF_AGENT}/.claude/projects")
    assert said_to(stage, ada, "Which bird now?")["answer"] == "dunlin"
    assert "The bird is a dunlin." not in heard(model)


@pytest.mark.long
def test_a_daemon_that_is_killed_in_the_middle_of_a_turn_hears_its_answer_once(
    model: Model, tmp_path: Path
) -> None:
    state = tmp_path / "s"
    furnish(state)
    gate = model.gate()
    model.scripts["Think while"] = [replace(turn(say("I was here.")), pause=gate.hold)]
    model.scripts["And then"] = [say("And then that.")]
    with staged(state, egress=model.settings) as stage:
        let_in(stage)
        stage.done("agent_spawn", name="ada", **HOME)
        first = stage.ask("agent_send", agent="ada", text="Think while", wait_s=0)
        second = stage.ask("agent_send", agent="ada", text="And then?", wait_s=0)
        gate.reached()
        stage.daemon.kill()
    gate.open()
    asked = len(model.api.conversation)
    with staged(state, egress=model.settings) as stage:
        answers = [answer_of(stage, each) for each in (first, second)]
        assert [each["answer"] for each in answers] == ["I was here.", "And then that."]
        said = [each["text"] for each in stage.ask("agent_output", agent="ada")["items"]]
        assert said == ["Think while", "And then?"]
        again = json.dumps(model.api.conversation[-1].entries)
        assert again.count("Think while") == 1
        assert len(model.api.conversation) > asked
        stage.ask("agent_end", agent="ada")
        stage.clear()
    assert hosted.left(state) == []


@pytest.mark.long
def test_a_copy_of_an_agent_knows_the_same_and_goes_its_own_way(
    stage: Stage, model: Model, ada: str
) -> None:
    model.scripts["The bird is a ruff."] = [say("A ruff.")]
    model.scripts["You are the first."] = [say("First.")]
    model.scripts["You are the copy."] = [
        use("Bash", command="echo copy >/workspace/who"),
        say("Copy."),
    ]
    said_to(stage, ada, "The bird is a ruff.")
    copy = stage.done("agent_branch", agent=ada, name="ada-2")
    first = stage.ask("agent_get", agent=ada)["agent"]
    assert (copy["state"], copy["branched_from"]) == ("idle", first["agent_id"])
    assert said_to(stage, ada, "You are the first.")["answer"] == "First."
    assert said_to(stage, "ada-2", "You are the copy.")["answer"] == "Copy."
    entries = heard(model)
    assert "The bird is a ruff." in entries
    assert "You are the first." not in entries
    assert stage.said(copy["machine_id"], "cat /workspace/who") == "copy\n"
    assert stage.said(first["machine_id"], "ls /workspace/who || :") == ""
    assert stage.ask("snapshot_list")["items"] == []
    stage.ask("agent_end", agent="ada-2")


@pytest.mark.long
def test_answers_come_out_of_turn_and_as_messages_where_nobody_waits_for_them(
    stage: Stage, model: Model, ada: str
) -> None:
    gate = model.gate()
    model.scripts["Have bob count."] = [
        use("mcp__orchestrator__say", agent="bob", text="Count to nine.", tell_back=True),
        say("I asked bob."),
    ]
    model.scripts["You said: Count to nine."] = [say("Bob has counted.")]
    model.scripts["Count to nine."] = [
        use("mcp__orchestrator__reply", text="Nine, at once."),
        replace(turn(say("Counted.")), pause=gate.hold),
    ]
    bob = stage.done("agent_spawn", name="bob", parent=ada, **HOME)["agent_id"]
    assert said_to(stage, ada, "Have bob count.")["answer"] == "I asked bob."
    gate.reached()
    [asked] = stage.ask("agent_output", agent="bob")["items"]
    assert (asked["state"], asked["answer"], asked["answered_by"]) == (
        "delivered",
        "Nine, at once.",
        None,
    )
    back = answer_of(stage, {"message_id": asked["told_back"]})
    assert (back["answer"], back["sender"]) == ("Bob has counted.", bob)
    waits = stage.ask("agent_send", agent="bob", text="Never heard.", wait_s=0)
    stage.ask("agent_reply", message_id=waits["message_id"], text="In its place.")
    gate.open()
    stage.hear("message.answered", asked["message_id"])
    told = answer_of(stage, waits)
    assert (told["state"], told["answer"], told["exec_id"]) == ("answered", "In its place.", None)
    [inbox] = stage.ask("agent_inbox", agent=ada)["items"]
    assert (inbox["answer"], inbox["state"]) == ("Nine, at once.", "answered")
    assert "In its place." in [each["answer"] for each in stage.ask("agent_inbox")["items"]]
    stage.ask("agent_end", agent="bob", force=True)


@pytest.mark.long
def test_agents_talk_to_those_they_belong_with_and_to_nobody_else(
    stage: Stage, model: Model, ada: str
) -> None:
    model.scripts["Ask bob."] = [
        use("mcp__orchestrator__others"),
        use("mcp__orchestrator__say", agent="bob", text="How many is two and two?"),
        say("Bob says four."),
    ]
    model.scripts["How many is two and two?"] = [say("Four.")]
    model.scripts["Ask a stranger."] = [
        use("mcp__orchestrator__say", agent="eve", text="Who are you?"),
        say("She does not talk to me."),
    ]
    stage.done("agent_spawn", name="bob", parent=ada, **HOME)
    asked = said_to(stage, ada, "Ask bob.")
    assert (asked["state"], asked["answer"]) == ("answered", "Bob says four."), asked
    told = heard(model)
    assert '\\"is_your\\":\\"child\\"' in told
    assert '\\"answer\\":\\"Four.\\"' in told
    [message] = stage.ask("agent_output", agent="bob")["items"]
    first = stage.ask("agent_get", agent=ada)["agent"]["agent_id"]
    assert (message["sender"], message["sender_agent"]) == (first, "ada")
    said_to(stage, ada, "Ask a stranger.")
    assert "eve is neither your parent nor a child or peer of yours" in heard(model)
    lines = stage.ask("audit_list", limit=200)["items"]
    assert "denied" in [each["outcome"] for each in lines if each["target"] == first]
    agent = stage.ask("agent_get", agent="bob")["agent"]
    stage.ask("agent_end", agent="bob")
    assert agent["agent_id"] not in [
        each["name"] for each in stage.ask("token_list", limit=200)["items"]
    ]
