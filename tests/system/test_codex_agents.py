"""Agents that are codex and live in real machines, talked to, against a scripted model."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import pytest

from claude_image import MEMORY_MIB, OPENAI_KEY, VCPUS, program_image, scripted_model
from judges.tools import CLAUDE, CODEX
from microvm_orchestrator.conversations.conversation import USED_UP
from model_api import say, turn, use, write
from system.agents import HOME as CLAUDE_HOME
from system.agents import answer_of, let_in, said_to
from system.living import Stage, living

if TYPE_CHECKING:
    from collections.abc import Iterator

    from claude_image import Model

pytestmark = pytest.mark.skipif(not CODEX.exists(), reason="codex is not installed: make judges")

HOME = {"image": "codex", "driver": "codex", "memory_mib": MEMORY_MIB, "vcpus": VCPUS}
# One that codex does not know, for which it offers its tools one by one.
MODEL = "gpt-5-codex"


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    anyio.run(program_image, "codex")
    with scripted_model() as model:
        yield model


@pytest.fixture(scope="module")
def stage(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with living(tmp_path_factory.mktemp("codex") / "s", egress=model.settings) as stage:
        let_in(stage)
        stage.ask("credential_set", name="openai", kind="openai-api-key", value=OPENAI_KEY)
        yield stage


@pytest.fixture
def cyd(stage: Stage) -> Iterator[str]:
    stage.done("agent_spawn", name="cyd", **HOME)
    yield "cyd"
    for ended in stage.ask("agent_end", agent="cyd", force=True, cascade=True)["agents"]:
        stage.ask("agent_delete", agent=ended["agent_id"])


def heard(model: Model) -> str:
    """All of the conversation that came with the last request."""
    return json.dumps(model.api.requests[-1].entries)


def test_codex_knows_what_was_said_before_and_never_holds_the_key(
    stage: Stage, model: Model, cyd: str
) -> None:
    # Its own choice of a model writes programs, which the second program of its package runs.
    look = (
        "text((await tools.exec_command({cmd: 'echo plover >word; env'})).output);"
        "text(JSON.stringify(await tools.mcp__orchestrator__others({})))"
    )
    model.scripts["The word is plover."] = [write("exec", look), say("I keep it.")]
    model.scripts["Which word"] = [say("plover")]
    first = said_to(stage, cyd, "The word is plover.")
    assert (first["state"], first["answer"]) == ("answered", "I keep it."), first
    seen = heard(model)
    assert "MICROVM_MODEL_KEY=sk-ant-placeholder" in seen
    # It is known by its token to the daemon's own MCP server.
    assert '\\"you\\":\\"cyd\\"' in seen or '\\\\\\"you\\\\\\":\\\\\\"cyd' in seen, seen[-900:]
    second = said_to(stage, cyd, "Which word was it?")
    assert (second["state"], second["answer"]) == ("answered", "plover"), second
    assert "The word is plover." in heard(model)

    agent = stage.ask("agent_get", agent=cyd)["agent"]
    usage = agent["usage"]
    # As the answers said it, not as the program counted.
    told = (usage["tokens_in"], usage["tokens_out"], usage["tokens_cached"], usage["requests"])
    assert told == (3000, 150, 600, 3)
    asked = [each for each in model.api.requests if each.method == "POST"]
    assert {each.key for each in asked} == {OPENAI_KEY}
    assert not any(OPENAI_KEY.encode() in each.raw for each in asked)
    assert stage.said(agent["machine_id"], "cat /workspace/word && sync") == "plover\n"
    kept = stage.daemon.state_dir / "machines" / agent["machine_id"]
    disks = [path.read_bytes() for path in kept.glob("*.qcow2")]
    assert any(b"plover" in disk for disk in disks)
    assert not any(OPENAI_KEY.encode() in disk for disk in disks)

    refused = stage.refusal("agent_spawn", image="embedded", driver="codex")
    assert refused == "not-offered"


@pytest.mark.long
def test_a_turn_of_codex_is_broken_off_and_what_was_said_outlives_its_machine_s_stop(
    stage: Stage, model: Model
) -> None:
    gate = model.gate()
    model.scripts["Think for long."] = [
        use("exec_command", cmd="echo ruff >bird"),
        replace(turn(say("Well...")), pause=gate.hold),
    ]
    model.scripts["Go on."] = [say("Here.")]
    model.scripts["You are the copy."] = [use("exec_command", cmd="echo >copy"), say("Copy.")]
    stage.done("agent_spawn", name="dan", model=MODEL, **HOME)
    long = stage.ask("agent_send", agent="dan", text="Think for long.", wait_s=0)
    gate.reached()
    assert stage.ask("agent_interrupt", agent="dan")["interrupted"]
    broken_off = answer_of(stage, long)
    assert (broken_off["state"], broken_off["error"]["code"]) == ("failed", "interrupted")
    gate.open()
    assert said_to(stage, "dan", "Go on.")["answer"] == "Here."
    # Also of the first message, which it never answered.
    assert "Think for long." in heard(model)
    assert "echo ruff >bird" in heard(model)

    copy = stage.done("agent_branch", agent="dan", name="dan-2")
    assert stage.done("agent_suspend", agent="dan")["state"] == "suspended"
    assert said_to(stage, "dan-2", "You are the copy.")["answer"] == "Copy."
    assert "Think for long." in heard(model)
    assert stage.said(copy["machine_id"], "cd /workspace; cat bird; ls copy") == "ruff\ncopy\n"
    assert said_to(stage, "dan", "Go on.")["answer"] == "Here."
    assert "Think for long." in heard(model)
    assert "You are the copy." not in heard(model)
    for name in ("dan", "dan-2"):
        stage.ask("agent_end", agent=name)


@pytest.mark.long
@pytest.mark.skipif(not CLAUDE.exists(), reason="Claude Code is not installed: make judges")
def test_codex_asks_a_claude_that_belongs_to_it(stage: Stage, model: Model, cyd: str) -> None:
    anyio.run(program_image, "claude")
    ask = "tools.mcp__orchestrator__say({agent: 'ada', text: 'How many is two and two?'})"
    # Else the model is told after half a minute that it runs still.
    patiently = '// @exec: {"yield_time_ms": 300000}\n'
    script = write("exec", f"{patiently}text(JSON.stringify(await {ask}))")
    model.scripts["Ask ada."] = [script, say("Ada says four.")]
    model.scripts["How many is two and two?"] = [say("Four.")]
    stage.done("agent_spawn", name="ada", parent=cyd, **CLAUDE_HOME)
    asked = said_to(stage, cyd, "Ask ada.")
    assert (asked["state"], asked["answer"]) == ("answered", "Ada says four."), asked
    assert "Four." in heard(model)
    [message] = stage.ask("agent_output", agent="ada")["items"]
    assert (message["sender_agent"], message["answer"]) == ("cyd", "Four.")


@pytest.mark.long
def test_codex_stops_at_its_limit_and_goes_on_when_it_has_more(stage: Stage, model: Model) -> None:
    # Each turn takes 1250 tokens.
    model.scripts["Spend."] = [use("exec_command", cmd="true")] * 9
    model.scripts["Go on."] = [say("Here.")]
    stage.done("agent_spawn", name="eve", tokens=2000, model=MODEL, **HOME)
    stopped = said_to(stage, "eve", "Spend.")
    assert (stopped["state"], stopped["error"]["code"]) == ("failed", USED_UP)
    assert [each.prompt for each in model.api.requests].count("Spend.") == 2
    stage.ask("agent_budget", agent="eve", tokens=100_000)
    assert said_to(stage, "eve", "Go on.")["answer"] == "Here."
    assert "Spend." in heard(model)
    stage.ask("agent_end", agent="eve")
