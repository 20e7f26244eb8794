"""The real opencode, told a task by its driver and read by its reader, against a scripted model.

It runs on this host in folders of the test, as it would in a machine.
"""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from judges.tools import OPENCODE
from microvm_orchestrator.agents.drivers.base import AgentTask, Cause, ToolUsed
from microvm_orchestrator.agents.drivers.opencode import OpencodeDriver
from model_api import Turn, open_model_api, say, use
from system.driven import (
    HEAVY,
    ODD,
    ODD_PROMPTS,
    PLACEHOLDER,
    Broken,
    Place,
    Program,
    check_prompt,
    place_in,
    scales,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from model_api import ModelApi

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not OPENCODE.exists(), reason="opencode is not installed: make judges"),
]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return place_in(tmp_path)


def opencode(place: Place, api: ModelApi) -> Program:
    return Program(OpencodeDriver(), OPENCODE, place, api)


def strings(value: Any) -> Iterator[str]:
    """Give every text in a document."""
    if isinstance(value, dict):
        value = [*cast("dict[str, Any]", value).values()]
    if isinstance(value, list):
        for each in cast("list[Any]", value):
            yield from strings(each)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "openai/gpt-5"])
async def test_it_goes_on_with_a_conversation_and_uses_the_servers_it_is_given(
    place: Place, tmp_path: Path, model: str
) -> None:
    script = {
        "Weigh it.": [
            use("scales_weigh"),
            use("bash", command="echo two >a.txt", description="Write"),
            say("Weighed."),
        ],
        "How heavy": [say("Seven.")],
    }
    task = AgentTask("Weigh it.", model=model, system_prompt=ODD, mcp_servers=scales(tmp_path))
    async with open_model_api(script, keys=[PLACEHOLDER]) as api:
        program = opencode(place, api)
        first = await program.perform(task)
        session = first.ended.session_id
        second = await program.perform(
            replace(task, prompt="How heavy was it?", session_id=session, resume=True)
        )

    assert (first.ended.success, first.ended.summary) == (True, "Weighed."), first
    assert first.of(ToolUsed) == [
        ToolUsed("scales_weigh", ""),
        ToolUsed("bash", "echo two >a.txt"),
    ]
    assert (place.tree / "a.txt").read_text() == "two\n"
    assert (second.ended.session_id, second.ended.summary) == (session, "Seven.")
    last = api.conversation[-1]
    assert {each.body["model"] for each in api.requests} == {model.removeprefix("openai/")}
    assert HEAVY in json.dumps(last.entries)
    assert ODD.strip() in "\n".join(strings(last.body))
    # What it unpacks with each start is not kept for ever.
    assert len(list((place.home / ".microvm-orchestrator/opencode").glob(".*.so"))) <= 1


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
async def test_a_conversation_that_was_broken_off_goes_on_with_all_that_was_said(
    place: Place, number: signal.Signals
) -> None:
    broken = Broken(number, 3)
    begin = use("bash", command="echo begun >c.txt", description="Begin")
    script = {
        # Both prompts are one to it, as the first was never answered.
        "Go on.": [say("All of it.")],
        "Begin.": [begin, Turn((say("Half a"),), pause=broken.hold)],
    }
    async with open_model_api(script) as api:
        program = opencode(place, api)
        first = await program.perform(AgentTask("Begin."), broken.off)
        session = first.ended.session_id
        second = await program.perform(AgentTask("Go on.", session_id=session, resume=True))

    assert first.ended.error is not None
    assert first.ended.error.code is Cause.SIGNAL
    assert (second.ended.session_id, second.ended.summary) == (session, "All of it.")
    history = json.dumps(api.conversation[-1].entries)
    assert "Begin." in history
    assert "echo begun >c.txt" in history


@pytest.mark.long
@pytest.mark.parametrize("prompt", ODD_PROMPTS.values(), ids=ODD_PROMPTS)
async def test_a_prompt_reaches_the_model_as_it_is(place: Place, prompt: str) -> None:
    async with open_model_api([say("Read.")]) as api:
        await check_prompt(opencode(place, api), prompt)
