"""The profile `delegation`: the five tools of the program that delegated jobs to Proxmox machines.

Names, shapes and the sentences of errors are that program's: compact JSON in one block of text, and
a refusal as a tool's error with its bare sentence. Below, `delegation_jobs` translates.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, ClassVar

from mcp.types import CallToolRequestParams, CallToolResult, TextContent

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
from microvm_orchestrator.mcp_server.profiles.offers import Offer, Offers
from microvm_orchestrator.mcp_server.quiet_server import QuietServer
from microvm_orchestrator.service.service import parse

if TYPE_CHECKING:
    from microvm_orchestrator.mcp_server.callers import Context
    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.service import Service

_Answer = Callable[[DelegatedJobs, "Caller", Any], Awaitable[Shown]]

# As that program introduced itself.
_NAME = "mcp-delegation-server"


class DelegationTools:
    """Those tools as the protocol wants them."""

    # A job is submitted by what was sent, for its manifest has sentences of its own.
    OFFERED: ClassVar[dict[str, Offer[_Answer | None]]] = {
        "submit_job": Offer("Submit a job for execution in an isolated VM", Submit, None),
        "get_job_status": Offer("Get the current status of a job", Named, DelegatedJobs.status),
        "get_job_result": Offer("Get the result of a completed job", Named, DelegatedJobs.result),
        "cancel_job": Offer("Cancel a running or pending job", Named, DelegatedJobs.cancel),
        "list_jobs": Offer(
            "List all jobs, optionally filtered by status", Filter, DelegatedJobs.listed
        ),
    }

    def __init__(self, jobs: DelegatedJobs) -> None:
        self._jobs = jobs
        self._offers = Offers(self.OFFERED)
        self.listed = self._offers.listed

    async def call(self, ctx: Context, params: CallToolRequestParams) -> CallToolResult:
        offered = self._offers.find(params.name)
        try:
            told = await self._answer(ctx, offered, params.arguments or {})
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

    async def _answer(
        self, ctx: Context, offered: Offer[_Answer | None], arguments: dict[str, Any]
    ) -> Shown:
        caller = caller_of(ctx)
        if offered.answer is None:
            return await self._jobs.submit(caller, arguments, settings_of(ctx))
        return await offered.answer(self._jobs, caller, parse(offered.request, arguments))


def delegation(service: Service) -> QuietServer:
    tools = DelegationTools(DelegatedJobs(service))
    return QuietServer(
        _NAME,
        version="1.0.0",
        title="Delegation",
        on_list_tools=tools.listed,
        on_call_tool=tools.call,
    )
