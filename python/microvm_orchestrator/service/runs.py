"""Runs: started by one call, looked at, listened to, and what they changed.

A run is an attempt at a task that this host does itself, so `task_wait`, `task_cancel` and
`task_retry` are for it too. Above are the front ends; below, the runs of this host.
"""

from __future__ import annotations

from typing import Annotated, Literal

import anyio
import anyio.to_thread
from pydantic import Field

from microvm_orchestrator import errors
from microvm_orchestrator.git import reading
from microvm_orchestrator.git.names import Oid
from microvm_orchestrator.lifecycle import output
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.artifact import Patterns
from microvm_orchestrator.model.names import DEFAULT_GROUP
from microvm_orchestrator.model.records import SYSTEM, Record
from microvm_orchestrator.model.run import (
    MAX_FILES,
    RUN,
    AgentSpec,
    Argument,
    Branch,
    Budget,
    CredentialNames,
    Devshell,
    Dollars,
    DriverName,
    InputFile,
    Merge,
    Rest,
    RunRecord,
    RunSpec,
    Seconds,
    Step,
    Tokens,
    Variable,
)
from microvm_orchestrator.model.task import Dependencies, GroupedSpec, Task
from microvm_orchestrator.model.values import (
    Flag,
    Int,
    Json,
    Key,
    Labels,
    Line,
    Name,
    Priority,
    Text,
)
from microvm_orchestrator.service import octets
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.execs import OutputPiece
from microvm_orchestrator.service.page import ListRequest, PageOf
from microvm_orchestrator.service.records import page_of
from microvm_orchestrator.service.service import Service, actor, parse
from microvm_orchestrator.service.tasks import (
    IdempotencyKey,
    SubmitAnswer,
    TaskRef,
    submit,
    submitted_as,
)
from microvm_orchestrator.service.waiting import Wait
from microvm_orchestrator.store.questions import OneTask
from microvm_orchestrator.store.runs import last_run, run_by_id

_USUAL_OUTPUT = 1 << 16
_OUTPUT_MOST = 1 << 20
_USUAL_PATCH = 1 << 18
_PATCH_MOST = 4 << 20
# How often whoever follows looks at a file that grows.
_LOOK_S = 0.2


class StartRun(Request):
    """What to do in a machine of its own: a prompt for an agent, a script, or a command."""

    repo: Name | None = Field(default=None, description="the alias of a registered repository")
    prompt: Text = Field(default="", description="what an agent is to do")
    script: Text = Field(default="", description="a text that an interpreter runs, byte for byte")
    argv: Annotated[list[Argument], Field(max_length=4096)] = Field(
        default=[], description="a program and its words, as they are"
    )
    interpreter: Annotated[list[Argument], Field(min_length=1, max_length=64)] = Field(
        default=["/bin/sh"], description="what runs the script, with the script's path behind it"
    )
    title: Line = ""
    key: Key | None = Field(default=None, description="your name for it, unique within its group")
    group: Name = DEFAULT_GROUP
    depends_on: Dependencies = Field(default=[], description="tasks that come first")
    priority: Priority = 0
    labels: Labels = Field(default={})
    base: Branch | None = Field(
        default=None, description="the branch, tag or commit it starts from; the repo's own branch"
    )
    into: Branch | None = Field(
        default=None, description="the branch its commits are merged into; by default the base"
    )
    uncommitted: Flag = Field(
        default=False, description="start from what is uncommitted in the user's work tree as well"
    )
    merge: Merge | None = Field(
        default=None,
        description="as the repo has it, else auto; with review it waits for run_approve",
    )
    check: Text | None = Field(
        default=None,
        description="a shell text that what was merged must pass in a machine of its own, before "
        "the branch moves; as the repo has it, and empty for none",
    )
    rest: Rest | None = Field(
        default=None, description="what becomes of changes without a commit; as the repo has it"
    )
    artifacts: Patterns = Field(
        default=[],
        description="what to keep of its files beside commits, as in dist/ or **/*.xml: relative "
        "to the work tree, or absolute; a folder stands for all it holds",
    )
    driver: DriverName | None = Field(
        default=None, description="which agent; by default as the repo has it, else claude"
    )
    model: Line | None = None
    system_prompt: Text | None = Field(default=None, description="added to the agent's own")
    max_turns: Annotated[int, Field(strict=True, ge=1, le=10_000)] | None = None
    mcp_servers: dict[Name, Json] = Field(
        default={}, description="further MCP servers, as in the agent's own configuration"
    )
    answer_schema: Json = Field(default=None, description="JSON Schema of the answer it is to give")
    wall_s: Seconds | None = Field(
        default=None, description="how long its program may run before it is paused"
    )
    cpu_s: Seconds | None = Field(
        default=None,
        description="how much of this host's processors its machine may take before it is paused",
    )
    tokens: Tokens | None = Field(
        default=None, description="how many tokens of model APIs it may use before it is paused"
    )
    cost_usd: Dollars | None = Field(
        default=None, description="what it may cost at list prices before it is paused"
    )
    egress: Annotated[list[Line], Field(max_length=256)] = Field(
        default=[], description="hosts its program may reach, as host, host:port or *.domain"
    )
    credentials: CredentialNames = Field(default=[])
    files: Annotated[list[InputFile], Field(max_length=MAX_FILES)] = Field(
        default=[], description="files that lie there before it starts"
    )
    env: Annotated[dict[Variable, Argument], Field(max_length=256)] = Field(default={})
    image: Line | None = None
    memory_mib: Annotated[int, Field(strict=True, ge=64, le=1 << 20)] | None = None
    vcpus: Annotated[int, Field(strict=True, ge=1, le=256)] | None = None
    disk_mib: Annotated[int, Field(strict=True, ge=16, le=1 << 24)] | None = None
    timeout_s: Annotated[float, Field(strict=True, gt=0, le=2_592_000)] | None = Field(
        default=None, description="how long its program may take; a default always applies"
    )
    devshell: Devshell | None = Field(
        default=None, description="whether it runs in the devShell of the repository's flake"
    )
    keep_machine: Flag = Field(
        default=False, description="leave the machine running afterwards, to be looked at"
    )
    idempotency_key: IdempotencyKey | None = None

    def spec(self) -> RunSpec:
        """Raises: InvalidInput."""
        given = {"agent": self.prompt, "script": self.script, "command": self.argv}
        kinds = [kind for kind, what in given.items() if what]
        if len(kinds) != 1:
            raise errors.InvalidInput("a run has one of `prompt`, `script` and `argv`")
        plain = RunSpec.model_fields.keys() & StartRun.model_fields.keys()
        agent = AgentSpec(**{name: getattr(self, name) for name in AgentSpec.model_fields})
        budget = Budget(**{name: getattr(self, name) for name in Budget.model_fields})
        fields = {name: getattr(self, name) for name in plain}
        return parse(RunSpec, {**fields, "kind": kinds[0], "agent": agent, "budget": budget})


class RunInfo(Answer):
    """A task and how its run stands."""

    task: Task
    run: RunRecord | None = Field(description="null until this host has begun")
    saying: str = Field(default="", description="the last it was heard to say")


class ReadRunOutput(TaskRef):
    """Which part of what a run's program said."""

    offset: Annotated[int, Field(strict=True, ge=0)] = Field(
        default=0, description="a cursor: `next` of the answer before"
    )
    limit: Annotated[int, Field(strict=True, ge=1, le=_OUTPUT_MOST)] = _USUAL_OUTPUT
    timeout_s: Wait = Field(default=0.0, description="how long to wait for more, if there is none")


class RunOutput(Answer):
    """Some of what a run's program said."""

    run_id: str
    pieces: list[OutputPiece]
    next: Int = Field(description="where to go on reading")
    ended: bool = Field(description="nothing more will come")


class ReadRunDiff(TaskRef):
    """How much of a run's changes to show."""

    limit: Annotated[int, Field(strict=True, ge=1, le=_PATCH_MOST)] = _USUAL_PATCH


class RunDiff(Answer):
    """What a run's commits changed, as a patch."""

    run_id: str
    base: str | None
    tip: str
    patch: str
    truncated: bool


class RunListRequest(ListRequest):
    """Which runs to list."""

    state: Literal["under_way", "over"] | None = None


@declare("run_start", "POST /v1/runs", role=Role.OPERATOR, idempotent=False)
async def run_start(service: Service, caller: Caller, request: StartRun) -> SubmitAnswer:
    """Run an agent, a script or a command in a machine of its own, and get its commits merged.

    It starts from a commit of a registered repo, or with an empty folder; nothing of the user's
    work tree is in the machine. Returns at once: `task_wait` waits, `run_get` tells how it stands.
    """
    spec = GroupedSpec(
        title=request.title,
        key=request.key,
        group=request.group,
        depends_on=request.depends_on,
        priority=request.priority,
        labels=request.labels,
        run=request.spec(),
    )
    done = await submit(service, caller, "run_start", (spec,), request.idempotency_key)
    told = submitted_as(done.tasks[0])
    return SubmitAnswer(**told.model_dump(), replayed=done.replayed)


@declare("run_get", "GET /v1/runs/{task_id}", role=Role.VIEWER, effect=Effect.READ)
async def run_get(service: Service, caller: Caller, request: TaskRef) -> RunInfo:
    """Look at the last run of a task: how far it is, what came of it, and what was merged."""
    task, record = await _found(service, caller, request, "run_get")
    under_way = service.host.runs.find(task.task_id)
    return RunInfo(task=task, run=record, saying="" if under_way is None else under_way.said)


@declare("run_list", "GET /v1/runs", role=Role.VIEWER, effect=Effect.READ)
async def run_list(service: Service, caller: Caller, request: RunListRequest) -> PageOf[RunRecord]:
    """List runs, oldest first: yours, or all if you see everything."""
    by = actor(caller, "run_list")

    async def shown(record: Record) -> RunRecord | None:
        told = RunRecord.model_validate(record.body)
        over = told.step is Step.OVER
        fits = request.state is None or over == (request.state == "over")
        return told if fits and by.sees_of(told.owner) else None

    items, cursor = await page_of(service.store, RUN, request, by, shown)
    return PageOf[RunRecord](items=items, next_cursor=cursor)


@declare(
    "run_output",
    "GET /v1/runs/{task_id}/output",
    role=Role.VIEWER,
    effect=Effect.READ,
    waits=True,
)
async def run_output(service: Service, caller: Caller, request: ReadRunOutput) -> RunOutput:
    """Read what a run's program said on both channels, in order; or wait for more.

    To follow it, ask again with `next` as `offset` and a `timeout_s`.
    """
    task, record = await _found(service, caller, request, "run_output")
    if record is None:
        return RunOutput(run_id="", pieces=[], next=request.offset, ended=task.state.finished)
    path = service.host.runs.output(record.run_id)

    def read() -> list[output.Piece]:
        return list(output.read(path, request.offset, request.limit))

    patience = anyio.current_time() + request.timeout_s
    while True:
        ended = await _has_ended(service, record)
        pieces = await anyio.to_thread.run_sync(read)
        left_s = patience - anyio.current_time()
        if pieces or ended or left_s <= 0:
            break
        service.journal.refuse_when_stopping()
        await anyio.sleep(min(left_s, _LOOK_S))
    told = [
        OutputPiece(channel=piece.channel, offset=piece.next, text=text, base64=encoded)
        for piece in pieces
        for text, encoded in [octets.told(piece.data)]
    ]
    end = pieces[-1].next if pieces else request.offset
    return RunOutput(run_id=record.run_id, pieces=told, next=end, ended=ended and not pieces)


async def _has_ended(service: Service, record: RunRecord) -> bool:
    """Whether its program says nothing any more."""
    if service.host.runs.find(record.task_id) is None:
        return True
    now = await run_by_id(service.store, record.run_id, SYSTEM)
    return now is None or now.step in {Step.COLLECTING, Step.REVIEWING, Step.MERGING, Step.OVER}


@declare("run_diff", "GET /v1/runs/{task_id}/diff", role=Role.VIEWER, effect=Effect.READ)
async def run_diff(service: Service, caller: Caller, request: ReadRunDiff) -> RunDiff:
    """Show what a run's commits changed against the commit it started from, as a patch."""
    by = actor(caller, "run_diff")
    _, record = await _found(service, caller, request, "run_diff")
    if record is None or record.repo_id is None or record.tip is None:
        raise errors.NotFound("the run has brought no commits", hint="run_get shows how it stands")
    repo = await service.host.repos.get(record.repo_id, by)
    base = None if record.base is None else Oid(record.base)
    mirror = service.host.repos.mirror(repo)
    patch = await reading.patch(mirror, base, Oid(record.tip), cap=request.limit)
    return RunDiff(
        run_id=record.run_id,
        base=record.base,
        tip=record.tip,
        patch=patch.data.decode(errors="replace"),
        truncated=patch.truncated,
    )


async def _found(
    service: Service, caller: Caller, request: TaskRef, call: str
) -> tuple[Task, RunRecord | None]:
    """Find a task and its last run. Raises: NotFound, StateForbids for a task of workers."""
    by = actor(caller, call)
    task = await service.store.query(OneTask(request.task_id, request.group), by)
    if task.run is None:
        raise errors.StateForbids(
            f"task {task.task_id} is done by workers, not in a machine",
            hint="task_runs shows their attempts",
        )
    return task, await last_run(service.store, task, by)


CALLS: tuple[Call, ...] = (run_start, run_get, run_list, run_output, run_diff)
