"""Snapshots of machines, and machines that start where one was saved.

Above are the front ends; below, the machines of this host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.machine import SNAPSHOT, Machine, MachineSnapshot
from microvm_orchestrator.model.operation import Operation
from microvm_orchestrator.model.records import Actor, Record
from microvm_orchestrator.model.values import Name
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.machines import MachineRef, NamedMachine
from microvm_orchestrator.service.operations import USUAL_WAIT_S, WaitS, long_call
from microvm_orchestrator.service.page import ListRequest, PageOf
from microvm_orchestrator.service.records import page_of
from microvm_orchestrator.service.service import Service, actor

if TYPE_CHECKING:
    from microvm_orchestrator.operations import Report

MAX_BRANCHES = 64

SnapshotId = Annotated[str, Field(min_length=1, max_length=100)]


class CreateSnapshot(NamedMachine):
    """A machine to save."""

    wait_s: WaitS = USUAL_WAIT_S


class NamedSnapshot(Request):
    """A snapshot."""

    snapshot_id: SnapshotId


class VerifySnapshot(NamedSnapshot):
    """A snapshot to read."""

    wait_s: WaitS = USUAL_WAIT_S


class SnapshotListRequest(ListRequest):
    """Which snapshots."""

    machine: MachineRef | None = Field(default=None, description="only of this machine")


class BranchMachine(Request):
    """Where to branch off, and how many."""

    source: MachineRef = Field(
        description="a snapshot's id; or a running machine's name or id, which is saved for it and "
        "goes on"
    )
    count: Annotated[int, Field(strict=True, ge=1, le=MAX_BRANCHES)] = 1
    name: Name | None = Field(
        default=None,
        description="what the machine is called; several are called name-1, name-2 ...",
    )
    wait_s: WaitS = USUAL_WAIT_S


class SnapshotDeleted(Answer):
    """The snapshot that is gone."""

    snapshot_id: str


class Branches(Answer):
    """Machines that were started where one was saved."""

    snapshot_id: str
    machines: list[Machine]


@declare("snapshot_create", "POST /v1/machines/{machine}/snapshots", role=Role.OPERATOR, waits=True)
async def snapshot_create(service: Service, caller: Caller, request: CreateSnapshot) -> Operation:
    """Save a machine with its memory, its devices and its disk; it goes on as it was.

    The operation's result is the snapshot, from which `machine_branch` starts others.
    """
    by = actor(caller, "snapshot_create")
    machines = service.host.machines
    machine = await machines.get(request.machine, by)
    machines.live(machine)

    async def work(report: Report) -> JsonValue:
        await report(None, "saves memory and disk")
        return (await service.host.snapshots.save(machine.machine_id, by)).model_dump(mode="json")

    return await long_call(
        service, caller, "snapshot_create", machine.machine_id, request.wait_s, work
    )


@declare("snapshot_get", "GET /v1/snapshots/{snapshot_id}", role=Role.VIEWER, effect=Effect.READ)
async def snapshot_get(service: Service, caller: Caller, request: NamedSnapshot) -> MachineSnapshot:
    """Look at a snapshot."""
    return await service.host.snapshots.get(request.snapshot_id, actor(caller, "snapshot_get"))


@declare("snapshot_list", "GET /v1/snapshots", role=Role.VIEWER, effect=Effect.READ)
async def snapshot_list(
    service: Service, caller: Caller, request: SnapshotListRequest
) -> PageOf[MachineSnapshot]:
    """List snapshots, oldest first: yours, or all if you see everything."""
    by = actor(caller, "snapshot_list")
    wanted = None
    if request.machine is not None:
        wanted = await _saved_id(service, request.machine, by)

    async def shown(record: Record) -> MachineSnapshot | None:
        snapshot = MachineSnapshot.model_validate(record.body)
        fits = by.sees_of(snapshot.owner) and wanted in {None, snapshot.machine_id}
        return snapshot if fits else None

    items, cursor = await page_of(service.store, SNAPSHOT, request, by, shown)
    return PageOf[MachineSnapshot](items=items, next_cursor=cursor)


async def _saved_id(service: Service, reference: str, by: Actor) -> str:
    try:
        return (await service.host.machines.get(reference, by)).machine_id
    except errors.NotFound:
        return reference  # snapshots outlive their machines


@declare(
    "snapshot_verify",
    "POST /v1/snapshots/{snapshot_id}/verify",
    role=Role.OPERATOR,
    idempotent=True,
    waits=True,
)
async def snapshot_verify(service: Service, caller: Caller, request: VerifySnapshot) -> Operation:
    """Read all of a snapshot, and compare it with what was saved; a damaged one is an error."""
    by = actor(caller, "snapshot_verify")
    snapshots = service.host.snapshots
    snapshot = await snapshots.get(request.snapshot_id, by)

    async def work(report: Report) -> JsonValue:
        await report(None, "reads memory and disk")
        await snapshots.verify(snapshot.snapshot_id, by)
        return snapshot.model_dump(mode="json")

    return await long_call(
        service, caller, "snapshot_verify", snapshot.snapshot_id, request.wait_s, work
    )


@declare(
    "snapshot_delete",
    "DELETE /v1/snapshots/{snapshot_id}",
    role=Role.OPERATOR,
    effect=Effect.DESTROY,
)
async def snapshot_delete(
    service: Service, caller: Caller, request: NamedSnapshot
) -> SnapshotDeleted:
    """Delete a snapshot; machines that were started from it run on.

    A part of a cluster's snapshot goes with `cluster_snapshot_delete` alone.
    """
    await service.host.snapshots.forget(request.snapshot_id, actor(caller, "snapshot_delete"))
    return SnapshotDeleted(snapshot_id=request.snapshot_id)


@declare("machine_branch", "POST /v1/branches", role=Role.OPERATOR, waits=True)
async def machine_branch(service: Service, caller: Caller, request: BranchMachine) -> Operation:
    """Start machines that go on where one was saved, each with its own entropy, clock and names.

    All or none: when one cannot be started, the others are taken away again. The operation's result
    names the snapshot and the machines.
    """
    by = actor(caller, "machine_branch")
    machines, snapshots = service.host.machines, service.host.snapshots
    saved = None
    try:
        saved = await snapshots.get(request.source, by)
        target = saved.snapshot_id
    except errors.NotFound:
        machine = await machines.get(request.source, by)
        machines.live(machine)
        target = machine.machine_id
    names: list[str | None] = [request.name]
    if request.count > 1:
        names = [request.name and f"{request.name}-{n + 1}" for n in range(request.count)]

    async def work(report: Report) -> JsonValue:
        if saved is None:
            await report(None, "saves memory and disk")
        source = saved or await snapshots.save(target, by)
        await report(0.5, f"starts {len(names)}")
        started = await snapshots.branch_all(source.snapshot_id, by, names)
        answer = Branches(snapshot_id=source.snapshot_id, machines=started)
        return answer.model_dump(mode="json")

    return await long_call(service, caller, "machine_branch", target, request.wait_s, work)


CALLS: tuple[Call, ...] = (
    snapshot_create,
    snapshot_get,
    snapshot_list,
    snapshot_verify,
    snapshot_delete,
    machine_branch,
)
