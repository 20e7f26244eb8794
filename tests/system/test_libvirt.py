"""What only real machines of a real libvirtd show, beyond what every way to run machines does."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest

import libvirtd
from machines import LONG_S, Rig, built_image, removed_in_the_end, running_libvirt_rig, sh
from microvm_orchestrator import errors
from microvm_orchestrator.machine.base import Boot, Change, Disk, MachineSpec
from microvm_orchestrator.machine.libvirt.connection import open_connection
from microvm_orchestrator.machine.libvirt.domain import uuid_of
from microvm_orchestrator.machine.libvirt.machine import LibvirtMachine
from microvm_orchestrator.machine.shell import Command
from microvm_orchestrator.model.fault import Harm
from microvm_orchestrator.model.machine import MachineState
from microvm_orchestrator.network.addresses import assign
from microvm_orchestrator.network.base import Network
from microvm_orchestrator.network.switch import open_switch
from system.test_network import ASK, SERVE

if TYPE_CHECKING:
    from microvm_orchestrator.machine.hypervisor import AnyKind

READ = """\
said=$(dd if=/dev/vdb of=/dev/null bs=64k count=1 iflag=direct 2>&1) && echo 'it reads' && exit
echo "${said##*: }"
"""
RUNNING, PAUSED = MachineState.RUNNING, MachineState.PAUSED


@pytest.fixture(scope="module")
async def image() -> Boot:
    return await built_image()


@pytest.fixture(scope="module")
def rig(image: Boot) -> Generator[Rig]:
    if why := libvirtd.why_not():
        pytest.skip(why)
    with running_libvirt_rig(image) as rig:
        yield rig


@pytest.fixture
def daemon(rig: Rig) -> libvirtd.Libvirtd:
    assert rig.libvirtd
    return rig.libvirtd


class Told:
    """What a machine was told to be, and somebody who waits for it."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self._more = anyio.Event()

    async def hear(self, change: Change) -> None:
        self.changes.append(change)
        self._more.set()
        self._more = anyio.Event()

    async def until(self, state: MachineState) -> str:
        """Wait for the last change to be this one; why it is."""
        while not self.changes or self.changes[-1].state is not state:
            await self._more.wait()
        return self.changes[-1].reason


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def hypervisor(rig: Rig, told: Told) -> AsyncGenerator[AnyKind]:
    with anyio.fail_after(LONG_S):
        async with rig.open_any(told.hear) as hypervisor, removed_in_the_end(hypervisor):
            yield hypervisor


async def start(hypervisor: AnyKind, spec: MachineSpec) -> LibvirtMachine:
    return cast("LibvirtMachine", await hypervisor.start(spec))


async def suspend(daemon: libvirtd.Libvirtd, uuid: str) -> None:
    """Do as somebody does who uses libvirt's own tools."""
    async with open_connection(daemon.uri) as connection:
        await connection.tell(lambda virt: virt.lookupByUUIDString(uuid).suspend())


async def test_a_machine_runs_on_without_libvirtd_and_is_never_taken_for_gone(
    rig: Rig, hypervisor: AnyKind, daemon: libvirtd.Libvirtd, told: Told
) -> None:
    machine = await start(hypervisor, rig.spec())
    daemon.kill()
    assert await sh(machine, "echo here") == "here\n"
    with pytest.raises(errors.Unavailable, match="does not answer"):
        await machine.pause()
    async with rig.open_any() as another:
        adopted = await another.adopt(machine.machine_id)
        assert (adopted.pid, adopted.state) == (machine.pid, RUNNING)
    assert [change.state for change in told.changes] == [MachineState.BOOTING, RUNNING]
    daemon.start()
    await machine.pause()
    assert machine.state is PAUSED
    await machine.resume()
    # What somebody else does by libvirt is seen, and can be undone.
    await suspend(daemon, machine.uuid)
    assert await told.until(PAUSED) == "somebody paused it by libvirt"
    await machine.resume()
    assert await sh(machine, "echo here") == "here\n"


async def test_a_machine_is_not_forgotten_while_libvirt_cannot_be_told(
    rig: Rig, hypervisor: AnyKind, daemon: libvirtd.Libvirtd
) -> None:
    spec = rig.spec(words=rig.silent, boot_timeout_s=1.0)
    with pytest.raises(errors.MachineBootFailed):
        await hypervisor.start(spec)
    disk = rig.state_dir / "machines" / spec.machine_id / "disk0.1.qcow2"
    daemon.kill()
    with pytest.raises(errors.Unavailable):
        await hypervisor.remove(spec.machine_id)
    assert disk.exists()
    daemon.start()
    await hypervisor.remove(spec.machine_id)
    assert not disk.exists()
    async with open_connection(daemon.uri) as connection:
        with pytest.raises(errors.NotFound):
            await connection.ask(lambda virt: virt.lookupByUUIDString(uuid_of(disk.parent)))


async def test_a_machine_that_stands_still_before_it_was_ready_has_failed(
    rig: Rig, hypervisor: AnyKind, daemon: libvirtd.Libvirtd
) -> None:
    spec = rig.spec(words=rig.silent)
    folder = rig.state_dir / "machines" / spec.machine_id

    async def disturb() -> None:
        while not (folder / "process.json").exists():
            await anyio.lowlevel.checkpoint()
        await suspend(daemon, uuid_of(folder))

    async with anyio.create_task_group() as group:
        group.start_soon(disturb)
        with pytest.raises(errors.MachineBootFailed, match="somebody paused it by") as failed:
            await hypervisor.start(spec)
        # The end of what its QEMU was told and has said.
        assert "qemu-system-x86_64" in failed.value.message


async def test_a_machine_that_somebody_rewinds_by_libvirt_is_followed(
    rig: Rig, hypervisor: AnyKind, told: Told
) -> None:
    machine = await start(hypervisor, rig.spec())
    await sh(machine, "echo one >/dev/shm/notes")
    document = "<domainsnapshot><name>before</name></domainsnapshot>"
    await machine.tell(lambda found: found.snapshotCreateXML(document))
    await sh(machine, "echo two >/dev/shm/notes")
    before = machine.pid

    def rewind(found: Any) -> None:
        found.revertToSnapshot(found.snapshotLookupByName("before"))

    await machine.tell(rewind)
    await machine.hung_up()
    await machine.reached()
    assert await sh(machine, "cat /dev/shm/notes") == "one\n"
    assert machine.pid != before
    assert MachineState.CRASHED not in [change.state for change in told.changes]
    await machine.stop(LONG_S)
    assert machine.reason == "it was stopped, as asked"


async def test_machines_of_libvirts_talk_in_a_network_of_ours_and_again_when_one_was_put_back(
    rig: Rig, hypervisor: AnyKind
) -> None:
    here = Network("here", ("10.9.0.0/24", "fd09::/64"))
    async with open_switch() as switch:
        await switch.make(here)
        specs = [rig.spec(), rig.spec()]
        ports = [assign(here, spec.machine_id, []) for spec in specs]
        machines: list[LibvirtMachine] = []
        for spec, port in zip(specs, ports, strict=True):
            link = await switch.prepare(port)
            machines.append(
                await start(hypervisor, rig.spec(machine_id=spec.machine_id, links=(link,)))
            )
            await switch.connect(port, machines[-1].links[0])
        first, second = machines
        await second.shell.exec(Command(["python3", "-c", SERVE]))
        questions = [
            ASK.format(address=address.partition("/")[0]) for address in ports[1].addresses
        ]
        for question in questions:
            assert await sh(first, f"python3 -c '{question}'") == "the same\n"
        saved = await first.save(f"{first.machine_id}-s")
        await first.kill()
        await switch.release(ports[0])
        link = await switch.prepare(ports[0])
        first = await hypervisor.clone(saved, replace(first.spec, links=(link,)))
        await switch.connect(ports[0], first.links[0])
        assert await sh(first, f"python3 -c '{questions[0]}'") == "the same\n"
        await hypervisor.forget(saved.snapshot_id)


async def test_a_disk_fails_over_restarts_of_libvirtd_and_of_us_and_is_whole_again(
    rig: Rig, hypervisor: AnyKind, daemon: libvirtd.Libvirtd, *, whole: bool
) -> None:
    if not whole:
        pytest.skip("a disk of QEMU's fails by the same lines")
    spec = rig.spec(disks=(Disk("more", read_only=False, size_mib=16),))
    machine = await start(hypervisor, spec)
    fails = Harm(reads_fail=True)
    # What it takes to read is in its memory from now on: the disk of its programs fails, too.
    assert await sh(machine, READ) == "it reads\n"
    await machine.check_harm(fails)
    await machine.harm(fails, fails.touched)
    assert await sh(machine, READ) == "Input/output error\n"
    daemon.restart()
    async with rig.open_any() as another:
        adopted = await another.adopt(machine.machine_id)
        assert await adopted.harmed(fails.touched) == fails
    # What is saved meanwhile goes on below what fails.
    await machine.save("meanwhile", memory=False)
    assert await sh(machine, READ) == "Input/output error\n"
    daemon.kill()
    with pytest.raises(errors.Unavailable):
        await machine.harm(Harm(), fails.touched)
    daemon.start()
    await machine.harm(Harm(), fails.touched)
    assert await machine.harmed(fails.touched) == Harm()
    assert await sh(machine, READ) == "it reads\n"
    # libvirt goes on with the layers as it knows them, and nothing of ours is between.
    await machine.save("afterwards", memory=False)
    assert await sh(machine, READ) == "it reads\n"
    for saved in ("meanwhile", "afterwards"):
        await hypervisor.forget(saved)
    assert "tainted: custom-monitor" in (daemon.logs / f"{machine.machine_id}.log").read_text()
