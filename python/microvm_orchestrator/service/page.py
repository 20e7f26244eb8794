"""What every list takes and gives."""

from __future__ import annotations

from typing import Annotated, Generic, TypeVar

from pydantic import Field

from microvm_orchestrator.service.calls import Answer, Request

T = TypeVar("T")

Limit = Annotated[int, Field(strict=True, ge=1, le=200)]
Cursor = Annotated[str, Field(min_length=1, max_length=2000)]


class ListRequest(Request):
    """A page of a list."""

    limit: Limit = 50
    cursor: Cursor | None = Field(
        default=None, description="next_cursor of the page before; without it, the first page"
    )


class PageOf(Answer, Generic[T]):
    """A page of a list."""

    items: list[T]
    next_cursor: str | None = Field(default=None, description="where the list goes on")
