"""The profile `delegation`: the five tools of the program that delegated jobs to Proxmox machines.

Names, shapes and the sentences of errors are that program's: compact JSON in one block of text, and
a refusal as a tool's error with its bare sentence. Below, `delegation_jobs` translates.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

from mcp.shared.exceptions import MCPError
from mcp.types import (
    METHOD_NOT_FOUND,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    TextContent,
    Tool,
)

from microvm_orchestrator import errors
from microvm_orchestrator.mcp_server.answers import crash_result, error_result
from microvm_orchestrator.mcp_server.callers import caller_of, settings_of
from microvm_orchestrator.mcp_server.profiles.delegation_jobs import (
    DelegatedJobs,
    Filter,
    Named,
    Refused,
    Shown,
    Submit,
)
from microvm_orchestrator.mcp_server.quiet_server import QuietServer
from microvm_orchestrator.mcp_server.schemas import request_schema
from microvm_orchestrator.service.service import parse

if TYPE_CHECKING:
    from mcp.types import PaginatedRequestParams

    from microvm_orchestrator.mcp_server.callers import Context
    from microvm_orchestrator.mcp_server.profiles.delegation_jobs import Asked
    from microvm_orchestrator.service.service import Service

# As that program introduced itself.
_NAME = "mcp-delegation-server"


class DelegationTools:
    """Those tools as the protocol wants them."""

    OFFERED: ClassVar[dict[str, tuple[str, type[Asked]]]] = {
        "submit_job": ("Submit a job for execution in an isolated VM", Submit),
        "get_job_status": ("Get the current status of a job", Named),
        "get_job_result": ("Get the result of a completed job", Named),
        "cancel_job": ("Cancel a running or pending job", Named),
        "list_jobs": ("List all jobs, optionally filtered by status", Filter),
    }

    def __init__(self, jobs: DelegatedJobs) -> None:
        self._jobs = jobs
        self._listed = ListToolsResult(
            tools=[
                Tool(name=name, description=description, input_schema=request_schema(request))
                for name, (description, request) in self.OFFERED.items()
            ]
        )

    async def listed(
        self, _ctx: Context, _params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        return self._listed

    async def call(self, ctx: Context, params: CallToolRequestParams) -> CallToolResult:
        if params.name not in self.OFFERED:
            raise MCPError(code=METHOD_NOT_FOUND, message=f"Unknown tool: {params.name}")
        try:
            told = await self._answer(ctx, params.name, params.arguments or {})
        except Refused as refusal:
            return CallToolResult(
                content=[TextContent(type="text", text=str(refusal))], is_error=True
            )
        except errors.OrchestratorError as error:
            return error_result(error)
        except Exception as error:  # noqa: BLE001 - the converting edge: a bug must not end the connection
            return crash_result(params.name, error)
        text = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
        return CallToolResult(content=[TextContent(type="text", text=text)])

    async def _answer(self, ctx: Context, tool: str, arguments: dict[str, Any]) -> Shown:
        caller = caller_of(ctx)
        match tool:
            case "submit_job":
                return await self._jobs.submit(caller, arguments, settings_of(ctx))
            case "get_job_status":
                return await self._jobs.status(caller, parse(Named, arguments))
            case "get_job_result":
                return await self._jobs.result(caller, parse(Named, arguments))
            case "cancel_job":
                return await self._jobs.cancel(caller, parse(Named, arguments))
            case _:
                return await self._jobs.listed(caller, parse(Filter, arguments))


def delegation(service: Service) -> QuietServer:
    tools = DelegationTools(DelegatedJobs(service))
    return QuietServer(
        _NAME,
        version="1.0.0",
        title="Delegation",
        on_list_tools=tools.listed,
        on_call_tool=tools.call,
    )
