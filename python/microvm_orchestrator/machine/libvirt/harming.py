"""What befalls the disks of a machine of libvirt's: they pass less, as libvirt is told and tells.

Above stands the machine; below, the connection to libvirt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from microvm_orchestrator import errors
from microvm_orchestrator.machine.libvirt import domain
from microvm_orchestrator.machine.libvirt.library import AFFECT_LIVE
from microvm_orchestrator.machine.qemu.harming import check_slower, limits_of, slowed, writable

if TYPE_CHECKING:
    from collections.abc import Callable

    from microvm_orchestrator.machine.base import MachineSpec
    from microvm_orchestrator.machine.libvirt.library import Domain
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
