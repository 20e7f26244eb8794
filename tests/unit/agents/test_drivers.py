"""What each driver starts a program with, and what it makes of output that was recorded once."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from machines import ROOT
from microvm_orchestrator import errors
from microvm_orchestrator.agents.drivers import DRIVERS, find_driver
from microvm_orchestrator.agents.drivers.base import (
    AgentTask,
    Cause,
    Endpoint,
    KeyKind,
    Retrying,
    Said,
    Started,
    TokensUsed,
    ToolUsed,
    TurnEnded,
    failure_of_status,
)
from microvm_orchestrator.agents.drivers.codex import toml
from microvm_orchestrator.agents.drivers.mcp import CALL_S, START_S
from microvm_orchestrator.cli import options
from microvm_orchestrator.images.programs import PROGRAMS
from microvm_orchestrator.model import run

if TYPE_CHECKING:
    from microvm_orchestrator.agents.drivers.base import Driver, Ended, Event, Invocation

TRANSCRIPTS = Path(__file__).parent / "transcripts"
ENDPOINT = Endpoint("http://127.0.0.1:8080", "placeholder-key")
SESSION = "0198f6a0-1111-7222-8333-444455556666"
ODD = "-x \"double\" 'single' `b` $(touch never) ${HOME} \\ %s\n\n\té 🦀 \x7f"
SERVERS: dict[str, JsonValue] = {
    "stdio": {"command": "/bin/echo", "args": ["a b", "$(x)"], "env": {"A": 'b"c'}},
    "web": {"type": "http", "url": "http://127.0.0.1:1/mcp", "headers": {"X-A": "b"}},
}
EVERY = pytest.mark.parametrize("driver", DRIVERS.values(), ids=DRIVERS)


def prepare(driver: Driver, task: AgentTask, endpoint: Endpoint = ENDPOINT) -> Invocation:
    return driver.prepare(task, endpoint, "/agent", "/agent/tree")


def read(
    name: str,
    exit_code: int | None = 0,
    *,
    signal: int | None = None,
    task: AgentTask | None = None,
) -> tuple[list[Event], Ended]:
    driver = find_driver(name.partition("-")[0])
    reader = driver.reader(task or AgentTask("x"))
    events = reader.feed((TRANSCRIPTS / f"{name}.jsonl").read_bytes())
    return events, reader.finish(exit_code, signal)


def everything(given: Invocation) -> str:
    files = [f"{file.path} {file.content.decode()}" for file in given.files]
    return "\n".join([*given.argv, *given.env.values(), *files])


def test_each_is_known_by_its_name_wherever_one_can_be_chosen() -> None:
    module = (ROOT / "python/nix/module/repos.nix").read_text()
    listed = re.search(r"driver = maybe \(types\.enum \[([^]]*)]", module)
    assert listed is not None
    in_nix = {word.strip('"') for word in listed[1].split()}
    on_command_line, in_models = map(get_args, (options.DriverName, run.DriverName))
    assert set(on_command_line) == set(in_models) == set(PROGRAMS) == in_nix == set(DRIVERS)


@EVERY
@pytest.mark.parametrize("prompt", [ODD, "x" * 1_000_000, "/help", "\nx "])
def test_a_prompt_is_on_no_command_line_and_in_no_variable(driver: Driver, prompt: str) -> None:
    given = prepare(driver, AgentTask(prompt))
    assert prompt not in everything(given)
    # As it is, or as the text of a record.
    said = given.stdin.decode()
    assert said == prompt or json.loads(said)["message"]["content"] == prompt


@EVERY
def test_a_system_prompt_of_any_length_does_not_go_by_the_command_line(driver: Driver) -> None:
    added = ODD + "x" * 500_000
    given = prepare(driver, AgentTask("x", system_prompt=added))
    assert all(len(word) < 4096 for word in (*given.argv, *given.env.values()))


@EVERY
def test_a_program_knows_the_placeholder_and_where_the_model_is_and_its_own_home(
    driver: Driver,
) -> None:
    given = prepare(driver, AgentTask("x", model="claude-x", mcp_servers=SERVERS))
    told = everything(given)
    assert ENDPOINT.placeholder in told
    assert ENDPOINT.base_url in told
    assert any("claude-x" in word for word in given.argv)
    assert given.env["HOME"] == "/agent"
    assert all(file.path.startswith("/agent/.") for file in given.files)
    # It names the servers that it is given, and may read of their secrets alone.
    assert "/bin/echo" in told
    assert "http://127.0.0.1:1/mcp" in told
    assert {file.mode for file in given.files} <= {0o600}


@EVERY
@pytest.mark.parametrize(
    "task",
    [
        AgentTask(""),
        AgentTask(" \n\ufeff\t"),
        AgentTask("\ud800"),
        AgentTask("x", system_prompt="\ud800"),
        AgentTask("x", session_id="../../x", resume=True),
        AgentTask("x", session_id="", resume=True),
        AgentTask("x", resume=True),
        AgentTask("x", extra_args=("a\0b",)),
        AgentTask("x", mcp_servers={"a b": {"command": "x"}}),
        AgentTask("x", mcp_servers={"a": {}}),
        AgentTask("x", mcp_servers={"a": {"command": "x", "url": "http://y"}}),
        AgentTask("x", mcp_servers={"a": {"type": "http"}}),
        AgentTask("x", mcp_servers={"a": {"command": "x", "arg": ["y"]}}),
        AgentTask("x", mcp_servers={"a": 7}),
    ],
    ids=range(14),
)
def test_what_cannot_be_told_to_a_program_is_refused_before_it_is_started(
    driver: Driver, task: AgentTask
) -> None:
    with pytest.raises(errors.InvalidInput):
        prepare(driver, task)


@EVERY
def test_a_conversation_goes_on_by_the_id_it_was_known_by(driver: Driver) -> None:
    session = "ses_48a0Bc" if driver.name == "opencode" else SESSION
    task = AgentTask("x", session_id=session, resume=True)
    assert any(session in word for word in prepare(driver, task).argv)
    # It is known even if the program never says so.
    assert driver.reader(task).finish(None, 9).session_id == session


@EVERY
def test_a_new_conversation_is_named_where_the_program_lets_it_be(driver: Driver) -> None:
    task = AgentTask("x", session_id=SESSION)
    named = any(SESSION in word for word in prepare(driver, task).argv)
    assert named == (driver.name == "claude")
    # Until the program says what it is called, nothing is known.
    assert driver.reader(task).finish(None, 9).session_id is None


@pytest.mark.parametrize(
    ("name", "task", "kind"),
    [
        ("codex", AgentTask("x", max_turns=3), KeyKind.API_KEY),
        ("codex", AgentTask("x"), KeyKind.OAUTH),
        ("opencode", AgentTask("x", max_turns=3), KeyKind.API_KEY),
        ("opencode", AgentTask("x", schema={}), KeyKind.API_KEY),
        ("opencode", AgentTask("x"), KeyKind.OAUTH),
    ],
)
def test_what_a_program_has_not_is_refused_and_not_left_out(
    name: str, task: AgentTask, kind: KeyKind
) -> None:
    with pytest.raises(errors.NotOffered, match=name):
        prepare(find_driver(name), task, Endpoint(ENDPOINT.base_url, "p", kind))


def test_an_agent_that_nobody_wrote_a_driver_for_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(errors.InvalidInput, match="'gpt'") as caught:
        find_driver("gpt")
    assert caught.value.hint == "there are claude, codex, opencode"


def test_codex_is_configured_by_a_file_that_says_what_was_meant() -> None:
    task = AgentTask("x", system_prompt=ODD, mcp_servers=SERVERS, retries=2)
    given = prepare(find_driver("codex"), task)
    (config,) = (file for file in given.files if file.path.endswith("/.codex/config.toml"))
    found = tomllib.loads(config.content.decode())
    assert found["developer_instructions"] == ODD
    # Both wait longer than it would by itself.
    waits = {"startup_timeout_sec": START_S, "tool_timeout_sec": CALL_S}
    web = {"url": "http://127.0.0.1:1/mcp", "http_headers": {"X-A": "b"}}
    assert isinstance(SERVERS["stdio"], dict)
    assert found["mcp_servers"] == {"stdio": {**SERVERS["stdio"], **waits}, "web": {**web, **waits}}
    provider = found["model_providers"][found["model_provider"]]
    assert provider["base_url"] == "http://127.0.0.1:8080/v1"
    assert given.env[provider["env_key"]] == "placeholder-key"


@given(
    st.recursive(
        st.text() | st.booleans() | st.integers(-(2**63), 2**63 - 1),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_a_value_is_read_from_toml_as_it_was_written(value: object) -> None:
    assert tomllib.loads(f"x = {toml(value)}")["x"] == value  # pyright: ignore[reportArgumentType] - a strategy does not say that it gives JSON


@pytest.mark.parametrize(
    ("status", "cause", "retryable"),
    [
        (401, Cause.MODEL_AUTH_FAILED, False),
        (402, Cause.MODEL_PAYMENT_REQUIRED, False),
        (404, Cause.MODEL_REQUEST_REFUSED, False),
        (408, Cause.MODEL_FAILED, True),
        (429, Cause.MODEL_RATE_LIMITED, True),
        (500, Cause.MODEL_FAILED, True),
        (529, Cause.MODEL_OVERLOADED, True),
        (None, Cause.MODEL_FAILED, True),
    ],
)
def test_each_answer_of_a_model_api_has_a_code(
    status: int | None, cause: Cause, retryable: bool
) -> None:
    failure = failure_of_status(status, "told")
    assert (failure.code, failure.retryable, failure.message) == (cause, retryable, "told")


@dataclass(frozen=True)
class Recorded:
    """How a program ended that was recorded, and what its stream comes to."""

    name: str
    events: list[Event]
    error: Cause | None = None
    summary: str = ""
    # Of tokens: input, output, read from the cache, written to it.
    usage: tuple[int, int, int, int] | None = None
    exit_code: int | None = 0
    signal: int | None = None
    answer: JsonValue = None


CLAUDE = Started(SESSION, "claude-sonnet-4-5")
CODEX = Started(SESSION)
OPENCODE = Started("ses_48a0Bc")
THREE_TURNS = (3000, 150, 600, 0)
ONE_TURN = (1000, 50, 200, 0)


def shell(name: str, *commands: str) -> list[ToolUsed]:
    return [ToolUsed(name, command) for command in commands]


RECORDED = [
    Recorded(
        "claude-done",
        [
            CLAUDE,
            Said("I look."),
            ToolUsed("Bash", "echo two > a.txt"),
            TurnEnded(1),
            ToolUsed("Bash", "cat a.txt"),
            TurnEnded(2),
            Said("Done: it is two."),
            TurnEnded(3),
        ],
        summary="Done: it is two.",
        usage=THREE_TURNS,
    ),
    Recorded(
        "claude-answer",
        [CLAUDE, ToolUsed("StructuredOutput", "n=7"), TurnEnded(1)],
        summary='{"n":7}',
        usage=ONE_TURN,
        answer={"n": 7},
    ),
    Recorded(
        "claude-max-turns",
        [
            CLAUDE,
            ToolUsed("Bash", "true"),
            TurnEnded(1),
            ToolUsed("Bash", "true"),
            TurnEnded(2),
        ],
        Cause.MAX_TURNS,
        usage=(2000, 100, 400, 0),
        exit_code=1,
    ),
    Recorded(
        "claude-overloaded",
        [CLAUDE, Retrying(529, 1)],
        Cause.MODEL_OVERLOADED,
        usage=(0, 0, 0, 0),
        exit_code=1,
    ),
    Recorded(
        "claude-interrupted",
        [CLAUDE, ToolUsed("Bash", "echo one > a.txt"), TurnEnded(1)],
        Cause.INTERRUPTED,
        usage=ONE_TURN,
    ),
    Recorded(
        "codex-done",
        [
            CODEX,
            Said("I look."),
            *shell(
                "shell",
                "/bin/bash -lc 'cat a.txt; echo two > a.txt'",
                "/bin/bash -lc 'git add . && git commit -qm two'",
            ),
            Said("Done: it is two."),
            TurnEnded(1),
        ],
        summary="Done: it is two.",
        usage=THREE_TURNS,
    ),
    Recorded(
        "codex-answer",
        [CODEX, Said('{"n": 7}'), TurnEnded(1)],
        summary='{"n": 7}',
        usage=ONE_TURN,
        answer={"n": 7},
    ),
    Recorded("codex-overloaded", [CODEX, Retrying(529, 1)], Cause.MODEL_OVERLOADED, exit_code=1),
    Recorded("codex-limited", [CODEX], Cause.MODEL_RATE_LIMITED, exit_code=1),
    Recorded("codex-refused", [CODEX], Cause.MODEL_REQUEST_REFUSED, exit_code=1),
    Recorded("codex-cut-off", [CODEX, Retrying(None, 1)], Cause.MODEL_FAILED, exit_code=1),
    Recorded(
        "codex-interrupted",
        [CODEX, *shell("shell", "/bin/bash -lc 'echo one > a.txt'")],
        Cause.NO_RESULT,
        exit_code=1,
    ),
    Recorded(
        "opencode-done",
        [
            OPENCODE,
            Said("I look."),
            ToolUsed("bash", "echo two > a.txt"),
            TurnEnded(1),
            ToolUsed("bash", "cat a.txt"),
            TurnEnded(2),
            Said("Done: it is two."),
            TurnEnded(3),
        ],
        summary="Done: it is two.",
        usage=THREE_TURNS,
    ),
    Recorded("opencode-unauthorized", [OPENCODE], Cause.MODEL_AUTH_FAILED, exit_code=1),
    Recorded(
        "opencode-interrupted",
        [OPENCODE, ToolUsed("bash", "echo one > a.txt"), TurnEnded(1)],
        Cause.SIGNAL,
        usage=ONE_TURN,
        exit_code=None,
        signal=2,
    ),
]


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded.name)
def test_what_a_program_once_said_is_understood(recorded: Recorded) -> None:
    task = AgentTask("x", schema={"type": "object"} if recorded.answer else None)
    events, ended = read(recorded.name, recorded.exit_code, signal=recorded.signal, task=task)

    assert events == recorded.events
    assert (ended.error and ended.error.code) == recorded.error
    assert ended.summary == recorded.summary
    assert ended.usage == (recorded.usage and TokensUsed(*recorded.usage))
    assert ended.structured_output == recorded.answer
    assert isinstance(events[0], Started)
    assert ended.session_id == events[0].session_id


def test_every_recorded_stream_is_looked_at() -> None:
    assert {path.stem for path in TRANSCRIPTS.iterdir()} == {each.name for each in RECORDED}


@pytest.mark.parametrize("name", ["claude-done", "codex-done", "opencode-done"])
@pytest.mark.parametrize(
    ("exit_code", "signal", "cause"), [(3, None, Cause.EXIT_STATUS), (None, 9, Cause.SIGNAL)]
)
def test_a_good_result_counts_for_nothing_if_the_program_ended_badly(
    name: str, exit_code: int | None, signal: int | None, cause: Cause
) -> None:
    _, ended = read(name, exit_code, signal=signal)
    assert ended.error is not None
    assert (ended.success, ended.error.code) == (False, cause)
    assert ended.summary == "Done: it is two."


@pytest.mark.parametrize("name", ["claude-done", "codex-done", "opencode-done"])
def test_a_stream_that_breaks_off_before_the_result_is_a_failure_with_its_reason(
    name: str,
) -> None:
    reader = find_driver(name.partition("-")[0]).reader(AgentTask("x"))
    lines = (TRANSCRIPTS / f"{name}.jsonl").read_bytes().splitlines(keepends=True)
    reader.feed(b"".join(lines[:-1]))
    ended = reader.finish(0, stderr=b"\x1b[31mout of memory\x1b[0m\n")
    assert ended.error is not None
    assert (ended.success, ended.error.code) == (False, Cause.NO_RESULT)
    assert ended.error.message == "it ended with status 0 without a result: out of memory"


@pytest.mark.parametrize("name", ["claude-done", "codex-done", "opencode-done"])
def test_a_result_that_lacks_its_line_s_end_is_read(name: str) -> None:
    reader = find_driver(name.partition("-")[0]).reader(AgentTask("x"))
    reader.feed((TRANSCRIPTS / f"{name}.jsonl").read_bytes().removesuffix(b"\n"))
    assert reader.finish(0).success


def test_claude_says_so_when_it_does_not_know_the_conversation() -> None:
    session = "11111111-2222-4333-8444-555555555555"
    reader = find_driver("claude").reader(AgentTask("x", session_id=session, resume=True))
    reader.feed(
        json.dumps(
            {
                "type": "result",
                "subtype": "error_during_execution",
                "is_error": True,
                "num_turns": 0,
                "session_id": session,
                "errors": [f"No conversation found with session ID: {session}"],
            }
        ).encode()
        + b"\n"
    )
    ended = reader.finish(1)
    assert ended.error
    assert ended.error.code is Cause.SESSION_UNKNOWN


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("completed", None),
        ("aborted_tools", Cause.INTERRUPTED),
        ("budget_exhausted", Cause.MAX_COST),
        ("structured_output_retry_exhausted", Cause.SCHEMA_UNMET),
        ("prompt_too_long", Cause.MODEL_REQUEST_REFUSED),
        ("stop_hook_prevented", Cause.AGENT_FAILED),
        ("something new", Cause.AGENT_FAILED),
    ],
)
def test_claude_has_succeeded_only_where_it_says_that_it_completed(
    reason: str, cause: Cause | None
) -> None:
    reader = find_driver("claude").reader(AgentTask("x"))
    said = {"type": "result", "subtype": "success", "is_error": False, "terminal_reason": reason}
    reader.feed(json.dumps({**said, "result": "Well."}).encode() + b"\n")
    ended = reader.finish(0)
    assert (ended.error and ended.error.code) == cause


def test_what_an_agent_of_the_agent_says_is_not_taken_for_its_own() -> None:
    reader = find_driver("claude").reader(AgentTask("x"))
    content: JsonValue = [
        {"type": "text", "text": "inner"},
        {"type": "tool_use", "name": "Bash", "input": {}},
    ]
    record: JsonValue = {
        "type": "assistant",
        "parent_tool_use_id": "t",
        "message": {"content": content},
    }
    assert reader.feed(json.dumps(record).encode() + b"\n") == [ToolUsed("Bash", "")]
