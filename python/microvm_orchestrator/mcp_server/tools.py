"""The table of calls as MCP tools: listed from its models, answered by its service.

Nothing here knows a particular call beyond which few a model should see at once. Checking the
arguments is the service's, so its words reach the model and the SDK's never do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_origin

import anyio
import anyio.to_thread
from mcp.shared.exceptions import MCPError
from mcp.types import INVALID_PARAMS, ListToolsResult, Tool, ToolAnnotations

from microvm_orchestrator import errors
from microvm_orchestrator.mcp_server.answers import answer_result, crash_result, error_result
from microvm_orchestrator.mcp_server.callers import caller_of
from microvm_orchestrator.mcp_server.schemas import answer_schema, request_schema
from microvm_orchestrator.mcp_server.tasks_extension import Detachable
from microvm_orchestrator.service.calls import Call, Caller, Effect

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mcp.server.context import HandlerResult
    from mcp.types import CallToolRequestParams, CallToolResult, PaginatedRequestParams

    from microvm_orchestrator.mcp_server.callers import Context
    from microvm_orchestrator.mcp_server.tasks_extension import TaskInHand, TasksExtension
    from microvm_orchestrator.model.access import Principal
    from microvm_orchestrator.service.service import Service

# Clients that defer tools until they are searched for put these into the prompt from the start.
CORE = frozenset({"graph_submit", "task_claim", "task_complete", "task_get", "task_wait"})
# Lists are paged, but a page of whole tasks is longer than clients show a model by default.
LONG_RESULT_CHARS = 200_000


class ServiceTools:
    """The tools of a service. Lives as long as the front end."""

    def __init__(self, service: Service, tasks: TasksExtension) -> None:
        self._service = service
        self._tasks = tasks
        self._listing = anyio.Lock()
        self._listed: ListToolsResult | None = None
        for call in service.calls.values():
            if call.waits:
                tasks.offer(call.name, self._detachable(call))

    async def listed(
        self, _ctx: Context, _params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        # Made when it is first asked for: it takes half a second, in which the daemon does other
        # things.
        async with self._listing:
            if self._listed is None:
                self._listed = await anyio.to_thread.run_sync(self._list)
        return self._listed

    def _list(self) -> ListToolsResult:
        return ListToolsResult(tools=list(tools_of(self._service.calls.values())))

    async def call(self, ctx: Context, params: CallToolRequestParams) -> HandlerResult:
        call = self._service.calls.get(params.name)
        if call is None:
            raise MCPError(code=INVALID_PARAMS, message=f"Unknown tool: {params.name}")
        try:
            if call.waits:
                return await self._tasks.answer(ctx, params)
            return await self._invoke(caller_of(ctx), call.name, params.arguments or {})
        except errors.OrchestratorError as error:
            return error_result(error)

    async def _invoke(
        self, caller: Caller, name: str, arguments: Mapping[str, object]
    ) -> CallToolResult:
        try:
            return answer_result(await self._service.invoke(caller, name, arguments))
        except errors.OrchestratorError as error:
            return error_result(error)
        except Exception as error:  # noqa: BLE001 - the converting edge: a bug must not end the connection
            return crash_result(name, error)

    def _detachable(self, call: Call) -> Detachable:
        async def run(
            principal: Principal, arguments: Mapping[str, object], task: TaskInHand
        ) -> CallToolResult:
            caller = Caller(principal=principal, via="mcp", progress=task.progress)
            return await self._invoke(caller, call.name, arguments)

        return Detachable(run=run, repeatable=call.idempotent)


def tools_of(calls: Iterable[Call]) -> Iterable[Tool]:
    """Describe the calls, in the table's order, which never changes while the daemon lives."""
    for call in calls:
        yield Tool(
            name=call.name,
            title=call.title,
            description=call.description,
            input_schema=request_schema(call.request),
            output_schema=answer_schema(call.answer),
            annotations=ToolAnnotations(
                title=call.title,
                read_only_hint=call.effect is Effect.READ,
                destructive_hint=call.effect is Effect.DESTROY,
                idempotent_hint=call.idempotent,
                open_world_hint=False,
            ),
            _meta=_meta(call),
        )


def _meta(call: Call) -> dict[str, Any] | None:
    meta: dict[str, Any] = {}
    if call.name in CORE:
        meta["anthropic/alwaysLoad"] = True
    if call.effect is Effect.READ and any(
        get_origin(field.annotation) in {list, tuple} for field in call.answer.model_fields.values()
    ):
        meta["anthropic/maxResultSizeChars"] = LONG_RESULT_CHARS
    return meta or None
