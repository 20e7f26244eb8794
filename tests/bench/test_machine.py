"""What a machine costs above a bare QEMU with the same kernel and flags, in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from bare_qemu import booting
from bench.figures import cpu_of, median_ms, own_cpu_s, tell
from machines import Rig, built_image, guest_image, like, new_machine_id, qemu_rig
from microvm_orchestrator.images.store import Image
from microvm_orchestrator.machine.base import Boot, MachineSpec, Snapshot
from microvm_orchestrator.machine.pool import find_or_make_template, open_pool
from microvm_orchestrator.machine.qemu.hypervisor import Qemu
from microvm_orchestrator.machine.qemu.machine import QemuMachine
from microvm_orchestrator.machine.shell import Command, Shell

FIRST = Command(["true"])
# Run before a template is saved, so that clones find in memory what they begin with.
WARM = Command(["git", "--version"])


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one start, until its first command has run."""

    wall_s: float
    # Of QEMU and of ourselves.
    cpu_s: float


class Begun:
    """What was used when a start began."""

    def __init__(self, at: float | None = None) -> None:
        self._wall, self._cpu = at or time.monotonic(), own_cpu_s()

    def cost(self, pid: int) -> Cost:
        cpu_s = own_cpu_s() - self._cpu + cpu_of(pid)
        return Cost(time.monotonic() - self._wall, cpu_s)


@pytest.fixture(scope="module")
async def boot() -> Boot:
    return await built_image()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, boot: Boot) -> Rig:
    return qemu_rig(tmp_path_factory.mktemp("machines"), boot)


@pytest.fixture(scope="module")
async def image() -> Image:
    return await guest_image()


def median(costs: list[Cost]) -> Cost:
    return Cost(
        statistics.median(cost.wall_s for cost in costs),
        statistics.median(cost.cpu_s for cost in costs),
    )


@asynccontextmanager
async def removed(qemu: Qemu, machine: QemuMachine) -> AsyncGenerator[Shell]:
    try:
        yield machine.shell
    finally:
        await qemu.remove(machine.machine_id)


async def boot_bare(folder: Path, image: Image) -> Cost:
    async with booting(folder, image) as bare:
        # From the moment of its start: before that it measures the clock, which we do once a boot.
        begun = Begun(bare.began)
        async with bare.shell() as shell:
            await shell.exec(FIRST)
            return begun.cost(bare.process.pid)


async def boot_ours(qemu: Qemu, spec: MachineSpec) -> Cost:
    begun = Begun()
    machine = await qemu.start(spec)
    async with removed(qemu, machine) as shell:
        await shell.exec(FIRST)
        return begun.cost(machine.pid)


async def clone(qemu: Qemu, saved: Snapshot) -> Cost:
    begun = Begun()
    machine = await qemu.clone(saved, like(saved))
    async with removed(qemu, machine) as shell:
        await shell.exec(FIRST)
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
    tell(
        "cold boot to first exec, wall",
        f"{cold.wall_s:.2f} s",
        floor=f"{floor.wall_s:.2f} s",
        ratio=f"{cold.wall_s / floor.wall_s:.2f}",
        aim="1.10",
    )
    tell(
        "cold boot to first exec, CPU",
        f"{cold.cpu_s:.2f} s",
        floor=f"{floor.cpu_s:.2f} s",
        ratio=f"{cold.cpu_s - floor.cpu_s:+.2f} s",
        aim="+0.25 s",
    )
    tell(
        "clone to first exec, wall",
        f"{cloned.wall_s * 1000:.0f} ms",
        floor=f"{cold.wall_s:.2f} s",
        ratio=f"1/{cold.wall_s / cloned.wall_s:.1f}",
        aim="1/6",
    )
    tell(
        "clone to first exec, CPU",
        f"{cloned.cpu_s:.2f} s",
        floor=f"{cold.cpu_s:.2f} s",
        ratio=f"1/{cold.cpu_s / cloned.cpu_s:.1f}",
        aim="1/10",
    )
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
                await machine.shell.exec(FIRST)
                took.append(time.perf_counter() - began)
                await qemu.remove(machine.spec.machine_id)
        await qemu.forget(saved.snapshot_id)
    tell("warm claim to first exec", f"{median_ms(took):.0f} ms")
    assert took


async def test_sixteen_clones(rig: Rig, whole: bool) -> None:
    count = 16 if whole else 4
    machines: list[QemuMachine] = []
    async with rig.open() as qemu:
        saved = await find_or_make_template(qemu, rig.spec(), WARM)

        async def one() -> None:
            machine = await qemu.clone(saved, like(saved))
            machines.append(machine)
            await machine.shell.exec(FIRST)

        await one()
        alone = (await machines[0].usage()).pss_mib or 0.0
        ours = own_cpu_s()
        began = time.perf_counter()
        async with anyio.create_task_group() as group:
            for _ in range(count - 1):
                group.start_soon(one)
        wall_s = time.perf_counter() - began
        cpu_s = own_cpu_s() - ours + sum(cpu_of(machine.pid) for machine in machines[1:])
        usages = [await machine.usage() for machine in machines]
        together = sum(usage.pss_mib or 0.0 for usage in usages)
        for machine in machines:
            await qemu.remove(machine.machine_id)
        await qemu.forget(saved.snapshot_id)
    tell(f"{count - 1} clones at once, all ready", f"{wall_s:.2f} s")
    tell("CPU of each of them", f"{cpu_s / (count - 1):.2f} s")
    tell("memory of each further one (PSS)", f"{(together - alone) / (count - 1):.1f} MiB")
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
    tell("branch of 256 MiB: the source stands still", f"{median_ms(pauses):.0f} ms")
    tell("branch of 256 MiB: until it can be cloned", f"{median_ms(took):.0f} ms")
    tell("branch of 256 MiB: takes on the disk", f"{statistics.median(sizes):.0f} MiB")
    assert min(pauses) > 0
