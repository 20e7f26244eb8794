"""Machines that stand ready: claimed under their own names, kept for as long as the daemon."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from machines import Rig, fake_rig, kill_process, like, no_image, removed_in_the_end, sh
from microvm_orchestrator import errors
from microvm_orchestrator.machine.base import Accel, Boot, MachineSpec
from microvm_orchestrator.machine.pool import TEMPLATE, Pool
from microvm_orchestrator.machine.qemu.hypervisor import Qemu
from microvm_orchestrator.machine.qemu.machine import QemuMachine
from microvm_orchestrator.machines import Machines, Wish
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.machine import Machine, MachineState
from microvm_orchestrator.model.records import SYSTEM, Actor
from microvm_orchestrator.slots import Capacity, Slots
from microvm_orchestrator.store.base import Match
from microvm_orchestrator.store.sqlite import SqliteStore
from microvm_orchestrator.warm import Kind, Warm

ALICE = Actor(name="alice", role=Role.OPERATOR, via="test", action="machine_start")
PATIENCE_S = 60


@dataclass
class House:
    store: SqliteStore
    qemu: Qemu
    slots: Slots
    machines: Machines
    warm: Warm
    boot: Boot

    async def pool(self, count: int, other_than: Pool | None = None) -> Pool:
        """Wait until so many stand ready."""
        with anyio.fail_after(PATIENCE_S):
            while (pool := self.warm.kinds[0].pool) is None or pool is other_than:
                await self.warm.news()
            while pool.ready < count:
                await pool.filled()
        return pool

    async def start(self, wish: Wish) -> Machine:
        machine = await self.machines.define(wish, ALICE)
        return await self.machines.start(machine.machine_id, ALICE)

    async def told(self, machine: Machine) -> list[str]:
        match = Match(kinds=("machine.*",), subjects=(machine.machine_id,))
        read = await self.store.events(None, match, 100, SYSTEM)
        return [event.kind.removeprefix("machine.") for event in read.events]


@asynccontextmanager
async def daemon(rig: Rig, *, ready: int = 1) -> AsyncGenerator[House]:
    store = SqliteStore(rig.state_dir / "store.db")
    async with store.opened(), rig.open() as qemu:

        async def usual(_: str) -> MachineSpec:
            return MachineSpec("usual", house.boot, memory_mib=64)

        warm = Warm(qemu, [Kind("box", ready, usual)])
        slots = Slots(Capacity(4, 1024, 8))
        machines = Machines(store, qemu, slots, lambda _: house.boot, warm)
        assert isinstance(rig.boot, Boot)
        house = House(store, qemu, slots, machines, warm, rig.boot)
        async with machines.running(), warm.running():
            yield house


USUAL = Wish("none", 64, 1, Accel.AUTO, "box")


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncGenerator[Rig]:
    rig = fake_rig(tmp_path)
    yield rig
    async with rig.open() as qemu, removed_in_the_end(qemu):
        pass


async def test_a_machine_that_stands_ready_is_claimed_and_is_like_any_other(rig: Rig) -> None:
    async with daemon(rig) as house:
        await house.pool(1)
        (standing,) = house.qemu.found()
        assert house.slots.owners == []
        machine = await house.start(USUAL)
        assert (machine.runtime_id, machine.state) == (standing, MachineState.RUNNING)
        assert machine.machine_id != standing
        assert house.slots.owners == [machine.machine_id]
        running = house.machines.live(machine)
        assert await sh(running, "echo hello") == "hello\n"
        await house.machines.pause("box", ALICE)
        await house.machines.resume("box", ALICE)
        await house.machines.stop("box", ALICE, grace_s=5)
        assert await house.told(machine) == [
            *("defined", "booting", "running", "paused", "running", "stopped")
        ]
        assert house.machines.console(machine).exists()
        await house.machines.delete("box", ALICE)
        assert standing not in house.qemu.found()
        assert house.slots.owners == []


async def test_one_that_dies_by_itself_is_told_under_its_own_name(rig: Rig) -> None:
    async with daemon(rig) as house:
        await house.pool(1)
        machine = await house.start(USUAL)
        running = house.machines.live(machine)
        assert isinstance(running, QemuMachine)
        kill_process(running)
        with anyio.fail_after(PATIENCE_S):
            async with house.store.hints() as changes:
                while (await house.machines.get("box", ALICE)).state is not MachineState.CRASHED:
                    await anext(changes)
        again = await house.machines.start("box", ALICE)
        assert (again.state, again.runtime_id) != (machine.state, machine.runtime_id)
        assert running.spec.machine_id not in house.qemu.found()
        await house.machines.kill("box", ALICE)


async def test_a_machine_made_otherwise_is_booted(rig: Rig) -> None:
    async with daemon(rig) as house:
        pool = await house.pool(1)
        for wish in (replace(USUAL, memory_mib=128), replace(USUAL, disk_mib=16)):
            machine = await house.start(wish)
            assert machine.runtime_id is None
            await house.machines.kill("box", ALICE)
            await house.machines.delete("box", ALICE)
        assert pool.ready == 1


async def test_a_claimed_machine_outlives_the_daemon_and_those_that_stand_ready_do_not(
    rig: Rig,
) -> None:
    async with daemon(rig) as house:
        await house.pool(1)
        machine = await house.start(USUAL)
        await house.pool(1)
        assert len(house.qemu.found()) == 2
    async with rig.open() as qemu:
        assert qemu.found() == [machine.on_host]
    async with daemon(rig) as house:
        adopted = await house.machines.get("box", ALICE)
        assert adopted.state is MachineState.RUNNING
        running = house.machines.live(adopted)
        assert (await (await running.reached()).ping()) > 0
        assert house.slots.owners == [machine.machine_id]
        await house.machines.kill("box", ALICE)


async def test_an_image_that_is_built_anew_gives_a_new_template(rig: Rig, tmp_path: Path) -> None:
    async with daemon(rig) as house:
        pool = await house.pool(1)
        (before,) = await house.qemu.saved()
        house.boot = replace(no_image(tmp_path / "anew"), digest="another")
        house.warm.look_again()
        await house.pool(1, other_than=pool)
        with anyio.fail_after(PATIENCE_S):
            while before in await house.qemu.saved():
                await house.warm.news()
        (after,) = await house.qemu.saved()
        assert after.startswith(TEMPLATE)
        assert after != before
        machine = await house.start(USUAL)
        assert machine.runtime_id is not None
        await house.machines.kill("box", ALICE)


async def test_without_its_image_nothing_stands_ready_and_it_says_why(rig: Rig) -> None:
    async with daemon(rig) as house:

        async def none(image: str) -> MachineSpec:
            raise errors.NotFound(f"there is no image {image}")

        warm = Warm(house.qemu, [Kind("other", 1, none)])
        async with warm.running():
            with anyio.fail_after(PATIENCE_S):
                while "there is no image" not in warm.kinds[0].reason:
                    await warm.news()
        assert warm.kinds[0].ready == 0


def is_begun(qemu: Qemu, machine_id: str) -> bool:
    return machine_id in qemu.found()


def runs(qemu: Qemu, machine_id: str) -> bool:
    """Whether a machine has come up, and is looked after."""
    try:
        return qemu.live(machine_id).state is MachineState.RUNNING
    except errors.NotFound:
        return False


@pytest.mark.parametrize("is_so_far", [is_begun, runs])
async def test_one_that_nobody_waits_for_any_more_is_not_left_half_ready(
    rig: Rig, is_so_far: Callable[[Qemu, str], bool]
) -> None:
    async with rig.open() as qemu:
        template = await qemu.start(rig.spec())
        snapshot = await template.save(f"{template.machine_id}-s")
        spec = like(snapshot)
        async with anyio.create_task_group() as group:
            group.start_soon(qemu.stand_by, snapshot, spec)
            with anyio.fail_after(PATIENCE_S):
                while not is_so_far(qemu, spec.machine_id):
                    await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        assert qemu.found() == [template.machine_id]
        await qemu.remove(template.machine_id)
        await qemu.forget(snapshot.snapshot_id)
