"""The real Claude Code, told a task by its driver and read by its reader, against a scripted model.

It runs on this host in folders of the test, as it would in a machine.
"""

from __future__ import annotations

import json
import signal
import uuid
from typing import TYPE_CHECKING

import pytest
from pydantic import JsonValue

from judges.tools import CLAUDE
from microvm_orchestrator.agents.drivers.base import (
    AgentTask,
    Cause,
    KeyKind,
    Retrying,
    Said,
    Started,
    ToolUsed,
    TurnEnded,
)
from microvm_orchestrator.agents.drivers.claude import ClaudeDriver
from model_api import Turn, fail, open_model_api, say, turn, use
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
    place_in,
    scales,
    texts,
)

if TYPE_CHECKING:
    from pathlib import Path

    from model_api import ModelApi, Part, Received

MODEL = "claude-sonnet-4-5"

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not CLAUDE.exists(), reason="Claude Code is not installed: make judges"),
]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return place_in(tmp_path)


def claude(place: Place, api: ModelApi, kind: KeyKind = KeyKind.API_KEY) -> Program:
    return Program(ClaudeDriver(), CLAUDE, place, api, kind)


async def test_it_edits_a_file_runs_a_command_and_commits(place: Place) -> None:
    path = str(place.tree / "a.txt")
    script = [
        turn(say("I look first."), use("Read", file_path=path)),
        use("Edit", file_path=path, old_string="one", new_string="two"),
        use("Bash", command="cat a.txt > b.txt && git add . && git commit -qm 'count on'"),
        say("Done: it is two."),
    ]
    async with open_model_api(script, keys=[PLACEHOLDER]) as api:
        task = AgentTask("Count on.", model=MODEL, session_id=str(uuid.uuid4()))
        done = await claude(place, api).perform(task)

    assert (place.tree / "b.txt").read_text() == "two\n"
    assert place.git("log", "--format=%s", "main").split("\n")[:2] == ["count on", "begin"]
    # Nothing of ours or of the program's lies in the work tree.
    assert place.git("status", "--porcelain") == ""
    ended = done.ended
    assert ended.success, ended
    assert ended.error is None
    assert ended.summary == "Done: it is two."
    assert (ended.session_id, ended.turns, ended.unread) == (task.session_id, 4, 0)
    assert ended.usage is not None
    assert (ended.usage.input, ended.usage.output, ended.usage.cache_read) == (4000, 200, 800)
    assert ended.cost_usd is not None
    assert ended.cost_usd > 0
    (started,) = done.of(Started)
    assert (started.session_id, started.model) == (task.session_id, MODEL)
    assert [event for event in done.events if event != started] == [
        Said("I look first."),
        ToolUsed("Read", path),
        TurnEnded(1),
        ToolUsed("Edit", path),
        TurnEnded(2),
        ToolUsed("Bash", "cat a.txt > b.txt && git add . && git commit -qm 'count on'"),
        TurnEnded(3),
        Said("Done: it is two."),
        TurnEnded(4),
    ]
    assert {request.body["model"] for request in api.conversation} == {MODEL}


async def test_it_stops_as_failed_when_it_has_taken_all_its_turns(place: Place) -> None:
    async with open_model_api([use("Bash", command="true")] * 9) as api:
        done = await claude(place, api).perform(AgentTask("Go on and on.", max_turns=2))

    assert done.ended.error is not None
    assert done.ended.error.code is Cause.MAX_TURNS
    assert not done.ended.success
    assert done.ended.turns == len(api.conversation) == 2


@pytest.mark.parametrize(
    ("status", "cause", "retryable"),
    [
        (401, Cause.MODEL_AUTH_FAILED, False),
        (529, Cause.MODEL_OVERLOADED, True),
        (400, Cause.MODEL_REQUEST_REFUSED, False),
    ],
)
async def test_an_api_that_fails_for_good_is_told_by_its_own_code(
    place: Place, status: int, cause: Cause, retryable: bool
) -> None:
    async with open_model_api([fail(status)]) as api:
        done = await claude(place, api).perform(AgentTask("Do it.", retries=1))

    error = done.ended.error
    assert error is not None
    assert (done.ended.success, error.code, error.retryable) == (False, cause, retryable)
    if status != 400:
        assert Retrying(status, 1) in done.events


async def test_an_api_that_fails_once_is_asked_again(place: Place) -> None:
    async with open_model_api([fail(529, times=1), say("Done.")]) as api:
        done = await claude(place, api).perform(AgentTask("Do it.", retries=2))

    assert done.ended.success
    assert done.of(Retrying) == [Retrying(529, 1)]


@pytest.mark.parametrize(
    ("number", "cause"),
    [(signal.SIGINT, Cause.INTERRUPTED), (signal.SIGKILL, Cause.SIGNAL)],
    ids=["interrupted", "killed"],
)
async def test_a_conversation_that_was_broken_off_goes_on_with_all_that_was_said(
    place: Place, number: signal.Signals, cause: Cause
) -> None:
    broken, session = Broken(number, 2), str(uuid.uuid4())
    script = {
        "Begin.": [
            use("Bash", command="echo begun > c.txt"),
            Turn((say("Half a"),), pause=broken.hold),
        ],
        "Go on.": [use("Bash", command="echo ended >> c.txt"), say("All of it.")],
    }
    async with open_model_api(script) as api:
        agent = claude(place, api)
        first = await agent.perform(AgentTask("Begin.", session_id=session), broken.off)
        before = len(api.conversation)
        second = await agent.perform(AgentTask("Go on.", session_id=session, resume=True))

    assert first.ended.error is not None
    assert first.ended.error.code is cause
    assert first.ended.session_id == session
    assert second.ended.success
    assert (second.ended.session_id, second.ended.summary) == (session, "All of it.")
    assert (place.tree / "c.txt").read_text() == "begun\nended\n"
    history = json.dumps(api.conversation[before].entries)
    assert "Begin." in history
    assert "echo begun > c.txt" in history
    assert "user: Go on." in texts(api.conversation[before])


async def test_a_conversation_whose_budget_was_spent_goes_on_with_all_that_was_said(
    place: Place,
) -> None:
    session = str(uuid.uuid4())
    spent = fail(402, kind="billing_error", message="budget_exhausted: 1000 tokens")

    def answer(request: Received) -> Part:
        seen = json.dumps(request.entries)
        if "Go on." in seen:
            return say("All of it.")
        return spent if "tool_result" in seen else use("Bash", command="echo begun > c.txt")

    async with open_model_api(answer) as api:
        agent = claude(place, api)
        first = await agent.perform(AgentTask("Begin.", session_id=session))
        before = len(api.conversation)
        second = await agent.perform(AgentTask("Go on.", session_id=session, resume=True))

    assert first.ended.error is not None
    assert first.ended.error.code is Cause.MODEL_PAYMENT_REQUIRED
    assert "budget_exhausted: 1000 tokens" in first.ended.error.message
    # It did not try again.
    assert before == 2
    assert second.ended.success
    assert (place.tree / "c.txt").read_text() == "begun\n"
    history = json.dumps(api.conversation[before].entries)
    assert "Begin." in history
    assert "echo begun > c.txt" in history


async def test_an_interrupt_ends_what_a_tool_runs_as_well(place: Place) -> None:
    interrupt = interrupt_once_begun(place)
    script = [use("Bash", command="echo > begun; sleep 600; touch late"), say("Never said.")]
    async with open_model_api(script) as api:
        done = await claude(place, api).perform(AgentTask("Do it."), interrupt)

    assert done.ended.error is not None
    assert done.ended.error.code is Cause.INTERRUPTED
    assert not (place.tree / "late").exists()


async def test_it_is_offered_nothing_that_would_keep_it_after_its_last_turn(place: Place) -> None:
    async with open_model_api([say("Done.")]) as api:
        done = await claude(place, api).perform(AgentTask("Do it."))

    (shell,) = (tool for tool in api.conversation[0].body["tools"] if tool["name"] == "Bash")
    assert "command" in shell["input_schema"]["properties"]
    assert "run_in_background" not in shell["input_schema"]["properties"]
    # All that it may use, those included that it looks up first.
    begun = json.loads(done.stdout.splitlines()[0])
    assert {"Bash", "Edit", "Read", "Write"} <= set(begun["tools"])
    assert not {"CronCreate", "Monitor", "ScheduleWakeup"} & set(begun["tools"])


async def test_an_answer_has_the_form_that_was_asked_for(place: Place) -> None:
    schema: JsonValue = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    script = [use("StructuredOutput", n=7), say("There it is.")]
    async with open_model_api(script) as api:
        done = await claude(place, api).perform(AgentTask("How many?", schema=schema))

    assert done.ended.success
    assert done.ended.structured_output == {"n": 7}


async def test_an_agent_that_gives_no_answer_of_that_form_has_failed(place: Place) -> None:
    schema: JsonValue = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
    }
    async with open_model_api([say("Seven.")]) as api:
        done = await claude(place, api).perform(AgentTask("How many?", schema=schema))

    assert done.ended.error is not None
    assert done.ended.error.code is Cause.SCHEMA_UNMET


@pytest.mark.parametrize("prompt", ODD_PROMPTS.values(), ids=ODD_PROMPTS)
async def test_a_prompt_reaches_the_model_as_it_is(place: Place, prompt: str) -> None:
    async with open_model_api([say("Read.")]) as api:
        await check_prompt(claude(place, api), prompt)


async def test_what_is_added_to_its_system_prompt_is_added_as_it_is(place: Place) -> None:
    added = ODD + "x" * 200_000
    async with open_model_api([say("Read.")]) as api:
        done = await claude(place, api).perform(AgentTask("Go.", system_prompt=added))

    assert done.ended.success
    system = "".join(block["text"] for block in api.conversation[0].body["system"])
    assert added in system
    assert "Claude" in system


async def test_an_mcp_server_that_it_is_given_is_offered_to_the_model(
    place: Place, tmp_path: Path
) -> None:
    script = [use("mcp__scales__weigh"), say("Weighed.")]
    async with open_model_api(script) as api:
        task = AgentTask("Weigh it.", mcp_servers=scales(tmp_path))
        done = await claude(place, api).perform(task)

    assert done.ended.success
    assert done.of(Started)[0].mcp_servers == {"scales": "connected"}
    first, second = api.conversation
    assert "mcp__scales__weigh" in {tool["name"] for tool in first.body["tools"]}
    assert HEAVY in json.dumps(second.entries[-1])


async def test_the_placeholder_of_a_subscription_goes_where_its_token_would(place: Place) -> None:
    async with open_model_api([say("Done.")], keys=[PLACEHOLDER]) as api:
        done = await claude(place, api, KeyKind.OAUTH).perform(AgentTask("Do it.", retries=0))

    assert done.ended.success
    assert api.conversation[0].headers["authorization"] == f"Bearer {PLACEHOLDER}"
    assert "x-api-key" not in api.conversation[0].headers


async def test_a_conversation_that_is_not_there_is_an_end_with_a_reason(place: Place) -> None:
    async with open_model_api([say("Never.")]) as api:
        task = AgentTask("Go on.", session_id=str(uuid.uuid4()), resume=True)
        done = await claude(place, api).perform(task)

    assert done.ended.error is not None
    assert "No conversation found" in done.ended.error.message
    assert api.conversation == []
