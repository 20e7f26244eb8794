"""Runner directories that go wrong or want something, and what their scripts leave behind.

The hypervisor is what stands in for those in user space; a real QEMU is in the system tests.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from machines import LONG_S, fake_rig, new_machine_id, removed_in_the_end, sh
from microvm_orchestrator import errors
from microvm_orchestrator.machine.base import Accel, Disk, Limits, Link, MachineSpec
from microvm_orchestrator.machine.hypervisor import AnyKind, open_hypervisor
from microvm_orchestrator.machine.living import LivingMachine
from microvm_orchestrator.model.machine import MachineState
from microvm_orchestrator.runner import read
from standin_runner import Wanted, foreign_command, make

FOREIGN = Wanted("cloud-hypervisor", foreign_command("--cmdline", "quiet"))
NAME = "MICROVM_ORCHESTRATOR_MACHINE"
# Answers whoever names a port with what it was told.
LIAR = """
import socket, sys
front = socket.socket(socket.AF_UNIX)
front.bind("notify.vsock")
front.listen()
held = []
while True:
    host, _ = front.accept()
    host.recv(100)
    host.sendall(bytes.fromhex(sys.argv[1]))
    held.append(host)
"""


@pytest.fixture
async def hypervisor(tmp_path: Path) -> AsyncGenerator[AnyKind]:
    with anyio.fail_after(LONG_S):
        async with (
            open_hypervisor(tmp_path / "state") as hypervisor,
            removed_in_the_end(hypervisor),
        ):
            yield hypervisor


def wanted(folder: Path, how: Wanted = FOREIGN) -> MachineSpec:
    machine_id = new_machine_id()
    runner = read(make(folder / machine_id, how))
    return MachineSpec(machine_id, runner, accel=Accel.TCG, boot_timeout_s=LONG_S)


def alive(machine: LivingMachine) -> list[str]:
    """The command lines of what a machine's script has started and still runs."""
    variable = f"{NAME}={machine.record.folder}".encode()
    found: list[str] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                if variable in (folder / "environ").read_bytes().split(b"\0"):
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return found


async def test_a_script_that_ends_at_once_is_a_boot_that_failed_with_what_it_said(
    hypervisor: AnyKind, tmp_path: Path
) -> None:
    how = replace(FOREIGN, pre_start="echo no such bridge >&2\nexit 3")
    with pytest.raises(errors.MachineBootFailed, match="status 3: no such bridge"):
        await hypervisor.start(wanted(tmp_path, how))


async def test_a_hypervisor_that_is_not_there_is_named(hypervisor: AnyKind, tmp_path: Path) -> None:
    how = Wanted("firecracker", ["/nix/store/gone/bin/firecracker"])
    with pytest.raises(errors.MachineBootFailed, match=r"status 127: .*/bin/firecracker: No such"):
        await hypervisor.start(wanted(tmp_path, how))


async def test_a_script_that_waits_for_ever_is_ended_in_time_and_its_console_told(
    hypervisor: AnyKind, tmp_path: Path
) -> None:
    how = replace(FOREIGN, pre_start="echo waiting for godot\nsleep 1000")
    spec = replace(wanted(tmp_path, how), boot_timeout_s=1.0)
    with pytest.raises(errors.MachineBootFailed, match="within 1 s") as failed:
        await hypervisor.start(spec)
    assert failed.value.console == "waiting for godot"
    with pytest.raises(errors.MachineLost):
        await hypervisor.adopt(spec.machine_id)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"ERR\n", "answers b'ERR"),
        (b"x" * 100, "answers b'xxx"),
        (b"OK 1\nand then nonsense", "within 8 s"),
    ],
)
async def test_a_vsock_that_lies_fails_the_machine_and_nothing_else(
    hypervisor: AnyKind, tmp_path: Path, answer: bytes, why: str
) -> None:
    how = Wanted("firecracker", [sys.executable, "-c", LIAR, answer.hex()])
    spec = replace(wanted(tmp_path, how), boot_timeout_s=8.0)
    with pytest.raises(errors.MachineBootFailed, match=why):
        await hypervisor.start(spec)
    honest = await hypervisor.start(wanted(tmp_path))
    assert await sh(honest, "echo here") == "here\n"


async def test_whatever_a_script_starts_beside_itself_ends_with_the_machine(
    hypervisor: AnyKind, tmp_path: Path
) -> None:
    # Also what has left the session of the script.
    how = replace(FOREIGN, pre_start="sleep 1000 &\nsetsid sleep 2000 &")
    machine = await hypervisor.start(wanted(tmp_path, how))
    assert {"sleep 1000 ", "sleep 2000 "} < set(alive(machine))
    await machine.kill()
    assert alive(machine) == []


async def test_what_a_lost_machine_has_left_running_is_ended(tmp_path: Path) -> None:
    how = replace(FOREIGN, pre_start="setsid sleep 1000 &")
    async with open_hypervisor(tmp_path / "state") as first:
        machine = await first.start(wanted(tmp_path, how))
    record = machine.record.read()
    assert record
    machine.record.write(replace(record, ready=False))
    async with open_hypervisor(tmp_path / "state") as second:
        with pytest.raises(errors.MachineLost, match="had not finished booting"):
            await second.adopt(machine.machine_id)
        assert alive(machine) == []
        await second.remove(machine.machine_id)


async def test_volumes_are_made_where_only_that_machine_has_them_and_kept_until_it_is_removed(
    hypervisor: AnyKind, tmp_path: Path
) -> None:
    how = replace(FOREIGN, pre_start="[ -e data.img ] || head -c 3000000 /dev/zero >data.img")
    spec = wanted(tmp_path, how)
    machine = await hypervisor.start(spec)
    volume = machine.record.run / "data.img"
    assert (await machine.usage()).disk_mib > 2.8
    await machine.stop(LONG_S)
    before = volume.stat().st_mtime_ns
    again = await hypervisor.start(spec)
    assert volume.stat().st_mtime_ns == before
    await hypervisor.remove(again.machine_id)
    assert not volume.parent.exists()


async def test_a_guest_that_powers_off_by_itself_has_not_crashed(
    hypervisor: AnyKind, tmp_path: Path
) -> None:
    machine = await hypervisor.start(wanted(tmp_path))
    await machine.shell.shutdown(grace_s=1)
    change = await machine.wait()
    assert (change.state, change.reason) == (MachineState.STOPPED, "its hypervisor ended by itself")


async def test_what_a_runner_wants_and_nobody_gives_is_told_before_it_is_started(
    hypervisor: AnyKind, tmp_path: Path
) -> None:
    spec = wanted(tmp_path)
    with pytest.raises(errors.InvalidInput, match="tap interfaces that are not there: no-such-tap"):
        await hypervisor.start(wanted(tmp_path, replace(FOREIGN, tap="no-such-tap")))
    with pytest.raises(errors.NotOffered, match=r"virtiofs shares.*: home"):
        await hypervisor.start(wanted(tmp_path, replace(FOREIGN, share="home")))
    with pytest.raises(errors.NotOffered, match="brings its own disks"):
        await hypervisor.start(replace(spec, disks=(Disk("more", size_mib=1, read_only=False),)))
    with pytest.raises(errors.NotOffered, match="limits on processes"):
        await hypervisor.start(replace(spec, limits=Limits(pids=100)))
    with pytest.raises(errors.NotOffered, match="no links of ours"):
        await hypervisor.start(replace(spec, links=(Link("52:54:00:00:00:01"),)))
    for how in (replace(FOREIGN, cid=None), replace(FOREIGN, hypervisor="crosvm")):
        with pytest.raises(errors.NotOffered, match="cannot be reached"):
            await hypervisor.start(wanted(tmp_path, how))
    qemu = Wanted(command=["/usr/bin/qemu-system-x86_64", "-m", "768M"])
    deaf = replace(wanted(tmp_path, replace(qemu, takes_arguments=False)), memory_mib=768)
    with pytest.raises(errors.NotOffered, match="takes no arguments"):
        await hypervisor.start(deaf)
    with pytest.raises(errors.InvalidInput, match="gives its guest 768 MiB and 1 processors"):
        await hypervisor.start(wanted(tmp_path, qemu))
    assert hypervisor.found() == []


async def test_a_directory_that_has_changed_since_it_was_taken_in_is_not_started(
    hypervisor: AnyKind, tmp_path: Path
) -> None:
    spec = wanted(tmp_path)
    script = tmp_path / spec.machine_id / "runner" / "bin" / "microvm-run"
    script.resolve().write_text("#!/bin/sh\nexec rm -rf /somewhere\n")
    with pytest.raises(errors.InvalidInput, match="is not what it was"):
        await hypervisor.start(spec)
    script.unlink()
    with pytest.raises(errors.InvalidInput, match="microvm-run: No such file"):
        await hypervisor.start(spec)
    assert hypervisor.found() == []


async def test_one_hypervisor_starts_adopts_and_removes_machines_of_both_kinds(
    tmp_path: Path,
) -> None:
    rig = fake_rig(tmp_path)
    of_parts, of_runner = rig.spec(), wanted(tmp_path)
    async with rig.open_any() as first:
        for spec in (of_parts, of_runner):
            await first.start(spec)
    async with rig.open_any() as second:
        assert set(second.found()) == {of_parts.machine_id, of_runner.machine_id}
        for spec in (of_parts, of_runner):
            machine = await second.adopt(spec.machine_id)
            await machine.reached()
            assert await sh(machine, "echo adopted") == "adopted\n"
            assert second.live(spec.machine_id) is machine
        snapshot = await second.live(of_parts.machine_id).save("of-parts")
        with pytest.raises(errors.NotOffered):
            await second.clone(snapshot, replace(of_runner, machine_id="another"))
        await second.forget(snapshot.snapshot_id)
        for spec in (of_parts, of_runner):
            await second.remove(spec.machine_id)
        assert second.found() == []
