"""Codex without a terminal: how it is started, and what its stream of records means.

Written and tried with release 0.169.0; recorded output of it lies with the unit tests, and
`tests/system/test_codex_driver.py` runs the real program. It speaks OpenAI's Responses API. It
names its conversations itself, has no limit of turns, and does not tell of the model's: its turn is
all that follows on a prompt. Its account of tokens is of the whole conversation, what came before
it was resumed included. Interrupted, it ends without a result. Newer models write programs that
call its tools: those run in a second program of its package, `codex-code-mode-host`, beside it.
"""

from __future__ import annotations

import json
import re
import uuid
from typing import TYPE_CHECKING

from pydantic import JsonValue, TypeAdapter, ValidationError

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
    encode,
    failure_of_status,
    own_file,
    plain_input,
)
from microvm_orchestrator.agents.drivers.mcp import CALL_S, START_S, McpServer, read_servers
from microvm_orchestrator.agents.drivers.stream import (
    MAX_MESSAGE,
    Count,
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

_PROVIDER = "host"
_KEY = "MICROVM_MODEL_KEY"
# It tells of a failed request in words only.
_STATUS = re.compile(r"\bstatus:? (\d{3})\b")
_AGAIN = re.compile(r"^Reconnecting\D{0,10}(\d{1,4})/\d{1,4}")
# What it says when the connection failed, and the beginning of an answer that refused the request.
_LOST = ("stream disconnected", "error sending request", "timeout waiting")
_REFUSED = '{"error"'
# Calls that have begun and not ended; it makes a few at a time.
_MAX_UNDER_WAY = 1000


class CodexDriver:
    """Codex, by the name `codex`."""

    name = "codex"

    def prepare(self, task: AgentTask, endpoint: Endpoint, home: str, workdir: str) -> Invocation:
        """Raises: InvalidInput, TooLarge, NotOffered."""
        del workdir  # it works where it is started
        if task.max_turns is not None:
            raise errors.NotOffered("codex has no limit of turns", hint="limit its tokens or time")
        if endpoint.kind is not KeyKind.API_KEY:
            raise errors.NotOffered("codex is given an API key, and no token of a subscription")
        folder = f"{home.rstrip('/')}/.codex"
        files = [_config(task, endpoint, folder)]
        argv = [task.program or "codex", "exec", "--json", "--skip-git-repo-check"]
        argv.append("--dangerously-bypass-approvals-and-sandbox")
        if task.model is not None:
            argv.append(f"--model={task.model}")
        if task.schema is not None:
            files.append(own_file(home, "schema.json", json.dumps(task.schema).encode()))
            argv += ["--output-schema", files[-1].path]
        argv += task.extra_args
        if task.resume:
            argv += ["resume", _session(task.session_id)]
        # The prompt is its standard input.
        argv.append("-")
        env = {"HOME": home, "CODEX_HOME": folder, _KEY: endpoint.placeholder}
        return Invocation(tuple(argv), env, tuple(files), plain_input(task))

    def reader(self, task: AgentTask) -> CodexReader:
        return CodexReader(task)


def _session(session_id: str | None) -> str:
    try:
        return str(uuid.UUID(session_id or ""))
    except ValueError as error:
        raise errors.InvalidInput(
            f"{(session_id or '')[:80]!r} is no session of codex", hint="it is a UUID"
        ) from error


def _config(task: AgentTask, endpoint: Endpoint, folder: str) -> File:
    provider: dict[str, JsonValue] = {
        "name": _PROVIDER,
        "base_url": endpoint.base_url.rstrip("/") + "/v1",
        "env_key": _KEY,
        "wire_api": "responses",
        # It multiplies these two, and tells of the second alone. A 429 it never asks again.
        "request_max_retries": 0,
        "stream_max_retries": task.retries,
    }
    settings: dict[str, JsonValue] = {
        "model_provider": _PROVIDER,
        "model_providers": {_PROVIDER: provider},
        "check_for_update_on_startup": False,
        "analytics": {"enabled": False},
        "feedback": {"enabled": False},
        # It would look for newer ones of its maker's at github.com and chatgpt.com.
        "features": {"plugins": False},
        "mcp_servers": {
            name: _server(server) for name, server in read_servers(task.mcp_servers).items()
        },
    }
    if task.system_prompt is not None:
        settings["developer_instructions"] = task.system_prompt
    written = "".join(f"{key} = {toml(value)}\n" for key, value in settings.items())
    return File(f"{folder}/config.toml", encode("the configuration", written))


def _server(server: McpServer) -> JsonValue:
    waits: dict[str, JsonValue] = {"startup_timeout_sec": START_S, "tool_timeout_sec": CALL_S}
    if server.url is not None:
        return {"url": server.url, "http_headers": {**server.headers}, **waits}
    return {"command": server.command, "args": [*server.args], "env": {**server.env}, **waits}


def toml(value: JsonValue) -> str:
    """Write a value in one line of TOML, which has no null."""
    match value:
        case dict():
            pairs = (f"{_quoted(key)} = {toml(each)}" for key, each in value.items())
            return "{" + ", ".join(pairs) + "}"
        case list():
            return "[" + ", ".join(toml(each) for each in value) + "]"
        case str():
            return _quoted(value)
        case _:
            return json.dumps(value)


def _quoted(text: str) -> str:
    # TOML's escapes are JSON's, but for one character and for pairs of surrogates.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


class _Change(Record):
    path: str


class _Item(Record):
    id: Maybe[str] = None
    type: str
    text: Maybe[str] = None
    message: Maybe[str] = None
    command: Maybe[str] = None
    changes: Maybe[list[_Change]] = None
    server: Maybe[str] = None
    tool: Maybe[str] = None
    arguments: Maybe[dict[str, JsonValue]] = None
    query: Maybe[str] = None

    @property
    def used(self) -> ToolUsed | None:
        """What tool it is about."""
        match self.type:
            case "command_execution":
                return ToolUsed("shell", one_line(self.command or ""))
            case "file_change":
                paths = " ".join(change.path for change in (self.changes or [])[:20])
                return ToolUsed("file_change", one_line(paths))
            case "mcp_tool_call":
                name = f"{self.server or ''}.{self.tool or ''}"
                return ToolUsed(one_line(name), brief(self.arguments))
            case "web_search":
                return ToolUsed("web_search", one_line(self.query or ""))
            case _:
                return None


class _Usage(Record):
    input_tokens: Maybe[Count] = None
    cached_input_tokens: Maybe[Count] = None
    output_tokens: Maybe[Count] = None


class _Error(Record):
    message: Maybe[str] = None


class _Record(Record):
    type: str
    thread_id: Maybe[str] = None
    item: Maybe[_Item] = None
    usage: Maybe[_Usage] = None
    error: Maybe[_Error] = None
    message: Maybe[str] = None


class CodexReader(RecordReader[_Record]):
    """Reads `codex exec --json`."""

    def __init__(self, task: AgentTask) -> None:
        super().__init__(_Record)
        self._task = task
        self._session_id = task.session_id if task.resume else None
        self._turns = 0
        self._said = ""
        self._under_way: set[str] = set()
        self._completed = False
        self._usage: TokensUsed | None = None
        self._failed: str | None = None

    def take(self, record: _Record) -> Iterator[Event]:
        match record.type:
            case "thread.started":
                self._session_id = one_line(record.thread_id or "") or self._session_id
                yield Started(self._session_id)
            case "turn.started":
                self._completed = False
            case "item.started" | "item.completed" if record.item is not None:
                yield from self._hear(record.item, begun=record.type == "item.started")
            case "turn.completed":
                self._completed, self._failed = True, None
                self._usage = _account(record.usage)
                self._turns += 1
                yield TurnEnded(self._turns)
            case "turn.failed":
                told = record.error.message if record.error else None
                self._failed = one_line(told or "it says not why", MAX_MESSAGE)
            case "error":
                told = one_line(record.message or "", MAX_MESSAGE)
                if again := _AGAIN.match(told):
                    yield Retrying(_status(told), int(again[1]))
                else:
                    self._failed = told
            case _:
                pass

    def _hear(self, item: _Item, *, begun: bool) -> Iterator[Event]:
        if item.type == "agent_message" and item.text and not begun:
            self._said = tidy(item.text)
            yield Said(self._said)
        elif item.used is not None:
            # Some are told of twice, when they begin and when they end, and some once.
            key = item.id or ""
            if begun and len(self._under_way) < _MAX_UNDER_WAY:
                self._under_way.add(key)
            if begun or key not in self._under_way:
                yield item.used
            if not begun:
                self._under_way.discard(key)

    def conclude(self, exit_failure: Failure | None, complaint: str) -> Ended:
        error: Failure | None
        if self._failed is not None:
            error = _explain(self._failed)
        elif not self._completed:
            error = self.no_result(exit_failure, complaint)
        else:
            error = exit_failure
        answer = None if self._task.schema is None else _answer(self._said)
        if error is None and self._task.schema is not None and answer is None:
            error = Failure(Cause.SCHEMA_UNMET, "its answer is not JSON")
        return Ended(
            success=error is None,
            summary=self._said,
            session_id=self._session_id,
            usage=self._usage,
            error=error,
            structured_output=answer,
            unread=self.unread,
        )


def _explain(told: str) -> Failure:
    status = _status(told)
    if status is not None or told.startswith(_LOST):
        return failure_of_status(status, told)
    if told.startswith(_REFUSED):
        return Failure(Cause.MODEL_REQUEST_REFUSED, told)
    return Failure(Cause.AGENT_FAILED, told)


def _status(told: str) -> int | None:
    found = _STATUS.search(told)
    return int(found[1]) if found else None


def _account(usage: _Usage | None) -> TokensUsed | None:
    if usage is None:
        return None
    cached = usage.cached_input_tokens or 0
    # Theirs of the input are all tokens, ours those that were not cached.
    return TokensUsed(max(0, (usage.input_tokens or 0) - cached), usage.output_tokens or 0, cached)


def _answer(said: str) -> JsonValue:
    try:
        return safe_json(TypeAdapter[JsonValue](JsonValue).validate_json(said))
    except ValidationError:
        return None
