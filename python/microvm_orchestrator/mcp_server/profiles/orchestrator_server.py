"""The profile `orchestrator-server`: the seven tools of the program of that name.

Its clients choose the ids of tasks and name the instance that works: an id is a task's key in a
group of its own, an instance is a worker. That program knew no leases, so a claim here takes the
longest one, and whatever an instance says renews all it holds. Names, shapes and the sentences of
errors are that program's; what it got wrong (two claimants of one task, diamonds taken for cycles)
is the service's to get right.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast
from urllib.parse import quote, unquote

from mcp.shared.exceptions import MCPError
from mcp.types import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    TextContent,
    Tool,
)
from pydantic import ConfigDict, Field

from microvm_orchestrator import errors, log
from microvm_orchestrator.mcp_server.answers import error_text
from microvm_orchestrator.mcp_server.callers import caller_of
from microvm_orchestrator.mcp_server.quiet_server import QuietServer
from microvm_orchestrator.mcp_server.schemas import request_schema
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.names import NAME
from microvm_orchestrator.model.task import Edge, Task, TaskBrief, TaskState
from microvm_orchestrator.model.values import MAX_DEPENDENCIES, Key, Text
from microvm_orchestrator.service.calls import Answer, Request
from microvm_orchestrator.service.page import PageOf
from microvm_orchestrator.service.service import parse
from microvm_orchestrator.service.work import ClaimAnswer, SettleAnswer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mcp.types import PaginatedRequestParams

    from microvm_orchestrator.mcp_server.callers import Context
    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.service import Service

GROUP = "orchestrator-server"
# A day, the longest there is: that program's claims lasted until they were completed.
LEASE_S = 86_400
_PAGE = 1000

Shown = dict[str, Any] | list[dict[str, Any]]
A = TypeVar("A", bound=Answer)
_log = log.get(__name__)


class _Asked(Request):
    # That program never minded an argument too many.
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Nothing(_Asked):
    """No arguments."""


_Ids = list[Key]


class _Create(_Asked):
    id: Key = Field(description="Unique identifier for the task")
    description: Text = Field(description="Description of the task")
    dependencies: _Ids = Field(
        default=[],
        max_length=MAX_DEPENDENCIES,
        description="IDs of tasks that must be completed first",
    )


class _Update(_Asked):
    task_id: Key = Field(description="ID of the task to update")
    description: Text = Field(default="", description="New description for the task")
    dependencies: _Ids = Field(
        default=[], max_length=MAX_DEPENDENCIES, description="New list of dependency task IDs"
    )


class _Named(_Asked):
    task_id: Key = Field(description="ID of the task")


class _Instance(_Asked):
    instance_id: Key = Field(description="ID of the instance requesting work")


class _Complete(_Asked):
    task_id: Key = Field(description="ID of the task to complete")
    instance_id: Key = Field(description="ID of the instance completing the task")
    result: Text = Field(description="Result or output from the task")


class Refused(Exception):
    """What that program answers with a protocol error."""


class OrchestratorServer:
    """The seven tools, translated."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, caller: Caller, asked: _Create) -> Shown:
        spec = {
            "group": GROUP,
            "key": asked.id,
            "description": asked.description,
            "depends_on": asked.dependencies,
            "lease_s": float(LEASE_S),
        }
        try:
            await self._service.invoke(caller, "task_submit", spec)
        except errors.AlreadyExists as error:
            raise Refused(f"Task {asked.id} already exists") from error
        except (errors.NotFound, errors.CycleFound):
            # A task that names itself names one that is not there yet.
            await self._refuse_missing(caller, asked.dependencies)
            raise
        return await self._shown(caller, asked.id)

    async def update(self, caller: Caller, asked: _Update) -> Shown:
        before = await self._task(caller, asked.task_id)
        changes: dict[str, object] = {}
        if "description" in asked.model_fields_set:
            changes["description"] = asked.description
        if "dependencies" in asked.model_fields_set:
            changes["depends_on"] = asked.dependencies
        status = _status(before)
        if status != "pending":
            raise Refused(f"Cannot update task {asked.task_id} in {status} state")
        if changes:
            await self._change(caller, asked, changes)
        return await self._shown(caller, asked.task_id)

    async def _change(self, caller: Caller, asked: _Update, changes: dict[str, object]) -> None:
        try:
            await self._service.invoke(
                caller, "task_update", {**_named(asked.task_id), "changes": changes}
            )
        except errors.CycleFound as error:
            raise Refused("Dependencies would create a cycle") from error
        except errors.StateForbids as error:
            status = _status(await self._task(caller, asked.task_id))
            raise Refused(f"Cannot update task {asked.task_id} in {status} state") from error
        except errors.NotFound:
            await self._refuse_missing(caller, asked.dependencies)
            raise

    async def delete(self, caller: Caller, asked: _Named) -> Shown:
        task = await self._task(caller, asked.task_id)
        if task.state is TaskState.RUNNING:
            await self._delete_running(caller, asked.task_id)
        else:
            await self._delete(caller, asked.task_id)
        return {"deleted": asked.task_id}

    async def _delete_running(self, caller: Caller, task_id: str) -> None:
        """Take a task from its worker first, unless it must stay for others' sake."""
        waiting = [
            task.key or task.task_id
            for task in await self._all(caller)
            if any(edge.task == task_id for edge in task.depends_on if isinstance(edge, Edge))
        ]
        if waiting:
            raise Refused(
                f"Cannot delete task {task_id} as it has dependent tasks: {', '.join(waiting)}"
            )
        await self._service.invoke(caller, "task_cancel", _named(task_id))
        await self._delete(caller, task_id)

    async def _delete(self, caller: Caller, task_id: str) -> None:
        try:
            await self._service.invoke(caller, "task_delete", _named(task_id))
        except errors.HasDependents as error:
            raise Refused(f"{error.message[:1].upper()}{error.message[1:]}") from error

    async def next(self, caller: Caller, asked: _Instance) -> Shown:
        worker = worker_name(caller, asked.instance_id)
        await self._renew(caller, worker)
        arguments = {"worker": worker, "groups": [GROUP], "lease_s": LEASE_S}
        claimed = cast("ClaimAnswer", await self._service.invoke(caller, "task_claim", arguments))
        if not claimed.tasks:
            return {"status": "no_tasks"}
        return shown(claimed.tasks[0].task, caller)

    async def complete(self, caller: Caller, asked: _Complete) -> Shown:
        worker = worker_name(caller, asked.instance_id)
        task = await self._task(caller, asked.task_id)
        if task.worker == worker and task.state is TaskState.DONE:
            raise Refused(f"Task {asked.task_id} is already completed")
        not_theirs = Refused(
            f"Task {asked.task_id} is not assigned to instance {asked.instance_id}"
        )
        if task.worker != worker or task.state is not TaskState.RUNNING:
            raise not_theirs
        arguments = {**_held(task, worker), "result": asked.result}
        try:
            answer = await self._service.invoke(caller, "task_complete", arguments)
        except errors.LeaseLost as error:
            raise not_theirs from error
        settled = cast("SettleAnswer", answer)
        if settled.repeated:
            raise Refused(f"Task {asked.task_id} is already completed")
        await self._renew(caller, worker)
        unlocked = [await self._shown(caller, each.task_id) for each in settled.unlocked]
        return {"completed_task": shown(settled.task, caller), "unlocked_tasks": unlocked}

    async def status(self, caller: Caller, _asked: _Nothing) -> Shown:
        return [shown(task, caller) for task in await self._all(caller)]

    async def details(self, caller: Caller, asked: _Named) -> Shown:
        return await self._shown(caller, asked.task_id)

    async def _shown(self, caller: Caller, task_id: str) -> dict[str, Any]:
        return shown(await self._task(caller, task_id), caller)

    async def _task(self, caller: Caller, task_id: str) -> Task:
        try:
            return cast("Task", await self._service.invoke(caller, "task_get", _named(task_id)))
        except errors.NotFound as error:
            raise Refused(f"Task {task_id} not found") from error

    async def _all(self, caller: Caller) -> list[Task]:
        tasks: list[Task] = []
        asked: dict[str, object] = {"group": GROUP, "limit": _PAGE}
        try:
            while True:
                page = cast(
                    "PageOf[Task]", await self._service.invoke(caller, "group_tasks", asked)
                )
                tasks += page.items
                if page.next_cursor is None:
                    return tasks
                asked["cursor"] = page.next_cursor
        except errors.NotFound:
            # Nothing was ever created here.
            return tasks

    async def _refuse_missing(self, caller: Caller, dependencies: list[str]) -> None:
        for dependency in dependencies:
            try:
                await self._task(caller, dependency)
            except Refused as error:
                raise Refused(f"Dependency task {dependency} not found") from error

    async def _renew(self, caller: Caller, worker: str) -> None:
        """Renew whatever an instance holds, for it just gave a sign of life."""
        asked = {"group": GROUP, "worker": worker, "state": [TaskState.RUNNING], "limit": 200}
        page = cast("PageOf[TaskBrief]", await self._service.invoke(caller, "task_list", asked))
        for task in page.items:
            beat = {**_held(task, worker), "lease_s": LEASE_S}
            await self._service.invoke(caller, "task_heartbeat", beat)


@dataclass(frozen=True, slots=True)
class _Offered:
    """A tool: its words, what it takes and what answers it."""

    description: str
    request: type[_Asked]
    answer: Callable[[OrchestratorServer, Caller, Any], Awaitable[Shown]]


class OrchestratorTools:
    """Those tools as the protocol wants them: pretty JSON in one block of text, errors its own."""

    OFFERED: ClassVar[dict[str, _Offered]] = {
        "create_task": _Offered(
            "Create a new task with optional dependencies", _Create, OrchestratorServer.create
        ),
        "update_task": _Offered(
            "Update a pending task's description or dependencies",
            _Update,
            OrchestratorServer.update,
        ),
        "delete_task": _Offered(
            "Delete a task no other task depends on", _Named, OrchestratorServer.delete
        ),
        "get_next_task": _Offered(
            "Get the next available task", _Instance, OrchestratorServer.next
        ),
        "complete_task": _Offered(
            "Mark a task as completed", _Complete, OrchestratorServer.complete
        ),
        "get_task_status": _Offered("Get status of all tasks", _Nothing, OrchestratorServer.status),
        "get_task_details": _Offered(
            "Get details of a specific task", _Named, OrchestratorServer.details
        ),
    }

    def __init__(self, service: Service) -> None:
        self._tools = OrchestratorServer(service)
        self._listed = ListToolsResult(
            tools=[
                Tool(
                    name=name,
                    description=offered.description,
                    input_schema=request_schema(offered.request),
                )
                for name, offered in self.OFFERED.items()
            ]
        )

    async def listed(
        self, _ctx: Context, _params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        return self._listed

    async def call(self, ctx: Context, params: CallToolRequestParams) -> CallToolResult:
        offered = self.OFFERED.get(params.name)
        if offered is None:
            raise MCPError(code=METHOD_NOT_FOUND, message=f"Unknown tool: {params.name}")
        try:
            asked = parse(offered.request, params.arguments or {})
            answer = await offered.answer(self._tools, caller_of(ctx), asked)
        except Refused as refusal:
            raise MCPError(code=INVALID_REQUEST, message=str(refusal)) from refusal
        except errors.OrchestratorError as error:
            raise MCPError(code=INVALID_REQUEST, message=error_text(error)) from error
        except Exception as error:
            # The converting edge: a bug of ours is told without its story.
            _log.exception("profile_call_crashed", profile=GROUP, tool=params.name)
            raise MCPError(code=INTERNAL_ERROR, message="Internal server error") from error
        text = json.dumps(answer, indent=2, ensure_ascii=False)
        return CallToolResult(content=[TextContent(type="text", text=text)])


def orchestrator_server(service: Service) -> QuietServer:
    tools = OrchestratorTools(service)
    return QuietServer(
        GROUP,
        version="1.1.0",
        title="Orchestrator server",
        on_list_tools=tools.listed,
        on_call_tool=tools.call,
    )


_STATUS = {
    TaskState.BLOCKED: "pending",
    TaskState.READY: "pending",
    TaskState.RUNNING: "in_progress",
    TaskState.DONE: "completed",
}


def _status(task: Task) -> str:
    """Say it in that program's words; what it had none for is told as it is."""
    return _STATUS.get(task.state, str(task.state))


def shown(task: Task, caller: Caller) -> dict[str, Any]:
    told: dict[str, Any] = {
        "id": task.key or task.task_id,
        "description": task.description,
        "status": _status(task),
    }
    edges = [edge.task for edge in task.depends_on if isinstance(edge, Edge)]
    if edges:
        told["dependencies"] = edges
    if task.worker is not None and task.state in {TaskState.RUNNING, TaskState.DONE}:
        told["assignedTo"] = instance_of(task.worker, caller)
    if task.state is TaskState.DONE and task.result is not None:
        told["result"] = task.result if isinstance(task.result, str) else json.dumps(task.result)
    return told


def _named(task_id: str) -> dict[str, object]:
    return {"task_id": task_id, "group": GROUP}


def _held(task: TaskBrief, worker: str) -> dict[str, object]:
    """Name a running task the way its holder does: the token of a lease is the attempt's number."""
    return {"task_id": task.task_id, "worker": worker, "token": task.attempt}


# An instance may have any name, a worker not: others are written out behind this.
_WRITTEN_OUT = "x-"


def worker_name(caller: Caller, instance: str) -> str:
    """Name the worker that an instance is; one that only has a worker's token stays below its name.

    Raises: Refused if the name is too long to be one.
    """
    name = instance
    if not NAME.fullmatch(name) or name.startswith(_WRITTEN_OUT):
        name = quote(name, safe="").replace("_", "%5F").replace("~", "%7E").replace("%", "_")
        name = _WRITTEN_OUT + name
    if caller.principal.role is Role.WORKER:
        name = f"{caller.principal.name}.{name}"
    if not NAME.fullmatch(name):
        raise Refused(f"instance_id {instance[:80]} is too long")
    return name


def instance_of(worker: str, caller: Caller) -> str:
    name = worker.removeprefix(f"{caller.principal.name}.")
    if not name.startswith(_WRITTEN_OUT):
        return name
    return unquote(name.removeprefix(_WRITTEN_OUT).replace("_", "%"))
