"""A small table of calls on a real store, so that these tests know what each call does."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
from pydantic import Field

from microvm_orchestrator import config, errors
from microvm_orchestrator.events import Journal
from microvm_orchestrator.host import open_host
from microvm_orchestrator.mcp_server.server import McpFrontEnd
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.values import Json
from microvm_orchestrator.service.calls import Answer, Caller, Effect, Request, declare
from microvm_orchestrator.service.service import Service
from microvm_orchestrator.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path


class Look(Request):
    name: str = Field(description="which thing")


class Thing(Answer):
    name: str
    seen_by: str
    note: str | None = None
    detail: Json = None


class Wait(Request):
    name: str
    reports: int = 0


class Things(Answer):
    items: list[Thing]
    next_cursor: str | None = None


@dataclass
class Stage:
    """What the calls of the table do to the tests, and the tests to them."""

    started: anyio.Event = field(default_factory=anyio.Event)
    go_on: anyio.Event = field(default_factory=anyio.Event)
    cancelled: anyio.Event = field(default_factory=anyio.Event)
    calls: int = 0


stage = Stage()


@declare("thing_look", "GET /v1/things/{name}", role=Role.VIEWER, effect=Effect.READ)
async def thing_look(_service: Service, caller: Caller, request: Look) -> Thing:
    """Look at a thing.

    It says who looked.
    """
    match request.name:
        case "missing":
            raise errors.NotFound("no thing is named missing", hint="call thing_list")
        case "cracked":
            raise RuntimeError("a secret of the daemon")
        case name:
            return Thing(name=name, seen_by=caller.principal.name, detail={"a": [1, None]})


@declare("thing_list", "GET /v1/things", role=Role.VIEWER, effect=Effect.READ)
async def thing_list(_service: Service, _caller: Caller, request: Request) -> Things:  # noqa: ARG001 - asked nothing
    """List the things."""
    return Things(items=[])


@declare("thing_wait", "GET /v1/wait", role=Role.VIEWER, effect=Effect.READ, waits=True)
async def thing_wait(_service: Service, caller: Caller, request: Wait) -> Thing:
    """Wait for a thing."""
    return await _waited(caller, request)


@declare("thing_take", "POST /v1/take", role=Role.VIEWER, waits=True)
async def thing_take(_service: Service, caller: Caller, request: Wait) -> Thing:
    """Take a thing, once there is one."""
    return await _waited(caller, request)


@declare("thing_break", "POST /v1/break", role=Role.ADMIN, effect=Effect.DESTROY)
async def thing_break(_service: Service, caller: Caller, request: Look) -> Thing:
    """Break a thing."""
    return Thing(name=request.name, seen_by=caller.principal.name)


async def _waited(caller: Caller, request: Wait) -> Thing:
    stage.calls += 1
    stage.started.set()
    for done in range(request.reports):
        await caller.progress(done, request.reports, "waiting")
    try:
        if request.name != "quick":
            await stage.go_on.wait()
    except anyio.get_cancelled_exc_class():
        stage.cancelled.set()
        raise
    return Thing(name=request.name, seen_by=caller.principal.name)


TABLE = {call.name: call for call in (thing_look, thing_list, thing_wait, thing_take, thing_break)}


@asynccontextmanager
async def service_on(path: Path, calls: Any = None) -> AsyncGenerator[Service]:
    """Open the store in `path` and put a service over it."""
    loaded = config.load(None, {}, {"state_dir": str(path), "socket.path": str(path / "s")})
    store = SqliteStore(path / "store.db")
    async with store.opened(), open_host(loaded.settings, store) as host:
        yield Service(store, Journal(store), host, loaded.settings, calls or TABLE)


@asynccontextmanager
async def front_on(path: Path) -> AsyncGenerator[McpFrontEnd]:
    """Start a front end on the store in `path`, as a daemon does."""
    async with service_on(path) as service:
        front = McpFrontEnd(service)
        async with front.running():
            yield front
