"""Groups of tasks as wholes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.report import GroupReport, GroupStatus
from microvm_orchestrator.model.task import Task
from microvm_orchestrator.model.values import Labels, Line, Name, Priority, priority_number
from microvm_orchestrator.service.calls import Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.page import Cursor, ListRequest, PageOf
from microvm_orchestrator.service.service import Service, actor
from microvm_orchestrator.service.tasks import Changed
from microvm_orchestrator.store.base import CancelTasks, Change, InGroup, RetryTasks, SetPriority
from microvm_orchestrator.store.questions import FullTaskList, GroupAnalysis, GroupList, OneGroup


class GroupRef(Request):
    """One group."""

    group: Name


class SomeOfGroup(GroupRef):
    """The tasks of a group, or those of them with all of these labels."""

    labels: Labels = Field(default={})

    @property
    def selector(self) -> InGroup:
        return InGroup(self.group, tuple(self.labels.items()))


class GroupCancel(SomeOfGroup):
    """Why."""

    reason: Line = ""


class GroupPrioritize(SomeOfGroup):
    """How urgent."""

    priority: Priority


class GroupTasksRequest(GroupRef):
    """A page of a group's tasks."""

    limit: Annotated[int, Field(strict=True, ge=1, le=1000)] = 200
    cursor: Cursor | None = None


@declare("group_list", "GET /v1/groups", role=Role.VIEWER, effect=Effect.READ)
async def group_list(service: Service, caller: Caller, request: ListRequest) -> PageOf[GroupStatus]:
    """List the groups of tasks, each with its state and counts."""
    question = GroupList(request.limit, request.cursor)
    page = await service.store.query(question, actor(caller, "group_list"))
    return PageOf[GroupStatus].model_construct(items=list(page.items), next_cursor=page.cursor)


@declare("group_get", "GET /v1/groups/{group}", role=Role.VIEWER, effect=Effect.READ)
async def group_get(service: Service, caller: Caller, request: GroupRef) -> GroupStatus:
    """Look at a group: its state, how many of its tasks stand where, how much is done."""
    return await service.store.query(OneGroup(request.group), actor(caller, "group_get"))


@declare("group_tasks", "GET /v1/groups/{group}/tasks", role=Role.VIEWER, effect=Effect.READ)
async def group_tasks(service: Service, caller: Caller, request: GroupTasksRequest) -> PageOf[Task]:
    """Look at all tasks of a group whole, with their dependencies: the graph."""
    question = FullTaskList(request.group, request.limit, request.cursor)
    page = await service.store.query(question, actor(caller, "group_tasks"))
    return PageOf[Task].model_construct(items=list(page.items), next_cursor=page.cursor)


@declare("group_report", "GET /v1/groups/{group}/report", role=Role.VIEWER, effect=Effect.READ)
async def group_report(service: Service, caller: Caller, request: GroupRef) -> GroupReport:
    """Find out where a group's time went: critical path, parallelism, bottlenecks."""
    question = GroupAnalysis(request.group)
    return await service.store.query(question, actor(caller, "group_report"))


@declare(
    "group_cancel",
    "POST /v1/groups/{group}/cancel",
    role=Role.OPERATOR,
    effect=Effect.DESTROY,
    idempotent=True,
)
async def group_cancel(service: Service, caller: Caller, request: GroupCancel) -> Changed:
    """Cancel every unfinished task of a group."""
    change = CancelTasks(request.reason)
    return await _amend(service, caller, "group_cancel", request, change)


@declare("group_retry", "POST /v1/groups/{group}/retry", role=Role.OPERATOR)
async def group_retry(service: Service, caller: Caller, request: SomeOfGroup) -> Changed:
    """Try every failed or cancelled task of a group anew."""
    return await _amend(service, caller, "group_retry", request, RetryTasks())


@declare(
    "group_prioritize",
    "POST /v1/groups/{group}/prioritize",
    role=Role.OPERATOR,
    idempotent=True,
)
async def group_prioritize(service: Service, caller: Caller, request: GroupPrioritize) -> Changed:
    """Set the priority of every unfinished task of a group."""
    change = SetPriority(priority_number(request.priority))
    return await _amend(service, caller, "group_prioritize", request, change)


async def _amend(
    service: Service, caller: Caller, action: str, request: SomeOfGroup, change: Change
) -> Changed:
    amended = await service.store.amend(request.selector, change, actor(caller, action))
    return Changed(task_ids=list(amended.task_ids))


CALLS: tuple[Call, ...] = (
    group_list,
    group_get,
    group_tasks,
    group_report,
    group_cancel,
    group_retry,
    group_prioritize,
)
