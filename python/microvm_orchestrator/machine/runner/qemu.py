"""A QEMU that a runner's script has become: reached by what we add to its command line.

What the runner itself says of monitors is left alone: its socket serves one client at a time, and
belongs to the programs the runner comes with. We add a monitor of our own, a port for the agent or
for an SSH server, and the machine's links, each an open socket that the script hands on. The
console is the process's standard output; once the monitor is there, it becomes a socket with a log,
as that of any QEMU of ours.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from microvm_orchestrator import errors
from microvm_orchestrator.machine import sockets
from microvm_orchestrator.machine.base import Accel, unheeded
from microvm_orchestrator.machine.links import netdev
from microvm_orchestrator.machine.qemu.argv import AGENT_PORT, TCG_CPU, word
from microvm_orchestrator.machine.qemu.machine import QemuMachine
from microvm_orchestrator.machine.qemu.qmp import Refused
from microvm_orchestrator.machine.runner import start

if TYPE_CHECKING:
    from pydantic import JsonValue

    from microvm_orchestrator.machine.base import MachineSpec, Snapshot, Terminal
    from microvm_orchestrator.machine.handover import Handover
    from microvm_orchestrator.machine.record import Record

# By this name a guest knows the port at which its SSH server is wanted.
SSH_PORT = "ssh"
# What a runner calls its console; ours begin so that they are nobody else's.
_CONSOLE = "stdio"
_OURS = "orchestrator"


def words(spec: MachineSpec, accel: Accel, record: Record, given: Handover) -> list[str]:
    """Write what is added to the command line."""
    runner = start.runner_of(spec)
    bus = runner.bus
    port = AGENT_PORT if runner.ssh is None else SSH_PORT
    # fmt: off
    added = [
        "-name", f"guest={spec.machine_id}",
        "-chardev", _served("monitor", given.listen(record.monitor)),
        "-mon", f"chardev={_OURS}-monitor,mode=control",
        "-device", f"virtio-serial-{bus},id={_OURS}-serial",
        "-chardev", _served("agent", given.listen(record.agent)),
        "-device",
        f"virtserialport,bus={_OURS}-serial.0,chardev={_OURS}-agent,name={port}",
    ]
    # fmt: on
    if accel is Accel.TCG:
        # A runner asks for KVM, and for a processor that only KVM has. The last word counts.
        added += ["-machine", "accel=tcg", "-cpu", TCG_CPU]
    for number, link in enumerate(spec.links):
        name = f"{_OURS}-net{number}"
        added += ["-netdev", f"{netdev(link, record.link(number), given)},id={name}"]
        device = f"virtio-net-{bus},netdev={name},mac={word(link.mac)}"
        # A small QEMU, as microvm.nix builds it, lacks the code to boot from a card.
        added += ["-device", device + (",romfile=" if bus == "pci" else "")]
    return added


class RunnerQemu(QemuMachine):
    """A QEMU that a runner has started."""

    async def save(
        self,
        snapshot_id: str,
        *,
        memory: bool = True,
        on_taken: Callable[[], None] = unheeded,
    ) -> Snapshot:
        del memory, on_taken
        raise errors.NotOffered(
            f"machine {self.machine_id} is started by a runner directory and cannot be saved as"
            f" {snapshot_id}",
            hint="its devices are the runner's own; machines of the embedded guest can be saved",
        )

    @asynccontextmanager
    async def attach(self) -> AsyncGenerator[Terminal]:
        """Hold the console. Raises: as any QEMU, and NotOffered when there is none to hold."""
        if not self.record.terminal.exists():
            self._check()
            raise errors.NotOffered(
                f"the console of machine {self.machine_id} can only be read",
                hint="microvm.qemu.serialConsole makes it one to type at",
            )
        async with super().attach() as terminal:
            yield terminal

    async def take_console(self) -> None:
        """Let the console be held, from now on; what was said before stands in its file."""
        log = os.open(self.record.console, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            handed = await self.qmp.execute("add-fd", fds=[log])
        finally:
            os.close(log)
        with sockets.listen(self.record.terminal) as listener:
            await self.qmp.execute("getfd", {"fdname": "terminal"}, fds=[listener.fileno()])
        number = handed.get("fdset-id") if isinstance(handed, dict) else None
        socket: dict[str, JsonValue] = {
            "addr": {"type": "fd", "data": {"str": "terminal"}},
            "server": True,
            "wait": False,
            "logfile": f"/dev/fdset/{number}",
            "logappend": True,
        }
        backend: dict[str, JsonValue] = {"type": "socket", "data": socket}
        try:
            await self.qmp.execute("chardev-change", {"id": _CONSOLE, "backend": backend})
        except Refused as error:
            self.record.terminal.unlink()
            self._log.info("console_not_taken", why=error.message)

    @property
    def _greeting_s(self) -> float:
        """Before it becomes a QEMU, the script may make file systems."""
        return self.spec.boot_timeout_s

    def _bound_files(self, console_size: int) -> None:
        """Let it write files of any size: which volumes it has is the runner's own business."""

    async def _clean_up(self) -> None:
        await super()._clean_up()
        await start.end_all(self.host, self.record)


def _served(name: str, fd: int) -> str:
    return f"socket,id={_OURS}-{name},fd={fd},server=on,wait=off"
