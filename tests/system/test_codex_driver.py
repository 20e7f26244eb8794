"""The real codex, told a task by its driver and read by its reader, against a scripted model.

It runs on this host in folders of the test, as it would in a machine.
"""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import anyio
import pytest
from anyio.abc import SocketAttribute
from pydantic import JsonValue

from judges.tools import CODEX
from microvm_orchestrator.agents.drivers.base import (
    AgentTask,
    Cause,
    Retrying,
    Said,
    Started,
    ToolUsed,
    TurnEnded,
)
from microvm_orchestrator.agents.drivers.codex import CodexDriver
from model_api import Turn, fail, open_model_api, say, turn, use, write
from system.driven import (
    HEAVY,
    ODD,
    ODD_PROMPTS,
    PLACEHOLDER,
    Broken,
    Place,
    Program,
    check_prompt,
    interrupt_once_begun,
    over,
    place_in,
    scales,
    texts,
)

if TYPE_CHECKING:
    from pathlib import Path

    from anyio.abc import ByteStream

    from model_api import ModelApi

# One that it does not know, for which it offers its tools one by one.
MODEL = "gpt-5-codex"
# It refuses a configuration that has a word which this release does not know.
STRICTLY = ("--strict-config",)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not CODEX.exists(), reason="codex is not installed: make judges"),
]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return place_in(tmp_path)


def codex(place: Place, api: ModelApi) -> Program:
    return Program(CodexDriver(), CODEX, place, api)


async def test_it_runs_commands_for_a_model_that_calls_its_tools(place: Place) -> None:
    script = [
        turn(say("I look first."), use("exec_command", cmd="cat a.txt; echo two >a.txt")),
        use("exec_command", cmd="git add . && git commit -qm 'count on'"),
        say("Done: it is two."),
    ]
    async with open_model_api(script, keys=[PLACEHOLDER]) as api:
        task = AgentTask("Count on.", model=MODEL, system_prompt=ODD, extra_args=STRICTLY)
        done = await codex(place, api).perform(task)

    assert (place.tree / "a.txt").read_text() == "two\n"
    assert place.git("log", "--format=%s", "main").split("\n")[:2] == ["count on", "begin"]
    assert place.git("status", "--porcelain") == ""
    ended = done.ended
    assert ended.success, ended
    assert (ended.summary, ended.unread) == ("Done: it is two.", 0)
    assert ended.usage is not None
    assert (ended.usage.input, ended.usage.output, ended.usage.cache_read) == (3000, 150, 600)
    (started,) = done.of(Started)
    assert ended.session_id == started.session_id
    assert [event for event in done.events if event != started] == [
        Said("I look first."),
        ToolUsed("shell", "/bin/bash -lc 'cat a.txt; echo two >a.txt'"),
        ToolUsed("shell", """/bin/bash -lc "git add . && git commit -qm 'count on'\""""),
        Said("Done: it is two."),
        TurnEnded(1),
    ]
    assert {request.body["model"] for request in api.requests} == {MODEL}
    assert f"developer: {ODD}" in texts(api.requests[0])


async def test_it_runs_what_a_model_writes_that_is_told_to_write_programs(place: Place) -> None:
    # Its own choice of a model is such a one.
    program = "text(JSON.stringify(await tools.exec_command({cmd: 'echo two >a.txt; cat a.txt'})))"
    async with open_model_api([write("exec", program), say("Done.")]) as api:
        done = await codex(place, api).perform(AgentTask("Count on."))

    assert done.ended.success, done
    assert (place.tree / "a.txt").read_text() == "two\n"
    assert '\\"exit_code\\":0' in json.dumps(api.requests[-1].entries[-1])
    assert done.of(ToolUsed) == [ToolUsed("shell", "/bin/bash -lc 'echo two >a.txt; cat a.txt'")]


@pytest.mark.parametrize("status", [402, 429, 529])
async def test_an_api_that_fails_for_good_is_told_by_its_own_code_and_the_session_stays(
    place: Place, status: int
) -> None:
    told = {
        402: Cause.MODEL_PAYMENT_REQUIRED,
        429: Cause.MODEL_RATE_LIMITED,
        529: Cause.MODEL_OVERLOADED,
    }
    async with open_model_api({"Begin.": [fail(status)], "Go on.": [say("All of it.")]}) as api:
        first = await codex(place, api).perform(AgentTask("Begin.", retries=1))
        asked = len(api.requests)
        again = AgentTask("Go on.", session_id=first.ended.session_id, resume=True)
        second = await codex(place, api).perform(again)

    assert first.ended.error is not None
    assert first.ended.error.code is told[status]
    # As often as it was told to; too many requests it makes no more of.
    assert asked == (1 if status == 429 else 2)
    assert first.of(Retrying) == ([] if status == 429 else [Retrying(status, 1)])
    assert (second.ended.success, second.ended.summary) == (True, "All of it.")
    assert "user: Begin." in texts(api.requests[-1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
async def test_a_conversation_that_was_broken_off_goes_on_with_all_that_was_said(
    place: Place, number: signal.Signals
) -> None:
    broken = Broken(number, 2)
    script = {
        "Begin.": [
            use("exec_command", cmd="echo begun >c.txt"),
            Turn((say("Half a"),), pause=broken.hold),
        ],
        "Go on.": [use("exec_command", cmd="echo ended >>c.txt"), say("All of it.")],
    }
    async with open_model_api(script) as api:
        program = codex(place, api)
        first = await program.perform(AgentTask("Begin.", model=MODEL), broken.off)
        before = len(api.requests)
        session = first.ended.session_id
        again = AgentTask("Go on.", model=MODEL, session_id=session, resume=True)
        second = await program.perform(again)

    assert first.ended.error is not None
    killed = number is signal.SIGKILL
    assert first.ended.error.code is (Cause.SIGNAL if killed else Cause.NO_RESULT)
    assert (second.ended.session_id, second.ended.summary) == (session, "All of it.")
    assert (place.tree / "c.txt").read_text() == "begun\nended\n"
    assert {request.body["model"] for request in api.requests} == {MODEL}
    history = json.dumps(api.requests[before].entries)
    assert "Begin." in history
    assert "echo begun >c.txt" in history


async def test_an_interrupt_ends_what_a_tool_runs_as_well(place: Place) -> None:
    interrupt = interrupt_once_begun(place)
    command = "echo $$ >pid; echo >begun; exec sleep 600"
    async with open_model_api([use("exec_command", cmd=command), say("Never said.")]) as api:
        done = await codex(place, api).perform(AgentTask("Do it.", model=MODEL), interrupt)

    assert done.ended.error is not None
    await over(int((place.tree / "pid").read_text()))


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param(prompt, id=name, marks=[] if name == "odd" else [pytest.mark.long])
        for name, prompt in ODD_PROMPTS.items()
    ],
)
async def test_a_prompt_reaches_the_model_as_it_is(place: Place, prompt: str) -> None:
    async with open_model_api([say("Read.")]) as api:
        await check_prompt(codex(place, api), prompt)


async def test_an_mcp_server_that_it_is_given_is_offered_to_the_model(
    place: Place, tmp_path: Path
) -> None:
    program = "text(JSON.stringify(await tools.mcp__scales__weigh({})))"
    async with open_model_api([write("exec", program), say("Weighed.")]) as api:
        task = AgentTask("Weigh it.", mcp_servers=scales(tmp_path), extra_args=STRICTLY)
        done = await codex(place, api).perform(task)

    assert done.ended.success, done
    assert done.of(ToolUsed) == [ToolUsed("scales.weigh", "")]
    assert HEAVY in json.dumps(api.requests[-1].entries[-1])


async def test_it_asks_nobody_but_the_model(place: Place) -> None:
    asked: list[bytes] = []

    async def note(stream: ByteStream) -> None:
        async with stream:
            asked.append(await stream.receive())

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.listeners[0].extra(SocketAttribute.local_port)  # noqa: S610 - not Django's
    proxy = f"http://127.0.0.1:{port}"
    env = {"http_proxy": proxy, "https_proxy": proxy, "no_proxy": "127.0.0.1"}
    # What it would fetch, it would fetch while its tool runs.
    script = [use("exec_command", cmd="sleep 2"), say("Done.")]
    async with open_model_api(script) as api, listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, note)
        done = await codex(place, api).perform(AgentTask("Wait.", model=MODEL), env=env)
        assert done.ended.success, done
        assert asked == []
        assert {request.path for request in api.requests} == {"/v1/responses"}
        group.cancel_scope.cancel()


async def test_an_answer_has_the_form_that_was_asked_for(place: Place) -> None:
    schema: JsonValue = {"type": "object", "properties": {"n": {"type": "integer"}}}
    async with open_model_api([say('{"n": 7}')]) as api:
        done = await codex(place, api).perform(AgentTask("How many?", schema=schema))

    assert done.ended.structured_output == {"n": 7}
    assert api.requests[0].body["text"]["format"]["schema"] == schema


async def test_a_conversation_that_is_not_there_is_an_end_with_a_reason(place: Place) -> None:
    async with open_model_api([say("Never.")]) as api:
        session = "0198f6a0-1111-7222-8333-444455556666"
        task = AgentTask("Go on.", session_id=session, resume=True)
        done = await codex(place, api).perform(task)

    assert done.ended.error is not None
    assert "no rollout found" in done.ended.error.message
    assert api.requests == []
