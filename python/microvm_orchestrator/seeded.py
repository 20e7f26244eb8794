"""Seeded runs on this host: each takes a place, as a machine does, and leaves nothing.

Above is the service; below, the places and the hypervisor.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio.to_thread

from microvm_orchestrator.machine import base
from microvm_orchestrator.machine.seeded import Program, Ran
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.records import Actor
from microvm_orchestrator.runner import Runner
from microvm_orchestrator.slots import Need, Slots
from microvm_orchestrator.starting import refusing


class SeededRuns:
    """What runs programs the same way every time."""

    def __init__(
        self,
        hypervisor: base.Hypervisor,
        slots: Slots,
        boot_of: Callable[[str], base.Boot | Runner | base.Qcow2],
    ) -> None:
        self._hypervisor = hypervisor
        self._slots = slots
        self._boot_of = boot_of

    async def run(
        self,
        image: str,
        memory_mib: int,
        program: Program,
        by: Actor,
        *,
        timeout_s: float,
        wait: bool,
    ) -> Ran:
        """Run a program in a machine that exists for it alone.

        Raises: NotFound, NoRoom, InvalidInput, NotOffered, MachineFailed when it takes longer.
        """
        spec = base.MachineSpec(
            machine_id=new_id("seeded"),
            boot=await anyio.to_thread.run_sync(self._boot_of, image),
            memory_mib=memory_mib,
        )
        with refusing(by):
            await self._slots.hold(spec.machine_id, Need(spec.memory_mib, spec.vcpus), wait=wait)
        try:
            return await self._hypervisor.run_seeded(spec, program, timeout_s)
        finally:
            self._slots.release(spec.machine_id)
