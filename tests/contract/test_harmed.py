"""What befalls a machine, said and read back: on a QEMU, on one that is none, and by libvirt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

import libvirtd
from machines import (
    LONG_S,
    Rig,
    built_image,
    fake_rig,
    qemu_rig,
    removed_in_the_end,
    running_libvirt_rig,
)
from microvm_orchestrator import errors
from microvm_orchestrator.machine.base import Disk
from microvm_orchestrator.model.fault import Harm
from standin_runner import foreign_rig

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from microvm_orchestrator.machine.base import Machine

MIB = 1 << 20
SLOW = Harm(disk_bytes_s=MIB, disk_operations_s=50)
BOTH = Harm(reads_fail=True, writes_fail=True)


async def begun(rig: Rig) -> AsyncGenerator[Machine]:
    disks = (Disk("more", read_only=False, size_mib=16),) if rig.runner is None else ()
    with anyio.fail_after(LONG_S):
        async with rig.open_any() as hypervisor, removed_in_the_end(hypervisor):
            yield await hypervisor.start(rig.spec(disks=disks))


@pytest.fixture(params=["fake", "qemu", "libvirt"])
async def machine(
    request: pytest.FixtureRequest, tmp_path: Path, *, whole: bool
) -> AsyncGenerator[Machine]:
    """Give a machine with a disk that it writes."""
    if request.param == "fake":
        async for machine in begun(fake_rig(tmp_path)):
            yield machine
    elif request.param == "qemu":
        async for machine in begun(qemu_rig(tmp_path, await built_image())):
            yield machine
    else:
        if why := libvirtd.why_not() or (None if whole else "libvirt is slow to boot machines"):
            pytest.skip(why)
        with running_libvirt_rig(await built_image()) as rig:
            async for machine in begun(rig):
                yield machine


async def test_disks_are_slow_or_fail_as_it_is_said_and_are_as_they_were_afterwards(
    machine: Machine,
) -> None:
    await machine.check_harm(SLOW)
    assert await machine.harmed(SLOW.touched) == Harm()
    for wanted in (SLOW, SLOW, Harm(disk_bytes_s=MIB), Harm()):
        await machine.harm(wanted, SLOW.touched)
        assert await machine.harmed(SLOW.touched) == wanted
    await machine.check_harm(BOTH)
    reads, writes = Harm(reads_fail=True), Harm(writes_fail=True)
    for wanted in (reads, reads, BOTH, writes, Harm()):
        await machine.harm(wanted, BOTH.touched)
        assert await machine.harmed(BOTH.touched) == wanted


@pytest.mark.parametrize("rig_of", [fake_rig, foreign_rig])
async def test_nothing_befalls_a_guest_that_has_no_kernel_of_its_own(
    rig_of: Callable[[Path], Rig], tmp_path: Path
) -> None:
    async for machine in begun(rig_of(tmp_path)):
        for harm in (Harm(skew_s=60), Harm(memory_mib=1), Harm(full=("/tmp",))):
            with pytest.raises(errors.FaultNotOffered, match="no kernel of its own"):
                await machine.check_harm(harm)


async def test_what_a_way_to_run_machines_does_not_do_is_refused(tmp_path: Path) -> None:
    async for machine in begun(foreign_rig(tmp_path)):
        with pytest.raises(errors.FaultNotOffered, match="does not offer disk_bytes_s"):
            await machine.check_harm(Harm(disk_bytes_s=MIB))
