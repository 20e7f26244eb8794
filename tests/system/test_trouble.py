"""Guests and hypervisors that go wrong: the right state and reason, and nobody is flooded."""

from __future__ import annotations

import re
import resource
import signal
import stat
from collections.abc import AsyncGenerator
from itertools import pairwise
from pathlib import Path

import anyio
import pytest

from machines import (
    LONG_S,
    Rig,
    built_image,
    kill_process,
    like,
    qemu_rig,
    removed_in_the_end,
    sh,
)
from microvm_orchestrator import errors
from microvm_orchestrator.machine.base import Boot, Snapshot
from microvm_orchestrator.machine.qemu.hypervisor import Qemu
from microvm_orchestrator.machine.qemu.machine import QemuMachine
from microvm_orchestrator.machine.shell import Command
from microvm_orchestrator.model.machine import MachineState
from system.harm import STARVE

CRASHED, RUNNING, STOPPED = MachineState.CRASHED, MachineState.RUNNING, MachineState.STOPPED
MIB = 1 << 20
# A guest that never answers does not, however long one waits; this is how long we do.
SILENT_S = 2.0


@pytest.fixture(scope="module")
async def boot() -> Boot:
    return await built_image()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, boot: Boot) -> Rig:
    return qemu_rig(tmp_path_factory.mktemp("trouble"), boot)


@pytest.fixture(scope="module")
async def saved(rig: Rig) -> Snapshot:
    async with rig.open() as qemu, removed_in_the_end(qemu):
        machine = await qemu.start(rig.spec())
        return await machine.save(f"{machine.machine_id}-s")


@pytest.fixture
async def qemu(rig: Rig) -> AsyncGenerator[Qemu]:
    with anyio.fail_after(2 * LONG_S):
        async with rig.open() as qemu, removed_in_the_end(qemu):
            yield qemu


@pytest.fixture
async def machine(qemu: Qemu, saved: Snapshot) -> QemuMachine:
    return await qemu.clone(saved, like(saved))


async def starve(machine: QemuMachine) -> None:
    """Let the guest run and never answer again."""
    with anyio.move_on_after(SILENT_S):
        async with machine.shell.stream(Command(["python3", "-c", STARVE]), keep=True) as job:
            await job.wait()
    with anyio.move_on_after(SILENT_S) as waited:
        await machine.shell.ping()
    assert waited.cancelled_caught


async def test_nobody_in_the_guest_can_end_or_stop_its_agent(machine: QemuMachine) -> None:
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGTERM):
        await sh(machine, f"kill -{number.value} 1; sleep 0.1")
    assert await sh(machine, "cat /proc/1/comm") == "python3\n"
    assert machine.state is RUNNING


async def test_a_guest_that_never_answers_is_seen_paused_measured_and_stopped_by_force(
    machine: QemuMachine,
) -> None:
    await starve(machine)
    assert machine.state is RUNNING
    usage = await machine.usage()
    assert usage.cpu_s > 0
    assert usage.guest is None
    await machine.pause()
    await machine.resume()
    await machine.stop(grace_s=SILENT_S)
    assert (machine.state, machine.reason) == (
        STOPPED,
        "it had not powered off within 2 s and was ended by force",
    )


async def test_a_guest_that_never_answers_is_adopted_and_its_agent_is_not_there(
    rig: Rig, saved: Snapshot
) -> None:
    async with rig.open() as first:
        machine = await first.clone(saved, like(saved))
        await starve(machine)
    async with rig.open() as second, removed_in_the_end(second):
        adopted = await second.adopt(machine.machine_id)
        assert adopted.state is RUNNING
        with pytest.raises(errors.MachineUnreachable):
            adopted.shell.guest  # noqa: B018 # asking is what is refused
        await adopted.kill()


async def test_a_guest_that_reboots_has_ended_and_says_so(machine: QemuMachine) -> None:
    # Not before it was heard that the command has begun.
    reboot = Command(["/bin/sh", "-c", "sleep 0.5; reboot -f"])
    async with machine.shell.stream(reboot, keep=True):
        change = await machine.wait()
    assert (change.state, change.reason) == (STOPPED, "the guest rebooted, which ends a machine")


async def test_a_command_learns_that_its_machine_was_killed_and_what_of(
    machine: QemuMachine,
) -> None:
    async with machine.shell.stream(Command(["sleep", "1000"])) as job:
        kill_process(machine)
        with pytest.raises(errors.UnknownOutcome):
            await job.wait()
    change = await machine.wait()
    assert (change.state, change.reason) == (CRASHED, "its hypervisor was ended by SIGKILL")


async def test_a_panic_reaches_who_waits_for_a_command(machine: QemuMachine) -> None:
    panic = "sleep 0.2; echo c >/proc/sysrq-trigger"
    with pytest.raises(errors.UnknownOutcome):
        await machine.shell.exec(Command(["/bin/sh", "-c", panic]))
    change = await machine.wait()
    assert (change.state, change.reason) == (
        CRASHED,
        "the guest's kernel panicked: sysrq triggered crash",
    )


async def test_a_flood_from_a_command_is_cut_off_and_takes_no_memory_of_ours(
    machine: QemuMachine, whole: bool
) -> None:
    flood = (1000 if whole else 100) * MIB
    before = peak_bytes()
    with anyio.fail_after(flood / MIB + LONG_S):
        ran = await machine.shell.exec(
            Command(["head", "-c", str(flood), "/dev/zero"]), output_cap=MIB
        )
    assert (len(ran.stdout), ran.truncated, ran.exit.code) == (MIB, True, 0)
    assert peak_bytes() - before < 16 * MIB


async def test_a_flood_that_nobody_reads_waits_in_the_guest_and_others_are_served(
    machine: QemuMachine,
) -> None:
    before = peak_bytes()
    async with machine.shell.stream(Command(["cat", "/dev/zero"])):
        for _ in range(20):
            assert await sh(machine, "echo served") == "served\n"
    assert peak_bytes() - before < 16 * MIB
    agent_kib = await sh(machine, "sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/1/status")
    assert int(agent_kib) < 32 * 1024


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def test_the_monitor_is_in_nobody_s_reach_and_the_hypervisor_in_a_sandbox(
    machine: QemuMachine,
) -> None:
    folder = machine.record.folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    process = Path(f"/proc/{machine.pid}")
    words = (process / "cmdline").read_bytes().decode().split("\0")
    options = dict(pairwise(words))
    for denied in ("obsolete", "elevateprivileges", "spawn", "resourcecontrol"):
        assert f"{denied}=deny" in options["-sandbox"].split(",")
    assert options["-sandbox"].startswith("on,")
    monitors = [word for word in words if re.match(r"socket,id=monitor,", word)]
    # A socket that it inherits: neither a path nor a port.
    assert [re.sub(r"\d+", "N", word) for word in monitors] == [
        "socket,id=monitor,fd=N,server=on,wait=off"
    ]
    assert options["-mon"] == "chardev=monitor,mode=control"
    status = (process / "status").read_text()
    assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE)
    # What it cannot do in there: start anything.
    assert not (process / f"task/{machine.pid}/children").read_text().strip()
