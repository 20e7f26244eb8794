"""What a machine costs above a bare QEMU with the same kernel and flags, in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from bench.acts import run_true
from bench.costs import Begun, Cost, boot_bare, median, tell_boot, tell_clone
from bench.figures import cpu_of, median_ms, own_cpu_s, p95_ms, tell
from machines import Rig, built_image, guest_image, like, new_machine_id, qemu_rig
from microvm_orchestrator.images.store import Image
from microvm_orchestrator.machine.base import Boot, MachineSpec, Snapshot
from microvm_orchestrator.machine.pool import find_or_make_template, open_pool
from microvm_orchestrator.machine.qemu.hypervisor import Qemu
from microvm_orchestrator.machine.qemu.machine import QemuMachine
from microvm_orchestrator.machine.shell import Command, Shell

# Run before a template is saved, so that clones find in memory what they begin with.
WARM = Command(["git", "--version"])


@pytest.fixture(scope="module")
async def boot() -> Boot:
    return await built_image()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, boot: Boot) -> Rig:
    return qemu_rig(tmp_path_factory.mktemp("machines"), boot)


@pytest.fixture(scope="module")
async def image() -> Image:
    return await guest_image()


@asynccontextmanager
async def removed(qemu: Qemu, machine: QemuMachine) -> AsyncGenerator[Shell]:
    try:
        yield machine.shell
    finally:
        await qemu.remove(machine.machine_id)


async def boot_ours(qemu: Qemu, spec: MachineSpec) -> Cost:
    begun = Begun()
    machine = await qemu.start(spec)
    async with removed(qemu, machine) as shell:
        await run_true(shell)
        return begun.cost(machine.pid)


async def clone(qemu: Qemu, saved: Snapshot) -> Cost:
    begun = Begun()
    machine = await qemu.clone(saved, like(saved))
    async with removed(qemu, machine) as shell:
        await run_true(shell)
        return begun.cost(machine.pid)


async def test_a_cold_boot_and_a_clone(rig: Rig, image: Image, tmp_path: Path, whole: bool) -> None:
    bare: list[Cost] = []
    ours: list[Cost] = []
    clones: list[Cost] = []
    async with rig.open() as qemu:
        saved = await find_or_make_template(qemu, rig.spec(), WARM)
        # In turns, so that whoever else uses the host is in each of them.
        for _ in range(15 if whole else 1):
            bare.append(await boot_bare(tmp_path, image))
            ours.append(await boot_ours(qemu, rig.spec()))
            clones.append(await clone(qemu, saved))
        await qemu.forget(saved.snapshot_id)
    floor, cold, cloned = median(bare), median(ours), median(clones)
    tell_boot("", cold, floor)
    tell_clone("", cloned, cold)
    assert len(clones) == len(bare)


async def test_a_warm_claim(rig: Rig, whole: bool) -> None:
    took: list[float] = []
    async with rig.open() as qemu:
        saved = await find_or_make_template(qemu, rig.spec(), WARM)
        async with open_pool(qemu, saved, new_machine_id, size=2) as pool:
            for _ in range(30 if whole else 2):
                await pool.filled()
                began = time.perf_counter()
                machine = await pool.claim("somebody")
                await run_true(machine.shell)
                took.append(time.perf_counter() - began)
                await qemu.remove(machine.spec.machine_id)
        await qemu.forget(saved.snapshot_id)
    tell(
        "warm claim to first exec",
        f"p50 {median_ms(took):.0f} ms, p95 {p95_ms(took):.0f} ms",
        aim="p50 50 ms or less, p95 150 ms or less",
    )
    assert took


@pytest.mark.long
async def test_sixteen_clones(rig: Rig, whole: bool) -> None:
    count = 16 if whole else 4
    machines: list[QemuMachine] = []
    # What each had used when its first command had run; they idle until the last is ready.
    cpus: list[float] = []
    async with rig.open() as qemu:
        saved = await find_or_make_template(qemu, rig.spec(), WARM)

        async def one() -> None:
            machine = await qemu.clone(saved, like(saved))
            machines.append(machine)
            await run_true(machine.shell)
            cpus.append(cpu_of(machine.pid))

        await one()
        alone = (await machines[0].usage()).pss_mib or 0.0
        ours = own_cpu_s()
        began = time.perf_counter()
        async with anyio.create_task_group() as group:
            for _ in range(count - 1):
                group.start_soon(one)
        wall_s = time.perf_counter() - began
        own_s = own_cpu_s() - ours
        idle_s = sum(cpu_of(machine.pid) for machine in machines[1:]) - sum(cpus[1:])
        usages = [await machine.usage() for machine in machines]
        together = sum(usage.pss_mib or 0.0 for usage in usages)
        for machine in machines:
            await qemu.remove(machine.machine_id)
        await qemu.forget(saved.snapshot_id)
    tell(f"{count - 1} clones at once, all ready", f"{wall_s:.2f} s")
    tell(
        "  CPU of each until its first command has run",
        f"{(sum(cpus[1:]) + own_s) / (count - 1):.2f} s",
        floor=f"{cpus[0]:.2f} s, one alone",
        aim="0.25 s or less",
    )
    tell("  and until the last of them is ready", f"{idle_s / (count - 1):+.2f} s")
    further_mib = (together - alone) / (count - 1)
    tell(
        "  memory of each further one (PSS)",
        f"{further_mib:.1f} MiB",
        floor=f"{alone:.1f} MiB for one alone",
        aim="60 MiB or less",
    )
    assert len(machines) == count


async def test_saving_a_machine_that_goes_on(rig: Rig, whole: bool) -> None:
    pauses: list[float] = []
    took: list[float] = []
    sizes: list[float] = []
    async with rig.open() as qemu:
        machine = await qemu.start(rig.spec(memory_mib=256))
        for _ in range(15 if whole else 1):
            began = time.perf_counter()
            saved = await machine.save("branch")
            took.append(time.perf_counter() - began)
            pauses.append(saved.pause_s)
            sizes.append(saved.unique_mib)
            await qemu.forget("branch")
        await qemu.remove(machine.machine_id)
    tell(
        "branch of 256 MiB: the source stands still",
        f"{median_ms(pauses):.0f} ms",
        aim="100 ms or less",
    )
    tell("branch of 256 MiB: until it can be cloned", f"{median_ms(took):.0f} ms")
    tell("branch of 256 MiB: takes on the disk", f"{statistics.median(sizes):.0f} MiB")
    assert min(pauses) > 0
