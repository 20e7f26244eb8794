"""Workers: external claimants that register, are heard of, drain and get lost."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from microvm_orchestrator import errors
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.records import WorkerRow
from microvm_orchestrator.model.values import Capability, Flag, Labels, Moment, Name, moment
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.page import ListRequest, PageOf
from microvm_orchestrator.service.service import Service, actor
from microvm_orchestrator.service.tasks import worker_name
from microvm_orchestrator.store.base import WorkerCard
from microvm_orchestrator.store.questions import WorkerByName, WorkerList


class WorkerRegister(Request):
    """What a worker says of itself; a repeated call is its heartbeat."""

    worker: Name | None = None
    capabilities: Annotated[list[Capability], Field(max_length=256)] = Field(default=[])
    roles: Annotated[list[Name], Field(max_length=64)] = Field(default=[])
    labels: Labels = Field(default={})
    ttl_s: Annotated[float, Field(strict=True, ge=1, le=86_400)] = Field(
        default=90.0, description="how long it may be silent before it counts as lost"
    )


class WorkerRef(Request):
    """One worker."""

    worker: Name


class WorkerHeartbeat(Request):
    """A registered worker's sign of life."""

    worker: Name | None = None


class WorkerDrain(WorkerRef):
    """Whether it shall take no more tasks."""

    draining: Flag = True


class Worker(Answer):
    """A worker as it is known."""

    worker: str
    principal: str = Field(description="whose token or user it works under")
    capabilities: list[str]
    roles: list[str]
    labels: dict[str, str]
    state: str = Field(description="`active`, `draining` or `lost`")
    registered_at: Moment
    seen_at: Moment


class WorkerGone(Answer):
    """The worker that was removed."""

    worker: str


def _told(row: WorkerRow) -> Worker:
    return Worker(
        worker=row.name,
        principal=row.principal,
        capabilities=list(row.capabilities),
        roles=list(row.roles),
        labels=row.labels,
        state="lost" if row.lost else "draining" if row.draining else "active",
        registered_at=moment(row.registered_at),
        seen_at=moment(row.seen_at),
    )


@declare("worker_register", "POST /v1/workers", role=Role.WORKER, idempotent=True, audited=False)
async def worker_register(service: Service, caller: Caller, request: WorkerRegister) -> Worker:
    """Register a worker with what it can do, for as long as it says that it is still there.

    Its capabilities and roles are added to those of each task_claim it makes.
    """
    name = worker_name(caller, request.worker)
    card = WorkerCard(name, tuple(request.capabilities), tuple(request.roles), request.labels)
    by = actor(caller, "worker_register")
    await service.store.enlist(card, request.ttl_s, by)
    return await _worker(service, caller, name)


def _sees(caller: Caller, row: WorkerRow) -> bool:
    """A caller that sees only some tasks sees only the workers that are its own."""
    who = caller.principal
    return who.scope.everything or row.principal == who.name


async def _worker(service: Service, caller: Caller, name: str) -> Worker:
    row = await service.store.query(WorkerByName(name), actor(caller, "worker_get"))
    if row is None or not _sees(caller, row):
        raise errors.NotFound(f"no worker {name}", hint="worker_list shows who is registered")
    return _told(row)


@declare(
    "worker_heartbeat",
    "POST /v1/workers/heartbeat",
    role=Role.WORKER,
    idempotent=True,
    audited=False,
)
async def worker_heartbeat(service: Service, caller: Caller, request: WorkerHeartbeat) -> Worker:
    """Say that a registered worker is still there, though it holds no task.

    Claims and heartbeats of tasks say so too.
    """
    by = actor(caller, "worker_heartbeat")
    name = worker_name(caller, request.worker)
    row = await service.store.query(WorkerByName(name), by)
    if row is None:
        raise errors.NotFound(f"no worker {name}", hint="register it first: worker_register")
    card = WorkerCard(name, row.capabilities, row.roles, row.labels)
    await service.store.enlist(card, row.seen_until - row.seen_at, by)
    return await _worker(service, caller, name)


@declare("worker_get", "GET /v1/workers/{worker}", role=Role.VIEWER, effect=Effect.READ)
async def worker_get(service: Service, caller: Caller, request: WorkerRef) -> Worker:
    """Look at a worker: what it can do, and when it was last heard of."""
    return await _worker(service, caller, request.worker)


@declare("worker_list", "GET /v1/workers", role=Role.VIEWER, effect=Effect.READ)
async def worker_list(service: Service, caller: Caller, request: ListRequest) -> PageOf[Worker]:
    """List the registered workers."""
    question = WorkerList(request.limit, request.cursor)
    page = await service.store.query(question, actor(caller, "worker_list"))
    seen = [_told(row) for row in page.items if _sees(caller, row)]
    return PageOf[Worker](items=seen, next_cursor=page.cursor)


@declare("worker_drain", "POST /v1/workers/{worker}/drain", role=Role.OPERATOR, idempotent=True)
async def worker_drain(service: Service, caller: Caller, request: WorkerDrain) -> Worker:
    """Let a worker finish what it holds and take no more; `draining: false` takes it back."""
    by = actor(caller, "worker_drain")
    await _worker(service, caller, request.worker)
    await service.store.drain(request.worker, draining=request.draining, by=by)
    return await _worker(service, caller, request.worker)


@declare(
    "worker_remove",
    "DELETE /v1/workers/{worker}",
    role=Role.OPERATOR,
    effect=Effect.DESTROY,
)
async def worker_remove(service: Service, caller: Caller, request: WorkerRef) -> WorkerGone:
    """Forget a worker. Leases it holds stay until they are ended or run out."""
    await _worker(service, caller, request.worker)
    await service.store.dismiss(request.worker, actor(caller, "worker_remove"))
    return WorkerGone(worker=request.worker)


CALLS: tuple[Call, ...] = (
    worker_register,
    worker_heartbeat,
    worker_get,
    worker_list,
    worker_drain,
    worker_remove,
)
