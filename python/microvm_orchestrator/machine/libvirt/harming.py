"""What befalls the disks of a machine of libvirt's: they pass less, or fail.

How much they pass, libvirt is told and tells. It has no words for a disk that fails, so that is
said to its QEMU, by the monitor that libvirt has and lends; libvirt calls such a machine tainted
from then on. What it calls a disk's device and layers is in the document of the machine that runs.
Above stands the machine; below, the connection to libvirt.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Protocol, TypeVar
from xml.etree import ElementTree as ET

from microvm_orchestrator import errors
from microvm_orchestrator.machine.libvirt import domain
from microvm_orchestrator.machine.libvirt.library import AFFECT_LIVE, load_qemu
from microvm_orchestrator.machine.qemu.harming import (
    Drive,
    check_slower,
    limits_of,
    slowed,
    writable,
)
from microvm_orchestrator.machine.qemu.qmp import read_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import JsonValue

    from microvm_orchestrator.machine.base import MachineSpec
    from microvm_orchestrator.machine.libvirt.library import Domain
    from microvm_orchestrator.machine.qemu.qmp import Monitor
    from microvm_orchestrator.model.fault import Harm

T = TypeVar("T")


class Told(Protocol):
    """A machine that libvirt is told about."""

    @property
    def spec(self) -> MachineSpec: ...

    async def ask(self, question: Callable[[Domain], T]) -> T: ...

    async def tell(self, deed: Callable[[Domain], T]) -> T: ...


class SlowTunedDisks:
    """Disks that pass less, beside what the machine's own limits say."""

    fields = frozenset({"disk_bytes_s", "disk_operations_s"})

    def __init__(self, machine: Told) -> None:
        self._machine = machine

    async def check(self, harm: Harm) -> None:
        writable(self._machine.spec)
        check_slower(self._machine.spec, harm)

    async def make(self, harm: Harm) -> None:
        bytes_, operations = limits_of(self._machine.spec, harm)
        tune = {"total_bytes_sec": bytes_, "total_iops_sec": operations}
        names = [domain.disk_target(number) for number in writable(self._machine.spec)]
        for name in names:
            await self._machine.tell(lambda it, n=name: it.setBlockIoTune(n, tune, AFFECT_LIVE))

    async def see(self) -> Harm:
        spec = self._machine.spec
        seen: list[tuple[int, int]] = []
        for name in [domain.disk_target(number) for number in writable(spec)]:
            tune = await self._machine.ask(lambda it, n=name: it.blockIoTune(n, AFFECT_LIVE))
            match tune:
                case {"total_bytes_sec": int(bytes_), "total_iops_sec": int(operations)}:
                    seen.append((bytes_, operations))
                case _:
                    raise errors.MachineFailed("libvirt does not tell how slow a disk is")
        return slowed(spec, seen)


class LentMonitor:
    """The monitor of a machine's QEMU, which is libvirt's."""

    def __init__(self, machine: Told) -> None:
        self._machine = machine

    async def execute(
        self, command: str, arguments: Mapping[str, JsonValue] | None = None
    ) -> JsonValue:
        """Raises: Refused, ProtocolBroken; as `Connection.ask` or, for a deed, `tell`."""
        line = json.dumps({"execute": command, "arguments": dict(arguments or {})})
        asks = command.startswith(("query-", "qom-get"))
        way = self._machine.ask if asks else self._machine.tell
        said = await way(lambda it: load_qemu().qemuMonitorCommand(it, line, 0))
        return read_reply(f"machine {self._machine.spec.machine_id}", command, said)


class NamedDrives:
    """The disks of a machine by the names that libvirt gave them."""

    def __init__(self, machine: Told) -> None:
        self._machine = machine

    @property
    def monitor(self) -> Monitor:
        return LentMonitor(self._machine)

    async def drives(self) -> Mapping[int, Drive]:
        document = await self._machine.ask(lambda it: it.XMLDesc())
        found: dict[str, Drive] = {}
        for disk in ET.fromstring(document).iterfind("devices/disk"):  # noqa: S314 # libvirt wrote it
            target, alias, source = (disk.find(each) for each in ("target", "alias", "source"))
            if target is None or alias is None or source is None:
                continue
            # The number of the layer that is written now, of which libvirt makes the node's name.
            index = source.get("index", "")
            found[target.get("dev", "")] = Drive(alias.get("name", ""), f"libvirt-{index}-format")
        spec = self._machine.spec
        mine = {number: domain.disk_target(number) for number in writable(spec)}
        if missing := sorted(set(mine.values()) - set(found)):
            raise errors.ProtocolBroken(
                f"libvirt does not tell of disk {missing[0]} of machine {spec.machine_id}"
            )
        return {number: found[target] for number, target in mine.items()}
