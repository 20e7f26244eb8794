"""A core of what a malicious guest does, done by one in a real QEMU, over its real port.

Its image is the embedded guest with another agent, `hostile_agent.py`, which is put over the root
by a second archive behind the first one's initrd. `test_malicious_guest.py` has every row.
"""

from __future__ import annotations

import stat
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from machines import LONG_S, ROOT, Rig, built_image, like, qemu_rig, removed_in_the_end
from microvm_orchestrator import errors
from microvm_orchestrator.cpio import CpioWriter
from microvm_orchestrator.machine.base import Boot, Disk, DiskFormat, Snapshot
from microvm_orchestrator.machine.qemu import qcow2
from microvm_orchestrator.machine.qemu.hypervisor import Qemu
from microvm_orchestrator.machine.qemu.machine import QemuMachine
from microvm_orchestrator.machine.shell import Command, TreeLimits
from system.test_malicious_guest import BOOTS, digest, high_kib

HANDS_OVER = "exec /bin/busybox switch_root /new /usr/sbin/init"
# It needs nothing of what a guest has; what it shall be is a word of the kernel's command line.
START = """#!/bin/sh
read -r words </proc/cmdline
boot=
for word in $words; do
    case $word in hostile=*) boot=${word#hostile=} ;; esac
done
exec python3 -I -S /hostile/hostile_agent.py port:ctl $boot
"""
GROWTH_KIB = 64 * 1024
LIMITS = TreeLimits(size=1 << 20, entries=1000)


def malicious(boot: Boot, folder: Path) -> Boot:
    """Put another agent into an image."""
    init = (ROOT / "guest/embedded/initrd/init").read_text()
    assert HANDS_OVER in init
    mine = f"cp -r /hostile /new/hostile\n{HANDS_OVER.replace('/usr/sbin/init', '/hostile/start')}"
    files = {
        "init": init.replace(HANDS_OVER, mine).encode(),
        "hostile/start": START.encode(),
        "hostile/hostile_agent.py": (ROOT / "tests/hostile_agent.py").read_bytes(),
        "hostile/wire.py": (ROOT / "guest/agent/wire.py").read_bytes(),
    }
    initrd = folder / "initrd"
    with initrd.open("wb") as out:
        first = boot.initrd.read_bytes()
        out.write(first + bytes(-len(first) % 512))
        archive = CpioWriter(out)
        archive.add("hostile", stat.S_IFDIR | 0o755, 0, ())
        for path, data in files.items():
            archive.add(path, stat.S_IFREG | 0o755, len(data), [data])
        archive.end()
    return replace(boot, digest="malicious", initrd=initrd)


@pytest.fixture(scope="module")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    folder = tmp_path_factory.mktemp("malicious")
    return qemu_rig(folder, malicious(await built_image(), folder))


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
async def machine(qemu: Qemu, saved: Snapshot, tmp_path: Path) -> AsyncGenerator[QemuMachine]:
    """Give a machine that was taken over; afterwards nothing is touched, and a next one works."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("keep me")
    (tmp_path / "into").mkdir()
    (tmp_path / "into" / "link").symlink_to(tmp_path / "outside")
    before, small = digest(tmp_path / "outside"), high_kib(machine_pid())
    yield await qemu.clone(saved, like(saved))
    assert digest(tmp_path / "outside") == before
    assert names(tmp_path) == ["into", "outside"]
    assert high_kib(machine_pid()) < small + GROWTH_KIB
    clone = await qemu.clone(saved, like(saved))
    assert (await clone.shell.exec(Command(["true"]))).exit.code == 0
    await qemu.verify(saved.snapshot_id)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def machine_pid() -> int:
    """Return who holds the machines here: this test."""
    return int(Path("/proc/self").readlink().name)


@pytest.mark.parametrize(
    "boot", ["speaks_another_version", "sends_garbage_without_end", "acknowledges_all_but_its_name"]
)
async def test_a_real_guest_that_does_not_greet_as_it_should_is_never_served(
    qemu: Qemu, rig: Rig, boot: str
) -> None:
    with pytest.raises(errors.MachineBootFailed, match=BOOTS[boot]):
        await qemu.start(rig.spec(words=f"hostile={boot}"))


async def run(machine: QemuMachine, act: str, _: Path) -> object:
    return await machine.shell.exec(Command([act]))


async def read(machine: QemuMachine, act: str, _: Path) -> object:
    async with machine.shell.get(f"/{act}", max_size=1000) as file:
        return [piece async for piece in file]


async def copy(machine: QemuMachine, act: str, into: Path) -> object:
    return await machine.shell.get_tree(f"/{act}", into, LIMITS)


Do = Callable[[QemuMachine, str, Path], Awaitable[object]]
ACTS: list[tuple[Do, str, type[Exception], str]] = [
    (run, "four-gigabytes-long", errors.UnknownOutcome, "4294967295 bytes"),
    (run, "data-behind-its-end", errors.UnknownOutcome, "END|between the output"),
    (run, "a-status-of-256", errors.UnknownOutcome, "code is 256"),
    (read, "larger-than-allowed", errors.ProtocolBroken, "size is"),
    (copy, "a-way-up", errors.ProtocolBroken, "elsewhere"),
    (copy, "an-absolute-name", errors.ProtocolBroken, "elsewhere"),
    (copy, "a-file-through-a-link-of-the-host", errors.ProtocolBroken, "Not a directory"),
    (copy, "a-device", errors.ProtocolBroken, "type"),
    (copy, "a-sparse-file-of-4-gb", errors.ProtocolBroken, "size"),
    (copy, "millions-of-entries", errors.ProtocolBroken, "entries|granted"),
]


@pytest.mark.parametrize(("do", "act", "error", "why"), ACTS)
async def test_a_real_guest_that_breaks_the_rules_is_refused_and_touches_nothing(
    machine: QemuMachine, tmp_path: Path, do: Do, act: str, error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        await do(machine, act, tmp_path / "into")


async def test_strange_names_of_a_real_guest_land_in_the_folder_and_nowhere_else(
    machine: QemuMachine, tmp_path: Path
) -> None:
    fetched = await machine.shell.get_tree("/strange-names", tmp_path / "into", LIMITS)
    assert fetched.files == len(names(tmp_path / "into")) - 1 == 12


async def test_a_flood_of_output_of_a_real_guest_leaves_its_host_small(
    machine: QemuMachine,
) -> None:
    finished = await machine.shell.exec(Command(["floods-its-output"]), output_cap=1 << 20)
    assert (len(finished.stdout), finished.truncated) == (1 << 20, True)


async def test_a_disk_that_names_a_file_of_the_host_is_given_to_no_guest(
    qemu: Qemu, rig: Rig, tmp_path: Path
) -> None:
    path = tmp_path / "disk.qcow2"
    qcow2.create(path, 1 << 30)
    named = b"/etc/shadow"
    with path.open("r+b") as file:
        file.seek(512)
        file.write(named)
        file.seek(8)
        file.write((512).to_bytes(8, "big") + len(named).to_bytes(4, "big"))
    disk = Disk("other", path, DiskFormat.QCOW2, read_only=True)
    with pytest.raises(errors.InvalidInput, match="another file"):
        await qemu.start(rig.spec(disks=(disk,)))
