"""The tools of a profile: listed for clients, and found by their names.

What a tool answers with, and how refusals look, is each profile's own and stands in its module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from mcp.shared.exceptions import MCPError
from mcp.types import METHOD_NOT_FOUND, ListToolsResult, Tool

from microvm_orchestrator.mcp_server.schemas import answer_schema, request_schema

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mcp.types import PaginatedRequestParams
    from pydantic import BaseModel

    from microvm_orchestrator.mcp_server.callers import Context
    from microvm_orchestrator.service.calls import Request

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Offer(Generic[A]):
    """A tool: its words, what it takes and what answers it."""

    description: str
    request: type[Request]
    answer: A
    # What it gives, where the program said so.
    given: type[BaseModel] | None = None


class Offers(Generic[A]):
    """All tools of a profile, in their order."""

    def __init__(self, offered: Mapping[str, Offer[A]]) -> None:
        self._offered = offered
        self._listed = ListToolsResult(
            tools=[
                Tool(
                    name=name,
                    description=offer.description,
                    input_schema=request_schema(offer.request),
                    output_schema=None if offer.given is None else answer_schema(offer.given),
                )
                for name, offer in offered.items()
            ]
        )

    async def listed(
        self, _ctx: Context, _params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        return self._listed

    def find(self, name: str) -> Offer[A]:
        """Raises: MCPError."""
        offer = self._offered.get(name)
        if offer is None:
            raise MCPError(code=METHOD_NOT_FOUND, message=f"Unknown tool: {name}")
        return offer
