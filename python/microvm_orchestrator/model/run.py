"""Runs in machines as callers write and read them: what is done, with what, and what came of it.

A task with a `run` is done by this host itself, in a machine of its own. Everything in `Result` was
said by the guest, unless it is said that the host measured it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from microvm_orchestrator.model.artifact import Artifact, LeftOut, Patterns, Reference
from microvm_orchestrator.model.values import Flag, Json, Key, Line, Moment, Name, Text

# The kind of record the steps of a run are stored as.
RUN = "run"
# What no worker can offer, as no capability is written like this: only a host claims such tasks.
IN_A_MACHINE = "!machine"

MAX_FILES = 256
# Of all files together, as they are written in the request.
MAX_FILES_CHARS = 8 << 20

Argument = Annotated[str, Field(max_length=131_072)]
Branch = Annotated[str, Field(min_length=1, max_length=200)]
TaskId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")]
GuestPath = Annotated[str, Field(min_length=1, max_length=1000)]
# Each has a driver of this name.
DriverName = Literal["claude", "codex", "opencode"]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]


class Kind(StrEnum):
    """Who does a task."""

    # A worker that claims it.
    MANUAL = "manual"
    # This host, in a machine: an agent, a text that an interpreter runs, or a program.
    AGENT = "agent"
    SCRIPT = "script"
    COMMAND = "command"


class Merge(StrEnum):
    """What becomes of the commits of a run."""

    # Fast-forward, else rebase, else a conflict that is kept.
    AUTO = "auto"
    # All of them as one.
    SQUASH = "squash"
    # The branch `tasks/<task_id>`, and nothing more.
    BRANCH = "branch"
    # As by `auto`, once somebody has looked at them and said so.
    REVIEW = "review"
    # Kept as refs/tasks/<task_id>, for somebody to merge by hand.
    MANUAL = "manual"


class Devshell(StrEnum):
    """Whether a program runs in the development shell of the repository's flake."""

    AUTO = "auto"
    REQUIRE = "require"
    NEVER = "never"


class Rest(StrEnum):
    """What becomes of changes that a program left without a commit."""

    # A patch among the artifacts.
    PATCH = "patch"
    # A commit of ours on top of its own.
    COMMIT = "commit"
    DROP = "drop"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputFile(_Part):
    """A file that lies in the work tree, or elsewhere in the guest, before the program starts."""

    path: GuestPath = Field(description="relative to the work tree, or absolute")
    text: Annotated[str, Field(max_length=MAX_FILES_CHARS)] | None = None
    base64: Annotated[str, Field(max_length=MAX_FILES_CHARS)] | None = None
    artifact: Reference | None = Field(
        default=None,
        description="what one of your runs has left behind: its digest, or TASK/NAME of the last "
        "run of a task, which may be one that comes first",
    )
    mode: Annotated[int, Field(strict=True, ge=0, le=0o777)] = 0o644

    @model_validator(mode="after")
    def _has_one_content(self) -> InputFile:
        if [self.text, self.base64, self.artifact].count(None) != 2:
            raise ValueError("a file has one of `text`, `base64` and `artifact`")
        return self


class AgentSpec(_Part):
    """Which agent, and how it is to work."""

    driver: DriverName | None = Field(
        default=None, description="by default as the repo has it, else claude"
    )
    model: Line | None = None
    system_prompt: Text | None = Field(default=None, description="added to the agent's own")
    max_turns: Annotated[int, Field(strict=True, ge=1, le=10_000)] | None = None
    mcp_servers: dict[Name, Json] = Field(
        default={}, description="further MCP servers, as in the agent's own configuration"
    )
    answer_schema: Json = Field(default=None, description="JSON Schema of the answer it is to give")


CredentialNames = Annotated[
    list[Name],
    Field(
        max_length=32,
        description="credentials by name: a key goes before the usual ones, and a secret is added "
        "to what the program asks its address",
    ),
]
Tokens = Annotated[int, Field(strict=True, ge=1)]
Dollars = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(strict=True, gt=0, le=2_592_000)]


class Measure(StrEnum):
    """What a run has a limit of."""

    WALL_S = "wall_s"
    CPU_S = "cpu_s"
    TOKENS = "tokens"
    COST_USD = "cost_usd"


class Budget(_Part):
    """What a run may take. At a limit it is paused with all it has, and can be let go on."""

    wall_s: Seconds | None = Field(
        default=None, description="from the start of its program, without pauses"
    )
    cpu_s: Seconds | None = Field(
        default=None, description="what its machine takes of this host's processors"
    )
    tokens: Tokens | None = Field(
        default=None, description="of model APIs, those read from caches too"
    )
    cost_usd: Dollars | None = Field(default=None, description="of model APIs, at list prices")

    def of(self, measure: Measure) -> float | None:
        """The limit of one thing; None is no limit."""
        limit: float | None = getattr(self, measure)
        return limit


class Callbacks(_Part):
    """Where in its guest a program may say how far it is, with a token that only it is given."""

    job_id: Key = Field(description="how it is called in the paths of what it posts")
    port: Annotated[int, Field(strict=True, ge=1, le=65_535)] = 8765


class RunSpec(_Part):
    """What to do in a machine of its own; what is left out is as the repo or this host has it."""

    kind: Literal["agent", "script", "command"]
    repo: Name | None = Field(default=None, description="the alias of a registered repository")
    base: Branch | None = Field(
        default=None, description="the branch, tag or commit it starts from; the repo's own branch"
    )
    into: Branch | None = Field(
        default=None, description="the branch its commits are merged into; by default the base"
    )
    uncommitted: Flag = Field(
        default=False, description="start from what is uncommitted in the user's work tree as well"
    )
    prompt: Text = Field(default="", description="for an agent; by default the task's description")
    agent: AgentSpec = AgentSpec()
    script: Text = Field(default="", description="for a script: its text, run as it is")
    interpreter: Annotated[list[Argument], Field(min_length=1, max_length=64)] = Field(
        default=["/bin/sh"], description="what runs the script, with the script's path behind it"
    )
    argv: Annotated[list[Argument], Field(max_length=4096)] = Field(
        default=[], description="for a command: the program and its words"
    )
    files: Annotated[list[InputFile], Field(max_length=MAX_FILES)] = []
    env: Annotated[dict[Variable, Argument], Field(max_length=256)] = {}
    image: Line | None = None
    memory_mib: Annotated[int, Field(strict=True, ge=64, le=1 << 20)] | None = None
    vcpus: Annotated[int, Field(strict=True, ge=1, le=256)] | None = None
    disk_mib: Annotated[int, Field(strict=True, ge=16, le=1 << 24)] | None = None
    timeout_s: Annotated[float, Field(strict=True, gt=0, le=2_592_000)] | None = Field(
        default=None, description="how long its program may take; a default always applies"
    )
    keep_machine: Flag = Field(
        default=False, description="leave the machine running afterwards, to be looked at"
    )
    devshell: Devshell | None = None
    merge: Merge | None = None
    check: Text | None = Field(
        default=None,
        description="a shell text that what was merged must pass before the branch moves; as the "
        "repo has it, and empty for none",
    )
    resolves: TaskId | None = Field(
        default=None, description="the task whose commits it is to merge, laid out beside the base"
    )
    rest: Rest | None = None
    artifacts: Patterns = Field(
        default=[],
        description="what to keep of its files beside commits, as in dist/ or **/*.xml: relative "
        "to the work tree, or absolute; a folder stands for all it holds",
    )
    egress: Annotated[list[Line], Field(max_length=256)] = Field(
        default=[], description="hosts its program may reach, as host, host:port or *.domain"
    )
    credentials: CredentialNames = []
    budget: Budget = Budget()
    callbacks: Callbacks | None = Field(
        default=None, description="lets its program report by HTTP, see the profile `delegation`"
    )
    silence_s: Annotated[float, Field(strict=True, ge=1, le=86_400)] | None = Field(
        default=None, description="how long its guest may be silent before it is given up as lost"
    )

    @model_validator(mode="after")
    def _says_what_to_run(self) -> RunSpec:
        if self.kind == "script" and not self.script:
            raise ValueError("a script has a text in `script`")
        if self.kind == "command" and not self.argv:
            raise ValueError("a command has its words in `argv`")
        if self.repo is None and (self.base or self.into or self.uncommitted):
            raise ValueError("`base`, `into` and `uncommitted` speak of a `repo`")
        if self.repo is None and self.resolves:
            raise ValueError("`resolves` speaks of a `repo`")
        if self.base and self.uncommitted:
            raise ValueError("what is uncommitted lies on HEAD, so `base` cannot be chosen too")
        written = sum(len(file.text or file.base64 or "") for file in self.files)
        if written > MAX_FILES_CHARS:
            raise ValueError(f"the files are longer than {MAX_FILES_CHARS} characters together")
        return self


class Step(StrEnum):
    """How far a run has come. Each step can be begun again."""

    PREPARING = "preparing"
    STARTING = "starting"
    SENDING = "sending"
    PERFORMING = "performing"
    COLLECTING = "collecting"
    # Somebody is to look at its commits; it has no machine any more.
    REVIEWING = "reviewing"
    MERGING = "merging"
    OVER = "over"


class MergeState(StrEnum):
    """What became of a run's commits."""

    NONE = "none"
    PENDING = "pending"
    MERGED = "merged"
    CONFLICT = "conflict"
    # Something of the user's is in the way.
    REFUSED = "refused"
    # What was merged did not pass the check.
    CHECK_FAILED = "check_failed"
    # Somebody looked at it and said no.
    REJECTED = "rejected"
    FAILED = "failed"


class ConflictFile(_Part):
    """A file that two sides changed."""

    path: str
    kind: str = Field(description="content, add/add, modify/delete and the like")
    hunks: list[str] = Field(default=[], description="with both sides between markers; cut short")


class CheckOutcome(_Part):
    """How what was merged passed the check, in a machine of its own."""

    success: bool
    commit: str = Field(description="what was checked")
    exit_code: int | None = None
    signal: int | None = None
    timed_out: bool = False
    output: str = Field(default="", description="the last of what it said, on both channels")
    wall_s: float = 0.0


class Decision(_Part):
    """What somebody said who looked at a run's commits."""

    approved: bool
    by: str
    message: Text = ""
    at: Moment


class MergeOutcome(_Part):
    """What became of a run's commits, and where they are."""

    state: MergeState = MergeState.NONE
    how: str | None = Field(
        default=None,
        description="fast_forward, rebase, merge, squash, resolved, or none: nothing was new",
    )
    into: str | None = None
    before: str | None = Field(default=None, description="the commit the branch was at")
    commit: str | None = Field(default=None, description="the commit the branch was moved to")
    commits: int = 0
    conflicts: list[ConflictFile] = []
    ref: str | None = Field(default=None, description="where its own commits are kept")
    reason: str | None = None
    check: CheckOutcome | None = None
    resolved_by: str | None = Field(
        default=None, description="the task that brought both sides together"
    )


class Commit(_Part):
    """A commit of a run."""

    commit: str
    subject: str
    author: str
    at: Moment


class ChangedFile(_Part):
    """A file that a run's commits changed."""

    path: str
    status: str = Field(description="added, modified, deleted, renamed or type_changed")
    old_path: str | None = None


class Usage(_Part):
    """What a run used; the host measured it."""

    wall_s: float = Field(default=0.0, description="of its program, without pauses")
    cpu_s: float | None = None
    memory_peak_mib: float | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    cost_usd: float | None = None
    requests: int = 0


class Reported(_Part):
    """What a program last said of itself by its callbacks; nobody checked it."""

    progress: Line | None = None
    output: Text | None = None
    status: Literal["success", "failed"] | None = Field(
        default=None, description="how it says that it ended"
    )
    exit_code: int | None = None
    error: Text | None = None
    at: Moment


class Result(_Part):
    """What came of a run."""

    success: bool
    summary: Text = ""
    exit_code: int | None = None
    signal: int | None = None
    timed_out: bool = False
    error: Line | None = None
    session_id: Line | None = Field(default=None, description="of the agent's conversation")
    answer: Json = Field(default=None, description="what it gave for `answer_schema`")
    commits: list[Commit] = []
    files_changed: list[ChangedFile] = []
    # Of the two lists above, the whole.
    commit_count: int = 0
    file_count: int = 0
    rest: Literal["none", "patch", "commit", "drop"] = "none"


class Pause(_Part):
    """Why a run stands still."""

    measure: Measure = Field(description="which limit was reached")
    used: float
    limit: float
    at: Moment


class RunRecord(_Part):
    """A run as it is stored, from the first step to the last."""

    run_id: str
    task_id: str
    owner: str
    step: Step = Step.PREPARING
    machine_id: str | None = None
    exec_id: str | None = None
    repo_id: str | None = None
    base: str | None = Field(default=None, description="the commit it started from")
    tip: str | None = Field(default=None, description="its last commit")
    result: Result | None = None
    budget: Budget = Field(default=Budget(), description="as it is by now")
    paused: Pause | None = Field(default=None, description="null unless it stands still")
    paused_s: float = Field(default=0.0, description="how long it stood still before")
    usage: Usage = Usage()
    reported: Reported | None = None
    merge: MergeOutcome = MergeOutcome()
    artifacts: list[Artifact] = []
    left_out: list[LeftOut] = Field(
        default=[], description="what was asked for and is not there, and why"
    )
    decision: Decision | None = Field(default=None, description="where `merge` is review")
    check_machine_id: str | None = Field(
        default=None, description="the machine in which what was merged is checked"
    )
    again: bool = Field(
        default=False, description="whether its commits are to be merged by the next attempt"
    )
    continues: str | None = Field(
        default=None,
        description="the run before it whose commits it merges, without a program of its own",
    )
    started_at: Moment
    began_at: Moment | None = Field(default=None, description="when its program was started")
    ended_at: Moment | None = None
