"""Machines for tests: the image they boot, and what runs them: a QEMU, or one that only looks so.

The image is built once and kept in `.cache` of the repository; later runs only look whether it is
still what would be built. A rig knows how to make go wrong what goes wrong differently on each.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio

from libvirtd import Libvirtd, running_libvirtd
from microvm_orchestrator import errors
from microvm_orchestrator.host import boot_of
from microvm_orchestrator.images.build import ImageSpec, build
from microvm_orchestrator.images.manifest import Agent, Input, Inputs, Manifest
from microvm_orchestrator.images.manifest import Disk as ImageDisk
from microvm_orchestrator.images.programs import PROGRAMS, Program
from microvm_orchestrator.images.store import Image, ImageStore, stored
from microvm_orchestrator.machine.base import (
    Accel,
    Boot,
    Disk,
    Hypervisor,
    Machine,
    MachineSpec,
    OnChange,
    Qcow2,
    Snapshot,
    untold,
)
from microvm_orchestrator.machine.hypervisor import AnyKind, open_hypervisor
from microvm_orchestrator.machine.living import LivingMachine
from microvm_orchestrator.machine.probe import FILE, probe
from microvm_orchestrator.machine.qemu.hypervisor import Qemu, open_qemu
from microvm_orchestrator.machine.shell import Command
from microvm_orchestrator.runner import Runner

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache"
FAKE = Path(__file__).with_name("fake_qemu.py")
# Longer than anything takes on a busy machine without KVM.
LONG_S = 120.0

_numbers = itertools.count(1)


def new_machine_id() -> str:
    """A name no other test of this machine uses."""
    return f"m-{os.getpid()}-{next(_numbers)}"


async def know_host(state_dir: Path) -> None:
    """Have a state directory know how fast this host is: to measure it takes a second each time."""
    CACHE.mkdir(exist_ok=True)
    # Of this boot of the host, or it is measured again.
    await probe(CACHE)
    await anyio.Path(state_dir).mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (state_dir / FILE).symlink_to(CACHE / FILE)


async def guest_image() -> Image:
    """The embedded guest."""
    CACHE.mkdir(exist_ok=True)
    return await build(ImageSpec(), ImageStore(CACHE / "images"), CACHE / "build")


async def built_image() -> Boot:
    """What a machine of the embedded guest starts from."""
    boot = boot_of(await guest_image())
    assert isinstance(boot, Boot)
    return boot


def like(saved: Snapshot) -> MachineSpec:
    """A machine of its own with the parts of a saved one."""
    machine_id = new_machine_id()
    return replace(saved.spec, machine_id=machine_id, hostname=machine_id)


async def sh(machine: Machine, script: str) -> str:
    """Run a script that succeeds; what it says."""
    ran = await machine.shell.exec(Command(["/bin/sh", "-c", script]))
    assert ran.exit.code == 0, ran
    return ran.stdout.decode()


def no_image(folder: Path) -> Boot:
    """Something to boot for a QEMU that does not look at it."""
    folder.mkdir(exist_ok=True)
    for name in ("kernel", "initrd", "root"):
        (folder / name).write_bytes(bytes(512))
    root = Disk("root", folder / "root")
    return Boot("none", folder / "kernel", folder / "initrd", "console=ttyS0", (root,))


@dataclass(frozen=True, slots=True)
class Rig:
    """One way to run machines, below one folder."""

    state_dir: Path
    boot: Boot
    binary: str
    # The folder in a guest that belongs to that machine alone.
    home: Callable[[LivingMachine], str]
    # Kernel words that let a boot hang, and end in a panic.
    silent: str
    panicking: str
    # Lets the kernel of a guest that runs panic.
    panic: Callable[[LivingMachine], Awaitable[None]]
    # Makes a runner directory of what a machine would be started from otherwise, or a disk.
    runner: Callable[[MachineSpec], Runner | Qcow2] | None = None
    # What its machines can do beyond being started, reached and ended.
    offers: frozenset[str] = frozenset({"save", "pause", "attach"})
    # What is left of a stopped machine beside its record.
    keeps: frozenset[str] = frozenset()
    # Which file of a snapshot has the guest's memory.
    memory: str = "ram"
    # Who runs them, if that is a libvirtd.
    libvirtd: Libvirtd | None = None

    @asynccontextmanager
    async def open(self, on_change: OnChange = untold) -> AsyncGenerator[Qemu]:
        """As a daemon does when it starts."""
        await know_host(self.state_dir)
        async with open_qemu(self.state_dir, on_change=on_change, binary=self.binary) as opened:
            yield opened

    @asynccontextmanager
    async def open_any(self, on_change: OnChange = untold) -> AsyncGenerator[AnyKind]:
        """As a daemon does that runs machines of every kind."""
        await know_host(self.state_dir)
        async with self._kinds(on_change) as opened:
            yield opened

    def _kinds(self, on_change: OnChange) -> AbstractAsyncContextManager[AnyKind]:
        if self.libvirtd is None:
            return open_hypervisor(self.state_dir, on_change=on_change, binary=self.binary)
        return open_hypervisor(
            self.state_dir,
            on_change=on_change,
            binary=self.binary,
            libvirt=self.libvirtd.uri,
            libvirt_logs=self.libvirtd.logs,
        )

    def spec(self, *, words: str = "", **more: object) -> MachineSpec:
        machine_id = new_machine_id()
        boot = replace(self.boot, cmdline=f"{self.boot.cmdline} {words}".strip())
        spec = MachineSpec(
            machine_id, boot, hostname=machine_id, accel=Accel.TCG, boot_timeout_s=LONG_S
        )
        spec = replace(spec, **more)  # type: ignore[arg-type]  # named as the fields are
        return spec if self.runner is None else replace(spec, boot=self.runner(spec))


def fake_program(folder: Path) -> Path:
    """Write a program that can stand where a QEMU is named."""
    program = folder / "fake-qemu"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {FAKE} "$@"\n')
    program.chmod(0o755)
    return program


def publish_no_image(
    images: ImageStore,
    name: str,
    words: str = "",
    programs: Iterable[Program] = PROGRAMS.values(),
) -> Image:
    """Make an image of the files of `no_image`, whose kernel is told some words."""
    nothing = "0" * 64
    with images.new_folder() as folder:
        no_image(folder)
        manifest = Manifest(
            architecture="amd64",
            kernel_release="6.1",
            kernel=stored(folder / "kernel"),
            initrd=stored(folder / "initrd"),
            disks=(ImageDisk(**stored(folder / "root").model_dump(), serial="root"),),
            cmdline=f"console=ttyS0 {words}".strip(),
            agent=Agent(protocol=1, port="ctl"),
            inputs=Inputs(
                builder=nothing,
                guest=nothing,
                packages={},
                tools={},
                # Agents are let into it: what they would be is the fake guest's business.
                extras={each.listed: Input(version="1.0.0", checksum="") for each in programs},
            ),
        )
        return images.name(images.publish(folder, manifest), name)


def fake_rig(state_dir: Path) -> Rig:
    program = fake_program(state_dir)

    async def panic(machine: LivingMachine) -> None:
        with machine.console.open("ab") as console:
            console.write(b"[    1.0] Kernel panic - not syncing: sysrq triggered crash\n")
        await _last_words(machine, 'kill -KILL "$PPID"')

    return Rig(
        state_dir,
        no_image(state_dir / "image"),
        str(program),
        home=lambda machine: str(machine.record.folder / "guest"),
        silent="fake.silent",
        panicking="fake.panic",
        panic=panic,
    )


def qemu_rig(state_dir: Path, boot: Boot) -> Rig:
    async def panic(machine: LivingMachine) -> None:
        await _last_words(machine, "echo c >/proc/sysrq-trigger")

    return Rig(
        state_dir,
        boot,
        "qemu-system-x86_64",
        home=lambda _: "/root",
        silent="loglevel=7 rdinit=/bin/busybox -- sleep 1000",
        panicking="rdinit=/nothing",
        panic=panic,
    )


@contextlib.contextmanager
def running_libvirt_rig(image: Boot, *, session: bool = False) -> Generator[Rig]:
    """Machines that a libvirtd runs. Each has the image's root as a disk it may write to."""

    def disk(spec: MachineSpec) -> Qcow2:
        return qcow2_of(spec.parts)

    with running_libvirtd(session=session) as libvirtd:
        # Sockets have short names, and pytest's folders long ones.
        yield replace(
            qemu_rig(libvirtd.folder / "state", image),
            runner=disk,
            keeps=frozenset({"disk0.1.qcow2", "disk0.2.qcow2"}),
            memory="state",
            libvirtd=libvirtd,
        )


def qcow2_of(image: Boot) -> Qcow2:
    """The embedded guest as libvirt boots it."""
    (root,) = image.disks
    system = replace(root, read_only=False)
    return Qcow2(
        image.digest, system, kernel=image.kernel, initrd=image.initrd, cmdline=image.cmdline
    )


async def _last_words(machine: LivingMachine, script: str) -> None:
    """Run what ends the guest, and so never answers."""
    with contextlib.suppress(errors.OrchestratorError):
        await machine.shell.exec(Command(["/bin/sh", "-c", script]))


def kill_process(machine: LivingMachine, number: signal.Signals = signal.SIGKILL) -> None:
    """End what runs a machine, from outside."""
    os.kill(machine.pid, number)


@asynccontextmanager
async def removed_in_the_end(qemu: Hypervisor) -> AsyncGenerator[None]:
    """Remove every machine there is when the block is left."""
    try:
        yield
    finally:
        for machine_id in qemu.found():
            await qemu.remove(machine_id)
