"""The table of everything a front end can ask for.

A call is declared once, beside the function that answers it: its name, what it takes and gives,
who may make it and what it does to the world. The MCP tools, the REST routes with their OpenAPI
document and the reference pages are all read off this table, so none can say something else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, get_type_hints

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from microvm_orchestrator.model.access import Principal, Role


class Effect(StrEnum):
    """What a call does to the world."""

    READ = "read"
    WRITE = "write"
    DESTROY = "destroy"


class Request(BaseModel):
    """What a call takes. Unknown fields are errors: a misspelt limit must not be absent."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(BaseModel):
    """What a call gives, where the model has no word for it already."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Progress(Protocol):
    """How a waiting call says that it is still there."""

    async def __call__(self, done: float, total: float | None, message: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Caller:
    """One request's surroundings: who asks, through which door, and whom to tell of progress."""

    principal: Principal
    via: str
    progress: Progress


@dataclass(frozen=True, slots=True)
class Call:
    """One thing a front end can ask for."""

    name: str
    title: str
    description: str
    request: type[Request]
    answer: type[BaseModel]
    role: Role
    effect: Effect
    idempotent: bool
    method: str
    path: str
    waits: bool
    audited: bool
    handler: Callable[[Any, Caller, Any], Awaitable[BaseModel]]

    @property
    def noun(self) -> str:
        return self.name.partition("_")[0]


def declare(
    name: str,
    http: str,
    *,
    role: Role,
    effect: Effect = Effect.WRITE,
    idempotent: bool = False,
    waits: bool = False,
    audited: bool | None = None,
) -> Callable[[Callable[[Any, Caller, Any], Awaitable[BaseModel]]], Call]:
    """Turn `async def handler(service, caller, request: R) -> A` into a `Call`.

    `http` is the REST route, as in `POST /v1/tasks`. The title and the description are the
    handler's docstring. Reads are not audited; everything else is, unless `audited` says otherwise.
    """

    def wrap(handler: Callable[[Any, Caller, Any], Awaitable[BaseModel]]) -> Call:
        hints = get_type_hints(handler)
        title, _, description = (handler.__doc__ or "").strip().partition("\n")
        method, _, path = http.partition(" ")
        return Call(
            name=name,
            title=title.rstrip("."),
            description="\n".join(
                line.strip() for line in f"{title}\n{description}".splitlines()
            ).strip(),
            request=hints["request"],
            answer=hints["return"],
            role=role,
            effect=effect,
            idempotent=idempotent or effect is Effect.READ,
            method=method,
            path=path,
            waits=waits,
            audited=effect is not Effect.READ if audited is None else audited,
            handler=handler,
        )

    return wrap
