"""The journal of events and the audit log, as callers read them."""

from __future__ import annotations

from typing import Annotated

import anyio
from pydantic import Field

from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.event import Event
from microvm_orchestrator.model.records import AuditRow
from microvm_orchestrator.model.values import Line, Moment, Name, moment
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.page import Cursor, ListRequest, PageOf
from microvm_orchestrator.service.service import Service, actor
from microvm_orchestrator.service.waiting import PROGRESS_EVERY_S, Wait
from microvm_orchestrator.store.base import Events, Match
from microvm_orchestrator.store.questions import AuditList

Kind = Annotated[str, Field(pattern=r"^[a-z-]+(\.([a-z_-]+|\*))$", max_length=64)]


class EventWait(Request):
    """Which events to wait for, and from where."""

    after: Cursor | None = Field(
        default=None,
        description="cursor of an earlier answer; `begin` and `now` are understood too",
    )
    kinds: Annotated[list[Kind], Field(max_length=64)] = Field(
        default=[], description="such as `task.done`, or `task.*`; none: all"
    )
    groups: Annotated[list[Name], Field(max_length=64)] = Field(default=[])
    subjects: Annotated[list[Line], Field(max_length=64)] = Field(
        default=[], description="ids of tasks, workers, webhooks ..."
    )
    timeout_s: Wait = Field(default=0.0, description="how long to wait for the first event")
    limit: Annotated[int, Field(strict=True, ge=1, le=1000)] = 100


class EventAnswer(Answer):
    """Events, and the cursor to go on from; a read takes nothing away from other readers."""

    events: list[Event]
    cursor: str
    more: bool = Field(description="there are more already: ask again at once")


class AuditListRequest(ListRequest):
    """Which lines of the audit log."""

    actor: Line | None = None
    action: Line | None = None
    target: Line | None = None
    outcome: Line | None = Field(default=None, description="`ok`, or the code of the refusal")
    since: Moment | None = None


class AuditEntry(Answer):
    """Who did what to what through which door, and what came of it."""

    seq: int
    at: Moment
    actor: str
    role: str
    via: str
    action: str
    target: str
    outcome: str


@declare("event_wait", "GET /v1/events", role=Role.VIEWER, effect=Effect.READ, waits=True)
async def event_wait(service: Service, caller: Caller, request: EventWait) -> EventAnswer:
    """Read the journal from a cursor on; where nothing new is there, wait for it.

    Start with `after: now` to see only what is to come, or without it to see all that is kept;
    then always pass the cursor of the last answer: nothing is missed and nothing comes twice.
    """
    after = request.after
    if after == "now":
        after = await service.store.cursor()
    elif after == "begin":
        after = None
    match = Match(tuple(request.kinds), tuple(request.groups), tuple(request.subjects))
    read = await _read(service, caller, after, match, request)
    return EventAnswer.model_construct(events=list(read.events), cursor=read.cursor, more=read.more)


async def _read(
    service: Service, caller: Caller, after: str | None, match: Match, request: EventWait
) -> Events:
    by = actor(caller, "event_wait")
    started = anyio.current_time()
    while True:
        waited = anyio.current_time() - started
        patience = min(PROGRESS_EVERY_S, max(0.0, request.timeout_s - waited))
        read = await service.journal.read(after, match, request.limit, by, timeout_s=patience)
        waited = anyio.current_time() - started
        if read.events or waited >= request.timeout_s:
            return read
        after = read.cursor
        await caller.progress(waited, request.timeout_s, "no event yet")


@declare("audit_list", "GET /v1/audit", role=Role.ADMIN, effect=Effect.READ)
async def audit_list(
    service: Service, caller: Caller, request: AuditListRequest
) -> PageOf[AuditEntry]:
    """Read the audit log, newest first. Nobody can change it."""
    question = AuditList(
        actor=request.actor,
        action=request.action,
        target=request.target,
        outcome=request.outcome,
        since=None if request.since is None else request.since.timestamp(),
        limit=request.limit,
        cursor=request.cursor,
    )
    page = await service.store.query(question, actor(caller, "audit_list"))
    return PageOf[AuditEntry](items=[_told(row) for row in page.items], next_cursor=page.cursor)


def _told(row: AuditRow) -> AuditEntry:
    return AuditEntry(
        seq=row.seq,
        at=moment(row.at),
        actor=row.actor,
        role=row.role,
        via=row.via,
        action=row.action,
        target=row.target,
        outcome=row.outcome,
    )


CALLS: tuple[Call, ...] = (event_wait, audit_list)
