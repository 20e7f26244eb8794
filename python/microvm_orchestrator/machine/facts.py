"""What this host offers for machines, what each thing means, and what to do where it is missing.

`observe` looks, and `explain` judges what was seen; the second is pure, so that what it says of a
host that nobody has at hand can be tested. Above stands `doctor`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import anyio

from microvm_orchestrator import errors, proc
from microvm_orchestrator.machine import cgroup
from microvm_orchestrator.machine.hypervisor import LIBVIRT
from microvm_orchestrator.machine.libvirt.connection import open_connection
from microvm_orchestrator.machine.probe import Acceleration, probe
from microvm_orchestrator.machine.qemu.host import QEMU
from microvm_orchestrator.together import together

# The oldest whose snapshots and sockets were tried.
_QEMU_OLDEST = (7, 2)
# Below this no machine of the usual size has room beside what runs.
_MEMORY_LOW_MIB = 1024
_ASK_S = 10.0
# Where distributions keep the modules of the kernel that runs, and where NixOS does.
_MODULES = (Path("/lib/modules"), Path("/run/booted-system/kernel-modules/lib/modules"))


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing, as `doctor` shows it."""

    name: str
    state: Literal["ok", "warning", "failed"]
    found: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Observed:
    """What was seen of a host. A version is None where there is no such program."""

    acceleration: Acceleration
    qemu: str | None
    nix: str | None
    nft: str | None
    # What libvirt says of itself; else why it says nothing.
    libvirt: str | None
    libvirt_missing: str
    tun: bool
    vhost_vsock: bool
    netem: bool
    memory_available_mib: int
    limits: str


async def observe(state_dir: Path, qemu: str = QEMU, libvirt: str = LIBVIRT) -> Observed:
    """Look at this host; takes a second the first time after it booted."""
    says, missing = await _ask_libvirt(libvirt)
    found_qemu, nix, nft = await together(
        [partial(_version, program) for program in (qemu, "nix", "nft")]
    )
    return Observed(
        acceleration=await probe(state_dir),
        qemu=found_qemu,
        nix=nix,
        nft=nft,
        libvirt=says,
        libvirt_missing=missing,
        tun=os.access("/dev/net/tun", os.R_OK | os.W_OK),
        vhost_vsock=os.access("/dev/vhost-vsock", os.R_OK | os.W_OK),
        netem=has_module("sch_netem"),
        memory_available_mib=_memory_available_mib(),
        limits=cgroup.describe(),
    )


async def _ask_libvirt(uri: str) -> tuple[str | None, str]:
    """Return what a libvirt says of itself, or why it says nothing."""
    try:
        with anyio.fail_after(_ASK_S):
            async with open_connection(uri) as connection:
                version = await connection.ask(lambda virt: virt.getLibVersion())
    except errors.OrchestratorError as error:
        return None, error.message
    except TimeoutError:
        return None, f"libvirt at {uri} takes longer than {_ASK_S:g} s to answer"
    major, minor = version // 1_000_000, version // 1000 % 1000
    return f"libvirt {major}.{minor}.{version % 1000} at {uri}", ""


def _libvirt(seen: Observed) -> str:
    if seen.libvirt is None:
        return seen.libvirt_missing
    kind = "kvm" if seen.acceleration.kvm else "qemu, by emulation"
    return f"{seen.libvirt}; its machines are of the type {kind}"


def explain(seen: Observed) -> tuple[Fact, ...]:
    """Judge what was seen."""
    return (
        _qemu(seen.qemu),
        _kvm(seen.acceleration),
        Fact(
            "memory",
            "warning" if seen.memory_available_mib < _MEMORY_LOW_MIB else "ok",
            f"{seen.memory_available_mib} MiB available",
            "A machine takes what it was given and a little more; clones share what they have not "
            "changed. A machine that does not fit waits. End some, or give them less memory.",
        ),
        Fact(
            "limits",
            "ok" if seen.limits.startswith("limits are enforced") else "warning",
            seen.limits,
            "Control groups bound what a machine takes of this host. Without them only QEMU's own "
            "bounds hold: the guest's memory and processors. Delegate=yes and "
            "DelegateSubgroup=daemon in the service's unit allow them.",
        ),
        _device(
            "tun",
            "/dev/net/tun",
            here=seen.tun,
            meaning="Needed for bridged networks of machines, with CAP_NET_ADMIN. Without it the "
            "userspace switch connects them. modprobe tun, and access to the device.",
        ),
        _device(
            "vhost",
            "/dev/vhost-vsock",
            here=seen.vhost_vsock,
            meaning="Needed to reach guests of other images by vsock; ours are reached without it. "
            "modprobe vhost_vsock, and access to the device.",
        ),
        Fact(
            "netem",
            "ok" if seen.netem else "warning",
            "the kernel has it" if seen.netem else "the kernel does not have it",
            "Needed to slow down or lose packets of bridged networks; the userspace switch does it "
            "without. A kernel with CONFIG_NET_SCH_NETEM has it.",
        ),
        _program("nft", seen.nft, "Needed to cut bridged networks apart. Install nftables."),
        Fact(
            "libvirt",
            "ok" if seen.libvirt else "warning",
            _libvirt(seen),
            "Needed only for machines that boot a disk of their own, as nodes of clusters may. "
            "Start libvirt's daemon, let this user reach it (group libvirt or libvirtd), and name "
            "it in libvirt.uri.",
        ),
        _program(
            "nix",
            seen.nix,
            "Needed to build machines from microvm.nix only; the embedded guest is built without.",
        ),
    )


def _qemu(version: str | None) -> Fact:
    meaning = (
        "Every machine is a QEMU. Install qemu-system-x86, version 7.2 or newer; what is saved by "
        "one version is not loaded by another."
    )
    if version is None:
        return Fact("qemu", "failed", f"{QEMU} was not found", meaning)
    found = re.search(r"(\d+)\.(\d+)", version)
    old = found is None or (int(found[1]), int(found[2])) < _QEMU_OLDEST
    return Fact("qemu", "failed" if old else "ok", version, meaning)


def _kvm(acceleration: Acceleration) -> Fact:
    tsc = acceleration.tsc_khz
    clock = f"; the TSC counts {tsc / 1000:.0f} MHz" if tsc else "; the TSC was not measured"
    blind = not acceleration.kvm and not tsc
    return Fact(
        "kvm",
        "ok" if acceleration.kvm else "failed" if blind else "warning",
        acceleration.why + clock,
        "With KVM guests run at the speed of this host. Without, they are emulated: ten times "
        "slower, all else being the same; that needs the TSC's speed. It is measured once a boot. "
        "Where the host is itself a machine, ask for nested virtualisation.",
    )


def _device(name: str, path: str, *, here: bool, meaning: str) -> Fact:
    found = f"{path} can be opened" if here else f"{path} is missing or may not be opened"
    return Fact(name, "ok" if here else "warning", found, meaning)


def _program(name: str, version: str | None, meaning: str) -> Fact:
    return Fact(name, "ok" if version else "warning", version or f"{name} was not found", meaning)


async def _version(program: str) -> str | None:
    if shutil.which(program) is None:
        return None
    try:
        ran = await proc.run([program, "--version"], timeout_s=_ASK_S)
    except errors.CommandFailed as error:
        return f"it is there and fails: {error.message}"
    return ran.stdout.decode(errors="replace").partition("\n")[0].strip()


def has_module(name: str, places: Iterable[Path] = _MODULES) -> bool:
    """Tell whether the kernel has a part, loaded, built in or as a file below one of the places."""
    if (Path("/sys/module") / name).exists():
        return True
    wanted = re.compile(rf"/{re.escape(name)}\.ko", re.MULTILINE)
    lists = [
        place / os.uname().release / file
        for place in places
        for file in ("modules.dep", "modules.builtin")
    ]
    return any(wanted.search(path.read_text(encoding="utf-8")) for path in lists if path.is_file())


def _memory_available_mib() -> int:
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text("ascii"))
    return int(found[1]) // 1024 if found else 0
