"""Networks as they are written down: names, prefixes, places of machines, and who sees which."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from anyio.streams.memory import MemoryObjectReceiveStream

from machines import Rig, fake_rig, removed_in_the_end
from microvm_orchestrator import errors
from microvm_orchestrator.machine.base import Accel, Limits
from microvm_orchestrator.machine.qemu.machine import QemuMachine
from microvm_orchestrator.machines import Machines, Wish
from microvm_orchestrator.model.access import Role, Scope
from microvm_orchestrator.model.machine import MACHINE, Machine, MachineState
from microvm_orchestrator.model.records import SYSTEM, Actor
from microvm_orchestrator.network import base
from microvm_orchestrator.network.base import Port, PortChange, PortEvent
from microvm_orchestrator.network.kernel import KernelNetworks
from microvm_orchestrator.network.switch import open_switch
from microvm_orchestrator.networks import Attachment, Networks
from microvm_orchestrator.slots import Capacity, Slots
from microvm_orchestrator.snapshots import Snapshots
from microvm_orchestrator.store.base import Match, Store
from microvm_orchestrator.store.sqlite import SqliteStore
from networking import SwitchStage, own_namespace, why_no_kernel

ALICE = Actor(name="alice", role=Role.OPERATOR, via="test", action="network_create")
BOB = Actor(name="bob", role=Role.OPERATOR, via="test", action="x", scope=Scope(everything=False))
PATIENCE_S = 30


@dataclass(frozen=True)
class House:
    switch: base.Networks
    networks: Networks
    slots: Slots
    machines: Machines
    snapshots: Snapshots
    store: Store
    # What a port did, once the machines have heard it.
    heard: MemoryObjectReceiveStream[PortEvent]

    async def define(self, name: str, *networks: Attachment, by: Actor = ALICE) -> Machine:
        wish = Wish("none", 64, 1, Accel.TCG, name, networks=networks)
        return await self.machines.define(wish, by)


@asynccontextmanager
async def daemon(rig: Rig, kernel: base.Networks | None = None) -> AsyncGenerator[House]:
    """What a daemon has of networks, from its start to its end."""
    store = SqliteStore(rig.state_dir / "store.db")
    told, heard = anyio.create_memory_object_stream[PortEvent](100)

    async def on_event(event: PortEvent) -> None:
        await machines.hear_port(event)
        await told.send(event)

    async with told, heard, store.opened(), open_switch(on_event) as userspace, rig.open() as qemu:
        switch = kernel or userspace
        networks = Networks(store, switch)
        slots = Slots(Capacity(4, 1024, 8))
        machines = Machines(store, qemu, slots, lambda _: rig.boot, networks=networks)
        async with machines.running():
            snapshots = Snapshots(store, qemu, machines)
            yield House(switch, networks, slots, machines, snapshots, store, heard)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncGenerator[Rig]:
    rig = fake_rig(tmp_path)
    yield rig
    async with rig.open() as qemu, removed_in_the_end(qemu):
        pass


async def test_each_network_gets_prefixes_of_its_own_unless_it_names_some(rig: Rig) -> None:
    async with daemon(rig) as house:
        first = await house.networks.create("first", (), ALICE)
        named = await house.networks.create("named", ("10.80.1.0/25",), ALICE)
        third = await house.networks.create("third", (), ALICE)
        assert first.prefixes == ["10.80.0.0/24", "fd80::/64"]
        assert named.prefixes == ["10.80.1.0/25"]
        assert third.prefixes == ["10.80.2.0/24", "fd80:0:0:2::/64"]
        assert await house.switch.found() == sorted(
            each.network_id for each in (first, named, third)
        )


@pytest.mark.parametrize(
    ("prefixes", "word"),
    [
        (("10.9.0.1/24",), "host bits"),
        (("10.9.0.0/24", "10.8.0.0/24"), "two prefixes"),
        (("127.0.0.0/8",), "no machine"),
        (("elsewhere",), "no prefix"),
    ],
)
async def test_what_is_no_prefix_for_machines_makes_no_network(
    rig: Rig, prefixes: tuple[str, ...], word: str
) -> None:
    async with daemon(rig) as house:
        with pytest.raises(errors.InvalidInput, match=word):
            await house.networks.create("odd", prefixes, ALICE)
        assert (await house.networks.visible(ALICE), await house.switch.found()) == ([], [])


async def test_a_name_is_taken_once_and_others_see_nothing_of_it(rig: Rig) -> None:
    async with daemon(rig) as house:
        await house.networks.create("lan", (), ALICE)
        with pytest.raises(errors.AlreadyExists):
            await house.networks.create("lan", (), BOB)
        assert await house.networks.visible(BOB) == []
        with pytest.raises(errors.NotFound):
            await house.define("box", Attachment("lan"), by=BOB)
        with pytest.raises(errors.NotFound):
            await house.networks.remove("lan", BOB)


async def test_a_machine_has_its_places_from_when_it_is_written_down(rig: Rig) -> None:
    async with daemon(rig) as house:
        lan = await house.networks.create("lan", ("10.9.0.0/29", "fd09::/64"), ALICE)
        lab = await house.networks.create("lab", (), ALICE)
        one = await house.define("one", Attachment("lan", ("10.9.0.5",)), Attachment(lab.name))
        two = await house.define("two", Attachment(lan.network_id))
        assert [place.name for place in one.networks] == ["lan", "lab"]
        assert one.networks[0].addresses[0] == "10.9.0.5/29"
        addresses = [text for machine in (one, two) for text in machine.networks[0].addresses]
        assert len(set(addresses)) == 4
        with pytest.raises(errors.AlreadyExists):
            await house.define("three", Attachment("lan", ("10.9.0.5",)))
        with pytest.raises(errors.InvalidInput, match="one place"):
            await house.define("four", Attachment("lan"), Attachment(lan.network_id))
        assert len(await house.networks.members(lan)) == 2


async def test_a_machine_is_the_one_asked_for_however_its_addresses_are_written(rig: Rig) -> None:
    async with daemon(rig) as house:
        await house.networks.create("lan", ("fd09::/64",), ALICE)
        wish = Wish("none", 64, 1, Accel.TCG, networks=(Attachment("lan", ("FD09:0::7",)),))
        machine = await house.machines.define(wish, ALICE)
        assert machine.networks[0].addresses == ["fd09::7/64"]
        assert wish.made(machine)
        for address in ("fd09::8", "seven"):
            assert not replace(wish, networks=(Attachment("lan", (address,)),)).made(machine)


async def test_addresses_that_are_all_given_away_are_no_room(rig: Rig) -> None:
    async with daemon(rig) as house:
        await house.networks.create("small", ("10.9.0.0/29",), ALICE)
        for number in range(5):
            await house.define(f"m{number}", Attachment("small"))
        with pytest.raises(errors.NoRoom):
            await house.define("one-more", Attachment("small"))
        await house.machines.delete("m3", ALICE)
        await house.define("one-more", Attachment("small"))


async def test_a_network_goes_only_when_nobody_has_a_place_in_it(rig: Rig) -> None:
    async with daemon(rig) as house:
        lan = await house.networks.create("lan", (), ALICE)
        await house.define("box", Attachment("lan"))
        await house.machines.start("box", ALICE)
        snapshot = await house.snapshots.save("box", ALICE)
        assert snapshot.networks == [lan.network_id]
        branch = await house.snapshots.branch(snapshot.snapshot_id, ALICE, name="branch")
        assert branch.networks[0].mac != (await house.machines.get("box", ALICE)).networks[0].mac
        for name in ("box", "branch"):
            with pytest.raises(errors.StateForbids, match=f"machine {name}"):
                await house.networks.remove("lan", ALICE)
            await house.machines.kill(name, ALICE)
            await house.machines.delete(name, ALICE)
        with pytest.raises(errors.StateForbids, match=snapshot.snapshot_id):
            await house.networks.remove("lan", ALICE)
        await house.snapshots.forget(snapshot.snapshot_id, ALICE)
        await house.networks.remove("lan", ALICE)
        assert (await house.networks.visible(SYSTEM), await house.switch.found()) == ([], [])


async def test_one_who_leaves_in_the_middle_leaves_no_half_of_a_network(rig: Rig) -> None:
    async with daemon(rig) as house:
        for turns in [1 << power for power in range(14)]:
            with closing(sqlite3.connect(rig.state_dir / "store.db")) as other:
                other.execute("BEGIN IMMEDIATE")  # so that nothing is written for a while
                async with anyio.create_task_group() as group:
                    group.start_soon(house.networks.create, "lan", (), ALICE)
                    while not await house.switch.found():
                        await anyio.lowlevel.checkpoint()
                    group.cancel_scope.cancel()
                    other.rollback()
            [lan] = await house.networks.visible(ALICE)
            assert await house.switch.found() == [lan.network_id]
            async with anyio.create_task_group() as group:
                group.start_soon(house.networks.remove, "lan", ALICE)
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
            left = [network.network_id for network in await house.networks.visible(ALICE)]
            assert await house.switch.found() == left
            if left:
                await house.networks.remove("lan", ALICE)


async def test_ports_are_there_while_a_machine_runs_and_again_after_a_restart(rig: Rig) -> None:
    async with daemon(rig) as house:
        await house.networks.create("lan", (), ALICE)
        box = await house.define("box", Attachment("lan"))
        assert await house.networks.usage(box) is None
        await house.machines.start("box", ALICE)
        assert await house.networks.usage(box) == (0, 0)
    async with daemon(rig) as house:
        assert await house.networks.usage(box) == (0, 0)
        [place] = box.networks
        port = Port(place.network_id, box.machine_id, place.mac, tuple(place.addresses))
        await house.switch.release(port)
        assert await house.networks.usage(box) is None
        await house.machines.kill("box", ALICE)
        assert await house.networks.usage(box) is None
        again = await house.machines.start("box", ALICE)
        assert again.networks == box.networks
        await house.machines.kill("box", ALICE)


async def test_a_machine_that_does_not_come_up_leaves_no_port(rig: Rig) -> None:
    silent = replace(rig, boot=replace(rig.boot, cmdline="fake.panic"))
    async with daemon(silent) as house:
        lan = await house.networks.create("lan", (), ALICE)
        box = await house.define("box", Attachment("lan"))
        with pytest.raises(errors.MachineBootFailed):
            await house.machines.start("box", ALICE)
        assert await house.networks.usage(box) is None
        assert await house.switch.sweep([lan.network_id], []) == []


async def test_that_a_machine_was_cut_off_is_told_and_costs_nothing_where_it_cannot_be(
    rig: Rig, tmp_path: Path
) -> None:
    stage = SwitchStage(tmp_path)
    async with daemon(rig) as house:
        await house.networks.create("lan", (), ALICE)
        await house.define("box", Attachment("lan"))
        box = await house.machines.start("box", ALICE)
        [place] = box.networks
        port = Port(place.network_id, box.machine_id, place.mac, tuple(place.addresses))
        async with stage.machine(port, await house.switch.prepare(port)) as end:

            async def say_nonsense() -> None:
                end.hang_up()
                await house.switch.connect(port, stage.path(port))
                for _ in range(2):
                    await end.accept()
                    await end.send_raw(b"\xff" * 40)
                while (await house.heard.receive()).change is not PortChange.CUT_OFF:
                    pass

            with anyio.fail_after(PATIENCE_S):
                await say_nonsense()
                match = Match(kinds=("machine.cut_off",), subjects=(box.machine_id,))
                [event] = (await house.store.events(None, match, 10, SYSTEM)).events
                reason = "a frame of 4294967295 bytes was announced"
                assert event.body == {"network_id": place.network_id, "reason": reason}
                # So nothing of it can be written down.
                await house.store.erase(MACHINE, box.machine_id, SYSTEM)
                await say_nonsense()
        await house.machines.live(box).kill()


@pytest.mark.skipif(bool(why_no_kernel()), reason=str(why_no_kernel()))
async def test_a_machine_that_is_started_again_as_soon_as_it_has_crashed_keeps_its_place(
    rig: Rig,
) -> None:
    with own_namespace() as netns:
        async with daemon(rig, KernelNetworks(netns=netns)) as house:
            await house.networks.create("lan", (), ALICE)
            await house.define("box", Attachment("lan"))
            box = await house.machines.start("box", ALICE)
            running = house.machines.live(box)
            assert isinstance(running, QemuMachine)
            with anyio.fail_after(PATIENCE_S):
                async with house.store.hints() as changes:
                    os.kill(running.pid, signal.SIGKILL)
                    while (await house.machines.get("box", ALICE)).state is MachineState.RUNNING:
                        await anext(changes)
                box = await house.machines.start("box", ALICE)
            assert house.slots.owners == [box.machine_id]
            assert await house.networks.usage(box) is not None
            await house.machines.kill("box", ALICE)
            await house.machines.delete("box", ALICE)
            await house.networks.remove("lan", ALICE)


async def test_limits_are_written_down_with_a_machine_and_kept_by_what_branches_off(
    rig: Rig,
) -> None:
    limits = Limits(pids=50)
    async with daemon(rig) as house:
        wish = Wish("none", 64, 1, Accel.TCG, "box", limits=limits)
        await house.machines.define(wish, ALICE)
        started = await house.machines.start("box", ALICE)
        assert house.machines.live(started).spec.limits == limits
        snapshot = await house.snapshots.save("box", ALICE)
        branch = await house.snapshots.branch(snapshot.snapshot_id, ALICE)
        assert branch.max_pids == house.machines.live(branch).spec.limits.pids == 50
        for machine in (started, branch):
            await house.machines.kill(machine.machine_id, ALICE)
