"""What every way to run machines does.

On a real QEMU, on the one that only looks so, and on runner directories: one whose script becomes a
real QEMU, and one that becomes a hypervisor of which we use less; on a real libvirtd; and where
NIX_SOURCES names the sources, on a runner that the real microvm.nix made. What a way does not offer
is declared by its rig, and refused.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import anyio
import pytest

import libvirtd
import nix_runner
from machines import (
    LONG_S,
    Rig,
    built_image,
    fake_rig,
    kill_process,
    like,
    new_machine_id,
    qemu_rig,
    removed_in_the_end,
    running_libvirt_rig,
    sh,
)
from microvm_orchestrator import errors, proc
from microvm_orchestrator.machine import process
from microvm_orchestrator.machine.base import Boot, Change, MachineSpec, Snapshot
from microvm_orchestrator.machine.hypervisor import AnyKind
from microvm_orchestrator.machine.living import LivingMachine
from microvm_orchestrator.machine.pool import find_or_make_template, open_pool
from microvm_orchestrator.machine.probe import probe
from microvm_orchestrator.machine.shell import Command
from microvm_orchestrator.model.machine import MachineState
from standin_runner import foreign_rig, runner_rig

RUNNING, PAUSED = MachineState.RUNNING, MachineState.PAUSED
STOPPED, CRASHED = MachineState.STOPPED, MachineState.CRASHED
# A guest that stands still does not answer, however long one waits; this is how long we do.
STILL_S = 0.5


@pytest.fixture(scope="session")
async def image() -> Boot:
    return await built_image()


@pytest.fixture(scope="session")
async def tsc_khz(tmp_path_factory: pytest.TempPathFactory) -> int:
    return (await probe(tmp_path_factory.mktemp("probe"))).tsc_khz or 0


BY_NIX = ["nix-runner"] if nix_runner.wanted() else []
WAYS = ["fake", "qemu", "foreign-runner", "runner", "libvirt", *BY_NIX]


@pytest.fixture(scope="session", params=WAYS)
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Rig]:
    if request.param != "libvirt":
        yield _rig(request, tmp_path_factory)
        return
    if why := libvirtd.why_not():
        pytest.skip(why)
    with running_libvirt_rig(request.getfixturevalue("image")) as rig:
        yield rig


def _rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "fake":
        return fake_rig(folder)
    if request.param == "foreign-runner":
        return foreign_rig(folder)
    image = request.getfixturevalue("image")
    if request.param == "qemu":
        return qemu_rig(folder, image)
    khz = request.getfixturevalue("tsc_khz")
    if request.param == "runner":
        return runner_rig(folder, image, khz)
    if why := nix_runner.why_not():
        pytest.skip(why)
    return nix_runner.nix_rig(folder, image, khz)


@pytest.fixture(scope="session")
def can_save(rig: Rig) -> None:
    if "save" not in rig.offers:
        pytest.skip("what is run in this way is not saved")


@pytest.fixture(scope="session")
def can_pause(rig: Rig) -> None:
    if "pause" not in rig.offers:
        pytest.skip("what is run in this way is not paused")


@pytest.fixture(scope="session")
def boots_quickly(rig: Rig, whole: bool) -> None:
    if rig.libvirtd is not None and not whole:
        pytest.skip("a pool does this alike with every kind, and libvirt's are slow to boot")


class Begin(Protocol):
    """Has a machine run: by the quickest way there is."""

    async def __call__(
        self, hypervisor: AnyKind, spec: MachineSpec | None = None
    ) -> LivingMachine: ...


@pytest.fixture(scope="session")
def begin(rig: Rig, request: pytest.FixtureRequest) -> Begin:
    saved = request.getfixturevalue("saved") if "save" in rig.offers else None

    async def begin(hypervisor: AnyKind, spec: MachineSpec | None = None) -> LivingMachine:
        if saved is None:
            return await hypervisor.start(spec or rig.spec())
        return await hypervisor.clone(saved, spec or like(saved))

    return begin


@pytest.fixture(scope="session")
async def saved(rig: Rig, can_save: None) -> Snapshot:  # noqa: ARG001 # skips
    """A machine that was booted and saved, from which tests start theirs."""
    async with rig.open_any() as qemu, removed_in_the_end(qemu):
        machine = await qemu.start(rig.spec())
        return await machine.save(f"{machine.machine_id}-s")


@pytest.fixture
def told() -> list[Change]:
    return []


@pytest.fixture
async def qemu(rig: Rig, told: list[Change]) -> AsyncGenerator[AnyKind]:
    async def on_change(change: Change) -> None:
        told.append(change)

    with anyio.fail_after(LONG_S):
        async with rig.open_any(on_change) as qemu, removed_in_the_end(qemu):
            yield qemu


@pytest.fixture
async def machine(qemu: AnyKind, begin: Begin, told: list[Change]) -> LivingMachine:
    machine = await begin(qemu)
    told.clear()
    return machine


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def states(told: list[Change]) -> list[MachineState]:
    return [change.state for change in told]


async def test_a_machine_boots_and_runs_commands(
    rig: Rig, qemu: AnyKind, told: list[Change]
) -> None:
    machine = await qemu.start(rig.spec())
    assert await sh(machine, "echo it runs") == "it runs\n"
    assert states(told) == [MachineState.BOOTING, RUNNING]
    usage = await machine.usage()
    assert usage.cpu_s > 0
    assert usage.rss_mib > 1


async def test_a_stopped_machine_has_powered_off_and_leaves_only_its_record(
    rig: Rig, machine: LivingMachine, told: list[Change]
) -> None:
    await machine.stop(LONG_S)
    assert not runs(machine.pid)
    assert states(told) == [STOPPED]
    assert machine.reason == "it was stopped, as asked"
    left = {path.name for path in machine.record.folder.iterdir() if path.is_file()}
    assert left == {"machine.json", "console", "messages", *rig.keeps}
    with pytest.raises(errors.StateForbids, match="is stopped"):
        machine.shell.guest  # noqa: B018 # asking is what is refused


async def test_a_killed_machine_is_stopped_by_force(machine: LivingMachine) -> None:
    await machine.kill()
    assert not runs(machine.pid)
    assert (machine.state, machine.reason) == (STOPPED, "it was ended by force, as asked")


async def test_a_hypervisor_that_is_killed_is_a_crash_with_its_signal(
    rig: Rig, machine: LivingMachine, told: list[Change]
) -> None:
    kill_process(machine, signal.SIGKILL)
    change = await machine.wait()
    assert (change.state, states(told)) == (CRASHED, [CRASHED])
    # Of what is no child of ours, only Linux 6.15 and later tell how it ended.
    unknown = rig.libvirtd is not None and change.reason.startswith("its hypervisor ended")
    assert change.reason == "its hypervisor was ended by SIGKILL" or unknown


async def test_a_panic_in_the_guest_is_a_crash_with_its_words(
    rig: Rig, machine: LivingMachine
) -> None:
    await rig.panic(machine)
    change = await machine.wait()
    assert change.state is CRASHED
    assert change.reason == "the guest's kernel panicked: sysrq triggered crash"


async def test_a_guest_that_never_answers_is_ended_and_its_console_told(
    rig: Rig, qemu: AnyKind, told: list[Change]
) -> None:
    spec = rig.spec(words=rig.silent, boot_timeout_s=4.0)
    with pytest.raises(errors.MachineBootFailed, match="within 4 s") as failed:
        await qemu.start(spec)
    assert failed.value.console
    assert states(told) == [MachineState.BOOTING, CRASHED]
    assert qemu.found() == [spec.machine_id]
    with pytest.raises(errors.MachineLost):
        await qemu.adopt(spec.machine_id)


async def test_a_kernel_that_panics_in_the_boot_is_told_by_its_words(
    rig: Rig, qemu: AnyKind
) -> None:
    with pytest.raises(errors.MachineBootFailed, match="the guest's kernel panicked") as failed:
        await qemu.start(rig.spec(words=rig.panicking))
    assert "Kernel panic" in failed.value.console


@pytest.mark.usefixtures("can_pause")
async def test_a_paused_machine_stands_still_until_it_is_resumed(
    machine: LivingMachine, told: list[Change]
) -> None:
    await machine.pause()
    with anyio.move_on_after(STILL_S) as waited:
        await machine.shell.ping()
    assert waited.cancelled_caught
    await machine.resume()
    assert await sh(machine, "echo goes on") == "goes on\n"
    assert states(told) == [PAUSED, RUNNING]


@pytest.mark.usefixtures("can_pause")
async def test_a_paused_machine_can_be_stopped(machine: LivingMachine) -> None:
    await machine.pause()
    await machine.stop(LONG_S)
    assert machine.reason == "it was stopped, as asked"


@pytest.mark.usefixtures("can_save")
async def test_a_clone_begins_where_the_saved_machine_stood_and_both_go_their_ways(
    rig: Rig, qemu: AnyKind, machine: LivingMachine, told: list[Change]
) -> None:
    await sh(machine, f"echo one >{rig.home(machine)}/notes")
    snapshot = await machine.save(f"{machine.machine_id}-a")
    assert states(told) == []
    assert await sh(machine, f"echo two >>{rig.home(machine)}/notes; echo on") == "on\n"
    clone = await qemu.clone(snapshot, like(snapshot))
    assert await sh(clone, f"cat {rig.home(clone)}/notes") == "one\n"
    await sh(clone, f"echo three >>{rig.home(clone)}/notes")
    assert await sh(machine, f"cat {rig.home(machine)}/notes") == "one\ntwo\n"
    await qemu.forget(snapshot.snapshot_id)
    assert await sh(clone, f"cat {rig.home(clone)}/notes") == "one\nthree\n"
    assert await qemu.find_snapshot(snapshot.snapshot_id) is None


@pytest.mark.usefixtures("can_save")
async def test_a_clone_can_be_saved_and_cloned_again(
    rig: Rig, qemu: AnyKind, machine: LivingMachine
) -> None:
    for generation in range(3):
        await sh(machine, f"echo {generation} >>{rig.home(machine)}/notes")
        snapshot = await machine.save(f"{machine.machine_id}-{generation}")
        await machine.kill()
        machine = await qemu.clone(snapshot, like(snapshot))
        await qemu.forget(snapshot.snapshot_id)
    assert await sh(machine, f"cat {rig.home(machine)}/notes") == "0\n1\n2\n"


@pytest.mark.usefixtures("can_save")
async def test_a_paused_machine_is_saved_and_stays_paused(
    qemu: AnyKind, machine: LivingMachine
) -> None:
    await machine.pause()
    snapshot = await machine.save(f"{machine.machine_id}-p")
    assert (machine.state, snapshot.pause_s) == (PAUSED, 0)
    clone = await qemu.clone(snapshot, like(snapshot))
    assert await sh(clone, "echo runs") == "runs\n"
    await machine.resume()
    assert await sh(machine, "echo runs too") == "runs too\n"
    await qemu.forget(snapshot.snapshot_id)


async def test_clones_of_one_snapshot_are_random_each_in_its_own_way(
    qemu: AnyKind, saved: Snapshot
) -> None:
    seen: list[str] = []

    async def one() -> None:
        clone = await qemu.clone(saved, like(saved))
        seen.append(await sh(clone, "cat /proc/sys/kernel/random/uuid"))

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(one)
    assert len(set(seen)) == 4


@pytest.mark.usefixtures("can_save")
async def test_a_snapshot_that_was_changed_is_refused(
    rig: Rig, qemu: AnyKind, machine: LivingMachine
) -> None:
    snapshot = await machine.save(f"{machine.machine_id}-d")
    memory = snapshot.path / rig.memory
    times = memory.stat()
    with memory.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"poison")
    # As somebody would who wants it to go unseen.
    os.utime(memory, ns=(times.st_atime_ns, times.st_mtime_ns))
    spec = like(snapshot)
    with pytest.raises(errors.SnapshotDamaged, match=f"the file {rig.memory}"):
        await qemu.clone(snapshot, spec)
    with pytest.raises(errors.SnapshotDamaged):
        await qemu.verify(snapshot.snapshot_id)
    assert spec.machine_id not in qemu.found()
    await qemu.forget(snapshot.snapshot_id)


@pytest.mark.usefixtures("can_save")
async def test_a_snapshot_that_was_only_touched_is_read_and_taken(
    qemu: AnyKind, machine: LivingMachine
) -> None:
    snapshot = await machine.save(f"{machine.machine_id}-t")
    os.utime(snapshot.path / "state")
    clone = await qemu.clone(snapshot, like(snapshot))
    assert await sh(clone, "echo fine") == "fine\n"
    await qemu.forget(snapshot.snapshot_id)


async def test_a_clone_cannot_have_other_parts_than_what_was_saved(
    qemu: AnyKind, saved: Snapshot
) -> None:
    with pytest.raises(errors.InvalidInput, match="other parts"):
        await qemu.clone(saved, replace(like(saved), memory_mib=512))


async def test_a_name_of_a_snapshot_is_used_once(machine: LivingMachine, saved: Snapshot) -> None:
    with pytest.raises(errors.AlreadyExists):
        await machine.save(saved.snapshot_id)


@pytest.mark.usefixtures("can_save")
async def test_a_machine_that_has_ended_cannot_be_saved(machine: LivingMachine) -> None:
    await machine.kill()
    with pytest.raises(errors.StateForbids):
        await machine.save(f"{machine.machine_id}-s")


async def test_machines_go_on_without_a_daemon_and_are_adopted_by_the_next(
    rig: Rig, begin: Begin
) -> None:
    async with rig.open_any() as first:
        machine = await begin(first)
        script = f"echo before >{rig.home(machine)}/notes; exec sleep 60"
        command = Command(["/bin/sh", "-c", script])
        async with machine.shell.stream(command, exec_id="long", keep=True):
            pass
    assert runs(machine.pid)
    async with rig.open_any() as second, removed_in_the_end(second):
        adopted = await second.adopt(machine.machine_id)
        assert (adopted.pid, adopted.state) == (machine.pid, RUNNING)
        shell = await adopted.reached()
        assert await sh(adopted, f"cat {rig.home(adopted)}/notes") == "before\n"
        assert [job.exec_id for job in await shell.jobs() if job.running] == ["long"]
        await adopted.stop(LONG_S)
        assert adopted.reason == "it was stopped, as asked"


@pytest.mark.usefixtures("can_pause")
async def test_a_paused_machine_is_adopted_paused(rig: Rig, begin: Begin) -> None:
    async with rig.open_any() as first:
        machine = await begin(first)
        await machine.pause()
    async with rig.open_any() as second, removed_in_the_end(second):
        adopted = await second.adopt(machine.machine_id)
        assert adopted.state is PAUSED
        await adopted.resume()
        await adopted.reached()
        assert await sh(adopted, "echo on") == "on\n"


async def test_an_adopted_machine_that_is_killed_is_a_crash(rig: Rig, begin: Begin) -> None:
    async with rig.open_any() as first:
        machine = await begin(first)
    async with rig.open_any() as second, removed_in_the_end(second):
        adopted = await second.adopt(machine.machine_id)
        kill_process(adopted)
        assert (await adopted.wait()).state is CRASHED


async def test_a_machine_is_found_by_its_name_when_its_process_was_not_written_down(
    rig: Rig, begin: Begin
) -> None:
    async with rig.open_any() as first:
        machine = await begin(first)
    (machine.record.folder / "process.json").unlink()
    async with rig.open_any() as second, removed_in_the_end(second):
        assert (await second.adopt(machine.machine_id)).pid == machine.pid


async def test_a_machine_that_ended_without_a_daemon_is_lost(rig: Rig, begin: Begin) -> None:
    async with rig.open_any() as first:
        machine = await begin(first)
    handle = os.pidfd_open(machine.pid)
    kill_process(machine)
    await anyio.wait_readable(handle)
    os.close(handle)
    async with rig.open_any() as second, removed_in_the_end(second):
        with pytest.raises(errors.MachineLost, match="its process is gone"):
            await second.adopt(machine.machine_id)


async def test_a_machine_that_was_still_booting_is_ended_by_the_next_daemon(
    rig: Rig, begin: Begin
) -> None:
    async with rig.open_any() as first:
        machine = await begin(first)
    made = machine.record.read()
    assert made
    machine.record.write(replace(made, ready=False))
    async with rig.open_any() as second, removed_in_the_end(second):
        with pytest.raises(errors.MachineLost, match="had not finished booting"):
            await second.adopt(machine.machine_id)
        assert not runs(machine.pid)


async def test_a_start_that_is_cancelled_leaves_no_process(rig: Rig, qemu: AnyKind) -> None:
    spec = rig.spec(words=rig.silent)
    record = rig.state_dir / "machines" / spec.machine_id / "process.json"
    async with anyio.create_task_group() as group:
        group.start_soon(qemu.start, spec)
        with anyio.fail_after(LONG_S):
            while not record.exists():
                await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    assert not record.exists()


async def test_a_machine_that_runs_is_not_started_again(
    qemu: AnyKind, machine: LivingMachine
) -> None:
    with pytest.raises(errors.AlreadyExists):
        await qemu.start(machine.spec)


async def test_a_machine_that_has_ended_starts_anew_with_its_old_console(
    rig: Rig, qemu: AnyKind, begin: Begin
) -> None:
    machine = await begin(qemu)
    await sh(machine, f"echo old >{rig.home(machine)}/notes")
    await rig.panic(machine)
    await machine.wait()
    again = await begin(qemu, machine.spec)
    assert await sh(again, f"ls {rig.home(again)}") == ""
    await again.stop(LONG_S)
    # The panic stands in the console still, and is not taken for one of this time.
    assert (again.state, again.reason) == (STOPPED, "it was stopped, as asked")
    assert b"Kernel panic" in again.console.read_bytes()


@pytest.mark.usefixtures("can_save")
async def test_what_a_dead_daemon_did_not_finish_saving_is_taken_away(rig: Rig) -> None:
    left = rig.state_dir / "snapshots" / "half"
    (left / "scribe").mkdir(parents=True)
    (left / "ram").touch()
    # Who was writing it, as it would be found.
    waits = [sys.executable, "-c", "import signal; signal.pause()", "-name", "guest=half"]
    scribe = process.look_after(proc.launch(waits))
    async with rig.open_any():
        assert not left.exists()
        assert await scribe.wait() == -signal.SIGKILL
    scribe.close()


async def test_a_machine_that_stood_by_is_claimed_as_somebody_and_outlives_the_daemon(
    rig: Rig, saved: Snapshot
) -> None:
    async with rig.open_any() as first:
        machine = await first.stand_by(saved, like(saved))
        assert machine.state is PAUSED
        await machine.claim("somebody")
        assert await sh(machine, "echo here") == "here\n"
    async with rig.open_any() as second, removed_in_the_end(second):
        assert (await second.adopt(machine.machine_id)).pid == machine.pid


async def test_a_machine_that_nobody_has_claimed_is_gone_with_the_next_daemon(
    rig: Rig, saved: Snapshot
) -> None:
    async with rig.open_any() as first:
        machine = await first.stand_by(saved, like(saved))
    assert runs(machine.pid)
    async with rig.open_any() as second:
        assert not runs(machine.pid)
        assert second.found() == []


async def test_a_pool_is_filled_again_behind_who_claims(qemu: AnyKind, saved: Snapshot) -> None:
    async with open_pool(qemu, saved, new_machine_id, size=2) as pool:
        await pool.filled()
        standing = set(qemu.found())
        first, second = await pool.claim("first"), await pool.claim("second")
        assert {first.spec.machine_id, second.spec.machine_id} == standing
        await pool.filled()
        assert pool.ready == 2
        assert await sh(first, "echo one") == "one\n"
    assert set(qemu.found()) == standing


async def test_a_pool_passes_over_a_machine_that_has_died_in_it(
    qemu: AnyKind, saved: Snapshot
) -> None:
    async with open_pool(qemu, saved, new_machine_id, size=1) as pool:
        await pool.filled()
        (standing,) = qemu.found()
        died = qemu.live(standing)
        kill_process(died)
        await died.wait()
        claimed = await pool.claim("somebody")
        assert claimed.spec.machine_id != standing
        assert await sh(claimed, "echo alive") == "alive\n"


@pytest.mark.usefixtures("can_save", "boots_quickly")
async def test_a_template_is_made_once_and_anew_when_it_is_damaged(rig: Rig, qemu: AnyKind) -> None:
    spec = rig.spec(memory_mib=288)
    template = await find_or_make_template(qemu, spec, Command(["true"]))
    assert qemu.found() == []
    found = await find_or_make_template(qemu, rig.spec(memory_mib=288))
    assert (found.path, found.sha256) == (template.path, template.sha256)
    (template.path / "state").write_bytes(b"")
    again = await find_or_make_template(qemu, rig.spec(memory_mib=288))
    assert again.sha256 != template.sha256
    await qemu.forget(again.snapshot_id)


async def test_nothing_is_left_of_a_machine_that_was_removed(
    qemu: AnyKind, machine: LivingMachine
) -> None:
    await qemu.remove(machine.machine_id)
    assert not runs(machine.pid)
    assert machine.machine_id not in qemu.found()
    assert not machine.record.folder.exists()


async def test_what_a_way_to_run_machines_does_not_offer_is_refused_and_harms_nothing(
    rig: Rig, qemu: AnyKind, machine: LivingMachine
) -> None:
    spec = rig.spec()
    elsewhere = Snapshot("of-another", rig.state_dir, spec, True, 0.0, 0.0, {})
    verbs: dict[str, list[Callable[[], Awaitable[object]]]] = {
        "save": [
            lambda: machine.save(f"{machine.machine_id}-s"),
            lambda: qemu.clone(elsewhere, spec),
            lambda: qemu.stand_by(elsewhere, spec),
        ],
        "pause": [machine.pause, machine.resume],
        "attach": [lambda: machine.attach().__aenter__()],
    }
    missing = sorted(verbs.keys() - rig.offers)
    if not missing:
        pytest.skip("it offers everything")
    for verb in (verb for name in missing for verb in verbs[name]):
        with pytest.raises(errors.NotOffered):
            await verb()
    assert await sh(machine, "echo as before") == "as before\n"
    assert spec.machine_id not in qemu.found()
