"""Saving a machine that runs on: its memory goes, while it runs, into a second QEMU, the scribe.

The scribe's memory is a shared file, so that writing down its devices completes the snapshot. The
machine stands still for the last moment only, milliseconds whatever it has of memory, and it does
not matter whether it was booted or is itself a clone: each snapshot is complete in itself, and a
chain of them no slower and no larger than one. Decision 7 has the measurements.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator.machine.base import Snapshot
from microvm_orchestrator.machine.qemu import argv, disks, host, migration
from microvm_orchestrator.machine.qemu.handover import Handover
from microvm_orchestrator.machine.qemu.qmp import Event, Qmp, open_qmp
from microvm_orchestrator.machine.qemu.record import Record
from microvm_orchestrator.machine.qemu.snapshots import SavedMachine
from microvm_orchestrator.model.machine import MachineState

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream

    from microvm_orchestrator.machine.qemu.machine import QemuMachine

# How long a monitor's event may come after the answer to what caused it.
_EVENT_S = 5.0


async def save(machine: QemuMachine, snapshot_id: str) -> Snapshot:
    """Save a machine, which goes on as it was.

    Raises: AlreadyExists, StateForbids, MachineFailed; nothing is left of the snapshot then.
    """
    qmp = machine.qmp  # raises for one that has ended
    saved = SavedMachine(machine.host.snapshots / snapshot_id)
    saved.create(machine.spec.memory_mib, machine.host.user)
    try:
        sink, source = socket.socketpair()
        with source:
            async with _scribe(machine, saved, sink.detach()) as (scribe, fd):
                async with migration.loading(scribe, fd):
                    pause_s = await _hand_over(machine, qmp, source.fileno())
                await _write_down(scribe, saved)
        return await anyio.to_thread.run_sync(
            saved.seal, machine.spec, machine.accel, machine.host.engine, pause_s
        )
    except BaseException:
        saved.remove()
        raise


async def _hand_over(machine: QemuMachine, qmp: Qmp, fd: int) -> float:
    """Send the machine and let it go on; returns for how long it stood still."""
    if machine.state is not MachineState.RUNNING:
        await migration.send(qmp, fd)
        return 0.0
    with machine.standing_still(), qmp.listen() as events:
        try:
            await migration.send(qmp, fd)
        finally:
            # The scribe has it, or never will: either way the machine is to go on.
            with anyio.CancelScope(shield=True):
                await qmp.execute("cont")
        return await _pause_s(events)


async def _write_down(scribe: Qmp, saved: SavedMachine) -> None:
    fd = os.open(saved.state, os.O_WRONLY | os.O_CLOEXEC)
    try:
        await migration.send(scribe, fd, without_shared=True)
    finally:
        os.close(fd)


@asynccontextmanager
async def _scribe(
    machine: QemuMachine, saved: SavedMachine, fd: int
) -> AsyncGenerator[tuple[Qmp, int]]:
    """Hold a QEMU that can take the machine in and never runs it."""
    surroundings = machine.host
    record = Record(saved.scribe)
    # Under a name of its own, by which one that a dead daemon left is found.
    spec = replace(machine.spec, machine_id=saved.snapshot_id)
    with Handover() as given:
        given.inherit(fd)
        memory = argv.Memory(given.open_again(saved.ram, os.O_RDWR), shared=True)
        resident = host.launch(
            surroundings,
            record,
            spec,
            machine.accel,
            argv.Load(),
            memory,
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
