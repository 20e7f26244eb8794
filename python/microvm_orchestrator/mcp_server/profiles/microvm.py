"""The profile `microvm-orchestrator-mcp`: the tools of the program of that name.

Names, parameters and fields are that program's: each tool gives one JSON object, as text and as
data. A refusal is `{"error": sentence}` there and here; here it is marked as an error as well.
Below, `microvm_tasks` translates and `microvm_copies` writes the files.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, ClassVar

from mcp.types import (
    CallToolRequestParams,
    CallToolResult,
    TextContent,
)

from microvm_orchestrator import errors
from microvm_orchestrator.mcp_server.answers import crash_result
from microvm_orchestrator.mcp_server.profiles.microvm_copies import Copies
from microvm_orchestrator.mcp_server.profiles.microvm_tasks import (
    GROUP,
    Cleanup,
    MicrovmTasks,
    Named,
    Nothing,
    Refused,
    RunTask,
    Shown,
    Wait,
)
from microvm_orchestrator.mcp_server.profiles.offers import Offer, Offers
from microvm_orchestrator.mcp_server.quiet_server import QuietServer
from microvm_orchestrator.service.service import parse

if TYPE_CHECKING:
    from mcp.types import ListToolsResult, PaginatedRequestParams

    from microvm_orchestrator.mcp_server.callers import Context
    from microvm_orchestrator.service.service import Service


_Answer = Callable[[MicrovmTasks, "Context", Any], Awaitable[Shown]]


class MicrovmTools:
    """Those tools as the protocol wants them."""

    OFFERED: ClassVar[dict[str, Offer[_Answer]]] = {
        "run_task": Offer(
            "Start a task in a microVM; returns its task_id at once", RunTask, MicrovmTasks.run_task
        ),
        "get_task_info": Offer(
            "Get task status, result, and merge result", Named, MicrovmTasks.get_task_info
        ),
        "get_task_logs": Offer(
            "Get the path of a task's log file, to be followed with tail -f",
            Named,
            MicrovmTasks.get_task_logs,
        ),
        "wait_next_event": Offer(
            "Block until a task completes or fails", Wait, MicrovmTasks.wait_next_event
        ),
        "cleanup_task": Offer(
            "End a task if it runs and remove its files; commits that were not merged are kept",
            Cleanup,
            MicrovmTasks.cleanup_task,
        ),
        "list_repos": Offer(
            "List the repositories that tasks can be run on", Nothing, MicrovmTasks.list_repos
        ),
        "list_tasks": Offer("List all tasks", Nothing, MicrovmTasks.list_tasks),
        "list_slots": Offer(
            "List how many tasks can run at once, and which do", Nothing, MicrovmTasks.list_slots
        ),
    }

    def __init__(self, tasks: MicrovmTasks) -> None:
        self._tasks = tasks
        self._offers = Offers(self.OFFERED)

    async def listed(self, ctx: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        self._tasks.greet(ctx)
        return await self._offers.listed(ctx, params)

    async def call(self, ctx: Context, params: CallToolRequestParams) -> CallToolResult:
        offered = self._offers.find(params.name)
        self._tasks.greet(ctx)
        try:
            asked = parse(offered.request, params.arguments or {})
            return _told(await offered.answer(self._tasks, ctx, asked))
        except Refused as refusal:
            return _told({"error": str(refusal)}, is_error=True)
        except errors.OrchestratorError as error:
            return _told({"error": error.message}, is_error=True)
        except Exception as error:  # noqa: BLE001 - the converting edge: a bug must not end the connection
            return crash_result(params.name, error)


def _told(answer: Shown, *, is_error: bool = False) -> CallToolResult:
    text = json.dumps(answer, indent=2, ensure_ascii=False)
    content: list[Any] = [TextContent(type="text", text=text)]
    return CallToolResult(content=content, structured_content=answer, is_error=is_error)


class MicrovmServer(QuietServer):
    """Those tools, and the files that are kept of its tasks while `keep` runs."""

    def __init__(self, service: Service) -> None:
        self._copies = Copies(service, GROUP)
        self._tasks = MicrovmTasks(service, self._copies)
        tools = MicrovmTools(self._tasks)
        super().__init__(
            GROUP,
            version="0.1.0",
            title="microVM orchestrator, as in its first version",
            on_list_tools=tools.listed,
            on_call_tool=tools.call,
        )

    async def keep(self, since: str) -> None:
        """Do what is to be done beside answering, until cancelled."""
        self._tasks.begin(since)
        await self._copies.keep()
