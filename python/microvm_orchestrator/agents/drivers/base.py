"""What every driver takes and gives, and the events its reader makes of what the program says.

A driver turns a task into an invocation: words, variables, files and input, to be used as they are.
No shell reads any of it. A reader takes the program's standard output in pieces of any size and
never raises: all of it comes from a guest. What it tells is the guest's own word; what a run used
is measured on the host.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypeAlias

from pydantic import JsonValue

from microvm_orchestrator import errors

# Linux takes no longer word, its closing zero included.
MAX_WORD_BYTES = 131_071
# Where we put our own files, beneath the home of whoever runs the program.
FOLDER = ".microvm-orchestrator"
# Six waits of 0.6 s doubled each time: half a minute in which a busy API may recover. An API that
# refuses our key is asked as often, by programs that do not look at what the refusal says.
RETRIES = 6


class KeyKind(StrEnum):
    """How a program shows its key to the model API."""

    API_KEY = "api_key"
    # A token of a subscription, made by `claude setup-token`.
    OAUTH = "oauth"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the guest finds the model API, and the word it says in place of a key."""

    # Without the version: http://127.0.0.1:8080
    base_url: str
    placeholder: str
    kind: KeyKind = KeyKind.API_KEY


@dataclass(frozen=True, slots=True)
class AgentTask:
    """What an agent shall do, and how."""

    prompt: str
    model: str | None = None
    # Added to the agent's own.
    system_prompt: str | None = None
    max_turns: int | None = None
    # By name, as in `.mcp.json`: {"command", "args", "env"} or {"type": "http", "url", "headers"}.
    mcp_servers: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    # To resume: what a run before has told. Else a UUID for the new conversation, which is taken up
    # by programs that let theirs be named; what it is called in the end is told when it has ended.
    session_id: str | None = None
    # Go on with that conversation, by this prompt and in the same folder.
    resume: bool = False
    # JSON Schema of the answer.
    schema: JsonValue = None
    # How often a failed request to the model API is made again, where that can be set.
    retries: int = RETRIES
    # Where the program is, if not in PATH.
    program: str | None = None
    extra_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class File:
    """A file that lies in the guest before the program starts."""

    path: str
    content: bytes
    mode: int = 0o600


@dataclass(frozen=True, slots=True)
class Invocation:
    """A program as it is to be started in the work tree: no shell reads any of it."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    files: tuple[File, ...] = ()
    # All of its standard input; it ends behind the last byte.
    stdin: bytes = b""

    def __post_init__(self) -> None:
        """Raises: InvalidInput, TooLarge."""
        # To the kernel a variable is a word as well.
        for word in (*self.argv, *(f"{name}={value}" for name, value in self.env.items())):
            check_word(word)


@dataclass(frozen=True, slots=True)
class Started:
    """The program is up."""

    session_id: str | None
    model: str | None = None
    # Each MCP server it was given, and how that server is, in the program's words.
    mcp_servers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Said:
    """The agent wrote something to whoever gave it the task."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolUsed:
    """The agent uses a tool; `brief` is a line of what for."""

    name: str
    brief: str


@dataclass(frozen=True, slots=True)
class Retrying:
    """A request to the model API failed, and is made again."""

    # None where there was no answer at all.
    status: int | None
    attempt: int | None = None


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """The model has taken a turn: it answered, or what it asked for has been done."""

    turns: int


@dataclass(frozen=True, slots=True)
class Unread:
    """A line that is no record of the program's, cut short."""

    text: str


Event: TypeAlias = Started | Said | ToolUsed | Retrying | TurnEnded | Unread


class Cause(StrEnum):
    """Why a run failed, for programs to act upon."""

    # The model API answered 401 or 403.
    MODEL_AUTH_FAILED = "model-auth-failed"
    # 402.
    MODEL_PAYMENT_REQUIRED = "model-payment-required"
    # 429.
    MODEL_RATE_LIMITED = "model-rate-limited"
    # 503 or 529.
    MODEL_OVERLOADED = "model-overloaded"
    # Any other 4xx: the request can never work.
    MODEL_REQUEST_REFUSED = "model-request-refused"
    # Any other answer, or none.
    MODEL_FAILED = "model-failed"
    MAX_TURNS = "max-turns"
    MAX_COST = "max-cost"
    SCHEMA_UNMET = "schema-unmet"
    INTERRUPTED = "interrupted"
    # What it was to go on with was never written down, or is gone.
    SESSION_UNKNOWN = "session-unknown"
    # The agent itself says that it failed, for any other reason.
    AGENT_FAILED = "agent-failed"
    # It ended without having said how it went.
    NO_RESULT = "no-result"
    EXIT_STATUS = "exit-status"
    SIGNAL = "signal"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run failed."""

    code: Cause
    message: str
    # The same run may work later, as it is.
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class TokensUsed:
    """Tokens by the agent's own account."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended, as far as it told."""

    success: bool
    summary: str = ""
    session_id: str | None = None
    # None where it does not tell of each.
    turns: int | None = None
    # None where the agent gave no account.
    usage: TokensUsed | None = None
    cost_usd: float | None = None
    error: Failure | None = None
    structured_output: JsonValue = None
    # Lines that were no records: not JSON, too long, or of a form we do not know.
    unread: int = 0


class Reader(Protocol):
    """Makes events of a program's standard output; for one run of it."""

    def feed(self, data: bytes) -> list[Event]:
        """Take the next bytes. Never raises, whatever they are."""
        ...

    def finish(
        self, exit_code: int | None, signal: int | None = None, stderr: bytes = b""
    ) -> Ended:
        """Take how the program ended, and the last of what it said on standard error."""
        ...


class Driver(Protocol):
    """How one program is told a task, and how it is understood."""

    @property
    def name(self) -> str: ...

    def prepare(self, task: AgentTask, endpoint: Endpoint, home: str, workdir: str) -> Invocation:
        """Raises: InvalidInput, TooLarge, NotOffered."""
        ...

    def reader(self, task: AgentTask) -> Reader: ...


def check_word(word: str) -> None:
    """Refuse what cannot be a word of a command line.

    Raises: InvalidInput, TooLarge.
    """
    if "\0" in word:
        raise errors.InvalidInput("a word of a command line has a zero byte")
    try:
        size = len(word.encode())
    except UnicodeEncodeError as error:
        raise errors.InvalidInput("a word of a command line has half of a character") from error
    if size > MAX_WORD_BYTES:
        raise errors.TooLarge(
            f"a word of a command line or a variable has {size} bytes; {MAX_WORD_BYTES} are allowed"
        )


def check_prompt(task: AgentTask) -> bytes:
    """Give the prompt's bytes. One that is blank would end well with nothing done.

    Raises: InvalidInput.
    """
    if not task.prompt.replace("\ufeff", "").strip():
        raise errors.InvalidInput("the prompt is blank")
    return encode("the prompt", task.prompt)


def plain_input(task: AgentTask) -> bytes:
    """Give the prompt as the input of a program that takes a byte order mark off its beginning.

    Raises: InvalidInput.
    """
    prompt = check_prompt(task)
    return codecs.BOM_UTF8 + prompt if prompt.startswith(codecs.BOM_UTF8) else prompt


def encode(what: str, text: str) -> bytes:
    """Raises: InvalidInput."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise errors.InvalidInput(f"{what} has half of a surrogate pair") from error


def own_file(home: str, name: str, content: bytes, mode: int = 0o600) -> File:
    return File(f"{home.rstrip('/')}/{FOLDER}/{name}", content, mode)


def how_it_ended(exit_code: int | None, signal: int | None) -> Failure | None:
    """Name what an exit status alone says; None for a program that ended well."""
    if signal is not None:
        return Failure(Cause.SIGNAL, f"was ended by signal {signal}")
    if exit_code is None:
        return Failure(Cause.NO_RESULT, "ended, and it is not known how")
    if exit_code:
        return Failure(Cause.EXIT_STATUS, f"ended with status {exit_code}")
    return None


def failure_of_status(status: int | None, message: str) -> Failure:
    """Name what the model API's last answer means; None stands for no answer."""
    match status:
        case 401 | 403:
            return Failure(Cause.MODEL_AUTH_FAILED, message)
        case 402:
            return Failure(Cause.MODEL_PAYMENT_REQUIRED, message)
        case 429:
            return Failure(Cause.MODEL_RATE_LIMITED, message, retryable=True)
        case 503 | 529:
            return Failure(Cause.MODEL_OVERLOADED, message, retryable=True)
        case int() if 400 <= status < 500 and status != 408:
            return Failure(Cause.MODEL_REQUEST_REFUSED, message)
        case _:
            return Failure(Cause.MODEL_FAILED, message, retryable=True)
