"""A QEMU without anything of ours around it: an image, a console in a file, a way to the agent.

What an image promises is tried on it, and machines can be measured against it. It emulates, as it
does where there is no KVM.
"""

from __future__ import annotations

import contextlib
import os
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from guests import listening
from microvm_orchestrator import proc
from microvm_orchestrator.machine.channel import open_shell
from microvm_orchestrator.machine.kvmprobe import tsc_khz

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from microvm_orchestrator.images.store import Image
    from microvm_orchestrator.machine.shell import Shell

# Ten times what it takes on an idle machine.
BOOT_S = 60.0


@dataclass(frozen=True, slots=True)
class Drive:
    """A further disk."""

    serial: str
    path: Path
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Bare:
    """A QEMU that has been started."""

    process: proc.Process
    console: Path
    agent: Path
    # Where the further ports can be reached, by name.
    ports: Mapping[str, Path]
    began: float

    @asynccontextmanager
    async def shell(self) -> AsyncGenerator[Shell]:
        """Reach the agent, as soon as there is one."""
        async with (
            await anyio.connect_unix(self.agent) as transport,
            open_shell(transport, greeting_s=BOOT_S) as shell,
        ):
            yield shell

    async def end(self) -> int:
        """Wait until it has ended by itself."""
        with anyio.fail_after(BOOT_S):
            return await self.process.wait()

    def said(self) -> str:
        return self.console.read_text(errors="replace")

    def cpu_s(self) -> float:
        """Tell how much the whole QEMU has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def booting(
    folder: Path,
    image: Image,
    *,
    drives: Sequence[Drive] = (),
    ports: Sequence[str] = (),
    memory_mib: int = 256,
    machine: str = "microvm",
    words: Sequence[str] = (),
) -> AsyncGenerator[Bare]:
    """Start one, and end it with the block; its console is shown when the block fails."""
    console, agent = folder / "console", folder / "agent"
    further = {name: folder / name for name in ports}
    for path in (agent, *further.values()):
        path.unlink(missing_ok=True)
    manifest = image.manifest
    disks = [Drive(disk.serial, image.path(disk), read_only=True) for disk in manifest.disks]
    kernel = f"console=ttyS0 reboot=t panic=-1 quiet loglevel=3 mitigations=off nokaslr {_clock()}"
    kind = "device" if machine == "microvm" else "pci"
    with contextlib.ExitStack() as stack:
        fd, *fds = (stack.enter_context(listening(path)) for path in (agent, *further.values()))
        # fmt: off
        argv = [
            "qemu-system-x86_64",
            "-machine", machine, "-accel", "tcg,tb-size=64", "-cpu", "Nehalem",
            "-m", f"{memory_mib}M", "-smp", "1",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-global", "virtio-mmio.force-legacy=false",
            "-chardev", f"file,id=console,path={console}", "-serial", "chardev:console",
            "-object", "rng-random,id=entropy,filename=/dev/urandom",
            "-device", f"virtio-rng-{kind},rng=entropy",
            "-device", f"virtio-serial-{kind},id=serial",
            "-chardev", f"socket,id=agent,fd={fd},server=on,wait=off",
            "-device", f"virtserialport,bus=serial.0,chardev=agent,name={manifest.agent.port}",
            "-kernel", str(image.path(manifest.kernel)),
            "-initrd", str(image.path(manifest.initrd)),
            "-append", f"{kernel} {manifest.cmdline}",
        ]
        # fmt: on
        argv += words
        for name, port in zip(ports, fds, strict=True):
            argv += ["-chardev", f"socket,id={name},fd={port},server=on,wait=off"]
            argv += ["-device", f"virtserialport,bus=serial.0,chardev={name},name={name}"]
        for number, disk in enumerate([*disks, *drives]):
            only = "on" if disk.read_only else "off"
            file = f"driver=raw,file.driver=file,file.filename={disk.path},file.locking=off"
            argv += ["-blockdev", f"{file},node-name=d{number},read-only={only}"]
            argv += ["-device", f"virtio-blk-{kind},drive=d{number},serial={disk.serial}"]
        began = time.monotonic()
        async with proc.spawn(argv, pass_fds=[fd, *fds], grace_s=0) as process:
            bare = Bare(process, console, agent, further, began)
            try:
                yield bare
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    print(bare.said()[-5000:])
                raise


def _clock() -> str:
    return f"random.trust_cpu=on tsc_early_khz={tsc_khz()} tsc=reliable"
