"""A daemon that is killed with eight agents in hand: each stands afterwards as it should."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import hosted
from judges.tools import CLAUDE
from model_api import say, turn
from system.agents import HOME, answer_of, let_in, said_to
from system.living import furnish, staged

if TYPE_CHECKING:
    from pathlib import Path

    from claude_image import Model
    from system.living import Stage

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not CLAUDE.exists(), reason="Claude Code is not installed: make judges"),
]

# For more of them at once than a small host has room for by default.
ROOM = {"vcpus": 32}
AWAY, BUSY = ("away-1", "away-2"), ("busy-1", "busy-2")
KNOWING = (*AWAY, "dead")


def test_each_of_eight_agents_stands_after_a_restart_as_it_should(
    model: Model, tmp_path: Path
) -> None:
    state = tmp_path / "s"
    furnish(state)
    gates = {name: model.gate() for name in BUSY}
    for name in KNOWING:
        model.scripts[f"{name}: the bird is a ruff."] = [say("A ruff.")]
        model.scripts[f"{name}: which bird?"] = [say("ruff")]
    for name in BUSY:
        model.scripts[f"{name}: think."] = [replace(turn(say("Thought.")), pause=gates[name].hold)]
        model.scripts[f"{name}: and then?"] = [say("Then that.")]
    with staged(state, egress=model.settings, machines=ROOM) as stage:
        let_in(stage)
        for name in (*KNOWING, *BUSY, "idle", "gone"):
            stage.done("agent_spawn", name=name, **HOME)
        for name in KNOWING:
            assert said_to(stage, name, f"{name}: the bird is a ruff.")["answer"] == "A ruff."
        for name in AWAY:
            stage.done("agent_suspend", agent=name)
        [gone] = stage.ask("agent_end", agent="gone")["agents"]
        said = {
            name: [
                stage.ask("agent_send", agent=name, text=f"{name}: {text}", wait_s=0)
                for text in ("think.", "and then?")
            ]
            for name in BUSY
        }
        for gate in gates.values():
            gate.reached()
        dead = stage.ask("agent_get", agent="dead")["agent"]["machine_id"]
        late = stage.ask("agent_spawn", name="late", wait_s=0, **HOME)["target"]
        stage.daemon.kill()
    os.kill(hosted.processes(state)[dead], signal.SIGKILL)
    for gate in gates.values():
        gate.open()
    with staged(state, egress=model.settings, machines=ROOM) as stage:
        for name in BUSY:
            answers = [answer_of(stage, each) for each in said[name]]
            assert [each["answer"] for each in answers] == ["Thought.", "Then that."]
            told = stage.ask("agent_output", agent=name, limit=200)["items"]
            assert [each["message_id"] for each in told] == [
                each["message_id"] for each in said[name]
            ]
        stage.hear("agent.idle", late)
        stands = {name: _stands(stage, name) for name in (*KNOWING, *BUSY, "idle", "late")}
        assert stands == {
            **dict.fromkeys((*BUSY, "idle", "late"), ("idle", "")),
            **dict.fromkeys(AWAY, ("suspended", "")),
            "dead": ("suspended", "its machine had ended when the daemon came up"),
        }
        assert stage.ask("agent_get", agent=gone["agent_id"])["agent"]["state"] == "ended"
        for name in KNOWING:
            assert said_to(stage, name, f"{name}: which bird?")["answer"] == "ruff"
            assert f"{name}: the bird is a ruff." in str(model.api.conversation[-1].entries)
        for name in (*KNOWING, *BUSY, "idle", "late"):
            stage.ask("agent_end", agent=name)
        stage.clear()
    assert hosted.left(state) == []


def _stands(stage: Stage, name: str) -> tuple[str, str]:
    agent = stage.ask("agent_get", agent=name)["agent"]
    return agent["state"], agent["reason"]
