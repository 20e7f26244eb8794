"""Machines: asked for, started, looked at, ended.

What takes longer than a request should is an operation. Above are the front ends; below, the
machines of this host.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Annotated

import anyio
import anyio.to_thread
from pydantic import Field, JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.images.store import fixed_by
from microvm_orchestrator.machine import console
from microvm_orchestrator.machine.base import STOP_GRACE_S, Accel, Limits
from microvm_orchestrator.machine.shell import GuestUsage
from microvm_orchestrator.machines import Wish
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.machine import MACHINE, Machine, MachineState
from microvm_orchestrator.model.names import NAME_PATTERN
from microvm_orchestrator.model.operation import Operation
from microvm_orchestrator.model.records import Record
from microvm_orchestrator.model.values import Flag, Name
from microvm_orchestrator.networks import Attachment
from microvm_orchestrator.service.caches import domain_of
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.idempotency import id_for
from microvm_orchestrator.service.images import ImageName
from microvm_orchestrator.service.operations import USUAL_WAIT_S, WaitS, long_call
from microvm_orchestrator.service.page import ListRequest, PageOf
from microvm_orchestrator.service.records import page_of
from microvm_orchestrator.service.service import Service, actor
from microvm_orchestrator.service.tasks import IdempotencyKey
from microvm_orchestrator.service.waiting import Wait

if TYPE_CHECKING:
    from microvm_orchestrator.operations import Report

MachineRef = Annotated[str, Field(min_length=1, max_length=100)]
InNetwork = Annotated[str, Field(min_length=1, max_length=200)]
_REFERENCE = "its name or id"
# How often a console that is followed is looked at: the hypervisor writes it, not we.
_LOOK_EVERY_S = 0.1
_MAX_LOG = 1 << 20


class DefineMachine(Request):
    """A machine to write down."""

    name: Name | None = Field(default=None, description="what it is called; unique while it is")
    image: ImageName | None = Field(
        default=None,
        description="a name or digest; by default the setting machines.default_image",
    )
    memory_mib: Annotated[int, Field(strict=True, ge=64, le=1 << 20)] | None = Field(
        default=None,
        description="by default what a runner's guest has, else the setting "
        "machines.default_memory_mib",
    )
    vcpus: Annotated[int, Field(strict=True, ge=1, le=64)] | None = Field(
        default=None, description="by default what a runner's guest has, else 1"
    )
    disk_mib: Annotated[int, Field(strict=True, ge=16, le=1 << 24)] | None = Field(
        default=None,
        description="size of a disk for all that the guest writes, which it keeps when it is "
        "stopped; without one it writes into its memory",
    )
    cache: Annotated[str, Field(pattern=NAME_PATTERN)] | None = Field(
        default=None,
        description="the trust domain, such as a repository, whose cache disk it finds at /cache: "
        "what machines of the domain left there, one after another; a clone gets a copy of it",
    )
    networks: Annotated[list[InNetwork], Field(max_length=8)] = Field(
        default=[],
        description="networks it is in, as name or id: `lan`; with addresses that it has to have: "
        "`lan=10.80.0.5` or `lan=10.80.0.5,fd80::5`; the first is its eth0",
    )
    max_pids: Annotated[int, Field(strict=True, ge=1, le=1 << 22)] | None = Field(
        default=None, description="processes and threads that commands in it have at a time"
    )
    max_disk_operations_s: Annotated[int, Field(strict=True, ge=1)] | None = Field(
        default=None, description="reads and writes of each of its disks by the second"
    )
    max_disk_bytes_s: Annotated[int, Field(strict=True, ge=512)] | None = Field(
        default=None, description="read and written of each of its disks by the second"
    )
    accel: Accel = Field(default=Accel.AUTO, description="how guest code runs")
    idempotency_key: IdempotencyKey | None = None


class NamedMachine(Request):
    """A machine."""

    machine: MachineRef = Field(description=_REFERENCE)


class StartMachine(NamedMachine):
    """A machine to start."""

    queue: Flag = Field(
        default=True, description="whether to wait in line when all slots are busy, or be refused"
    )
    wait_s: WaitS = USUAL_WAIT_S


class StopMachine(NamedMachine):
    """A machine to stop."""

    grace_s: Annotated[float, Field(strict=True, ge=0, le=3600)] = Field(
        default=STOP_GRACE_S, description="how long its guest may take before it is ended by force"
    )
    wait_s: WaitS = USUAL_WAIT_S


class MachineListRequest(ListRequest):
    """Which machines."""

    state: Annotated[list[MachineState], Field(max_length=7)] = Field(
        default=[], description="only in one of these states"
    )


class ReadConsole(NamedMachine):
    """Which part of a machine's console."""

    offset: Annotated[int, Field(strict=True, ge=0)] | None = Field(
        default=None, description="`next` of the answer before; without it, the last of it"
    )
    limit: Annotated[int, Field(strict=True, ge=1, le=_MAX_LOG)] = Field(
        default=65_536, description="at most so many bytes"
    )
    timeout_s: Wait = Field(default=0.0, description="how long to wait where there is nothing yet")


class MachineDeleted(Answer):
    """The machine that is gone."""

    machine_id: str


class ConsoleRead(Answer):
    """What a guest wrote to its console; anything at all may stand there."""

    text: str
    offset: int = Field(description="of its first byte: later than asked for when that is gone")
    next: int = Field(description="where to go on reading")
    ended: bool = Field(description="the machine does not run: nothing more will come")


class MachineUsage(Answer):
    """What a machine costs this host now."""

    machine_id: str
    cpu_s: float
    rss_mib: float
    peak_mib: float = Field(description="the most memory it ever had")
    pss_mib: float | None = Field(
        description="shared pages counted by their share; null where the kernel does not tell"
    )
    disk_mib: float = Field(description="what its own files take on the disk")
    received_bytes: int | None = Field(
        description="over all its links; null where nobody counts them"
    )
    sent_bytes: int | None
    guest: GuestUsage | None = Field(
        description="what the guest says; null when it does not answer at once"
    )


@declare("machine_define", "POST /v1/machines", role=Role.OPERATOR)
async def machine_define(service: Service, caller: Caller, request: DefineMachine) -> Machine:
    """Write a machine down; `machine_start` boots it.

    It belongs to you, keeps its name until it is deleted, and may be started again and again.
    """
    by = actor(caller, "machine_define")
    settings = service.settings.machines
    images = service.host.images
    image = await anyio.to_thread.run_sync(images.get, request.image or settings.default_image)
    own = fixed_by(image)
    wish = Wish(
        image=image.digest,
        memory_mib=request.memory_mib or own.memory_mib or settings.default_memory_mib,
        vcpus=request.vcpus or own.vcpus or 1,
        accel=request.accel,
        name=request.name,
        disk_mib=request.disk_mib,
        networks=tuple(_attachment(text) for text in request.networks),
        limits=Limits(
            pids=request.max_pids,
            disk_operations=request.max_disk_operations_s,
            disk_bytes=request.max_disk_bytes_s,
        ),
        cache=request.cache and domain_of(by, request.cache),
    )
    machine_id = id_for("m", by.name, request.idempotency_key)
    machines = service.host.machines
    if request.idempotency_key is not None:
        with contextlib.suppress(errors.NotFound):
            return _same(await machines.get(machine_id, by), wish)
    return await machines.define(wish, by, machine_id=machine_id)


def _attachment(text: str) -> Attachment:
    """Read NETWORK or NETWORK=ADDRESS,ADDRESS."""
    network, equals, addresses = text.partition("=")
    return Attachment(network, tuple(addresses.split(",")) if equals else ())


def _same(machine: Machine, wish: Wish) -> Machine:
    if wish.made(machine):
        return machine
    raise errors.KeyReused(f"this key made machine {machine.machine_id}, which is another one")


@declare("machine_get", "GET /v1/machines/{machine}", role=Role.VIEWER, effect=Effect.READ)
async def machine_get(service: Service, caller: Caller, request: NamedMachine) -> Machine:
    """Look at a machine: how it was made, where it stands, and why."""
    return await service.host.machines.get(request.machine, actor(caller, "machine_get"))


@declare("machine_list", "GET /v1/machines", role=Role.VIEWER, effect=Effect.READ)
async def machine_list(
    service: Service, caller: Caller, request: MachineListRequest
) -> PageOf[Machine]:
    """List machines, oldest first: yours, or all if you see everything."""
    by = actor(caller, "machine_list")

    async def shown(record: Record) -> Machine | None:
        machine = Machine.model_validate(record.body)
        return machine if by.sees_of(machine.owner) and machine.state in wanted else None

    wanted = request.state or list(MachineState)
    items, cursor = await page_of(service.store, MACHINE, request, by, shown)
    return PageOf[Machine](items=items, next_cursor=cursor)


@declare("machine_start", "POST /v1/machines/{machine}/start", role=Role.OPERATOR, waits=True)
async def machine_start(service: Service, caller: Caller, request: StartMachine) -> Operation:
    """Boot a machine; the operation succeeds when its guest says that it is ready.

    One that fails to boot is `crashed`, and the error shows the end of its console. Where all slots
    are busy it waits in line.
    """
    by = actor(caller, "machine_start")
    machines = service.host.machines
    machine = await machines.get(request.machine, by)

    async def work(report: Report) -> JsonValue:
        await report(None, "waits for a slot, then boots")
        started = await machines.start(machine.machine_id, by, wait_for_room=request.queue)
        return started.model_dump(mode="json")

    return await long_call(
        service, caller, "machine_start", machine.machine_id, request.wait_s, work
    )


@declare("machine_stop", "POST /v1/machines/{machine}/stop", role=Role.OPERATOR, waits=True)
async def machine_stop(service: Service, caller: Caller, request: StopMachine) -> Operation:
    """Let a machine's guest power off, and end it by force when it has not in time."""
    by = actor(caller, "machine_stop")
    machines = service.host.machines
    machine = await machines.get(request.machine, by)
    machines.live(machine)

    async def work(report: Report) -> JsonValue:
        await report(None, "the guest powers off")
        stopped = await machines.stop(machine.machine_id, by, grace_s=request.grace_s)
        return stopped.model_dump(mode="json")

    return await long_call(
        service, caller, "machine_stop", machine.machine_id, request.wait_s, work
    )


@declare(
    "machine_kill", "POST /v1/machines/{machine}/kill", role=Role.OPERATOR, effect=Effect.DESTROY
)
async def machine_kill(service: Service, caller: Caller, request: NamedMachine) -> Machine:
    """End a machine at once, as a power cut would."""
    return await service.host.machines.kill(request.machine, actor(caller, "machine_kill"))


@declare("machine_pause", "POST /v1/machines/{machine}/pause", role=Role.OPERATOR)
async def machine_pause(service: Service, caller: Caller, request: NamedMachine) -> Machine:
    """Let a machine stand still; its memory stays, and it takes no more processor time."""
    return await service.host.machines.pause(request.machine, actor(caller, "machine_pause"))


@declare("machine_resume", "POST /v1/machines/{machine}/resume", role=Role.OPERATOR)
async def machine_resume(service: Service, caller: Caller, request: NamedMachine) -> Machine:
    """Let a paused machine go on."""
    return await service.host.machines.resume(request.machine, actor(caller, "machine_resume"))


@declare(
    "machine_delete", "DELETE /v1/machines/{machine}", role=Role.OPERATOR, effect=Effect.DESTROY
)
async def machine_delete(service: Service, caller: Caller, request: NamedMachine) -> MachineDeleted:
    """Forget a machine that does not run, with its disk and its console.

    Its snapshots stay.
    """
    by = actor(caller, "machine_delete")
    machine = await service.host.machines.delete(request.machine, by)
    await service.host.execs.forget_machine(machine.machine_id)
    await service.host.forwards.forget_machine(machine.machine_id)
    await service.host.kernel_logs.forget_machine(machine.machine_id)
    return MachineDeleted(machine_id=machine.machine_id)


@declare("machine_usage", "GET /v1/machines/{machine}/usage", role=Role.VIEWER, effect=Effect.READ)
async def machine_usage(service: Service, caller: Caller, request: NamedMachine) -> MachineUsage:
    """Measure what a running machine costs this host now."""
    machines = service.host.machines
    machine = await machines.get(request.machine, actor(caller, "machine_usage"))
    usage = await machines.live(machine).usage()
    carried = await service.host.networks.usage(machine)
    if carried is not None:
        usage = dataclasses.replace(usage, received_bytes=carried[0], sent_bytes=carried[1])
    return MachineUsage(machine_id=machine.machine_id, **dataclasses.asdict(usage))


@declare(
    "machine_console",
    "GET /v1/machines/{machine}/console",
    role=Role.VIEWER,
    effect=Effect.READ,
    waits=True,
)
async def machine_console(service: Service, caller: Caller, request: ReadConsole) -> ConsoleRead:
    """Read what a guest wrote to its console, also after it ended; or wait for more.

    The last megabyte is kept. To follow it, ask again with `next` as `offset` and a `timeout_s`.
    """
    machines = service.host.machines
    machine = await machines.get(request.machine, actor(caller, "machine_console"))
    path = machines.console(machine)
    offset = request.offset
    if offset is None:
        offset = max(0, await anyio.to_thread.run_sync(console.size, path) - request.limit)
    with anyio.move_on_after(request.timeout_s):
        while machines.runs(machine) and console.size(path) <= offset:
            service.journal.refuse_when_stopping()
            await anyio.sleep(_LOOK_EVERY_S)
    # In this order: what it said last is read once it is known to have ended.
    ended = not machines.runs(machine)
    begin, data = await anyio.to_thread.run_sync(console.read, path, offset, request.limit)
    return ConsoleRead(
        text=data.decode(errors="replace"), offset=begin, next=begin + len(data), ended=ended
    )


CALLS: tuple[Call, ...] = (
    machine_define,
    machine_get,
    machine_list,
    machine_start,
    machine_stop,
    machine_kill,
    machine_pause,
    machine_resume,
    machine_delete,
    machine_usage,
    machine_console,
)
