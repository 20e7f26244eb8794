"""Runner directories: what microvm.nix makes of a guest, and what can be told from one.

    bin/microvm-run            prepares volumes, then becomes the hypervisor
    share/microvm/hypervisor   which one that is
    share/microvm/...          what it needs of the host: taps, virtiofs shares, devices

Everything of a guest is decided when its runner is made: memory, processors, disks, network. We add
arguments where the runner asks for some when it runs (`microvm.extraArgsScript`); the script hands
on what stands in the variable `ARGUMENTS`. Above stand the images and the machines; below, nothing.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from microvm_orchestrator import errors

RUN = Path("bin/microvm-run")
_SHARE = Path("share/microvm")
# By which a runner gets our arguments, separated by blanks.
ARGUMENTS = "MICROVM_ORCHESTRATOR_ARGS"
QEMU = "qemu"

# Scripts of a few kilobytes and files of a few lines; one that is larger is something else.
_MAX_BYTES = 1 << 20
_MAX_FILES = 1000
# The whole system of the guest, by its name in the store.
_SYSTEM = "system"
_TAKES_ARGUMENTS = re.compile(r"^runtime_args=\$\(", re.MULTILINE)
_BECOMES = re.compile(r"^exec ", re.MULTILINE)
_HYPERVISOR = re.compile(r"[a-z][a-z0-9-]{0,31}")


@dataclass(frozen=True, slots=True)
class Ssh:
    """How a guest is reached that has an SSH server, and nothing of ours."""

    # Who we log in as.
    user: str
    # The line of its public host key; None where the first one that a machine shows is remembered.
    host_key: str | None = None


@dataclass(frozen=True, slots=True)
class Runner:
    """A runner directory, as far as it matters to those who start it."""

    # Over all that stands in it, so that another guest has another.
    digest: str
    path: Path
    hypervisor: str
    # Whether its script adds to the hypervisor's command line what we say.
    takes_arguments: bool
    # By what the guest's devices are attached.
    bus: Literal["pci", "device"] = "device"
    # What the guest has, where that can be told.
    memory_mib: int | None = None
    vcpus: int | None = None
    # Whether the guest is reached by vsock.
    vsock: bool = False
    # The names of what it finds on the host or does not start.
    taps: tuple[str, ...] = ()
    macvtaps: tuple[str, ...] = ()
    shares: tuple[str, ...] = ()
    # Not told by the directory, but by who took it in; None where our agent answers.
    ssh: Ssh | None = None


def read(path: Path) -> Runner:
    """Look at a runner directory. Not for the event loop.

    Raises: InvalidInput, with what is missing or wrong.
    """
    try:
        folder = path.resolve(strict=True)
        return _read(folder)
    except OSError as error:
        raise errors.InvalidInput(
            f"{path} is no runner directory: {error.filename}: {error.strerror}",
            hint="microvm.nix makes one of a guest: nix build"
            " .#nixosConfigurations.NAME.config.microvm.declaredRunner",
        ) from error


def _read(folder: Path) -> Runner:
    script = _text(folder / RUN)
    if not os.access(folder / RUN, os.X_OK):
        raise errors.InvalidInput(f"{folder / RUN} is not executable")
    share = folder / _SHARE
    hypervisor = _text(share / "hypervisor").strip()
    if not _HYPERVISOR.fullmatch(hypervisor):
        raise errors.InvalidInput(f"{share / 'hypervisor'} names no hypervisor: {hypervisor!r}")
    words = _command(script)
    of_qemu = hypervisor == QEMU
    if of_qemu and not words:
        raise errors.InvalidInput(f"{folder / RUN} does not become a QEMU; is it microvm.nix's?")
    return Runner(
        digest=_digest(folder),
        path=folder,
        hypervisor=hypervisor,
        takes_arguments=bool(words) and bool(_TAKES_ARGUMENTS.search(script)),
        bus="pci" if "virtio-rng-pci" in words else "device",
        memory_mib=_number(words, "-m", r"(\d+)M(,.*)?") if of_qemu else None,
        vcpus=_number(words, "-smp", r"(\d+)") if of_qemu else None,
        vsock=(share / "vsock-cid").exists(),
        taps=_names(share / "tap-interfaces"),
        macvtaps=_names(share / "macvtap-interfaces"),
        shares=tuple(sorted(path.name for path in share.glob("virtiofs/*"))),
    )


def _command(script: str) -> list[str]:
    """Return the words of the hypervisor's command line; none where the script has no such."""
    begins = [found.end() for found in _BECOMES.finditer(script)]
    try:
        return shlex.split(script[begins[-1] :], comments=False) if begins else []
    except ValueError:
        return []


def _number(words: list[str], option: str, form: str) -> int | None:
    for name, value in pairwise(words):
        if name == option and (found := re.fullmatch(form, value)):
            return int(found[1])
    return None


def _names(path: Path) -> tuple[str, ...]:
    """Return the first word of each line."""
    if not path.exists():
        return ()
    return tuple(line.split()[0] for line in _text(path).splitlines() if line.strip())


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name, content in _contents(folder):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    share = folder / _SHARE
    paths = sorted([*(folder / "bin").iterdir(), *share.rglob("*")])
    if len(paths) > _MAX_FILES:
        raise errors.InvalidInput(f"{folder} has more files than any runner directory")
    for path in paths:
        name = str(path.relative_to(folder))
        if path == share / _SYSTEM:
            yield name, os.fsencode(path.readlink()) if path.is_symlink() else b""
        elif path.is_file():
            yield name, _bytes(path)


def _text(path: Path) -> str:
    return _bytes(path).decode(errors="replace")


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise errors.InvalidInput(f"{path} is too large for a file of a runner directory")
    return content
