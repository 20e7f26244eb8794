"""A runner directory as microvm.nix makes one, without Nix: the same layout, the same scripts.

Its `microvm-run` is written the way `lib/runner.nix` and `lib/runners/qemu.nix` write it, and so
starts a real QEMU; what differs is the guest, which is the embedded one. For a hypervisor that this
host does not have, a program of ours stands in that offers a guest by vsock as those do.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from machines import Rig, fake_rig, qemu_rig
from microvm_orchestrator.machine.base import Boot, MachineSpec
from microvm_orchestrator.runner import Runner, read

NAME = "slot0"
MICROVM = "microvm,accel=kvm:tcg,acpi=on,mem-merge=on,pcie=off,pic=off,pit=off,rtc=on,usb=off"
Q35 = "q35,accel=kvm:tcg,acpi=on,mem-merge=on"
_FOREIGN = Path(__file__).with_name("fake_foreign.py")
# What a guest's configuration says in `microvm.extraArgsScript`.
RUNTIME_ARGS = '#!/bin/sh\nprintf %s "${MICROVM_ORCHESTRATOR_ARGS-}"\n'


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is said in a guest's configuration."""

    hypervisor: str = "qemu"
    # The hypervisor's command line.
    command: Sequence[str] = ()
    takes_arguments: bool = True
    # Lines that the script begins with.
    pre_start: str = ""
    # Of the guest's vsock; only hypervisors other than QEMU get one here.
    cid: int | None = 4000
    tap: str | None = None
    share: str | None = None


def make(folder: Path, wanted: Wanted) -> Path:
    """Write a runner directory, and beside it the scripts it points to, as in the store."""
    store, out = folder / "store", folder / "runner"
    share = out / "share" / "microvm"
    for path in (store, out / "bin", share):
        path.mkdir(parents=True)
    arguments = _script(store / f"microvm-{NAME}-runtime-args", RUNTIME_ARGS)
    asked = f"$({arguments})\n" if wanted.takes_arguments else ""
    lines = (
        "#!/bin/bash\nset -eou pipefail\n"
        f"{wanted.pre_start}\n\n\nruntime_args={asked}\n\n"
        f'exec -a "microvm@{NAME}" {shlex.join(wanted.command)} ${{runtime_args:-}}\n'
    )
    run = _script(store / f"microvm-{NAME}-microvm-run", lines)
    (out / "bin" / "microvm-run").symlink_to(run)
    _write(share / "hypervisor", wanted.hypervisor)
    _write(share / "tap-flags", "vnet_hdr")
    if wanted.hypervisor != "qemu" and wanted.cid is not None:
        _write(share / "vsock-cid", str(wanted.cid))
    if wanted.tap is not None:
        _write(share / "tap-interfaces", wanted.tap)
    if wanted.share is not None:
        (share / "virtiofs" / wanted.share).mkdir(parents=True)
        _write(share / "virtiofs" / wanted.share / "source", "/nix/store")
        _write(share / "virtiofs" / wanted.share / "socket", f"{NAME}-{wanted.share}.sock")
    (share / "system").symlink_to("/nix/store/nixos-system-of-a-guest")
    return out


def qemu_command(
    boot: Boot, kernel_words: str, *, memory_mib: int, vcpus: int, machine: str = MICROVM
) -> list[str]:
    """Write what microvm.nix has for a guest with a store disk and no network."""
    root, *more = boot.disks
    bus, legacy = ("device", "") if machine == MICROVM else ("pci", ",disable-legacy=on")
    disks = ["-drive", f"id=store,format=raw,read-only=on,file={root.path},if=none,aio=io_uring"]
    # A single disk needs no serial to be known by.
    disks += ["-device", f"virtio-blk-{bus},drive=store{',serial=root' if more else ''}{legacy}"]
    for disk in more:
        name = f"id={disk.serial},format=raw,read-only=on,file={disk.path},if=none,aio=io_uring"
        disks += ["-drive", name]
        disks += ["-device", f"virtio-blk-{bus},drive={disk.serial},serial={disk.serial}{legacy}"]
    # fmt: off
    return [
        "/usr/bin/qemu-system-x86_64",
        "-name", NAME,
        "-M", machine,
        "-m", f"{memory_mib}M",
        "-smp", str(vcpus),
        "-nodefaults", "-no-user-config",
        "-no-reboot",
        "-kernel", str(boot.kernel),
        "-initrd", str(boot.initrd),
        "-chardev", "stdio,id=stdio,signal=off",
        "-device", f"virtio-rng-{bus}",
        "-smbios", "type=1,uuid=6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "-serial", "chardev:stdio",
        "-enable-kvm",
        "-cpu", "host,+x2apic,-sgx",
        "-device", "i8042",
        "-append", f"earlyprintk=ttyS0 console=ttyS0 reboot=t panic=-1 {kernel_words}",
        *disks,
        "-nographic",
        "-sandbox", "on",
        "-qmp", f"unix:{NAME}.sock,server,nowait",
    ]
    # fmt: on


def kernel_words(spec: MachineSpec, tsc_khz: int) -> str:
    """Write what a guest's configuration says in `boot.kernelParams` for an emulated processor."""
    return f"{spec.parts.cmdline} nokaslr tsc_early_khz={tsc_khz} tsc=reliable".strip()


def foreign_command(*words: str, program: Path = _FOREIGN) -> list[str]:
    """Write the command of what stands in for a hypervisor in user space."""
    return [sys.executable, "-I", "-S", str(program), *words]


def runner_rig(state_dir: Path, image: Boot, tsc_khz: int) -> Rig:
    """Machines that a runner's script starts on a real QEMU."""

    def runner(spec: MachineSpec) -> Runner:
        words = kernel_words(spec, tsc_khz)
        command = qemu_command(spec.parts, words, memory_mib=spec.memory_mib, vcpus=spec.vcpus)
        return read(make(state_dir / "runners" / spec.machine_id, Wanted(command=command)))

    rig = qemu_rig(state_dir, image)
    return replace(rig, runner=runner, offers=frozenset({"pause", "attach"}))


def foreign_rig(state_dir: Path) -> Rig:
    """Machines that a runner's script starts on a hypervisor of which we use little."""

    def runner(spec: MachineSpec) -> Runner:
        command = foreign_command("--cmdline", spec.parts.cmdline)
        wanted = Wanted("cloud-hypervisor", command)
        return read(make(state_dir / "runners" / spec.machine_id, wanted))

    rig = fake_rig(state_dir)
    return replace(rig, runner=runner, offers=frozenset())


def _script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def _write(path: Path, line: str) -> None:
    path.write_text(line + "\n")
