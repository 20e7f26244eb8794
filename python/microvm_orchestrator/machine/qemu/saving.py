"""Saving a machine that goes on: its memory is copied, or sent into a second QEMU, the scribe.

That of an emulated machine which was booted is in a file of ours: it is held still while that is
copied and its devices are written down. Any other is sent to the scribe, which keeps the memory in
a file of ours, so that writing down its devices is all that is left to do. With KVM the machine
stands still for the last moment only, whatever it has of memory; under emulation for as long as
that is sent. Each snapshot is complete in itself, and a chain of them no slower and no larger than
one. Decision 8 has the measurements.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.machine.base import Accel, Snapshot
from microvm_orchestrator.machine.digest import copy, copy_sparse
from microvm_orchestrator.machine.handover import Handover
from microvm_orchestrator.machine.qemu import argv, disks, host, migration, ram
from microvm_orchestrator.machine.qemu.qmp import Event, Qmp, open_qmp
from microvm_orchestrator.machine.qemu.snapshots import RAM, Origin, SavedMachine
from microvm_orchestrator.machine.record import Record
from microvm_orchestrator.model.machine import MachineState

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream

    from microvm_orchestrator.machine.qemu.machine import QemuMachine

# How long a monitor's event may come after the answer to what caused it.
_EVENT_S = 5.0


async def save(
    machine: QemuMachine, snapshot_id: str, *, memory: bool, on_taken: Callable[[], None]
) -> Snapshot:
    """Save a machine, which goes on as it was.

    Raises: AlreadyExists, StateForbids, MachineFailed; nothing is left of the snapshot then.
    """
    qmp = machine.qmp  # raises for one that has ended
    owner = machine.host.user
    saved = machine.host.saved(snapshot_id)
    saved.create()
    try:
        if not memory:
            still = partial(disks.freeze, qmp, machine.spec, machine.record.folder, saved.folder)
            pause_s = await _while_still(machine, qmp, still)
            on_taken()
            return await saved.seal(_origin(machine, pause_s, memory=False), owner)
        if machine.memory is not None and not _can_be_sent_running(machine):
            with _again(machine.memory) as file:
                still = partial(_copy_still, machine, qmp, saved, file)
                pause_s = await _while_still(machine, qmp, still)
            on_taken()
            return await saved.seal(_origin(machine, pause_s), owner)
        with ram.opened(machine.spec.memory_mib) as file:
            sink, source = socket.socketpair()
            with source:
                async with _scribe(machine, saved, file, sink.detach()) as (scribe, fd):
                    async with migration.loading(scribe, fd):
                        pause_s = await _hand_over(machine, qmp, saved, source.fileno())
                        on_taken()
                    await _write_down(scribe, saved)
            digest = await anyio.to_thread.run_sync(copy_sparse, file, saved.ram)
        return await saved.seal(_origin(machine, pause_s), owner, {RAM: digest})
    except OSError as error:
        saved.discard()
        raise errors.MachineFailed(
            f"snapshot {snapshot_id} cannot be written: {error.strerror}"
        ) from error
    except BaseException:
        saved.discard()
        raise


def _origin(machine: QemuMachine, pause_s: float, *, memory: bool = True) -> Origin:
    spec = disks.without_volumes(machine.spec)
    return Origin(spec, machine.accel, machine.host.engine, pause_s, memory=memory)


@contextmanager
def _again(memory: int) -> Generator[int]:
    """Hold a file also when its machine ends, and lets go of it."""
    fd = os.dup(memory)
    try:
        yield fd
    finally:
        os.close(fd)


async def _copy_still(machine: QemuMachine, qmp: Qmp, saved: SavedMachine, memory: int) -> None:
    await disks.freeze(qmp, machine.spec, machine.record.folder, saved.folder)
    await _write_down(qmp, saved)
    await anyio.to_thread.run_sync(copy, memory, saved.ram)


async def _hand_over(machine: QemuMachine, qmp: Qmp, saved: SavedMachine, fd: int) -> float:
    """Send the machine and let it go on; returns for how long it stood still."""
    if _can_be_sent_running(machine):
        return await _while_still(machine, qmp, partial(migration.send, qmp, fd), stop=False)
    return await _while_still(machine, qmp, partial(_send_still, machine, qmp, saved, fd))


async def _while_still(
    machine: QemuMachine, qmp: Qmp, take: Callable[[], Awaitable[None]], *, stop: bool = True
) -> float:
    """Take what stands still, and let the machine go on if it ran; returns how long it stood."""
    if machine.state is not MachineState.RUNNING:
        await take()
        return 0.0
    with machine.standing_still(), qmp.listen() as events:
        try:
            if stop:
                await qmp.execute("stop")
            await take()
        finally:
            # What there is of it is taken, or never will be: either way the machine is to go on.
            with anyio.CancelScope(shield=True):
                await migration.go_on(qmp)
        return await _pause_s(events)


async def _send_still(machine: QemuMachine, qmp: Qmp, saved: SavedMachine, fd: int) -> None:
    await disks.freeze(qmp, machine.spec, machine.record.folder, saved.folder)
    await migration.send(qmp, fd)


def _can_be_sent_running(machine: QemuMachine) -> bool:
    """Tell whether a machine may run while its memory is sent.

    Before QEMU 9.0 the emulator forgets now and then that a page was written after it was sent (the
    bits are cleared and its caches not told), and what is loaded then crashes. And what was written
    to disks must be that of the very moment of which the memory is.
    """
    steady = all(disk.read_only for disk in machine.spec.all_disks)
    running = machine.state is MachineState.RUNNING
    return running and machine.accel is Accel.KVM and steady


async def _write_down(qmp: Qmp, saved: SavedMachine) -> None:
    """Write all but the memory, which is in a file."""
    fd = os.open(saved.state, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        await migration.send(qmp, fd, without_shared=True)
    finally:
        os.close(fd)


@asynccontextmanager
async def _scribe(
    machine: QemuMachine, saved: SavedMachine, memory: int, fd: int
) -> AsyncGenerator[tuple[Qmp, int]]:
    """Hold a QEMU that can take the machine in and never runs it."""
    surroundings = machine.host
    record = Record(saved.scribe)
    # Under a name of its own, by which one that a dead daemon left is found.
    spec = replace(machine.spec, machine_id=saved.snapshot_id)
    with Handover() as given:
        given.inherit(fd)
        its_own = argv.Memory(given.again(os.dup(memory)), shared=True)
        resident = host.launch(
            surroundings,
            record,
            spec,
            machine.accel,
            argv.Load(),
            its_own,
            disks.stand_ins(spec),
            ["hubport,hubid=0"] * len(spec.links),
            given,
        )
    try:
        async with open_qmp(f"the scribe of snapshot {saved.snapshot_id}", record.monitor) as qmp:
            await migration.prepare(qmp)
            yield qmp, fd
    finally:
        await resident.end()
        resident.close()
        host.leave_group(surroundings, spec.machine_id)


async def _pause_s(events: MemoryObjectReceiveStream[Event]) -> float:
    """Measure from when the machine stopped until it went on, by the clock of its QEMU."""
    stopped = 0.0
    with anyio.move_on_after(_EVENT_S):
        async for event in events:
            if event.name == "STOP":
                stopped = event.at
            elif event.name == "RESUME" and stopped:
                return event.at - stopped
    return 0.0
