"""Plans: task files read into waves of tasks, and submitted as a graph.

Documents come as text: nothing here opens a path that a client names. Above are the front ends;
below, the readers of plans, and the graph, which takes what becomes of them.
"""

from __future__ import annotations

import shlex
from functools import partial
from typing import Annotated, Any

import anyio.to_thread
from pydantic import Field, model_validator

from microvm_orchestrator import errors
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.names import DEFAULT_GROUP
from microvm_orchestrator.model.plan import (
    MAX_DOCUMENTS,
    MAX_TASKS,
    Document,
    DoneTask,
    Plan,
    PlannedTask,
    PlanTask,
    Why,
)
from microvm_orchestrator.model.run import Kind, RunSpec
from microvm_orchestrator.model.task import Edge, GroupedSpec, On
from microvm_orchestrator.model.values import Capability, Flag, Key, Labels, Line, Name, Priority
from microvm_orchestrator.plans.plan import plan_documents, plan_tasks
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.service import Service, parse
from microvm_orchestrator.service.tasks import IdempotencyKey, SubmittedAs, submit, submitted_as


class PlanTasks(Request):
    """What to plan."""

    documents: Annotated[list[Document], Field(max_length=MAX_DOCUMENTS)] = Field(
        default=[], description="task files, as text"
    )
    tasks: Annotated[list[PlanTask], Field(max_length=MAX_TASKS)] = Field(
        default=[], description="instead of documents: the tasks of a plan, as plan_tasks gives"
    )
    infer_files: Flag = Field(
        default=False, description="take the paths that a task's text mentions for its files too"
    )

    @model_validator(mode="after")
    def _is_one_of_both(self) -> PlanTasks:
        if self.documents and self.tasks:
            raise ValueError("give either `documents` or `tasks`")
        return self


class PlanSubmit(PlanTasks):
    """A plan, and what its tasks have where they say nothing themselves."""

    group: Name = DEFAULT_GROUP
    repo: Name | None = Field(default=None, description="the alias of a registered repository")
    image: Line | None = None
    kind: Kind | None = None
    labels: Labels = Field(default={}, description="of every task, besides its own")
    priority: Priority = 0
    capabilities: Annotated[list[Capability], Field(max_length=64)] = Field(
        default=[], description="what a worker must be capable of to get any of them"
    )
    role: Name | None = Field(
        default=None, description="the role a worker must have to get any of them"
    )
    idempotency_key: IdempotencyKey | None = None


class PlanSubmitted(Answer):
    """The tasks as they were taken in, in the order of the plan."""

    group: str
    tasks: list[SubmittedAs]
    waves: list[list[Key]]
    skipped: list[DoneTask] = Field(description="done already")
    warnings: list[str]
    replayed: bool = False


@declare("plan_tasks", "POST /v1/plans", role=Role.VIEWER, effect=Effect.READ)
async def plan(service: Service, caller: Caller, request: PlanTasks) -> Plan:
    """Read task files, and tell in which order and which waves their tasks can be done.

    A task is a heading `## Task: title`; in a document without any, each heading of the level that
    repeats with text below it; else each item of a list. Boxes that are ticked are skipped. Inside
    of a task, lines such as `after: #2, build`, `files: src/a.py, tests/*`, `key: x`,
    `priority: 5`, `labels: a=b`, `kind: command` and `run: make` say more. Tasks whose files
    overlap are put one after the other. Nothing is submitted.
    """
    del service, caller
    return await _planned(request)


@declare("plan_submit", "POST /v1/plans/submit", role=Role.OPERATOR)
async def submit_plan(service: Service, caller: Caller, request: PlanSubmit) -> PlanSubmitted:
    """Submit a plan as a graph of tasks, all or nothing.

    Takes task files, or the tasks of a plan as plan_tasks gives them. What was declared to come
    first must succeed; what shares files must be over.
    """
    found = await _planned(request)
    if not found.tasks:
        raise errors.InvalidInput(
            "there is nothing to submit: " + ("all is done" if found.skipped else "no task found")
        )
    specs = tuple(_spec(task, request) for task in found.tasks)
    done = await submit(service, caller, "plan_submit", specs, request.idempotency_key)
    return PlanSubmitted(
        group=request.group,
        tasks=[submitted_as(task) for task in done.tasks],
        waves=found.waves,
        skipped=found.skipped,
        warnings=found.warnings,
        replayed=done.replayed,
    )


async def _planned(request: PlanTasks) -> Plan:
    if request.tasks:
        work = partial(plan_tasks, request.tasks, infer_files=request.infer_files)
    else:
        work = partial(plan_documents, request.documents, infer_files=request.infer_files)
    return await anyio.to_thread.run_sync(work)


def _spec(task: PlannedTask, request: PlanSubmit) -> GroupedSpec:
    """Raises: InvalidInput, TooLarge."""
    return parse(
        GroupedSpec,
        {
            "key": task.key,
            "title": task.title,
            "description": task.text,
            "input": _input(task, infer_files=request.infer_files),
            "depends_on": [
                Edge(task=edge.task, on=On.FINISH) if edge.why is Why.OVERLAP else edge.task
                for edge in task.depends_on
            ],
            "priority": request.priority if task.priority is None else task.priority,
            "labels": {**request.labels, **task.labels},
            "capabilities": request.capabilities,
            "role": request.role,
            "group": request.group,
            "run": _run(task, request),
        },
    )


def _input(task: PlannedTask, *, infer_files: bool) -> dict[str, Any] | None:
    """What whoever does the task should know of its place in the plan."""
    told = {
        "files": [*task.files, *(task.proposed_files if infer_files else ())],
        "document": task.document,
        "line": task.line,
    }
    return {name: value for name, value in told.items() if value} or None


def _run(task: PlannedTask, request: PlanSubmit) -> RunSpec | None:
    """What this host does in a machine; None for what a worker claims.

    Raises: InvalidInput.
    """
    repo = task.repo or request.repo
    kind = task.kind or (Kind.SCRIPT if task.run else None) or request.kind
    kind = kind or (Kind.AGENT if repo else Kind.MANUAL)
    if task.run and kind not in {Kind.SCRIPT, Kind.COMMAND}:
        raise errors.InvalidInput(
            f"task {task.key} is of the kind {kind}, which has no use for `run`",
            hint="let it be a script or a command",
        )
    if kind is Kind.MANUAL:
        return None
    told: dict[str, Any] = {"kind": kind.value, "repo": repo, "image": task.image or request.image}
    match kind:
        case Kind.AGENT:
            # Its prompt is the description of the task, which is the text that was planned.
            pass
        case Kind.SCRIPT:
            told["script"] = task.run or ""
        case Kind.COMMAND:
            told["argv"] = _argv(task)
    try:
        return parse(RunSpec, told)
    except errors.InvalidInput as error:
        raise errors.InvalidInput(f"task {task.key}: {error.message}", hint=_RUN_HINT) from error


_RUN_HINT = "`run:` says what a script or a command does, on its line or in a code block below it"


def _argv(task: PlannedTask) -> list[str]:
    """Cut a command into its words, as a shell would; there is none. Raises: InvalidInput."""
    try:
        return shlex.split(task.run or "")
    except ValueError as error:
        raise errors.InvalidInput(f"task {task.key}: its command is not written well") from error


CALLS: tuple[Call, ...] = (plan, submit_plan)
