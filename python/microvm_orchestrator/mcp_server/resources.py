"""Tasks and groups as resources, so that a client can attach one by its address.

Every read is a service call: who may see what is decided there. Completion offers the ids, keys
and groups this caller can see.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    CompleteResult,
    Completion,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ReadResourceResult,
    Resource,
    ResourceTemplate,
    TextResourceContents,
)
from pydantic import BaseModel, JsonValue

from microvm_orchestrator.mcp_server.callers import caller_of

if TYPE_CHECKING:
    from mcp.types import CompleteRequestParams, PaginatedRequestParams, ReadResourceRequestParams

    from microvm_orchestrator.mcp_server.callers import Context
    from microvm_orchestrator.service.service import Service

JSON = "application/json"
# The protocol's own limit on completions.
MAX_COMPLETIONS = 100


@dataclass(frozen=True, slots=True)
class _Shelf:
    """One kind of address and the call that answers it, with the one argument it carries."""

    template: str
    call: str
    argument: str
    name: str
    description: str

    @property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(re.sub(r"\{\w+\}", r"([^/]+)", self.template))


_SHELVES = (
    _Shelf("task://{task_id}", "task_get", "task_id", "task", "A task: all that is known of it."),
    _Shelf(
        "task://{task_id}/history",
        "task_history",
        "task_id",
        "task-history",
        "Every event of a task, oldest first.",
    ),
    _Shelf("group://{group}", "group_get", "group", "group", "A group of tasks: how it stands."),
)


class _Listed(BaseModel):
    """As much of a page of any list as a name needs."""

    items: list[dict[str, JsonValue]]
    next_cursor: str | None = None

    def named(self, field: str) -> list[str]:
        return [str(item[field]) for item in self.items]


class Resources:
    """The resources of the native server."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._templates = ListResourceTemplatesResult(
            resource_templates=[
                ResourceTemplate(
                    uri_template=shelf.template,
                    name=shelf.name,
                    description=shelf.description,
                    mime_type=JSON,
                )
                for shelf in _SHELVES
            ]
        )

    async def listed(
        self, ctx: Context, params: PaginatedRequestParams | None
    ) -> ListResourcesResult:
        """List the groups; tasks are too many to list and have their template."""
        cursor = params.cursor if params else None
        page = await self._page(ctx, "group_list", {"cursor": cursor} if cursor else {})
        return ListResourcesResult(
            resources=[
                Resource(uri=f"group://{quote(name)}", name=name, mime_type=JSON)
                for name in page.named("group")
            ],
            next_cursor=page.next_cursor,
        )

    async def templates(
        self, _ctx: Context, _params: PaginatedRequestParams | None
    ) -> ListResourceTemplatesResult:
        return self._templates

    async def read(self, ctx: Context, params: ReadResourceRequestParams) -> ReadResourceResult:
        uri = str(params.uri)
        for shelf in _SHELVES:
            if found := shelf.pattern.fullmatch(uri):
                answer = await self._invoke(ctx, shelf.call, {shelf.argument: unquote(found[1])})
                content = TextResourceContents(
                    uri=uri, mime_type=JSON, text=answer.model_dump_json()
                )
                return ReadResourceResult(contents=[content])
        raise MCPError(
            code=INVALID_PARAMS, message=f"not-found: no resource is at {uri}", data={"uri": uri}
        )

    async def complete(self, ctx: Context, params: CompleteRequestParams) -> CompleteResult:
        typed = params.argument.value
        match params.argument.name:
            case "group":
                values = await self._groups(ctx, typed)
            case "task_id":
                chosen = params.context.arguments if params.context else None
                values = await self._tasks(ctx, typed, (chosen or {}).get("group"))
            case _:
                values = []
        return CompleteResult(
            completion=Completion(
                values=values[:MAX_COMPLETIONS],
                total=len(values),
                has_more=len(values) > MAX_COMPLETIONS,
            )
        )

    async def _groups(self, ctx: Context, typed: str) -> list[str]:
        groups = await self._page(ctx, "group_list", {"limit": 200})
        return [name for name in groups.named("group") if typed.lower() in name.lower()]

    async def _tasks(self, ctx: Context, typed: str, group: str | None) -> list[str]:
        """Offer ids; what was typed may be the beginning of one, or part of a key or title."""
        asked: dict[str, object] = {"limit": 200}
        if group:
            asked["group"] = group
        tasks = await self._page(ctx, "task_list", asked)
        begun = [task_id for task_id in tasks.named("task_id") if task_id.startswith(typed)]
        if not typed:
            return begun
        found = await self._page(ctx, "task_list", {**asked, "text": typed})
        return list(dict.fromkeys([*begun, *found.named("task_id")]))

    async def _page(self, ctx: Context, call: str, arguments: dict[str, object]) -> _Listed:
        answer = await self._invoke(ctx, call, arguments)
        return _Listed.model_validate(answer.model_dump(mode="json"))

    async def _invoke(self, ctx: Context, call: str, arguments: dict[str, object]) -> BaseModel:
        return await self._service.invoke(caller_of(ctx), call, arguments)
