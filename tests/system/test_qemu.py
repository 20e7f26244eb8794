"""What only a real guest in a real QEMU can show."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

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
from microvm_orchestrator.machine import console, process, sockets
from microvm_orchestrator.machine.base import Boot, Disk, Link, Snapshot
from microvm_orchestrator.machine.qemu.hypervisor import Qemu, open_qemu
from microvm_orchestrator.machine.qemu.machine import QemuMachine
from microvm_orchestrator.machine.shell import Command, GuestEvent
from microvm_orchestrator.model.machine import MachineState
from system.harm import EAT, flood_console

NOBODY = 65534
MIB = 1 << 20
# The parts of what is saved of a machine that belong to who it is.
WHO = "hostname; cat /etc/machine-id /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -x"


@pytest.fixture(scope="module")
async def boot() -> Boot:
    return await built_image()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, boot: Boot) -> Rig:
    return qemu_rig(tmp_path_factory.mktemp("machines"), boot)


@pytest.fixture(scope="module")
async def saved(rig: Rig) -> Snapshot:
    async with rig.open() as qemu, removed_in_the_end(qemu):
        machine = await qemu.start(rig.spec())
        return await machine.save(f"{machine.machine_id}-s")


@pytest.fixture
async def qemu(rig: Rig) -> AsyncGenerator[Qemu]:
    with anyio.fail_after(LONG_S):
        async with rig.open() as qemu, removed_in_the_end(qemu):
            yield qemu


@pytest.fixture
async def machine(qemu: Qemu, saved: Snapshot) -> QemuMachine:
    return await qemu.clone(saved, like(saved))


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines)


async def test_each_clone_is_somebody_with_its_own_randomness_and_the_host_s_time(
    qemu: Qemu, saved: Snapshot
) -> None:
    seen: list[list[str]] = []
    for _ in range(4):
        clone = await qemu.clone(saved, like(saved))
        who = (await sh(clone, WHO)).split()
        assert who[0] == clone.machine_id
        seen.append(who)
        assert abs(int(await sh(clone, "date +%s")) - time.time()) < 5
    for parts in zip(*seen, strict=True):
        if parts[0].startswith("0000"):  # the offsets that `od` prints
            continue
        assert len(set(parts)) == 4, parts


async def test_what_ran_in_the_saved_machine_runs_on_in_the_clone_and_in_itself(
    qemu: Qemu, machine: QemuMachine
) -> None:
    count = 'n=0; while :; do n=$((n + 1)); echo "$n" >/tmp/n; sleep 0.05; done'
    async with machine.shell.stream(Command(["/bin/sh", "-c", count]), keep=True):
        pass
    snapshot = await machine.save(f"{machine.machine_id}-s")
    clone = await qemu.clone(snapshot, like(snapshot))
    for each in (machine, clone):
        begun = int(await sh(each, "cat /tmp/n || echo 0"))
        assert int(
            await sh(each, f"while [ $(cat /tmp/n) -le {begun + 2} ]; do :; done; cat /tmp/n")
        )
    assert 0 < snapshot.pause_s < LONG_S
    await qemu.forget(snapshot.snapshot_id)


async def test_many_generations_lose_nothing_and_grow_no_larger(
    qemu: Qemu, machine: QemuMachine, whole: bool
) -> None:
    generations = 25 if whole else 4
    sizes: list[float] = []
    for generation in range(generations):
        await sh(machine, f"echo {generation} >>/var/notes; sha256sum /usr/bin/git >/var/sum")
        snapshot = await machine.save(f"{machine.machine_id}-{generation}")
        sizes.append(snapshot.unique_mib)
        await qemu.remove(machine.machine_id)
        machine = await qemu.clone(snapshot, like(snapshot))
        await qemu.forget(snapshot.snapshot_id)
    assert (await sh(machine, "cat /var/notes")).split() == [str(n) for n in range(generations)]
    assert await sh(machine, "sha256sum -c /var/sum") == "/usr/bin/git: OK\n"
    assert max(sizes) < 1.5 * sizes[0]


async def test_machines_that_work_while_they_are_saved_again_and_again_come_to_no_harm(
    qemu: Qemu, saved: Snapshot, whole: bool
) -> None:
    for _ in range(20 if whole else 4):
        machine = await qemu.clone(saved, like(saved))
        async with machine.shell.stream(
            Command(["/bin/sh", "-c", "while :; do git --version; done"]), keep=True
        ):
            snapshot = await machine.save(f"{machine.machine_id}-s")
        clone = await qemu.clone(snapshot, like(snapshot))
        assert "git version" in await sh(clone, "git --version")
        assert "git version" in await sh(machine, "git --version")
        for each in (machine, clone):
            await qemu.remove(each.machine_id)
        await qemu.forget(snapshot.snapshot_id)


async def test_a_flooded_console_takes_little_of_the_disk_and_the_machine_goes_on(
    machine: QemuMachine, whole: bool
) -> None:
    flood = (1000 if whole else 6) * MIB
    with anyio.fail_after(flood / MIB * 10 + LONG_S):
        await sh(machine, flood_console(flood))
    machine.bound_console()
    stat = machine.console.stat()
    assert stat.st_size >= flood
    assert stat.st_blocks * 512 <= 3 * MIB
    begin, data = console.read(machine.console, 0, 100)
    assert begin > 0
    assert set(data) == {ord("x")}
    assert await sh(machine, "echo still here") == "still here\n"


async def test_a_console_that_nobody_bounds_ends_at_the_limit_of_its_file(
    qemu: Qemu, saved: Snapshot
) -> None:
    async with anyio.create_task_group() as group:
        # One that nobody tends, so that the limit stays as it is set here.
        machine = await Qemu(qemu.host, group).clone(saved, like(saved))
        size = machine.console.stat().st_size
        # As if the flood had gone on for long without a daemon.
        resource.prlimit(machine.pid, resource.RLIMIT_FSIZE, (size + 1000, resource.RLIM_INFINITY))
        await sh(machine, flood_console(5000))
        assert machine.console.stat().st_size == size + 1000
        assert machine.state is MachineState.RUNNING
        machine.bound_console()
        await sh(machine, "echo again >/dev/ttyS0")
        assert b"again" in machine.console.read_bytes()
        await machine.kill()


async def test_eight_machines_run_at_once(qemu: Qemu, saved: Snapshot) -> None:
    answers: list[str] = []

    async def one() -> None:
        clone = await qemu.clone(saved, like(saved))
        answers.append(await sh(clone, "git --version"))

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(one)
    assert len(answers) == 8


async def test_a_guest_without_memory_ends_a_program_and_goes_on(machine: QemuMachine) -> None:
    assert (await sh(machine, f"{EAT}; echo $?")).split()[-1] == "137"
    assert await sh(machine, "echo alive") == "alive\n"


async def test_qemu_has_no_rights_opens_nothing_of_ours_and_cannot_start_anything(
    rig: Rig, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can run a QEMU as somebody else")
    async with open_qemu(tmp_path, user=(NOBODY, NOBODY)) as qemu, removed_in_the_end(qemu):
        machine = await qemu.start(rig.spec())
        status = status_of(machine.pid)
        assert status["Uid"].split() == [str(NOBODY)] * 4
        assert status["Groups"].strip() == ""
        assert int(status["CapEff"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        snapshot = await machine.save(f"{machine.machine_id}-s")
        clone = await qemu.clone(snapshot, like(snapshot))
        assert await sh(clone, "echo runs") == "runs\n"


async def test_everything_of_a_machine_is_in_its_control_group_and_the_group_goes_with_it(
    machine: QemuMachine,
) -> None:
    groups = machine.host.groups
    if groups is None:
        pytest.skip("this host lets us make no control groups")
    inside = groups.find(machine.machine_id)
    assert inside.processes() == [machine.pid]
    kill_process(machine)
    await machine.wait()
    groups.sweep()
    assert inside.processes() == []


async def test_what_is_written_to_a_disk_is_saved_cloned_and_kept_when_the_machine_stops(
    rig: Rig, qemu: Qemu
) -> None:
    scratch = Disk("scratch", read_only=False, size_mib=512)
    machine = await qemu.start(rig.spec(disks=(scratch,)))
    fill = "head -c 20000000 /dev/urandom >big; sha256sum big >sum; echo one >notes; sync"
    await sh(machine, fill)
    first = await machine.save(f"{machine.machine_id}-s")
    await sh(machine, "echo two >>notes; sync")
    clone = await qemu.clone(first, like(first))
    assert await sh(clone, "cat notes; sha256sum -c sum") == "one\nbig: OK\n"
    await sh(clone, "echo three >>notes; sync")
    second = await clone.save(f"{clone.machine_id}-s")
    # What the second one lies on stays, though nobody else has it any more.
    await qemu.forget(first.snapshot_id)
    await qemu.remove(clone.machine_id)
    again = await qemu.clone(second, like(second))
    assert await sh(again, "cat notes; sha256sum -c sum") == "one\nthree\nbig: OK\n"
    await qemu.verify(second.snapshot_id)
    await machine.stop(LONG_S)
    machine = await qemu.start(machine.spec)
    assert await sh(machine, "cat notes; sha256sum -c sum") == "one\ntwo\nbig: OK\n"
    await qemu.forget(second.snapshot_id)


async def test_a_full_disk_is_an_error_in_the_guest_and_the_machine_goes_on(
    rig: Rig, qemu: Qemu
) -> None:
    scratch = Disk("scratch", read_only=False, size_mib=64)
    machine = await qemu.start(rig.spec(disks=(scratch,)))
    assert "No space left" in await sh(machine, "cat /dev/zero 2>&1 >big || true")
    assert await sh(machine, "rm big; echo room again") == "room again\n"
    usage = await machine.usage()
    assert usage.disk_mib < 80


async def test_a_disk_that_is_not_there_leaves_no_process(rig: Rig, qemu: Qemu) -> None:
    spec = rig.spec(disks=(Disk("opt-x", Path("/nowhere/at/all")),))
    with pytest.raises(errors.InvalidInput, match="opt-x"):
        await qemu.start(spec)
    assert process.find_by_words(("-name", f"guest={spec.machine_id}"), frozenset({0})) is None


async def test_who_is_attached_to_the_console_hears_the_guest_and_is_heard(
    machine: QemuMachine,
) -> None:
    listen = "stty -F /dev/ttyS0 -echo; head -n 1 /dev/ttyS0 >typed; echo got it >/dev/ttyS0"
    async with machine.shell.stream(Command(["/bin/sh", "-c", listen])) as job:
        async with machine.attach() as terminal:
            with pytest.raises(errors.StateForbids, match="held already"):
                async with machine.attach():
                    pass
            await terminal.type(b"hello guest\n")
            heard = b""
            async for data in terminal:
                heard += data
                if b"got it" in heard:
                    break
        assert (await job.wait()).code == 0
    assert await sh(machine, "cat typed") == "hello guest\n"
    async with machine.attach() as terminal:
        await machine.kill()
        assert [data async for data in terminal] == []
    with pytest.raises(errors.StateForbids):
        async with machine.attach():
            pass


@pytest.mark.long
async def test_who_is_attached_and_does_not_read_holds_up_nobody(machine: QemuMachine) -> None:
    async with machine.attach() as terminal:
        await sh(machine, flood_console(3_000_000))
        heard = 0
        async for data in terminal:
            heard += len(data)
            if heard > 10_000:
                break
    assert machine.console.stat().st_size >= 3_000_000


async def test_what_a_guest_reports_of_itself_is_told_with_its_machine(
    rig: Rig, saved: Snapshot
) -> None:
    reports, heard = anyio.create_memory_object_stream[tuple[str, GuestEvent]](10)

    async def on_guest_event(machine_id: str, event: GuestEvent) -> None:
        await reports.send((machine_id, event))

    with reports, heard, anyio.fail_after(LONG_S):
        async with (
            open_qemu(rig.state_dir, on_guest_event=on_guest_event) as qemu,
            removed_in_the_end(qemu),
        ):
            machine = await qemu.clone(saved, like(saved))
            # The agent begins to look a second after its start; what was before is not told.
            while not heard.statistics().current_buffer_used:
                await sh(machine, f"{EAT} || true")
            machine_id, event = await heard.receive()
            assert (machine_id, event.kind) == (machine.machine_id, "oom")


async def next_arp(frames: BufferedByteReceiveStream) -> bytes:
    while True:
        length = int.from_bytes(await frames.receive_exactly(4), "big")
        frame = await frames.receive_exactly(length)
        if frame[12:14] == b"\x08\x06":
            return frame


async def arp_from(machine: QemuMachine) -> tuple[str, str]:
    """Let a guest ask for a neighbour; who asks, by the frame that arrives."""
    ask = Command(["/bin/sh", "-c", "ping -c 30 10.7.0.99 >/dev/null 2>&1"])
    async with (
        await sockets.connect(machine.links[0]) as stream,
        machine.shell.stream(ask),
    ):
        frame = await next_arp(BufferedByteReceiveStream(stream))
    return frame[6:12].hex(":"), ".".join(map(str, frame[28:32]))


async def test_each_machine_speaks_on_its_link_with_its_own_addresses_also_as_a_clone(
    rig: Rig, qemu: Qemu
) -> None:
    first = Link("52:54:00:00:07:01", "10.7.0.1/24")
    machine = await qemu.start(rig.spec(links=(first,)))
    assert await arp_from(machine) == ("52:54:00:00:07:01", "10.7.0.1")
    # Whoever carries the frames may come again: a daemon that was started anew.
    assert await arp_from(machine) == ("52:54:00:00:07:01", "10.7.0.1")
    snapshot = await machine.save(f"{machine.machine_id}-s")
    second = Link("52:54:00:00:07:02", "10.7.0.2/24")
    clone = await qemu.clone(snapshot, replace(like(snapshot), links=(second,)))
    assert await arp_from(clone) == ("52:54:00:00:07:02", "10.7.0.2")
    await qemu.forget(snapshot.snapshot_id)
