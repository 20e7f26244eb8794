"""Tasks: submit, look at, change, and grow the graph."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from microvm_orchestrator import errors
from microvm_orchestrator.egress.secrets import refuse_unusable
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.event import Event
from microvm_orchestrator.model.names import DEFAULT_GROUP
from microvm_orchestrator.model.task import (
    FINISHED,
    GroupedSpec,
    Run,
    Task,
    TaskBrief,
    TaskSpec,
    TaskState,
)
from microvm_orchestrator.model.values import (
    MAX_GRAPH,
    Flag,
    Int,
    Json,
    Key,
    Labels,
    Line,
    Name,
)
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.content import checked_json, digest_of
from microvm_orchestrator.service.page import ListRequest, PageOf
from microvm_orchestrator.service.service import Service, actor, parse
from microvm_orchestrator.service.waiting import Wait, until
from microvm_orchestrator.store.base import (
    Address,
    CancelTasks,
    DeleteTask,
    Graph,
    Idempotency,
    Match,
    NewTask,
    Ref,
    RetryTasks,
    Submitted,
    SubmittedTask,
    UpdateTask,
)
from microvm_orchestrator.store.questions import OneTask, RunList, TaskList

IdempotencyKey = Annotated[str, Field(min_length=1, max_length=200)]


class TaskRef(Request):
    """One task, by id or by key."""

    task_id: Key = Field(description="task_id, or the key it was submitted with")
    group: Name = Field(default=DEFAULT_GROUP, description="the group, when task_id is a key")

    @property
    def address(self) -> Address:
        return Address(self.task_id, self.group)


class SubmittedAs(Answer):
    """A task as it was taken in."""

    task_id: str
    key: str | None
    group: str
    state: TaskState


class TaskSubmit(GroupedSpec, Request):
    """One task."""

    idempotency_key: IdempotencyKey | None = Field(
        default=None, description="a repeated request with the same key gets the same answer"
    )


class SubmitAnswer(SubmittedAs):
    """A task as it was taken in; `replayed` when the key was seen before."""

    replayed: bool = False


class GraphSubmit(Request):
    """Tasks that are taken in all or not at all."""

    tasks: Annotated[list[TaskSpec], Field(min_length=1, max_length=MAX_GRAPH)] = Field(
        description="in any order; depends_on may name keys of this list"
    )
    group: Name = DEFAULT_GROUP
    idempotency_key: IdempotencyKey | None = None


class GraphAnswer(Answer):
    """The tasks in the order they were given."""

    group: str
    tasks: list[SubmittedAs]
    replayed: bool = False


class TaskListRequest(ListRequest):
    """Which tasks to list."""

    state: list[TaskState] = Field(default=[], description="any of these; none: all")
    group: Name | None = None
    labels: Labels = Field(default={}, description="all of these must match")
    owner: Line | None = None
    worker: Line | None = None
    text: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        default=None, description="occurs in the title or the key"
    )
    newest_first: Flag = Field(default=False, description="list them the other way round")


class TaskWait(TaskRef):
    """Which end to wait for."""

    timeout_s: Wait = Field(default=60.0, description="how long to wait at the most")


class TaskWaitAnswer(Answer):
    """The task, and whether it has finished."""

    finished: bool
    task: Task


class TaskHistoryRequest(TaskRef, ListRequest):
    """A page of a task's events."""


class TaskCancel(TaskRef):
    """Why, and how far."""

    reason: Line = ""
    cascade: Flag = Field(default=False, description="also every task that depends on it")


class Changed(Answer):
    """Ids of the tasks that changed."""

    task_ids: list[str]


class TaskRetry(TaskRef):
    """Try again."""

    upstream: Flag = Field(
        default=False, description="also the failed and cancelled tasks it depends on"
    )


class TaskUpdate(TaskRef):
    """New values; what is left out stays as it is."""

    changes: dict[str, Json] = Field(
        description="fields of a task as in task_submit, but for key and group"
    )
    expect_version: Int | None = Field(
        default=None, description="refuse if the task has changed since this version was read"
    )


class TaskDelete(TaskRef):
    """Which task to forget."""

    cascade: Flag = Field(default=False, description="also every task that depends on it")
    drop_unmerged: Flag = Field(
        default=False,
        description="even if commits of its run that were not merged are lost, or its rest.patch",
    )


class LeaseRef(TaskRef):
    """A held task: what task_claim gave."""

    token: Int = Field(description="the lease's fencing token, from task_claim")
    worker: Name | None = Field(default=None, description="as in task_claim")

    def ref(self, caller: Caller) -> Ref:
        return Ref(self.address, self.token, worker_name(caller, self.worker))


class GrowSpec(TaskSpec):
    """A task that a running one adds to its own graph."""

    before: Annotated[list[Key], Field(max_length=1000)] = Field(
        default=[], description="unclaimed tasks of the group that shall wait for this one too"
    )


class TaskExtend(LeaseRef):
    """What a running task adds to its own graph."""

    children: Annotated[list[GrowSpec], Field(max_length=MAX_GRAPH)] = Field(
        default=[], description="parts of this task: who waits for it waits for them too"
    )
    successors: Annotated[list[GrowSpec], Field(max_length=MAX_GRAPH)] = Field(
        default=[], description="tasks that start after this one has succeeded"
    )
    idempotency_key: IdempotencyKey | None = None


class RunListRequest(TaskRef, ListRequest):
    """A page of a task's attempts."""


def worker_name(caller: Caller, given: str | None) -> str:
    """The name a caller works under.

    A worker's token stands for one name; an operator may speak for any worker.
    Raises: Denied.
    """
    own = caller.principal.name
    if given is None or given == own:
        return own
    if caller.principal.role is Role.WORKER and not given.startswith(f"{own}."):
        raise errors.Denied(
            f"worker {own} cannot act as {given}",
            hint=f"leave `worker` out, or use a name that begins with {own}.",
        )
    return given


@declare("task_submit", "POST /v1/tasks", role=Role.OPERATOR, idempotent=False)
async def task_submit(service: Service, caller: Caller, request: TaskSubmit) -> SubmitAnswer:
    """Submit one task.

    It becomes ready when what it depends on is met, and is then claimed by a worker that has its
    role and capabilities. Submit what belongs together with graph_submit.
    """
    spec = GroupedSpec.model_construct(
        **{name: getattr(request, name) for name in GroupedSpec.model_fields},
        _fields_set=request.model_fields_set,
    )
    done = await submit(service, caller, "task_submit", (spec,), request.idempotency_key)
    return SubmitAnswer(**_fields(done.tasks[0]), replayed=done.replayed)


@declare("graph_submit", "POST /v1/graphs", role=Role.OPERATOR)
async def graph_submit(service: Service, caller: Caller, request: GraphSubmit) -> GraphAnswer:
    """Submit a graph of tasks, all or nothing.

    Tasks name each other by key, in any order. A cycle is refused with the cycle named.
    """
    specs = tuple(grouped(spec, request.group) for spec in request.tasks)
    done = await submit(service, caller, "graph_submit", specs, request.idempotency_key)
    return _graph_answer(request.group, done)


def grouped(spec: TaskSpec, group: str) -> GroupedSpec:
    values = {name: getattr(spec, name) for name in TaskSpec.model_fields}
    return GroupedSpec.model_construct(**values, group=group)


async def submit(
    service: Service,
    caller: Caller,
    action: str,
    specs: tuple[GroupedSpec, ...],
    idempotency_key: str | None,
    *,
    template: str | None = None,
) -> Submitted:
    """Take tasks in, whoever asked for them. Raises: what the store's `submit` raises."""
    for spec in specs:
        checked_json(spec.input, "input")
        _refuse_foreign_labels(service, caller, spec.labels)
    await _check_runs(service, caller, action, specs)
    graph = Graph(
        tasks=tuple(
            NewTask(spec, spec.lease_s or service.settings.leases.default_lease_s, template)
            for spec in specs
        ),
        idempotency=_idempotency(idempotency_key, action, specs),
        visibility_labels=frozenset(service.settings.access.visibility_labels),
    )
    return await service.store.submit(graph, actor(caller, action))


def _refuse_foreign_labels(service: Service, caller: Caller, labels: Labels) -> None:
    """Refuse labels that put a task before the eyes, and the workers, of others.

    Raises: Denied.
    """
    scope = caller.principal.scope
    if scope.everything:
        return
    own = dict(scope.labels)
    for key in service.settings.access.visibility_labels:
        if key in labels and labels[key] not in own.get(key, ()):
            raise errors.Denied(
                f"{caller.principal.name} does not see {key}={labels[key]}, "
                "so it cannot give this label"
            )


async def _check_runs(
    service: Service, caller: Caller, action: str, specs: Sequence[TaskSpec]
) -> None:
    """Look whether who asks may have this host do these, and on these repositories.

    Raises: Denied; NotFound for a repo that they do not see, or a credential that there is not;
        InvalidInput.
    """
    runs = [spec.run for spec in specs if spec.run is not None]
    if runs and not caller.principal.role.reaches(Role.OPERATOR):
        raise errors.Denied(
            f"{caller.principal.name} is a {caller.principal.role}, and starts nothing in machines"
        )
    by = actor(caller, action)
    for repo in {run.repo for run in runs if run.repo is not None}:
        await service.host.repos.get(repo, by)
    for run in runs:
        refuse_unusable(service.host.credentials, service.settings.egress.secrets, run.credentials)


def _idempotency(key: str | None, action: str, content: object) -> Idempotency | None:
    return None if key is None else Idempotency(key, digest_of(action, content))


def _fields(task: SubmittedTask) -> dict[str, Any]:
    return {"task_id": task.task_id, "key": task.key, "group": task.group, "state": task.state}


def submitted_as(task: SubmittedTask) -> SubmittedAs:
    return SubmittedAs.model_construct(**_fields(task))


def _graph_answer(group: str, done: Submitted) -> GraphAnswer:
    tasks = [submitted_as(task) for task in done.tasks]
    return GraphAnswer(group=group, tasks=tasks, replayed=done.replayed)


@declare("task_get", "GET /v1/tasks/{task_id}", role=Role.VIEWER, effect=Effect.READ)
async def task_get(service: Service, caller: Caller, request: TaskRef) -> Task:
    """Look at one task: state, what it waits for, who has it, result, error."""
    question = OneTask(request.task_id, request.group)
    return await service.store.query(question, actor(caller, "task_get"))


@declare("task_list", "GET /v1/tasks", role=Role.VIEWER, effect=Effect.READ)
async def task_list(
    service: Service, caller: Caller, request: TaskListRequest
) -> PageOf[TaskBrief]:
    """List tasks, oldest first, filtered by state, group, labels, owner, worker or text."""
    question = TaskList(
        states=tuple(request.state),
        group=request.group,
        labels=tuple(request.labels.items()),
        owner=request.owner,
        worker=request.worker,
        text=request.text,
        newest_first=request.newest_first,
        limit=request.limit,
        cursor=request.cursor,
    )
    page = await service.store.query(question, actor(caller, "task_list"))
    return PageOf[TaskBrief].model_construct(items=list(page.items), next_cursor=page.cursor)


@declare(
    "task_wait", "GET /v1/tasks/{task_id}/wait", role=Role.VIEWER, effect=Effect.READ, waits=True
)
async def task_wait(service: Service, caller: Caller, request: TaskWait) -> TaskWaitAnswer:
    """Wait until a task has finished, or the time is up; then look at it.

    Waiting is all this does: the task goes on whether or not anybody waits.
    """
    by = actor(caller, "task_wait")
    question = OneTask(request.task_id, request.group)
    task_id = (await service.store.query(question, by)).task_id
    task = await until(
        service,
        caller,
        Match(subjects=(task_id,)),
        request.timeout_s,
        look=lambda: service.store.query(OneTask(task_id), by),
        over=lambda task: task.state in FINISHED,
        said=_said,
    )
    return TaskWaitAnswer(finished=task.state in FINISHED, task=task)


def _said(task: Task) -> str:
    said = f": {task.progress.message}" if task.progress and task.progress.message else ""
    return f"{task.state}{said}"


@declare("task_history", "GET /v1/tasks/{task_id}/history", role=Role.VIEWER, effect=Effect.READ)
async def task_history(
    service: Service, caller: Caller, request: TaskHistoryRequest
) -> PageOf[Event]:
    """Everything that happened to a task, oldest first, as far back as events are kept."""
    by = actor(caller, "task_history")
    task = await service.store.query(OneTask(request.task_id, request.group), by)
    read = await service.store.events(
        request.cursor, Match(subjects=(task.task_id,)), request.limit, by
    )
    cursor = read.cursor if read.more else None
    return PageOf[Event].model_construct(items=list(read.events), next_cursor=cursor)


@declare("task_runs", "GET /v1/tasks/{task_id}/runs", role=Role.VIEWER, effect=Effect.READ)
async def task_runs(service: Service, caller: Caller, request: RunListRequest) -> PageOf[Run]:
    """List the attempts at a task: who, when, and how each ended."""
    page = await service.store.query(
        RunList(request.task_id, request.group, request.limit, request.cursor),
        actor(caller, "task_runs"),
    )
    return PageOf[Run].model_construct(items=list(page.items), next_cursor=page.cursor)


@declare(
    "task_cancel",
    "POST /v1/tasks/{task_id}/cancel",
    role=Role.OPERATOR,
    effect=Effect.DESTROY,
    idempotent=True,
)
async def task_cancel(service: Service, caller: Caller, request: TaskCancel) -> Changed:
    """Cancel an unfinished task.

    A worker that holds it learns so at its next heartbeat, and its late result is refused.
    """
    amended = await service.store.amend(
        request.address,
        CancelTasks(request.reason, request.cascade),
        actor(caller, "task_cancel"),
    )
    return Changed(task_ids=list(amended.task_ids))


@declare("task_retry", "POST /v1/tasks/{task_id}/retry", role=Role.OPERATOR)
async def task_retry(service: Service, caller: Caller, request: TaskRetry) -> Changed:
    """Try a failed or cancelled task anew, and with it what was given up because of it."""
    amended = await service.store.amend(
        request.address, RetryTasks(request.upstream), actor(caller, "task_retry")
    )
    return Changed(task_ids=list(amended.task_ids))


# What may change while nobody has claimed the task.
_CHANGEABLE = frozenset(TaskSpec.model_fields) - {"key"}
# What a client made up is not all given back to it.
_UNKNOWN_TOLD = 8
_UNMERGED_TOLD = 10


@declare("task_update", "PATCH /v1/tasks/{task_id}", role=Role.OPERATOR, idempotent=True)
async def task_update(service: Service, caller: Caller, request: TaskUpdate) -> Task:
    """Change a task that nobody has claimed yet: text, input, dependencies, priority and more."""
    by = actor(caller, "task_update")
    unknown = sorted(set(request.changes) - _CHANGEABLE)
    if unknown or not request.changes:
        told = ", ".join(name[:80] for name in unknown[:_UNKNOWN_TOLD]) or "nothing"
        raise errors.InvalidInput(
            f"changes: {told} cannot be changed",
            hint=f"these can: {', '.join(sorted(_CHANGEABLE))}",
        )
    task = await service.store.query(OneTask(request.task_id, request.group), by)
    spec = parse(TaskSpec, {**_as_spec(task), **request.changes})
    checked_json(spec.input, "input")
    if "labels" in request.changes:
        _refuse_foreign_labels(service, caller, spec.labels)
    if "run" in request.changes:
        await _check_runs(service, caller, "task_update", [spec])
    change = UpdateTask(
        spec=grouped(spec, task.group),
        fields=frozenset(request.changes),
        lease_s=spec.lease_s,
        # The rest of the spec was read just now: nobody may have changed it in between.
        expect_version=task.version if request.expect_version is None else request.expect_version,
        visibility_labels=frozenset(service.settings.access.visibility_labels),
    )
    await service.store.amend(Address(task.task_id), change, by)
    return await service.store.query(OneTask(task.task_id), by)


def _as_spec(task: Task) -> dict[str, object]:
    """The task as it would be submitted now; its dependencies are only read when they change."""
    kept = _CHANGEABLE - {"depends_on"}
    told: dict[str, object] = {name: getattr(task, name) for name in kept}
    return told | {"retry": task.retry.model_dump(), "on_expiry": task.on_expiry}


@declare("task_delete", "DELETE /v1/tasks/{task_id}", role=Role.OPERATOR, effect=Effect.DESTROY)
async def task_delete(service: Service, caller: Caller, request: TaskDelete) -> Changed:
    """Forget a task that is not running, with the record, output and artifacts of its runs.

    Refused while other tasks depend on it, unless with cascade, which forgets these too; and while
    commits of a run are not merged, or changes are kept that were not committed, unless with
    drop_unmerged, which loses them.
    The events of the task stay in the journal.
    """
    by = actor(caller, "task_delete")
    forgetting = service.host.forgetting
    rehearsed = DeleteTask(request.cascade, rehearsed=True)
    doomed = (await service.store.amend(request.address, rehearsed, by)).task_ids
    if not request.drop_unmerged and (lost := await _lost_with(service, doomed)):
        told = lost[:_UNMERGED_TOLD]
        if (more := len(lost) - _UNMERGED_TOLD) > 0:
            told.append(f"that of {more} more runs")
        if count := await forgetting.artifacts(doomed):
            told.append("1 artifact" if count == 1 else f"{count} artifacts")
        raise errors.StateForbids(
            f"with task {doomed[0]} there would be lost: {'; '.join(told)}",
            hint="merge it or keep what artifact_get gives, or say `drop_unmerged` to lose it",
        )
    with forgetting.losing(doomed if request.drop_unmerged else ()):
        amended = await service.store.amend(request.address, DeleteTask(request.cascade), by)
    with contextlib.suppress(errors.Unavailable):  # then it goes in the background
        await forgetting.forget(amended.task_ids)
    return Changed(task_ids=list(amended.task_ids))


async def _lost_with(service: Service, task_ids: Sequence[str]) -> list[str]:
    """Name the work that is kept of tasks and is nowhere else."""
    forgetting = service.host.forgetting
    unmerged = [str(each) for each in await forgetting.unmerged(task_ids)]
    return unmerged + await forgetting.patches(task_ids)


@declare("task_extend", "POST /v1/tasks/{task_id}/extend", role=Role.WORKER)
async def task_extend(service: Service, caller: Caller, request: TaskExtend) -> GraphAnswer:
    """Add tasks to the graph of a task you hold: children of it, or successors.

    Whoever waits for your task waits for its children too. Successors start after it.
    """
    specs = [*request.children, *request.successors]
    if not specs:
        raise errors.InvalidInput("neither children nor successors were given")
    for spec in specs:
        checked_json(spec.input, "input")
        _refuse_foreign_labels(service, caller, spec.labels)
    await _check_runs(service, caller, "task_extend", specs)
    ref = request.ref(caller)
    # The same tasks under another one, or after it instead of within it, are another request.
    content = [request.task_id, request.group, request.children, request.successors]
    graph = Graph(
        tasks=tuple(
            NewTask(
                grouped(spec, request.group),
                spec.lease_s or service.settings.leases.default_lease_s,
                child=index < len(request.children),
                before=tuple(spec.before),
            )
            for index, spec in enumerate(specs)
        ),
        idempotency=_idempotency(request.idempotency_key, "task_extend", content),
        under=ref,
        visibility_labels=frozenset(service.settings.access.visibility_labels),
    )
    done = await service.store.submit(graph, actor(caller, "task_extend"))
    return _graph_answer(done.tasks[0].group, done)


CALLS: tuple[Call, ...] = (
    task_submit,
    graph_submit,
    task_get,
    task_list,
    task_wait,
    task_history,
    task_runs,
    task_cancel,
    task_retry,
    task_update,
    task_delete,
    task_extend,
)
