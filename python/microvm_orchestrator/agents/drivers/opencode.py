"""opencode without a terminal: how it is started, and what its stream of records means.

Written and tried with release 1.18.33; recorded output of it lies with the unit tests, and
`tests/system/test_opencode_driver.py` runs the real program. It names its conversations itself, and
tells the name with the first that it says or does: broken off before that, it has forgotten. It has
no limit of turns at which it fails, and no form for its answer. An API that is overloaded it asks
again for as long as it runs, and does not tell. Interrupted, it ends by the signal.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from pydantic import Field, JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.agents.drivers.base import (
    FOLDER,
    AgentTask,
    Cause,
    Ended,
    Endpoint,
    Event,
    Failure,
    File,
    Invocation,
    KeyKind,
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
from microvm_orchestrator.agents.drivers.mcp import CALL_S, McpServer, read_servers
from microvm_orchestrator.agents.drivers.stream import (
    MAX_MESSAGE,
    Count,
    Dollars,
    Maybe,
    Record,
    RecordReader,
    brief,
    one_line,
    tidy,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# It fetches nothing: no list of models, no plugins, no language servers, no newer self.
_ALONE = {
    "OPENCODE_DISABLE_AUTOUPDATE": "1",
    "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
    "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
    "OPENCODE_DISABLE_MODELS_FETCH": "1",
    "OPENCODE_DISABLE_SHARE": "1",
}
# Each start of it leaves a library of 5 MB there, which nobody needs when it has ended.
_TIDILY = 'mkdir -p "$TMPDIR" && rm -f "$TMPDIR"/.*.so; exec "$@"'
_PROVIDERS = ("anthropic", "openai")
_SESSION = re.compile(r"ses_[0-9A-Za-z]{1,64}")


class OpencodeDriver:
    """opencode, by the name `opencode`."""

    name = "opencode"

    def prepare(self, task: AgentTask, endpoint: Endpoint, home: str, workdir: str) -> Invocation:
        """Raises: InvalidInput, TooLarge, NotOffered."""
        del workdir  # it works where it is started
        _check_offered(task, endpoint)
        files: list[File] = []
        if task.system_prompt is not None:
            added = encode("the system prompt", task.system_prompt)
            files.append(own_file(home, "system-prompt.md", added))
        provider, model = _model(task.model)
        argv = ["/bin/sh", "-c", _TIDILY, "sh", task.program or "opencode"]
        argv += ["run", "--format", "json"]
        if model is not None:
            argv.append(f"--model={provider}/{model}")
        if task.resume:
            if not _SESSION.fullmatch(task.session_id or ""):
                raise errors.InvalidInput(
                    f"{(task.session_id or '')[:80]!r} is no session of opencode"
                )
            argv.append(f"--session={task.session_id}")
        settings = _settings(task, endpoint, provider, model, [file.path for file in files])
        env = {
            **_ALONE,
            "HOME": home,
            "TMPDIR": f"{home.rstrip('/')}/{FOLDER}/opencode",
            "XDG_CONFIG_HOME": f"{home.rstrip('/')}/.config",
            "XDG_DATA_HOME": f"{home.rstrip('/')}/.local/share",
            "XDG_STATE_HOME": f"{home.rstrip('/')}/.local/state",
            "XDG_CACHE_HOME": f"{home.rstrip('/')}/.cache",
            # Goes before a configuration that lies in the repository.
            "OPENCODE_CONFIG_CONTENT": json.dumps(settings),
        }
        return Invocation(
            # It would put quotes around words with spaces; its standard input it takes as it is.
            (*argv, *task.extra_args),
            env,
            tuple(files),
            plain_input(task),
        )

    def reader(self, task: AgentTask) -> OpencodeReader:
        return OpencodeReader(task)


def _check_offered(task: AgentTask, endpoint: Endpoint) -> None:
    if task.max_turns is not None:
        raise errors.NotOffered("opencode has no limit of turns", hint="limit its tokens or time")
    if task.schema is not None:
        raise errors.NotOffered("opencode has no form for its answer", hint="ask in the prompt")
    if endpoint.kind is not KeyKind.API_KEY:
        raise errors.NotOffered("opencode is given an API key, and no token of a subscription")


def _model(name: str | None) -> tuple[str, str | None]:
    provider, _, model = (name or "").partition("/")
    return (provider, model) if provider in _PROVIDERS and model else (_PROVIDERS[0], name)


def _settings(
    task: AgentTask, endpoint: Endpoint, provider: str, model: str | None, instructions: list[str]
) -> dict[str, JsonValue]:
    options: JsonValue = {
        "baseURL": endpoint.base_url.rstrip("/") + "/v1",
        "apiKey": endpoint.placeholder,
    }
    settings: dict[str, JsonValue] = {
        "enabled_providers": [provider],
        # Its own list of models may be older than the model.
        "provider": {provider: {"options": options, "models": {model: {}} if model else {}}},
        "permission": "allow",
        "autoupdate": False,
        "share": "disabled",
        "instructions": [*instructions],
        "mcp": {name: _server(server) for name, server in read_servers(task.mcp_servers).items()},
    }
    if model is not None:
        # Titles are made by it too, and not by a model nobody asked for.
        settings["model"] = settings["small_model"] = f"{provider}/{model}"
    return settings


def _server(server: McpServer) -> JsonValue:
    # Of a start and of a call alike, in milliseconds.
    waits = CALL_S * 1000
    if server.url is not None:
        headers: dict[str, JsonValue] = {**server.headers}
        return {"type": "remote", "url": server.url, "headers": headers, "timeout": waits}
    command: list[JsonValue] = [server.command or "", *server.args]
    env: dict[str, JsonValue] = {**server.env}
    return {"type": "local", "command": command, "environment": env, "timeout": waits}


class _State(Record):
    input: Maybe[dict[str, JsonValue]] = None


class _Cached(Record):
    read: Maybe[Count] = None
    write: Maybe[Count] = None


class _Tokens(Record):
    input: Maybe[Count] = None
    output: Maybe[Count] = None
    reasoning: Maybe[Count] = None
    cache: Maybe[_Cached] = None


class _Part(Record):
    text: Maybe[str] = None
    tool: Maybe[str] = None
    state: Maybe[_State] = None
    reason: Maybe[str] = None
    cost: Maybe[Dollars] = None
    tokens: Maybe[_Tokens] = None


class _Data(Record):
    message: Maybe[str] = None
    status_code: Maybe[Count] = Field(default=None, alias="statusCode")


class _Error(Record):
    name: Maybe[str] = None
    data: Maybe[_Data] = None


class _Record(Record):
    type: str
    session_id: Maybe[str] = Field(default=None, alias="sessionID")
    part: Maybe[_Part] = None
    error: Maybe[_Error] = None


class OpencodeReader(RecordReader[_Record]):
    """Reads `opencode run --format json`."""

    def __init__(self, task: AgentTask) -> None:
        super().__init__(_Record)
        self._session_id = task.session_id if task.resume else None
        self._begun = False
        self._turns = 0
        self._said = ""
        # Why the last step ended.
        self._reason: str | None = None
        self._usage: TokensUsed | None = None
        self._cost: float | None = None
        self._failed: Failure | None = None

    def take(self, record: _Record) -> Iterator[Event]:
        if record.session_id:
            self._session_id = one_line(record.session_id)
            if not self._begun:
                self._begun = True
                yield Started(self._session_id)
        part = record.part or _Part()
        match record.type:
            case "text" if part.text:
                self._said = tidy(part.text)
                yield Said(self._said)
            case "tool_use":
                yield ToolUsed(one_line(part.tool or ""), brief(part.state and part.state.input))
            case "step_start":
                self._reason = None
            case "step_finish":
                self._reason = one_line(part.reason or "")
                self._account(part)
                self._turns += 1
                yield TurnEnded(self._turns)
            case "error":
                self._failed = _explain(record.error)
            case _:
                pass

    def _account(self, part: _Part) -> None:
        """Add what one step took."""
        tokens = part.tokens
        if tokens is not None:
            was = self._usage or TokensUsed()
            cached = tokens.cache or _Cached()
            self._usage = TokensUsed(
                was.input + (tokens.input or 0),
                was.output + (tokens.output or 0) + (tokens.reasoning or 0),
                was.cache_read + (cached.read or 0),
                was.cache_write + (cached.write or 0),
            )
        if part.cost is not None:
            self._cost = (self._cost or 0.0) + part.cost

    def conclude(self, exit_failure: Failure | None, complaint: str) -> Ended:
        if self._failed is not None:
            error = self._failed
        elif self._reason == "stop":
            error = exit_failure
        elif self._reason in {None, "tool-calls"}:
            error = self.no_result(exit_failure, complaint)
        else:
            error = Failure(Cause.AGENT_FAILED, f"its last turn ended with {self._reason}")
        return Ended(
            success=error is None,
            summary=self._said,
            session_id=self._session_id,
            turns=self._turns,
            usage=self._usage,
            cost_usd=self._cost,
            error=error,
            unread=self.unread,
        )


def _explain(error: _Error | None) -> Failure:
    name = (error.name if error else None) or "UnknownError"
    data = (error.data if error else None) or _Data()
    told = one_line(data.message or name, MAX_MESSAGE)
    if name == "MessageAbortedError":
        return Failure(Cause.INTERRUPTED, told)
    if name == "ProviderAuthError":
        return Failure(Cause.MODEL_AUTH_FAILED, told)
    if name == "APIError":
        return failure_of_status(data.status_code, told)
    return Failure(Cause.AGENT_FAILED, told)
