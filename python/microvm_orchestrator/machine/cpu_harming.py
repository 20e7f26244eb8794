"""A machine that has less of this host's processors, by its control group.

Above stands the machine; below, its group, where this host lets us have groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from microvm_orchestrator import errors
from microvm_orchestrator.machine import cgroup
from microvm_orchestrator.model.fault import Harm

if TYPE_CHECKING:
    from microvm_orchestrator.machine.base import MachineSpec
    from microvm_orchestrator.machine.qemu.host import Host


class Grouped(Protocol):
    """A machine that may have a control group."""

    @property
    def spec(self) -> MachineSpec: ...

    @property
    def host(self) -> Host: ...


class SlowCpu:
    """A share of one processor, for all that the machine does."""

    fields = frozenset({"cpu_share"})

    def __init__(self, machine: Grouped) -> None:
        self._machine = machine

    async def check(self, harm: Harm) -> None:
        del harm
        groups = self._machine.host.groups
        if groups is None or not self._group.holds_processors:
            raise errors.FaultNotOffered(
                f"machine {self._machine.spec.machine_id} has no control group that gives it less "
                f"of a processor: {cgroup.describe()}",
                hint="the service's unit needs Delegate=yes and DelegateSubgroup=daemon",
            )

    async def make(self, harm: Harm) -> None:
        self._group.slow(self._machine.spec.vcpus, harm.cpu_share)

    async def see(self) -> Harm:
        return Harm(cpu_share=self._group.slowed(self._machine.spec.vcpus))

    @property
    def _group(self) -> cgroup.Group:
        groups = self._machine.host.groups
        if groups is None:
            raise errors.FaultNotOffered("machines have no control groups here")
        return groups.find(self._machine.spec.machine_id)
