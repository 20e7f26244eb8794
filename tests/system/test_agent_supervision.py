"""Agents that do not get on, in real machines: a model that behaves so, and what is done then."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import hosted
from judges.tools import CLAUDE
from machines import LONG_S
from model_api import fail, say, turn, use
from system.agents import HOME, answer_of, let_in, said_to
from system.living import Stage, living

if TYPE_CHECKING:
    from collections.abc import Iterator

    from claude_image import Model

pytestmark = [
    pytest.mark.skipif(not CLAUDE.exists(), reason="Claude Code is not installed: make judges"),
    pytest.mark.long,
]

# Claude Code is silent for some seconds when it starts; under emulation on a busy host for more.
SOON = {
    "stuck_after_s": 60.0,
    "waiting_after_s": 2.0,
    "idle_after_s": 10.0,
    "look_every_s": 1.0,
    "intervene_every_s": 1.0,
    "interventions_most": 20,
}


@pytest.fixture(scope="module")
def stage(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    state = tmp_path_factory.mktemp("watched") / "s"
    with living(state, egress=model.settings, agents=SOON) as stage:
        let_in(stage)
        model.scripts["supervisor of this host"] = [say("I go another way.")]
        yield stage


@pytest.fixture
def ada(stage: Stage) -> Iterator[str]:
    stage.done("agent_spawn", name="ada", supervise="watch", **HOME)
    yield "ada"
    [ended] = stage.ask("agent_end", agent="ada", force=True)["agents"]
    stage.ask("agent_delete", agent=ended["agent_id"])


def done_about(stage: Stage, agent: str, sight: str, deed: str) -> dict[str, Any]:
    """Wait until something was done about an agent; how it gets on."""
    agent_id = stage.ask("agent_get", agent=agent)["agent"]["agent_id"]
    asked: dict[str, Any] = {"kinds": ["agent.intervened"], "subjects": [agent_id]}
    done: list[tuple[str, str]] = []
    while (sight, deed) not in done:
        told = stage.ask("event_wait", **asked, timeout_s=LONG_S)
        assert told["events"], done
        done += [(each["body"]["sight"], each["body"]["deed"]) for each in told["events"]]
        asked["after"] = told["cursor"]
    return stage.ask("agent_health", agent=agent)


def said_by_host(stage: Stage, agent: str) -> list[dict[str, Any]]:
    messages = stage.ask("agent_output", agent=agent)["items"]
    return [each for each in messages if each["sender"] == "system"]


def test_one_that_is_stuck_in_an_answer_is_broken_off(stage: Stage, model: Model, ada: str) -> None:
    gate = model.gate()
    model.scripts["Think for ever."] = [replace(turn(say("Well...")), pause=gate.hold)]
    stage.ask("agent_supervise", agent=ada, supervise="act")
    message = said_to(stage, ada, "Think for ever.")
    gate.open()
    assert message["state"] == "failed", message
    assert message["error"]["code"] == "interrupted"
    assert "its turn was broken off by its supervisor" in message["error"]["message"]
    done_about(stage, ada, "stuck", "interrupt")


def test_one_whose_model_fails_the_same_way_each_time_is_guided(
    stage: Stage, model: Model, ada: str
) -> None:
    model.scripts["Try it."] = [fail(400)]
    for _ in range(3):
        assert said_to(stage, ada, "Try it.")["error"]["code"] == "model-request-refused"
    # Only then: on a busy host it is silent for so long when it starts that it seems stuck.
    stage.ask("agent_supervise", agent=ada, supervise="act")
    told = done_about(stage, ada, "looping", "guidance")
    stage.ask("agent_supervise", agent=ada, supervise="watch")
    [seen] = [each for each in told["watched"] if each["deed"] == "guidance"]
    assert seen["what"] == "its last 3 messages failed with model-request-refused"
    guidance = answer_of(stage, said_by_host(stage, ada)[0])
    assert (guidance["state"], guidance["answer"]) == ("answered", "I go another way.")


def test_one_that_waits_or_idles_or_is_dead_is_asked_how_it_stands(
    stage: Stage, model: Model, ada: str
) -> None:
    model.scripts["Plan it."] = [say("I have a plan. Shall I go on?")]
    said_to(stage, ada, "Plan it.")
    stage.ask("agent_supervise", agent=ada, supervise="act")
    done_about(stage, ada, "waiting", "status_check")
    assert answer_of(stage, said_by_host(stage, ada)[0])["answer"] == "I go another way."
    done_about(stage, ada, "idle", "status_check")
    for each in said_by_host(stage, ada):
        answer_of(stage, each)
    machine = stage.ask("agent_get", agent=ada)["agent"]["machine_id"]
    os.kill(hosted.processes(stage.daemon.state_dir)[machine], signal.SIGKILL)
    done_about(stage, ada, "dead", "status_check")
    last = answer_of(stage, said_by_host(stage, ada)[-1])
    assert (last["state"], last["answer"]) == ("answered", "I go another way.")


def test_two_that_would_wait_for_each_other_both_go_on(
    stage: Stage, model: Model, ada: str
) -> None:
    model.scripts["Ask bob."] = [
        use("mcp__orchestrator__say", agent="bob", text="What does ada want?"),
        say("Bob has answered."),
    ]
    model.scripts["What does ada want?"] = [
        use("mcp__orchestrator__say", agent="ada", text="What do you want?"),
        say("I could not ask her."),
    ]
    model.scripts["What do you want?"] = [say("Nothing.")]
    stage.done("agent_spawn", name="bob", parent=ada, **HOME)
    asked = said_to(stage, ada, "Ask bob.")
    assert (asked["state"], asked["answer"]) == ("answered", "Bob has answered."), asked
    [seen] = [
        each
        for each in stage.ask("agent_health", agent="bob")["watched"]
        if each["sight"] == "deadlock"
    ]
    assert (seen["deed"], seen["what"]) == (
        "refused",
        "it would have waited for ada, who waits for it",
    )
    # What bob said is heard once that turn is over.
    [late] = [
        each
        for each in stage.ask("agent_output", agent=ada)["items"]
        if each["text"] == "What do you want?"
    ]
    assert answer_of(stage, late)["answer"] == "Nothing."
    stage.ask("agent_end", agent="bob", force=True)
