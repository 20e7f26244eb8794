"""A machine that was booted is saved: by who booted it, who has its memory, or adopts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from machines import Rig, built_image, fake_rig, like, qemu_rig, removed_in_the_end, sh
from microvm_orchestrator.machine.hypervisor import AnyKind
from microvm_orchestrator.machine.living import LivingMachine


@pytest.mark.parametrize("kind", ["fake", "qemu"])
async def test_a_booted_machine_is_saved_by_each_daemon_that_looks_after_it(
    kind: str, tmp_path: Path
) -> None:
    rig = fake_rig(tmp_path) if kind == "fake" else qemu_rig(tmp_path, await built_image())
    async with rig.open_any() as first:
        machine = await first.start(rig.spec())
        await sh(machine, f"echo booted >{rig.home(machine)}/notes")
        assert await what_is_saved(rig, first, machine, "s-1") == "booted\n"
        assert await what_is_saved(rig, first, machine, "s-2") == "booted\nafter s-1\n"
    async with rig.open_any() as second, removed_in_the_end(second):
        machine = await second.adopt(machine.machine_id)
        await machine.reached()
        notes = "booted\nafter s-1\nafter s-2\n"
        assert await what_is_saved(rig, second, machine, "s-3") == notes


async def what_is_saved(rig: Rig, qemu: AnyKind, machine: LivingMachine, name: str) -> str:
    """What one has that starts where a machine is saved, which goes on and writes more."""
    snapshot = await machine.save(name)
    await sh(machine, f"echo after {name} >>{rig.home(machine)}/notes")
    await qemu.verify(name)
    clone = await qemu.clone(snapshot, like(snapshot))
    notes = await sh(clone, f"cat {rig.home(clone)}/notes")
    await qemu.remove(clone.machine_id)
    await qemu.forget(name)
    return notes
