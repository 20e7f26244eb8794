"""Claude Code without a terminal: how it is started, and what its stream of records means.

Written and tried with release 2.1.329. `tests/system/test_claude_driver.py` runs the real program.
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

from pydantic import JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.agents.drivers.base import (
    AgentTask,
    Cause,
    Ended,
    Endpoint,
    Event,
    Failure,
    File,
    Invocation,
    KeyKind,
    Retrying,
    Said,
    Started,
    TokensUsed,
    ToolUsed,
    TurnEnded,
    check_prompt,
    encode,
    failure_of_status,
    own_file,
)
from microvm_orchestrator.agents.drivers.mcp import read_servers
from microvm_orchestrator.agents.drivers.stream import (
    MAX_MESSAGE,
    Count,
    Dollars,
    Maybe,
    Record,
    RecordReader,
    brief,
    one_line,
    safe_json,
    tidy,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# It talks to nobody but the model API, asks nobody, and may do as it likes: the machine is its own.
_ALONE = {
    # Without it root may not skip permissions.
    "IS_SANDBOX": "1",
    # A command that it left in the background would keep it, after its last turn, for as long as
    # that runs; a server for ever.
    "CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_BUG_COMMAND": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_TELEMETRY": "1",
}
# With these it sets itself to go on later, and waits for that after its last turn.
_NOT_FOR_LATER = "--disallowedTools=CronCreate,Monitor,ScheduleWakeup"
_KEY = {KeyKind.API_KEY: "ANTHROPIC_API_KEY", KeyKind.OAUTH: "CLAUDE_CODE_OAUTH_TOKEN"}
# Whose words those are that the program writes itself, in the model's place.
_SYNTHETIC = "<synthetic>"
# How a turn ends that was broken off by SIGINT; the status is 0 then.
_NO_SESSION = "No conversation found with session ID"
_ABORTED = {"aborted_streaming", "aborted_tools"}
# Its word for an end that is as it should be; older releases had none.
_COMPLETED = {None, "completed"}


class ClaudeDriver:
    """Claude Code, by the name `claude`."""

    name = "claude"

    def prepare(self, task: AgentTask, endpoint: Endpoint, home: str, workdir: str) -> Invocation:
        """Raises: InvalidInput, TooLarge."""
        del workdir  # it works where it is started
        argv = [task.program or "claude", "--print", "--verbose"]
        # As a record, since its plain input waits three seconds and then goes on without.
        argv += ["--input-format", "stream-json", "--output-format", "stream-json"]
        argv += ["--dangerously-skip-permissions", "--strict-mcp-config", _NOT_FOR_LATER]
        files: list[File] = []
        if task.mcp_servers:
            written = json.dumps({"mcpServers": _servers(task)})
            files.append(own_file(home, "mcp.json", encode("an MCP server", written)))
            argv += ["--mcp-config", files[-1].path]
        if task.system_prompt is not None:
            added = encode("the system prompt", task.system_prompt)
            files.append(own_file(home, "system-prompt.md", added))
            argv += ["--append-system-prompt-file", files[-1].path]
        if task.session_id is not None:
            argv += ["--resume" if task.resume else "--session-id", _session(task.session_id)]
        elif task.resume:
            raise errors.InvalidInput("a conversation to resume has a session id")
        if task.model is not None:
            argv.append(f"--model={task.model}")
        if task.max_turns is not None:
            argv += ["--max-turns", str(task.max_turns)]
        if task.schema is not None:
            argv += ["--json-schema", json.dumps(task.schema)]
        env = {
            **_ALONE,
            "HOME": home,
            # What a later run resumes from lies here.
            "CLAUDE_CONFIG_DIR": f"{home.rstrip('/')}/.claude",
            "ANTHROPIC_BASE_URL": endpoint.base_url,
            _KEY[endpoint.kind]: endpoint.placeholder,
            "CLAUDE_CODE_MAX_RETRIES": str(task.retries),
        }
        check_prompt(task)
        said = {
            "type": "user",
            "message": {"role": "user", "content": task.prompt},
            # Else it takes /words at the beginning for commands, and reads the files of @words.
            "text_not_typed": True,
        }
        return Invocation(
            (*argv, *task.extra_args), env, tuple(files), json.dumps(said).encode() + b"\n"
        )

    def reader(self, task: AgentTask) -> ClaudeReader:
        return ClaudeReader(task)


def _servers(task: AgentTask) -> dict[str, dict[str, JsonValue]]:
    return {
        name: {
            "type": "stdio" if server.url is None else "http",
            **server.model_dump(exclude_defaults=True, exclude={"type"}),
        }
        for name, server in read_servers(task.mcp_servers).items()
    }


def _session(session_id: str) -> str:
    try:
        return str(uuid.UUID(session_id))
    except ValueError as error:
        raise errors.InvalidInput(
            f"{session_id[:80]!r} is no session of Claude Code", hint="it is a UUID"
        ) from error


class _Block(Record):
    type: str
    text: Maybe[str] = None
    name: Maybe[str] = None
    input: Maybe[dict[str, JsonValue]] = None


class _Message(Record):
    id: Maybe[str] = None
    model: Maybe[str] = None
    content: Maybe[list[_Block]] = None


class _Usage(Record):
    input_tokens: Maybe[Count] = None
    output_tokens: Maybe[Count] = None
    cache_read_input_tokens: Maybe[Count] = None
    cache_creation_input_tokens: Maybe[Count] = None


class _Server(Record):
    name: str
    status: str


class _Record(Record):
    type: str
    subtype: Maybe[str] = None
    session_id: Maybe[str] = None
    # Set in what an agent of the agent says.
    parent_tool_use_id: Maybe[str] = None
    # system/init
    model: Maybe[str] = None
    mcp_servers: Maybe[list[_Server]] = None
    # system/api_retry
    attempt: Maybe[Count] = None
    error_status: Maybe[Count] = None
    # assistant, user
    message: Maybe[_Message] = None
    # result
    is_error: Maybe[bool] = None
    terminal_reason: Maybe[str] = None
    api_error_status: Maybe[Count] = None
    result: Maybe[str] = None
    errors: Maybe[list[str]] = None
    total_cost_usd: Maybe[Dollars] = None
    usage: Maybe[_Usage] = None
    structured_output: JsonValue = None


class ClaudeReader(RecordReader[_Record]):
    """Reads `--output-format stream-json`."""

    def __init__(self, task: AgentTask) -> None:
        super().__init__(_Record)
        self._task = task
        self._session_id = task.session_id if task.resume else None
        self._turns = 0
        # One turn is as many records as it has blocks, all of one message.
        self._message: str | None = None
        self._said = ""
        self._result: _Record | None = None

    def take(self, record: _Record) -> Iterator[Event]:
        if record.session_id:
            self._session_id = one_line(record.session_id)
        match record.type, record.subtype:
            case "system", "init":
                servers = (record.mcp_servers or [])[:100]
                yield Started(
                    self._session_id,
                    one_line(record.model or "") or None,
                    {one_line(server.name): one_line(server.status) for server in servers},
                )
            case "system", "api_retry":
                yield Retrying(record.error_status, record.attempt)
            case "assistant", _ if record.message and record.message.model != _SYNTHETIC:
                yield from self._hear(record.message, ours=record.parent_tool_use_id is None)
            case "user", _ if record.parent_tool_use_id is None:
                yield from self._end_turn()
            case "result", _:
                yield from self._end_turn()
                self._result = record
            case _:
                pass

    def _hear(self, message: _Message, *, ours: bool) -> Iterator[Event]:
        if ours:
            if message.id != self._message:
                yield from self._end_turn()
            self._message = message.id or "unnamed"
        for block in message.content or []:
            if block.type == "text" and block.text and ours:
                self._said = tidy(block.text)
                yield Said(self._said)
            elif block.type == "tool_use":
                yield ToolUsed(one_line(block.name or ""), brief(block.input))

    def _end_turn(self) -> Iterator[Event]:
        if self._message is not None:
            self._message = None
            self._turns += 1
            yield TurnEnded(self._turns)

    def conclude(self, exit_failure: Failure | None, complaint: str) -> Ended:
        result = self._result
        if result is None:
            return self._end(self.no_result(exit_failure, complaint))
        error = _judge(result) or exit_failure
        answer = safe_json(result.structured_output)
        if error is None and self._task.schema is not None and answer is None:
            error = Failure(Cause.SCHEMA_UNMET, "it gave no answer of the form that was asked for")
        return self._end(error, result, answer)

    def _end(
        self, error: Failure | None, result: _Record | None = None, answer: JsonValue = None
    ) -> Ended:
        usage = result.usage if result else None
        # Of a failure its text is the reason, not what the agent said.
        summary = tidy(result.result or "") if result and error is None else ""
        return Ended(
            success=error is None,
            summary=summary or self._said,
            session_id=self._session_id,
            # Ours: its own count has a prompt of its own more when it was broken off.
            turns=self._turns,
            usage=usage
            and TokensUsed(
                usage.input_tokens or 0,
                usage.output_tokens or 0,
                usage.cache_read_input_tokens or 0,
                usage.cache_creation_input_tokens or 0,
            ),
            cost_usd=result.total_cost_usd if result else None,
            error=error,
            structured_output=answer,
            unread=self.unread,
        )


def _judge(result: _Record) -> Failure | None:
    """Say why a result is a failure; None if it is none.

    By `is_error` and `terminal_reason`: an API that gave up is of the subtype `success`.
    """
    reason, subtype = result.terminal_reason, result.subtype
    told = one_line(" ".join((result.errors or [])[:5]) or result.result or "", MAX_MESSAGE)
    if reason in _ABORTED:
        return Failure(Cause.INTERRUPTED, "it was interrupted in the middle of a turn")
    if reason == "max_turns" or subtype == "error_max_turns":
        return Failure(Cause.MAX_TURNS, told or "it took all the turns it was given")
    if reason == "budget_exhausted" or subtype == "error_max_budget_usd":
        return Failure(Cause.MAX_COST, told or "it spent all it was given")
    if (
        reason == "structured_output_retry_exhausted"
        or subtype == "error_max_structured_output_retries"
    ):
        return Failure(Cause.SCHEMA_UNMET, told or "its answers were not of the form asked for")
    if told.startswith(_NO_SESSION):
        return Failure(Cause.SESSION_UNKNOWN, told)
    if reason == "api_error" or (result.is_error and result.api_error_status):
        return failure_of_status(result.api_error_status, told or "the model API failed")
    if reason == "prompt_too_long":
        return Failure(Cause.MODEL_REQUEST_REFUSED, told or "the conversation is too long")
    if result.is_error or reason not in _COMPLETED:
        return Failure(Cause.AGENT_FAILED, told or f"it ended with {one_line(reason or '')}")
    return None
