"""The machines of a host: their states and events, their places, and what a restart finds."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from machines import Rig, fake_rig, kill_process, removed_in_the_end
from microvm_orchestrator import errors
from microvm_orchestrator.caches import Caches
from microvm_orchestrator.machine.base import Accel, Change
from microvm_orchestrator.machine.qemu.hypervisor import Qemu
from microvm_orchestrator.machine.qemu.machine import QemuMachine
from microvm_orchestrator.machine.seeded import Program
from microvm_orchestrator.machine.shell import Command, GuestEvent
from microvm_orchestrator.machines import Machines, Wish
from microvm_orchestrator.model.access import Role, Scope
from microvm_orchestrator.model.machine import MACHINE, Machine, MachineState
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.seeded import SeededRuns
from microvm_orchestrator.slots import Capacity, Slots
from microvm_orchestrator.snapshots import Snapshots
from microvm_orchestrator.store.base import Match, Store
from microvm_orchestrator.store.sqlite import SqliteStore

ALICE = Actor(name="alice", role=Role.OPERATOR, via="test", action="machine_start")
BOB = Actor(name="bob", role=Role.OPERATOR, via="test", action="x", scope=Scope(everything=False))
PATIENCE_S = 30


@dataclass(frozen=True)
class House:
    rig: Rig
    store: Store
    qemu: Qemu
    slots: Slots
    caches: Caches
    machines: Machines
    snapshots: Snapshots

    async def define(self, name: str | None = None) -> Machine:
        return await self.machines.define(Wish("none", 64, 1, Accel.TCG, name), ALICE)

    def qemu_of(self, machine: Machine) -> QemuMachine:
        running = self.machines.live(machine)
        assert isinstance(running, QemuMachine)
        return running

    async def told(self, machine: Machine) -> list[str]:
        match = Match(kinds=("machine.*",), subjects=(machine.machine_id,))
        read = await self.store.events(None, match, 100, SYSTEM)
        return [event.kind.removeprefix("machine.") for event in read.events]

    async def until(self, machine: Machine, state: MachineState) -> Machine:
        with anyio.fail_after(PATIENCE_S):
            async with self.store.hints() as changes:
                while True:
                    now = await self.machines.get(machine.machine_id, ALICE)
                    if now.state is state:
                        return now
                    await anext(changes)


@asynccontextmanager
async def daemon(rig: Rig, *, count: int = 4) -> AsyncGenerator[House]:
    """What a daemon has of machines, from its start to its end; the machines outlive it."""
    store = SqliteStore(rig.state_dir / "store.db")

    async def on_change(change: Change) -> None:
        await machines.hear(change)

    async with store.opened(), rig.open(on_change) as qemu:
        slots = Slots(Capacity(count, 1024, 8))
        caches = Caches(rig.state_dir / "caches", size_mib=16, count=2)
        machines = Machines(store, qemu, slots, lambda _: rig.boot, caches=caches)
        async with machines.running():
            snapshots = Snapshots(store, qemu, machines)
            yield House(rig, store, qemu, slots, caches, machines, snapshots)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncGenerator[Rig]:
    rig = fake_rig(tmp_path)
    yield rig
    async with rig.open() as qemu, removed_in_the_end(qemu):
        pass


async def test_a_machine_goes_from_defined_to_stopped_and_tells_each_step(rig: Rig) -> None:
    async with daemon(rig) as house:
        machine = await house.define("box")
        started = await house.machines.start("box", ALICE)
        finished = await house.machines.live(started).shell.exec(Command(["echo", "hello"]))
        assert finished.stdout == b"hello\n"
        await house.machines.pause("box", ALICE)
        await house.machines.resume("box", ALICE)
        stopped = await house.machines.stop("box", ALICE, grace_s=5)
        assert (stopped.state, house.slots.owners) == (MachineState.STOPPED, [])
        assert await house.told(machine) == [
            *("defined", "booting", "running", "paused", "running", "stopped")
        ]
        with pytest.raises(errors.StateForbids):
            await house.machines.stop("box", ALICE, grace_s=5)
        await house.machines.delete("box", ALICE)
        assert (await house.machines.visible(ALICE), house.qemu.found()) == ([], [])


async def test_a_machine_whose_qemu_is_killed_crashes_and_frees_its_place(rig: Rig) -> None:
    async with daemon(rig, count=1) as house:
        machine = await house.define()
        await house.machines.start(machine.machine_id, ALICE)
        second = await house.define()
        with pytest.raises(errors.NoRoom):
            await house.machines.start(second.machine_id, ALICE, wait_for_room=False)
        kill_process(house.qemu_of(machine))
        crashed = await house.until(machine, MachineState.CRASHED)
        assert "SIGKILL" in crashed.reason
        running = await house.machines.start(second.machine_id, ALICE, wait_for_room=False)
        assert running.state is MachineState.RUNNING
        await house.machines.kill(second.machine_id, ALICE)


async def test_a_boot_that_fails_says_why_and_the_machine_can_be_started_again(rig: Rig) -> None:
    async with daemon(rig) as house:
        boot = house.rig.boot
        boots = iter([house.rig.spec(words=house.rig.panicking).boot, boot])
        machines = Machines(house.store, house.qemu, house.slots, lambda _: next(boots))
        async with machines.running():
            machine = await machines.define(Wish("none", 64, 1, Accel.TCG), ALICE)
            with pytest.raises(errors.MachineBootFailed):
                await machines.start(machine.machine_id, ALICE)
            failed = await machines.get(machine.machine_id, ALICE)
            assert (failed.state, house.slots.owners) == (MachineState.CRASHED, [])
            assert failed.reason
            again = await machines.start(machine.machine_id, ALICE)
            assert again.state is MachineState.RUNNING
            await machines.kill(machine.machine_id, ALICE)


async def test_a_machine_outlives_the_daemon_and_is_adopted_by_the_next_one(rig: Rig) -> None:
    async with daemon(rig) as house:
        kept, lost = await house.define("kept"), await house.define("lost")
        for machine in (kept, lost):
            await house.machines.start(machine.machine_id, ALICE)
        kill_later = house.qemu_of(lost)
    kill_process(kill_later)
    async with daemon(rig) as house:
        assert (await house.machines.get("lost", ALICE)).state is MachineState.LOST
        adopted = await house.machines.get("kept", ALICE)
        assert (adopted.state, house.slots.owners) == (MachineState.RUNNING, [kept.machine_id])
        finished = await house.machines.live(adopted).shell.exec(Command(["true"]))
        assert finished.exit.code == 0
        await house.machines.kill("kept", ALICE)


async def test_branches_start_where_a_machine_was_saved_and_the_source_goes_on(rig: Rig) -> None:
    async with daemon(rig) as house:
        source = await house.define("source")
        await house.machines.start("source", ALICE)
        snapshot = await house.snapshots.save("source", ALICE)
        one = await house.snapshots.branch(snapshot.snapshot_id, ALICE, name="one")
        two = await house.snapshots.branch(snapshot.snapshot_id, ALICE)
        states = [machine.state for machine in await house.machines.visible(ALICE)]
        assert states == [MachineState.RUNNING] * 3
        assert one.snapshot_id == two.snapshot_id == snapshot.snapshot_id
        for machine in (source, one, two):
            await house.machines.kill(machine.machine_id, ALICE)
        await house.snapshots.forget(snapshot.snapshot_id, ALICE)
        assert await house.snapshots.visible(ALICE) == []
        with pytest.raises(errors.NotFound):
            await house.snapshots.branch(snapshot.snapshot_id, ALICE)


async def test_what_a_guest_reports_never_costs_the_change_of_state_that_it_races_with(
    rig: Rig,
) -> None:
    async with daemon(rig) as house:
        machine = await house.define("box")
        await house.machines.start("box", ALICE)
        figures = {"kills": 7, "text": 8}
        reports = [GuestEvent(kind, "x" * 5000, figures) for kind in ("oom", "disk_full")]
        async with anyio.create_task_group() as group:
            for report in reports:
                group.start_soon(house.machines.hear_guest, machine.machine_id, report)
            group.start_soon(house.machines.pause, "box", ALICE)
            for report in reports:
                group.start_soon(house.machines.hear_guest, machine.machine_id, report)
        assert sorted((await house.told(machine))[3:]) == ["disk_full", "oom", "paused"]
        read = await house.store.events(None, Match(kinds=("machine.oom",)), 9, SYSTEM)
        [event] = read.events
        assert event.body == {"kills": 7, "text": "x" * 500}
        await house.machines.kill("box", ALICE)


async def test_news_of_a_machine_that_cannot_be_written_end_nothing(rig: Rig) -> None:
    async with daemon(rig) as house:
        box = await house.define("box")
        box = await house.machines.start(box.machine_id, ALICE)
        running = house.qemu_of(box)
        await running.qmp.execute("stop")
        await house.until(box, MachineState.PAUSED)
        # So nothing of it can be written down.
        await house.store.erase(MACHINE, box.machine_id, SYSTEM)
        await running.qmp.execute("cont")
        await house.machines.hear_guest(box.machine_id, GuestEvent("oom", "one was ended", {}))
        with anyio.fail_after(PATIENCE_S):
            await running.resume()
            await running.pause()
            await running.kill()


async def test_one_whose_end_could_not_be_written_is_started_and_deleted_all_the_same(
    rig: Rig,
) -> None:
    async with daemon(rig) as house:
        box = await house.define("box")

        async def end_unwritten() -> None:
            started = await house.machines.start("box", ALICE)
            await house.machines.kill("box", ALICE)
            body = started.model_dump(mode="json")
            await house.store.save(Record(MACHINE, box.machine_id, body), SYSTEM)
            assert (await house.machines.get("box", ALICE)).state is MachineState.RUNNING

        await end_unwritten()
        await end_unwritten()
        await house.machines.delete("box", ALICE)
        assert house.qemu.found() == []


async def test_a_start_that_nobody_waits_for_any_more_leaves_no_machine_unwatched(rig: Rig) -> None:
    async with daemon(rig) as house:
        for round_ in range(20):
            machine = await house.define()
            with anyio.move_on_after(round_ / 40):  # a start takes a fifth of a second
                await house.machines.start(machine.machine_id, ALICE)
            now = await house.machines.get(machine.machine_id, ALICE)
            if now.state is MachineState.RUNNING:
                assert house.slots.owners == [machine.machine_id]
                with anyio.fail_after(PATIENCE_S):
                    now = await house.machines.kill(machine.machine_id, ALICE)
            assert now.state in {MachineState.DEFINED, MachineState.STOPPED}
            assert house.slots.owners == []


async def test_one_who_leaves_while_a_machine_is_paused_leaves_no_lie_about_it(rig: Rig) -> None:
    async with daemon(rig) as house:
        await house.define("box")
        running = house.qemu_of(await house.machines.start("box", ALICE))
        for verb, state in (
            (house.machines.pause, MachineState.PAUSED),
            (house.machines.resume, MachineState.RUNNING),
        ):
            with anyio.fail_after(PATIENCE_S):
                async with anyio.create_task_group() as group:
                    group.start_soon(verb, "box", ALICE)
                    while running.state is not state:
                        await anyio.lowlevel.checkpoint()
                    group.cancel_scope.cancel()
            assert (await house.machines.get("box", ALICE)).state is state
        await house.machines.kill("box", ALICE)


async def test_a_machine_in_line_for_a_slot_is_neither_waited_for_nor_deleted(rig: Rig) -> None:
    async with daemon(rig, count=1) as house:
        await house.define("first")
        await house.machines.start("first", ALICE)
        second = await house.define("second")
        async with anyio.create_task_group() as group:
            group.start_soon(house.machines.start, "second", ALICE)
            with anyio.fail_after(PATIENCE_S):
                while house.slots.waiting != [second.machine_id]:
                    await anyio.lowlevel.checkpoint()
                for verb in (house.machines.delete, house.machines.kill):
                    with pytest.raises(errors.StateForbids):
                        await verb("second", ALICE)
            group.cancel_scope.cancel()
        await house.machines.kill("first", ALICE)
        await house.machines.delete("second", ALICE)


async def test_a_refusal_for_want_of_room_names_no_machine_that_one_does_not_see(rig: Rig) -> None:
    async with daemon(rig, count=1) as house:
        await house.define("first")
        first = await house.machines.start("first", ALICE)
        wish = Wish("none", 64, 1, Accel.TCG, "second")
        await house.machines.define(wish, BOB)
        with pytest.raises(errors.NoRoom) as refused:
            await house.machines.start("second", BOB, wait_for_room=False)
        assert first.machine_id not in refused.value.message + str(refused.value.hint)
        seeded = SeededRuns(house.qemu, house.slots, lambda _: rig.boot)
        program = Program(("true",), 1)
        with pytest.raises(errors.NoRoom) as refused:
            await seeded.run("none", 64, program, BOB, timeout_s=PATIENCE_S, wait=False)
        assert first.machine_id not in refused.value.message + str(refused.value.hint)
        await house.machines.kill("first", ALICE)


async def test_names_are_unique_and_machines_of_others_are_not_seen(rig: Rig) -> None:
    async with daemon(rig) as house:
        await house.define("box")
        with pytest.raises(errors.AlreadyExists):
            await house.define("box")
        with pytest.raises(errors.NotFound):
            await house.machines.get("box", BOB)
        assert await house.machines.visible(BOB) == []


async def test_a_cache_is_lent_to_one_machine_at_a_time_also_over_a_restart(rig: Rig) -> None:
    def wish(name: str) -> Wish:
        return Wish("none", 64, 1, Accel.TCG, name, cache="repo")

    async with daemon(rig) as house:
        one = await house.machines.define(wish("one"), ALICE)
        started = await house.machines.start("one", ALICE)
        assert started.cache_volume == "repo/1"
        (disk,) = house.machines.live(started).spec.disks
        assert (disk.serial, disk.volume) == ("cache", rig.state_dir / "caches" / "repo" / "1")
    async with daemon(rig) as house:
        await house.machines.define(wish("two"), ALICE)
        assert (await house.machines.start("two", ALICE)).cache_volume == "repo/2"
        await house.machines.kill("one", ALICE)
        await house.machines.define(wish("three"), ALICE)
        assert (await house.machines.start("three", ALICE)).cache_volume == "repo/1"
        for reference in ("two", "three"):
            await house.machines.kill(reference, ALICE)
        holders = [volume.holder for volume in await house.caches.volumes()]
        assert (holders, house.slots.owners) == ([None, None], [])
        assert one.cache_volume is None


async def test_without_a_free_cache_a_machine_waits_without_a_place_or_is_refused(
    rig: Rig,
) -> None:
    async with daemon(rig) as house:
        for name in ("one", "two", "three"):
            await house.machines.define(Wish("none", 64, 1, Accel.TCG, name, cache="r"), ALICE)
        await house.machines.start("one", ALICE)
        await house.machines.start("two", ALICE)
        with pytest.raises(errors.NoRoom):
            await house.machines.start("three", ALICE, wait_for_room=False)
        refused = await house.machines.get("three", ALICE)
        assert (refused.state, len(house.slots.owners)) == (MachineState.DEFINED, 2)
        async with anyio.create_task_group() as group:
            group.start_soon(house.machines.start, "three", ALICE)
            await house.define("four")
            with anyio.fail_after(PATIENCE_S):
                await house.machines.start("four", ALICE)
                await house.machines.kill("one", ALICE)
            assert (await house.until(refused, MachineState.RUNNING)).cache_volume == "r/1"
        for name in ("two", "three", "four"):
            await house.machines.kill(name, ALICE)


async def test_a_cache_that_comes_back_while_one_is_looked_for_is_found(rig: Rig) -> None:
    async with daemon(rig) as house:
        for name in ("one", "two"):
            await house.caches.take(name, "r")
        wish = Wish("none", 64, 1, Accel.TCG, "three", cache="r")
        three = await house.machines.define(wish, ALICE)
        use = rig.state_dir / "caches" / "r" / "2" / "use.json"
        said = use.read_bytes()
        use.unlink()
        os.mkfifo(use)  # so whoever looks at it is in the middle of it
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(house.machines.start, "three", ALICE)
                writer = await anyio.to_thread.run_sync(os.open, use, os.O_WRONLY)
                house.caches.release("one")
                os.write(writer, said)
                use.with_name("whole").write_bytes(said)
                use.with_name("whole").replace(use)
                os.close(writer)
        assert (await house.machines.get("three", ALICE)).cache_volume == "r/1"
        await house.machines.kill(three.machine_id, ALICE)
