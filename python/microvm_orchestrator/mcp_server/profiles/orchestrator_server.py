"""The profile `orchestrator-server`: the seven tools of the program of that name.

Names, shapes and the sentences of errors are that program's: pretty JSON in one block of text, and
protocol errors where others answer with a tool's error. Below, `orchestrator_tasks` translates.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    TextContent,
    Tool,
)

from microvm_orchestrator import errors
from microvm_orchestrator.mcp_server.answers import error_text
from microvm_orchestrator.mcp_server.callers import caller_of
from microvm_orchestrator.mcp_server.profiles.orchestrator_tasks import (
    GROUP,
    Asked,
    Complete,
    Create,
    Instance,
    Named,
    Nothing,
    OrchestratorTasks,
    Refused,
    Shown,
    Update,
)
from microvm_orchestrator.mcp_server.quiet_server import QuietServer
from microvm_orchestrator.mcp_server.schemas import request_schema
from microvm_orchestrator.service.service import parse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mcp.types import PaginatedRequestParams

    from microvm_orchestrator.mcp_server.callers import Context
    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.service import Service


@dataclass(frozen=True, slots=True)
class _Offered:
    """A tool: its words, what it takes and what answers it."""

    description: str
    request: type[Asked]
    answer: Callable[[OrchestratorTasks, Caller, Any], Awaitable[Shown]]


class OrchestratorTools:
    """Those tools as the protocol wants them: pretty JSON in one block of text, errors its own."""

    OFFERED: ClassVar[dict[str, _Offered]] = {
        "create_task": _Offered(
            "Create a new task with optional dependencies", Create, OrchestratorTasks.create
        ),
        "update_task": _Offered(
            "Update a pending task's description or dependencies",
            Update,
            OrchestratorTasks.update,
        ),
        "delete_task": _Offered(
            "Delete a task no other task depends on", Named, OrchestratorTasks.delete
        ),
        "get_next_task": _Offered("Get the next available task", Instance, OrchestratorTasks.next),
        "complete_task": _Offered("Mark a task as completed", Complete, OrchestratorTasks.complete),
        "get_task_status": _Offered("Get status of all tasks", Nothing, OrchestratorTasks.status),
        "get_task_details": _Offered(
            "Get details of a specific task", Named, OrchestratorTasks.details
        ),
    }

    def __init__(self, service: Service) -> None:
        self._tools = OrchestratorTasks(service)
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
