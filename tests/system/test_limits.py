"""What a machine may take, what happens when it takes it, and what it has taken."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import pytest
from anyio.streams.memory import MemoryObjectReceiveStream
from pydantic import BaseModel, TypeAdapter

from machines import LONG_S, Rig, built_image, qemu_rig, removed_in_the_end, sh
from microvm_orchestrator.machine import cgroup
from microvm_orchestrator.machine.base import Boot, Disk, Limits
from microvm_orchestrator.machine.qemu.hypervisor import Qemu, open_qemu
from microvm_orchestrator.machine.qemu.machine import QemuMachine
from microvm_orchestrator.machine.shell import Command, GuestEvent
from microvm_orchestrator.model.machine import MachineState

MIB = 1 << 20
PIDS = 40
# What all disks of a machine may do here by the second: slow, and quick enough to boot from.
OPERATIONS, BYTES = 1000, 4 * MIB


class Inserted(BaseModel):
    iops: int
    bps: int


class Block(BaseModel):
    inserted: Inserted


BLOCKS = TypeAdapter(list[Block])
Reports = MemoryObjectReceiveStream[tuple[str, GuestEvent]]


@pytest.fixture(scope="module")
async def boot() -> Boot:
    return await built_image()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, boot: Boot) -> Rig:
    return qemu_rig(tmp_path_factory.mktemp("limits"), boot)


@asynccontextmanager
async def telling(rig: Rig) -> AsyncGenerator[tuple[Qemu, Reports]]:
    """Hold machines, and hear what their guests report."""
    reports, heard = anyio.create_memory_object_stream[tuple[str, GuestEvent]](100)

    async def on_guest_event(machine_id: str, event: GuestEvent) -> None:
        await reports.send((machine_id, event))

    with reports, heard, anyio.fail_after(3 * LONG_S):
        async with (
            open_qemu(rig.state_dir, on_guest_event=on_guest_event) as qemu,
            removed_in_the_end(qemu),
        ):
            yield qemu, heard


async def test_commands_that_start_too_many_processes_are_refused_and_it_is_told(rig: Rig) -> None:
    async with telling(rig) as (qemu, heard):
        machine = await qemu.start(rig.spec(limits=Limits(pids=PIDS)))
        # The agent looks from a second after its start; what was before is not told.
        bomb = "sleep 2; while :; do sleep 1000 & done"
        ran = await machine.shell.exec(Command(["/bin/sh", "-c", bomb]))
        assert ran.exit.code != 0
        assert b"fork" in ran.stderr
        machine_id, event = await heard.receive()
        assert (machine_id, event.kind) == (machine.machine_id, "pids_full")
        assert event.figures["refused"] > 0
        count = "read -r n </sys/fs/cgroup/commands/pids.current; echo $n"
        assert PIDS <= int(await sh(machine, count)) <= PIDS + 1
        # Whoever comes later still gets in, and can make room.
        assert (await machine.shell.exec(Command(["killall", "sleep"]))).exit.code == 0
        assert await sh(machine, "ls /proc/self/comm | cat") == "/proc/self/comm\n"


async def test_a_guest_whose_disk_is_full_tells_it_once_and_goes_on(rig: Rig) -> None:
    async with telling(rig) as (qemu, heard):
        scratch = Disk("scratch", read_only=False, size_mib=64)
        machine = await qemu.start(rig.spec(disks=(scratch,)))
        assert "No space left" in await sh(machine, "cat /dev/zero 2>&1 >big || true")
        machine_id, event = await heard.receive()
        assert (machine_id, event.kind) == (machine.machine_id, "disk_full")
        assert event.figures["available_kib"] < 1024
        assert await sh(machine, "rm big; echo room again") == "room again\n"
        assert machine.state is MachineState.RUNNING


async def test_the_disks_of_a_machine_are_held_to_their_limits_by_qemu_itself(rig: Rig) -> None:
    async with telling(rig) as (qemu, _):
        limits = Limits(disk_operations=OPERATIONS, disk_bytes=BYTES)
        scratch = Disk("scratch", read_only=False, size_mib=128)
        machine = await qemu.start(rig.spec(disks=(scratch,), limits=limits))
        write = "echo $(cut -d' ' -f1 /proc/uptime) >began; head -c 12582912 /dev/zero >big; sync"
        await sh(machine, write)
        seconds = 'python3 -c \'print(float(open("/proc/uptime").read().split()[0])'
        took = float(await sh(machine, f'{seconds} - float(open("began").read()))\''))
        # Three times what may be written by the second; a slow host can only make it longer.
        assert took > 2
        assert await in_force(machine) == [(OPERATIONS, BYTES)] * 2
        # A clone and a machine that is adopted are held to them as well.
        snapshot = await machine.save(f"{machine.machine_id}-s")
        machine_id = f"{machine.machine_id}-c"
        spec = replace(snapshot.spec, machine_id=machine_id, hostname=machine_id)
        clone = await qemu.clone(snapshot, spec)
        assert await in_force(clone) == [(OPERATIONS, BYTES)] * 2
        await qemu.forget("slow")


async def in_force(machine: QemuMachine) -> list[tuple[int, int]]:
    """The limits of each disk, as QEMU has them."""
    answer = await machine.qmp.execute("query-block")
    return [(disk.inserted.iops, disk.inserted.bps) for disk in BLOCKS.validate_python(answer)]


async def test_a_hypervisor_with_too_much_memory_is_a_crash_for_that_reason(rig: Rig) -> None:
    groups = cgroup.open_tree()
    if groups is None or "memory" not in groups.controllers:
        pytest.skip("no limit on memory is kept on this host")
    async with telling(rig) as (qemu, _):
        machine = await qemu.start(rig.spec())
        folder = groups.find(machine.machine_id).path
        if (folder / "memory.swap.max").exists():
            (folder / "memory.swap.max").write_text("0")
        most = round((await machine.usage()).rss_mib + 8) * MIB
        (folder / "memory.max").write_text(str(most))
        eat = Command(["sh", "-c", "head -c 200M /dev/zero >/dev/shm/x"])
        async with machine.shell.stream(eat, keep=True):
            change = await machine.wait()
        assert change.state is MachineState.CRASHED
        assert change.reason == "its hypervisor had more memory than it may and was killed"


async def test_what_a_machine_uses_is_told_by_the_host_and_by_the_guest(rig: Rig) -> None:
    async with telling(rig) as (qemu, _):
        spec = rig.spec()
        machine = await qemu.start(spec)
        usage = await machine.usage()
        assert usage.peak_mib >= usage.rss_mib > 1
        assert (usage.received_bytes, usage.sent_bytes) == (None, None)
        assert usage.guest
        assert 0 < usage.guest.memory_available_kib < usage.guest.memory_total_kib
        assert usage.guest.memory_total_kib < spec.memory_mib * 1024
        await machine.pause()
        assert (await machine.usage()).guest is None
