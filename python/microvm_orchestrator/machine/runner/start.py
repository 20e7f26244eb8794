"""Starting a runner's script, and finding again whatever it has started.

The script becomes the hypervisor, in the same process. Before that it may start others beside
itself; all of them have one variable of ours in their environment, by which they are found, whoever
they have become. Above stand the two kinds of machines of runners and their keeper.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from microvm_orchestrator import errors, proc
from microvm_orchestrator.machine import process
from microvm_orchestrator.machine.base import NO_LIMITS
from microvm_orchestrator.machine.qemu.host import Host, take_charge
from microvm_orchestrator.runner import ARGUMENTS, QEMU, RUN, Runner

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from microvm_orchestrator.machine.base import MachineSpec
    from microvm_orchestrator.machine.process import Resident
    from microvm_orchestrator.machine.record import Record

# Those whose vsock is a unix socket, in the folder they run in.
VSOCK_BY_SOCKET = frozenset({"cloud-hypervisor", "firecracker"})
# Bash splits our arguments at blanks, and takes a few other signs for more than they are.
_PLAIN = re.compile(r"[A-Za-z0-9_.,:=/-]+")
# Its value is the folder of the machine, of which there is one on a host.
_MACHINE = "MICROVM_ORCHESTRATOR_MACHINE"


def runner_of(spec: MachineSpec) -> Runner:
    """Raises: NotOffered when the machine is none of a runner."""
    if not isinstance(spec.boot, Runner):
        raise errors.NotOffered(f"machine {spec.machine_id} is not started by a runner directory")
    return spec.boot


def check(spec: MachineSpec, taps: Path) -> None:
    """Look whether a runner can be started as the machine is wanted.

    `taps` is the folder in which the kernel names its network interfaces. Raises: NotOffered,
        InvalidInput.
    """
    runner = runner_of(spec)
    if runner.hypervisor == QEMU:
        if not runner.takes_arguments:
            raise errors.NotOffered(
                f"the runner {runner.path} takes no arguments when it runs, so its guest cannot be"
                " reached",
                hint="set microvm.extraArgsScript; the guide to microvm.nix guests has the lines",
            )
    elif runner.hypervisor not in VSOCK_BY_SOCKET or not runner.vsock:
        raise errors.NotOffered(
            f"the guest of the runner {runner.path}, run by {runner.hypervisor}, cannot be reached",
            hint='set microvm.hypervisor = "qemu"; or one of'
            f" {_list(sorted(VSOCK_BY_SOCKET))}, with microvm.vsock.cid",
        )
    elif spec.links:
        raise errors.NotOffered(f"a machine run by {runner.hypervisor} has no links of ours")
    if runner.ssh is not None and spec.links:
        raise errors.NotOffered(
            "a guest that is reached by SSH is given no addresses, so a machine of it has no links"
            " of ours",
            hint="its own interfaces work as they are; one with our agent in it can have links",
        )
    if spec.disks:
        raise errors.NotOffered("a runner brings its own disks; further ones cannot be added")
    if spec.limits != NO_LIMITS:
        raise errors.NotOffered("limits on processes and disks are not kept for a runner's guest")
    if runner.shares:
        raise errors.NotOffered(
            f"the runner wants virtiofs shares, which nothing here serves: {_list(runner.shares)}",
            hint="build it without microvm.shares of that kind; its store is a disk then",
        )
    if runner.macvtaps:
        raise errors.NotOffered(
            f"the runner wants macvtap interfaces: {_list(runner.macvtaps)}",
            hint='build it with interfaces of the types "user" or "tap", or let the machine have'
            " links of our own",
        )
    if absent := [tap for tap in runner.taps if not (taps / tap).exists()]:
        raise errors.InvalidInput(
            f"the runner wants tap interfaces that are not there: {_list(absent)}",
            hint=f"as root: {runner.path}/bin/tap-up",
        )
    has = (runner.memory_mib or spec.memory_mib, runner.vcpus or spec.vcpus)
    if has != (spec.memory_mib, spec.vcpus):
        raise errors.InvalidInput(
            f"the runner gives its guest {has[0]} MiB and {has[1]} processors, and the machine is"
            f" wanted with {spec.memory_mib} MiB and {spec.vcpus}",
            hint="ask for what it has, or build it anew",
        )


def launch(
    host: Host, record: Record, spec: MachineSpec, words: Sequence[str], fds: Collection[int]
) -> Resident:
    """Start the script. The identity is on the disk before this returns.

    Raises: CommandFailed; InvalidInput when a word is none that can be handed on.
    """
    runner = runner_of(spec)
    for word in words:
        if not _PLAIN.fullmatch(word):
            raise errors.InvalidInput(f"{word!r} cannot be handed on to a runner's script")
    record.run.mkdir(mode=0o700, exist_ok=True)
    if host.user is not None:
        os.chown(record.run, *host.user)
    env = {
        # What a script finds without naming its place is the business of who wrote it.
        "PATH": os.environ.get("PATH", os.defpath),
        _MACHINE: str(record.folder),
        ARGUMENTS: " ".join(words),
    }
    with record.console.open("ab") as console, record.messages.open("ab") as messages:
        pid = proc.launch(
            [runner.path / RUN],
            cwd=record.run,
            env=env,
            stdout=console,
            stderr=messages,
            pass_fds=fds,
            user=host.user,
        )
    return take_charge(host, record, spec, pid)


def find(host: Host, record: Record) -> Resident | None:
    """Find the process of a machine, also when it was not written down any more."""
    identity = record.read_process()
    if identity is None:
        identity = process.find_by_variable(_MACHINE, str(record.folder), host.users)
    return None if identity is None else process.find(identity)


async def end_all(host: Host, record: Record) -> None:
    """End whatever the script has started and is still there."""
    for identity in process.every_with_variable(_MACHINE, str(record.folder), host.users):
        resident = process.find(identity)
        if resident is not None:
            await resident.end()
            resident.close()


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)
