"""The extension `io.modelcontextprotocol/tasks`: a call that waits is answered with a handle.

A client that declares the extension gets an answer at once if there is one at once; otherwise the
call goes on in the daemon, detached from the request, and the client polls `tasks/get`. The handle
is given out only after its record is in the store, so it outlives the daemon: a call that was still
going when the daemon stopped is made again, with its owner's present rights, when the owner next
asks - unless it may have changed something, which is then said instead of done twice.

Above stands `server`; below, the shelf of records and whatever runs a tool.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

import anyio
from mcp.server.mcpserver import require_client_extension
from mcp.shared.exceptions import MCPError
from mcp.types import (
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    CallToolResult,
    RequestParams,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import Field, JsonValue

from microvm_orchestrator import errors, log
from microvm_orchestrator.mcp_server.callers import PacedProgress, http_headers, principal_of
from microvm_orchestrator.mcp_server.task_records import KeptTask, TaskShelf, new_task_id

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from anyio.abc import TaskGroup
    from mcp.server.context import HandlerResult
    from mcp.server.lowlevel import Server
    from mcp.types import CallToolRequestParams

    from microvm_orchestrator.mcp_server.callers import Context
    from microvm_orchestrator.model.access import Principal
    from microvm_orchestrator.service.calls import Progress
    from microvm_orchestrator.store.base import Store

IDENTIFIER = "io.modelcontextprotocol/tasks"
# A wait that is over this soon is answered directly: cheaper for everyone than a handle and a poll.
GRACE_S = 1.0
# Each holds a few kilobytes and a waiting call; past this, calls are answered the plain way.
MAX_RUNNING = 2000
TIDY_EVERY_S = 3600.0

_log = log.get(__name__)


class TaskInHand(Protocol):
    """What a tool may do while it runs as a task."""

    @property
    def progress(self) -> Progress: ...

    async def ask(self, request: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """Put a request to the client and wait for its response."""
        ...


@dataclass(frozen=True, slots=True)
class Detachable:
    """A tool whose calls may go on after their request."""

    run: Callable[[Principal, Mapping[str, object], TaskInHand], Awaitable[CallToolResult]]
    # Whether a call that was cut off may be made again.
    repeatable: bool
    grace_s: float = GRACE_S
    # Refused to clients without the extension.
    required: bool = False


class TaskParams(RequestParams):
    """Which task."""

    task_id: str = Field(max_length=200)


class UpdateParams(TaskParams):
    """Responses to what a task asked."""

    input_responses: dict[str, dict[str, JsonValue]]


@dataclass(slots=True, eq=False)
class _Running:
    """A call in the daemon's hands: the task, and what belongs to this process only."""

    task_id: str
    task: KeptTask
    principal: Principal
    # Whether its record is, or is about to be, in the store.
    kept: bool = False
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    over: anyio.Event = field(default_factory=anyio.Event)
    saving: anyio.Lock = field(default_factory=anyio.Lock)
    asked: int = 0
    pending: dict[str, _Question] = field(default_factory=dict[str, "_Question"])

    async def progress(self, done: float, total: float | None, message: str) -> None:
        share = f" ({done:g} of {total:g})" if total else ""
        self.task.touch(self.task.status, f"{message}{share}")

    async def ask(self, request: dict[str, JsonValue]) -> dict[str, JsonValue]:
        self.asked += 1
        question = _Question(request)
        self.pending[f"q{self.asked}"] = question
        self.task.touch("input_required")
        await question.answered.wait()
        return question.response

    def hear(self, responses: Mapping[str, dict[str, JsonValue]]) -> None:
        for key, response in responses.items():
            question = self.pending.pop(key, None)
            if question is not None:
                question.response = response
                question.answered.set()
        if self.task.status == "input_required" and not self.pending:
            self.task.touch("working")

    def whole(self) -> dict[str, Any]:
        shown = self.task.whole(self.task_id)
        if self.task.status == "input_required":
            shown["inputRequests"] = {key: asked.request for key, asked in self.pending.items()}
        return shown


@dataclass(slots=True, eq=False)
class _Question:
    request: dict[str, JsonValue]
    answered: anyio.Event = field(default_factory=anyio.Event)
    response: dict[str, JsonValue] = field(default_factory=dict[str, JsonValue])


@dataclass(frozen=True, slots=True)
class _Attended:
    """A call whose client waits on the line; there is nobody to put a request to."""

    progress: Progress

    async def ask(self, request: dict[str, JsonValue]) -> dict[str, JsonValue]:
        raise MCPError(code=INTERNAL_ERROR, message=f"nobody can answer {request.get('method')}")


class TasksExtension:
    """The detached calls of a front end. Lives as long as it, inside `running()`."""

    def __init__(self, store: Store) -> None:
        self._shelf = TaskShelf(store)
        self._tools: dict[str, Detachable] = {}
        self._running: dict[str, _Running] = {}
        self._group: TaskGroup | None = None

    def offer(self, name: str, tool: Detachable) -> None:
        self._tools[name] = tool

    def attach(self, server: Server[Any]) -> None:
        """Serve the extension's methods on `server` and declare it."""
        server.add_request_handler("tasks/get", TaskParams, self._get)
        server.add_request_handler("tasks/update", UpdateParams, self._update)
        server.add_request_handler("tasks/cancel", TaskParams, self._cancel)
        server.extensions[IDENTIFIER] = {}

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Hold the detached calls; at the end they are cut off, to be made again when asked for."""
        async with anyio.create_task_group() as group:
            self._group = group
            group.start_soon(self._tidy)
            try:
                yield
            finally:
                self._group = None
                group.cancel_scope.cancel()

    async def answer(self, ctx: Context, params: CallToolRequestParams) -> HandlerResult:
        """Answer a call of an offered tool: with its result, or with a task that will have it.

        Raises: OrchestratorError if the record could not be kept; MCPError as the tool did.
        """
        tool = self._tools[params.name]
        principal = principal_of(ctx)
        if not _declared(ctx):
            if tool.required:
                require_client_extension(ctx, IDENTIFIER)
            attended = _Attended(PacedProgress(ctx.session.report_progress))
            return await tool.run(principal, params.arguments or {}, attended)
        if self._group is None or len(self._running) >= MAX_RUNNING:
            raise errors.Unavailable(
                "too many calls are waiting as tasks", hint="wait for some of them, then call again"
            )
        arguments = cast("dict[str, JsonValue]", params.arguments or {})
        running = _Running(
            new_task_id(), KeptTask.new(params.name, arguments, principal.name), principal
        )
        self._start(running, tool)
        return await self._result_or_handle(running, tool.grace_s)

    async def _result_or_handle(self, running: _Running, grace_s: float) -> HandlerResult:
        try:
            with anyio.move_on_after(grace_s):
                await running.over.wait()
            if not running.task.open and grace_s > 0:
                return _direct(running.task)
            running.kept = True
            await self._save(running)
        except BaseException:
            # The client left before it had the handle, or the handle could not be kept.
            running.kept = False
            running.scope.cancel()
            raise
        return {"resultType": "task", **running.task.head(running.task_id)}

    def _start(self, running: _Running, tool: Detachable) -> None:
        assert self._group is not None  # noqa: S101 - its callers looked
        self._running[running.task_id] = running
        self._group.start_soon(self._carry, running, tool)

    async def _carry(self, running: _Running, tool: Detachable) -> None:
        task = running.task
        with running.scope:
            try:
                result = await tool.run(running.principal, task.arguments, running)
            except MCPError as error:
                _fail(task, error.error.code, error.error.message)
            except Exception as error:  # noqa: BLE001 - the converting edge of a detached call
                _log.error("mcp_task_crashed", tool=task.tool, exc_info=error)
                _fail(task, INTERNAL_ERROR, "Internal server error")
            else:
                shown = result.model_dump(by_alias=True, mode="json", exclude_none=True)
                shown.pop("resultType", None)
                task.result = shown
                task.touch("completed")
        if task.open:
            task.touch("cancelled")
        running.over.set()
        await self._settle(running)

    async def _settle(self, running: _Running) -> None:
        """Put what came of a call on the shelf; if that fails, this process still remembers it."""
        if running.kept:
            try:
                await self._save(running)
            except errors.OrchestratorError as error:
                _log.warning("mcp_task_not_kept", task=running.task_id, code=error.code)
                return
        del self._running[running.task_id]

    async def _save(self, running: _Running) -> None:
        async with running.saving:
            await self._shelf.save(running.task_id, running.task, running.principal)

    async def _get(self, ctx: Context, params: TaskParams) -> dict[str, Any]:
        principal = _checked(ctx, params)
        running = await self._find(params.task_id, principal)
        return {"resultType": "complete", **running.whole()}

    async def _update(self, ctx: Context, params: UpdateParams) -> dict[str, Any]:
        principal = _checked(ctx, params)
        running = await self._find(params.task_id, principal)
        running.hear(params.input_responses)
        return {"resultType": "complete"}

    async def _cancel(self, ctx: Context, params: TaskParams) -> dict[str, Any]:
        principal = _checked(ctx, params)
        running = await self._find(params.task_id, principal)
        if running.task.open:
            running.scope.cancel()
            await running.over.wait()
        return {"resultType": "complete"}

    async def _find(self, task_id: str, principal: Principal) -> _Running:
        """Find a task of this principal, and set it going again if a stop had cut it off."""
        running = self._running.get(task_id)
        if running is None:
            task = await self._shelf.find(task_id, principal)
            # It may have been set going while the shelf was searched.
            running = self._running.get(task_id)
            if running is None and task is not None:
                running = await self._resume(_Running(task_id, task, principal, kept=True))
        if running is None or running.task.owner != principal.name:
            raise MCPError(
                code=INVALID_PARAMS, message="Failed to retrieve task: Task not found or expired"
            )
        return running

    async def _resume(self, running: _Running) -> _Running:
        task = running.task
        if not task.open:
            return running
        tool = self._tools.get(task.tool)
        if tool is not None and tool.repeatable and self._group is not None:
            task.touch("working", "the daemon was restarted; the call is made again")
            self._start(running, tool)
            return running
        lost = errors.UnknownOutcome(
            f"the daemon stopped during {task.tool}; it may have taken effect and was not repeated"
        )
        _fail(task, INTERNAL_ERROR, f"{lost.code}: {lost}")
        running.over.set()
        await self._save(running)
        return running

    async def _tidy(self) -> None:
        while True:
            try:
                dropped = await self._shelf.drop_expired()
                _log.debug("mcp_tasks_dropped", count=dropped)
            except errors.OrchestratorError as error:
                _log.warning("mcp_tasks_not_tidied", code=error.code)
            await anyio.sleep(TIDY_EVERY_S)


def _declared(ctx: Context) -> bool:
    if ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
        return False
    capabilities = ctx.session.client_capabilities
    return bool(capabilities and capabilities.extensions and IDENTIFIER in capabilities.extensions)


def _checked(ctx: Context, params: TaskParams) -> Principal:
    """Check what the protocol wants of each request about a task."""
    if ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
        raise MCPError(code=METHOD_NOT_FOUND, message="Method not found", data=ctx.method)
    require_client_extension(ctx, IDENTIFIER)
    if (headers := http_headers(ctx)) is not None and headers.get("mcp-name") != params.task_id:
        raise MCPError(code=HEADER_MISMATCH, message="the header Mcp-Name is not the taskId")
    return principal_of(ctx)


def _fail(task: KeptTask, code: int, message: str) -> None:
    task.error = {"code": code, "message": message}
    task.touch("failed", message)


def _direct(task: KeptTask) -> HandlerResult:
    """Give the outcome of a call that was over before it needed a handle."""
    if task.status == "completed" and task.result is not None:
        return {"resultType": "complete", **task.result}
    error = task.error or {"code": INTERNAL_ERROR, "message": "the call was cancelled"}
    raise MCPError(code=cast("int", error["code"]), message=cast("str", error["message"]))
