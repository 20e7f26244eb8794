"""Seeded runs by QEMU: time counts instructions, and nothing else comes from this host.

What makes runs differ, and what is done about it: the processor's clock and the timers (`-icount`
derives both from the instructions executed), the wall clock (`-rtc` with a base), randomness (a
seed among the kernel's words, which it stirs in first of all), and devices that answer when the
host does. So there is no network, no device for randomness, no agent and no monitor, and the disks
are files in the initial file system: a virtio disk of the same content made each run different.
The one that is left only takes what the guest says. Above stands the hypervisor.
"""

from __future__ import annotations

import hashlib
import os
import resource
import shlex
import shutil
import stat
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path, PurePosixPath

import anyio

from microvm_orchestrator import cpio, errors, proc
from microvm_orchestrator.machine import console, ending
from microvm_orchestrator.machine.base import NO_LIMITS, Accel, Boot, MachineSpec
from microvm_orchestrator.machine.handover import Handover
from microvm_orchestrator.machine.process import Resident
from microvm_orchestrator.machine.qemu import argv
from microvm_orchestrator.machine.qemu.host import Host, leave_group, take_charge
from microvm_orchestrator.machine.record import Made, Record
from microvm_orchestrator.machine.seeded import MAX_SEED, Program, Ran

# An instruction takes two nanoseconds, and a guest that waits does not make the host wait.
_ICOUNT = "shift=1,sleep=off"
# By that clock the processor's own counts nanoseconds.
_TSC_KHZ = 1_000_000
# How long a program and its surroundings may be, packed: they lie in the guest's memory.
_MAX_FILES_BYTES = 64 << 20
_CONSOLE_TAIL = 64 << 10
# The first line of what the guest says at the end.
_HEAD_BYTES = 200
_CHUNK = 1 << 20


async def run(host: Host, spec: MachineSpec, program: Program, timeout_s: float) -> Ran:
    """Run a program to its end; nothing is left of the machine then.

    Raises: InvalidInput for what cannot be the same every time; AlreadyExists; MachineFailed when
        it takes longer than `timeout_s`, or QEMU cannot run it.
    """
    boot = _checked(spec, program)
    record = host.record(spec.machine_id)
    _create(record, spec)
    began = time.monotonic()
    try:
        resident = await anyio.to_thread.run_sync(_start, host, record, spec, boot, program)
        try:
            with anyio.fail_after(timeout_s):
                await resident.wait()
        finally:
            await resident.end()
            resident.close()
        host_s = time.monotonic() - began
        return await anyio.to_thread.run_sync(_read, record, resident.status, program, host_s)
    except TimeoutError:
        said = console.tail(record.console)
        raise errors.MachineFailed(
            f"the seeded run {spec.machine_id} took longer than {timeout_s:g} s and was ended",
            hint=f"the end of its console:\n{said}",
        ) from None
    finally:
        leave_group(host, spec.machine_id)
        record.remove()


def _checked(spec: MachineSpec, program: Program) -> Boot:
    """Return what it boots. Raises: InvalidInput."""
    reasons = {
        "it has several processors": spec.vcpus != 1,
        "it has a network": bool(spec.links),
        "it is to run with KVM": spec.accel is Accel.KVM,
        "it has a disk that is written to": not all(disk.read_only for disk in spec.all_disks),
        "it has limits": spec.limits != NO_LIMITS,
        "it has a disk without a file": any(disk.path is None for disk in spec.all_disks),
    }
    for reason, holds in reasons.items():
        if holds:
            raise errors.InvalidInput(f"machine {spec.machine_id} cannot be seeded: {reason}")
    if not 0 <= program.seed <= MAX_SEED:
        raise errors.InvalidInput(f"seed {program.seed} is not within 0 and {MAX_SEED}")
    if not program.argv:
        raise errors.InvalidInput("there is no program to run")
    for name in program.files:
        path = PurePosixPath(name)
        if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in name:
            raise errors.InvalidInput(f"{name!r} is no path inside a folder")
    size = len(program.stdin) + sum(len(data) for data in program.files.values())
    if size > _MAX_FILES_BYTES:
        raise errors.TooLarge(
            f"the files of a seeded run have {size} bytes; {_MAX_FILES_BYTES} fit"
        )
    return spec.parts


def _create(record: Record, spec: MachineSpec) -> None:
    """Write it down as nobody's, so that the next daemon takes away what this one may leave."""
    if record.folder.exists():
        raise errors.AlreadyExists(f"there is a machine {record.machine_id}")
    record.create()
    record.unclaimed = True
    record.write(Made(spec, Accel.TCG))


def _start(host: Host, record: Record, spec: MachineSpec, boot: Boot, program: Program) -> Resident:
    write = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with _initrd(spec, boot, program) as initrd, Handover() as given:
        words = _words(
            host.binary,
            spec,
            program,
            kernel=given.open_again(boot.kernel),
            initrd=given.again(os.dup(initrd)),
            console_to=given.open(record.console, write),
            results_to=given.open(_results(record), write),
        )
        with record.messages.open("ab") as messages:
            pid = proc.launch(
                [*words, *given.words], stderr=messages, pass_fds=given.fds, user=host.user
            )
    resident = take_charge(host, record, spec, pid)
    resident.limit(resource.RLIMIT_FSIZE, console.ROOM)
    return resident


def _words(
    binary: str,
    spec: MachineSpec,
    program: Program,
    *,
    kernel: str,
    initrd: str,
    console_to: str,
    results_to: str,
) -> list[str]:
    base = program.began.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    seed = f"loglevel=7 microvm_orchestrator.seed={program.seed:016x}"
    # fmt: off
    return [
        binary,
        "-name", f"guest={spec.machine_id}",
        "-machine", "microvm", "-accel", argv.TCG, "-cpu", argv.TCG_CPU,
        "-m", f"{spec.memory_mib}M", "-smp", "1",
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-sandbox", argv.SANDBOX,
        "-global", "virtio-mmio.force-legacy=false",
        "-seed", str(program.seed), "-icount", _ICOUNT, "-rtc", f"base={base},clock=vm",
        # Files take what is written at once; a socket would do so when its reader does.
        "-chardev", f"file,id=console,path={console_to},append=on", "-serial", "chardev:console",
        "-device", "virtio-serial-device,id=serial",
        "-chardev", f"file,id=results,path={results_to},append=on",
        "-device", "virtserialport,bus=serial.0,chardev=results,name=results",
        "-kernel", kernel, "-initrd", initrd,
        "-append", f"{argv.kernel_words(spec, Accel.TCG, _TSC_KHZ)} {seed}",
    ]
    # fmt: on


@contextmanager
def _initrd(spec: MachineSpec, boot: Boot, program: Program) -> Generator[int]:
    """Hold the initial file system of the image, with its disks and the program behind it."""
    fd = os.memfd_create("initrd")
    try:
        with os.fdopen(os.dup(fd), "wb") as out:
            with boot.initrd.open("rb") as source:
                shutil.copyfileobj(source, out)
            out.write(bytes(-out.tell() % cpio.ALIGN))
            writer = cpio.CpioWriter(out)
            _add_folder(writer, "seeded", "seeded/disks")
            for disk in spec.all_disks:
                assert disk.path is not None  # noqa: S101 # it was checked
                _add_file(writer, f"seeded/disks/{disk.serial}", disk.path)
            _add_program(writer, program)
            writer.end()
        yield fd
    finally:
        os.close(fd)


def _add_program(writer: cpio.CpioWriter, program: Program) -> None:
    base = "seeded/program"
    _add_folder(writer, base, f"{base}/files")
    texts = {
        "run": f"exec {shlex.join(program.argv)}\n".encode(),
        "stdin": program.stdin,
        "most": f"{program.output_cap}\n".encode(),
    }
    parents: set[PurePosixPath] = set()
    for name, data in sorted(program.files.items()):
        path = PurePosixPath("files", name)
        parents.update(path.parents)
        texts[str(path)] = data
    for parent in sorted(parents - {PurePosixPath("."), PurePosixPath("files")}):
        _add_folder(writer, f"{base}/{parent}")
    for name, data in texts.items():
        # What begins as a script can be run.
        mode = 0o755 if data.startswith(b"#!") else 0o644
        writer.add(f"{base}/{name}", stat.S_IFREG | mode, len(data), [data])


def _add_folder(writer: cpio.CpioWriter, *paths: str) -> None:
    for path in paths:
        writer.add(path, stat.S_IFDIR | 0o755, 0, ())


def _add_file(writer: cpio.CpioWriter, name: str, path: Path) -> None:
    with path.open("rb") as source:
        size = os.fstat(source.fileno()).st_size
        writer.add(name, stat.S_IFREG | 0o444, size, iter(lambda: source.read(_CHUNK), b""))


def _results(record: Record) -> Path:
    return record.folder / "results"


def _read(record: Record, status: int | None, program: Program, host_s: float) -> Ran:
    """Read what the guest has left, which may be anything."""
    with record.console.open("rb") as file:
        console_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(max(0, file.tell() - _CONSOLE_TAIL))
        last = file.read(_CONSOLE_TAIL)
    with _results(record).open("rb") as file:
        said = file.read(_HEAD_BYTES + 2 * program.output_cap)
    result, stdout, stderr, truncated = _parsed(said)
    reason = ""
    if result is None:
        messages = console.tail(record.messages)
        text = last.decode(errors="replace")
        _, reason = ending.conclude(ending.Seen(status=status, console=text, messages=messages))
    told = f"{result}\0{reason}\0{truncated}\0{console_sha256}\0{len(stdout)}\0".encode()
    sha256 = hashlib.sha256(told + stdout + stderr).hexdigest()
    return Ran(result, reason, stdout, stderr, truncated, console_sha256, last, sha256, host_s)


def _parsed(said: bytes) -> tuple[int | None, bytes, bytes, bool]:
    head, _, rest = said.partition(b"\n")
    numbers = head.split()
    if len(numbers) != 4 or not all(number.isdigit() for number in numbers):
        return None, b"", b"", False
    status, out, err, most = (int(number[:20]) for number in numbers)
    kept = min(out, most)
    stdout, stderr = rest[:kept], rest[kept : kept + min(err, most)]
    if len(stdout) + len(stderr) != kept + min(err, most):
        return None, b"", b"", False
    return status, stdout, stderr, out > most or err > most
