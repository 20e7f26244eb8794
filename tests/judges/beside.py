"""Puts the conformance suite's fixtures into a server of ours, as the daemon builds it.

What is theirs is answered by `everything`, all else goes on to our own handlers.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import anyio
from mcp.server.mcpserver import Context, RequestStateSecurity
from mcp.server.mcpserver.exceptions import ResourceError, ToolError
from mcp.server.request_state import RequestStateBoundary
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    BlobResourceContents,
    CallToolRequestParams,
    CallToolResult,
    EmptyResult,
    GetPromptRequestParams,
    InputRequiredResult,
    ListPromptsResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    SetLevelRequestParams,
    SubscribeRequestParams,
    SubscriptionsListenRequestParams,
    TextContent,
    TextResourceContents,
    UnsubscribeRequestParams,
)

from judges.everything import SCHEMA_2020_12, field, fixtures, form
from microvm_orchestrator.mcp_server.tasks_extension import Detachable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from mcp.server.context import HandlerResult, ServerRequestContext
    from mcp.server.lowlevel import Server
    from pydantic import BaseModel

    from microvm_orchestrator.mcp_server.server import McpFrontEnd
    from microvm_orchestrator.mcp_server.tasks_extension import TaskInHand
    from microvm_orchestrator.model.access import Principal


async def _confirmed(task: TaskInHand, message: str) -> str:
    request = form(message, confirm="boolean").model_dump(
        by_alias=True, mode="json", exclude_none=True
    )
    return str((await task.ask(request)).get("action"))


async def _run_confirm_delete(
    _principal: Principal, arguments: Mapping[str, object], task: TaskInHand
) -> CallToolResult:
    filename = arguments.get("filename")
    return _text(f"{filename}: {await _confirmed(task, f'Delete {filename}?')}")


async def _run_multi_input(
    _principal: Principal, _arguments: Mapping[str, object], task: TaskInHand
) -> CallToolResult:
    answers: dict[str, str] = {}

    async def ask(name: str) -> None:
        answers[name] = await _confirmed(task, f"{name}?")

    async with anyio.create_task_group() as group:
        group.start_soon(ask, "a")
        group.start_soon(ask, "b")
    return _text(json.dumps(answers))


def _text(text: str, *, is_error: bool = False) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=is_error)


def _plain(name: str) -> Callable[..., Awaitable[CallToolResult]]:
    async def run(
        _principal: Principal, arguments: Mapping[str, object], _task: TaskInHand
    ) -> CallToolResult:
        return cast("CallToolResult", await _called(name, dict(arguments), None))

    return run


async def _called(
    name: str, arguments: dict[str, Any], ctx: Context | None
) -> CallToolResult | InputRequiredResult:
    try:
        return await fixtures.call_tool(name, arguments, ctx)
    except ToolError as error:
        return _text(str(error), is_error=True)


@dataclass(frozen=True)
class Beside:
    """The fixtures inside one server of ours; what is not theirs goes on to ours."""

    front: McpFrontEnd
    server: Server[Any]
    bus: InMemorySubscriptionBus

    def context(self, ctx: ServerRequestContext[Any, Any], params: Any) -> Context:
        return Context(
            request_context=ctx, mcp_server=fixtures, input_params=params, subscriptions=self.bus
        )

    def ours(self, method: str) -> Callable[[Any, Any], Awaitable[Any]]:
        entry = self.server.get_request_handler(method)
        assert entry is not None
        return entry.handler

    def install(self) -> None:
        server = self.server
        handlers: list[tuple[str, type[BaseModel], Any]] = [
            ("tools/list", PaginatedRequestParams, self.tools()),
            ("tools/call", CallToolRequestParams, self.calls()),
            ("resources/list", PaginatedRequestParams, self.resources()),
            ("resources/templates/list", PaginatedRequestParams, self.templates()),
            ("resources/read", ReadResourceRequestParams, self.reads()),
            ("prompts/list", PaginatedRequestParams, self.prompts()),
            ("prompts/get", GetPromptRequestParams, self.renders()),
            ("subscriptions/listen", SubscriptionsListenRequestParams, ListenHandler(self.bus)),
            ("logging/setLevel", SetLevelRequestParams, _empty),
            ("resources/subscribe", SubscribeRequestParams, _empty),
            ("resources/unsubscribe", UnsubscribeRequestParams, _empty),
        ]
        for method, params, handler in handlers:
            server.add_request_handler(method, params, handler)
        # One of the fixtures does have arguments that headers repeat: the SDK looks at the list.
        server.get_tool_input_schema = None
        server.middleware.append(
            RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience=server.name)
        )
        for name, tool in (
            ("slow_compute", "slow_compute"),
            ("protocol_error_job", "protocol_error_job"),
            ("test_tool_with_task", "greet"),
        ):
            self.front.tasks.offer(name, Detachable(_plain(tool), repeatable=True, grace_s=0))
        required = Detachable(_plain("failing_job"), repeatable=True, grace_s=0, required=True)
        self.front.tasks.offer("failing_job", required)
        for name, run in (
            ("confirm_delete", _run_confirm_delete),
            ("multi_input", _run_multi_input),
        ):
            self.front.tasks.offer(name, Detachable(run, repeatable=True, grace_s=0))

    def tools(self) -> Any:
        ours = self.ours("tools/list")

        async def listed(ctx: Any, params: Any) -> ListToolsResult:
            theirs = await fixtures.list_tools()
            for tool in theirs:
                tool.description = f"Fixture {tool.name}"
                if tool.name == "json_schema_2020_12_tool":
                    tool.input_schema = SCHEMA_2020_12
            result = await ours(ctx, params)
            return ListToolsResult(tools=[*result.tools, *theirs])

        return listed

    def calls(self) -> Any:
        ours = self.ours("tools/call")
        tasks = {
            "slow_compute",
            "protocol_error_job",
            "failing_job",
            "confirm_delete",
            "multi_input",
        }

        async def call(ctx: Any, params: CallToolRequestParams) -> HandlerResult:
            if params.name not in {tool.name for tool in await fixtures.list_tools()}:
                return await ours(ctx, params)
            if params.name in tasks:
                return await self.front.tasks.answer(ctx, params)
            context = self.context(ctx, params)
            result = await _called(params.name, params.arguments or {}, context)
            if params.name == "test_tool_with_task" and isinstance(result, CallToolResult):
                # What the client was asked is known; the rest may take its time.
                known = {"name": field(context, "user_name", "name")}
                return await self.front.tasks.answer(
                    ctx, params.model_copy(update={"arguments": known})
                )
            return result

        return call

    def resources(self) -> Any:
        ours = self.ours("resources/list")

        async def listed(ctx: Any, params: Any) -> ListResourcesResult:
            result = await ours(ctx, params)
            return ListResourcesResult(
                resources=[*result.resources, *await fixtures.list_resources()]
            )

        return listed

    def templates(self) -> Any:
        ours = self.ours("resources/templates/list")

        async def listed(ctx: Any, params: Any) -> ListResourceTemplatesResult:
            result = await ours(ctx, params)
            theirs = await fixtures.list_resource_templates()
            return ListResourceTemplatesResult(
                resource_templates=[*result.resource_templates, *theirs]
            )

        return listed

    def reads(self) -> Any:
        ours = self.ours("resources/read")

        async def read(ctx: Any, params: ReadResourceRequestParams) -> Any:
            uri = str(params.uri)
            if not uri.startswith("test://"):
                return await ours(ctx, params)
            try:
                found = await fixtures.read_resource(uri, self.context(ctx, params))
            except ResourceError as error:
                raise MCPError(
                    code=INVALID_PARAMS, message=str(error), data={"uri": uri}
                ) from error
            if isinstance(found, InputRequiredResult):
                return found
            return ReadResourceResult(
                contents=[
                    TextResourceContents(uri=uri, mime_type=item.mime_type, text=item.content)
                    if isinstance(item.content, str)
                    else BlobResourceContents(
                        uri=uri,
                        mime_type=item.mime_type,
                        blob=base64.b64encode(item.content).decode(),
                    )
                    for item in found
                ]
            )

        return read

    def prompts(self) -> Any:
        ours = self.ours("prompts/list")

        async def listed(ctx: Any, params: Any) -> ListPromptsResult:
            result = await ours(ctx, params)
            theirs = await fixtures.list_prompts()
            for prompt in theirs:
                prompt.description = f"Fixture {prompt.name}"
            return ListPromptsResult(prompts=[*result.prompts, *theirs])

        return listed

    def renders(self) -> Any:
        ours = self.ours("prompts/get")

        async def get(ctx: Any, params: GetPromptRequestParams) -> Any:
            if not params.name.startswith("test_"):
                return await ours(ctx, params)
            return await fixtures.get_prompt(
                params.name, params.arguments, self.context(ctx, params)
            )

        return get


async def _empty(_ctx: Any, _params: Any) -> EmptyResult:
    return EmptyResult()


def add_fixtures(front: McpFrontEnd) -> None:
    Beside(front, front.server(""), InMemorySubscriptionBus()).install()
