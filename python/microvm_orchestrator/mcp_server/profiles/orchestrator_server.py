"""The profile `orchestrator-server`: the seven tools of the program of that name.

Names, shapes and the sentences of errors are that program's: pretty JSON in one block of text, and
protocol errors where others answer with a tool's error. Below, `orchestrator_tasks` translates.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, ClassVar

from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_REQUEST,
    CallToolRequestParams,
    CallToolResult,
    TextContent,
)

from microvm_orchestrator import errors
from microvm_orchestrator.mcp_server.answers import error_text
from microvm_orchestrator.mcp_server.callers import caller_of
from microvm_orchestrator.mcp_server.profiles.offers import Offer, Offers
from microvm_orchestrator.mcp_server.profiles.orchestrator_tasks import (
    GROUP,
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
from microvm_orchestrator.service.service import parse

if TYPE_CHECKING:
    from microvm_orchestrator.mcp_server.callers import Context
    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.service import Service


_Answer = Callable[[OrchestratorTasks, "Caller", Any], Awaitable[Shown]]


class OrchestratorTools:
    """Those tools as the protocol wants them: pretty JSON in one block of text, errors its own."""

    OFFERED: ClassVar[dict[str, Offer[_Answer]]] = {
        "create_task": Offer(
            "Create a new task with optional dependencies", Create, OrchestratorTasks.create
        ),
        "update_task": Offer(
            "Update a pending task's description or dependencies",
            Update,
            OrchestratorTasks.update,
        ),
        "delete_task": Offer(
            "Delete a task no other task depends on", Named, OrchestratorTasks.delete
        ),
        "get_next_task": Offer("Get the next available task", Instance, OrchestratorTasks.next),
        "complete_task": Offer("Mark a task as completed", Complete, OrchestratorTasks.complete),
        "get_task_status": Offer("Get status of all tasks", Nothing, OrchestratorTasks.status),
        "get_task_details": Offer(
            "Get details of a specific task", Named, OrchestratorTasks.details
        ),
    }

    def __init__(self, service: Service) -> None:
        self._tools = OrchestratorTasks(service)
        self._offers = Offers(self.OFFERED)
        self.listed = self._offers.listed

    async def call(self, ctx: Context, params: CallToolRequestParams) -> CallToolResult:
        offered = self._offers.find(params.name)
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
