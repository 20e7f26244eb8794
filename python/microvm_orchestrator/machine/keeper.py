"""Those who keep machines of one kind: what is the same for every way to run one.

A keeper sees a process through until its guest is ready, adopts what an earlier daemon left
running, and cleans up behind what has ended. What is on the disk is the only memory: a fresh daemon
finds its machines by it. Closing one lets go of its machines and ends none. Above stand the
hypervisors, each of which is a keeper.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.machine import console
from microvm_orchestrator.machine.handover import Handover
from microvm_orchestrator.machine.living import LivingMachine
from microvm_orchestrator.machine.process import Resident
from microvm_orchestrator.machine.qemu.host import leave_group
from microvm_orchestrator.machine.record import Made, Record
from microvm_orchestrator.model.names import NAME

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from microvm_orchestrator.machine.base import Accel, MachineSpec, Snapshot
    from microvm_orchestrator.machine.qemu.host import Host

# How often the consoles are looked at. A guest under emulation writes 1 MB between two looks.
_TEND_S = 1.0

M = TypeVar("M", bound=LivingMachine)


class Keeper(ABC, Generic[M]):
    """The machines of one kind on this host."""

    def __init__(self, host: Host, group: TaskGroup) -> None:
        self._host = host
        self._group = group
        self._live: dict[str, M] = {}

    @property
    def host(self) -> Host:
        return self._host

    async def adopt(self, machine_id: str) -> M:
        """Take over a machine that an earlier daemon started. Raises: MachineLost."""
        record = self._host.record(machine_id)
        made = record.read()
        resident = self._find(record)
        if made is None or resident is None or not made.ready:
            why = _why_lost(record, made, resident)
            await self._end(resident, record)
            raise errors.MachineLost(f"machine {machine_id} was lost: {why}")
        machine = self._machine(made, resident)
        try:
            await self._group.start(machine.live, self._take_over)
        except errors.MachineFailed as error:
            raise errors.MachineLost(f"machine {machine_id} was lost: {error.message}") from error
        self._live[machine_id] = machine
        return machine

    async def remove(self, machine_id: str) -> None:
        record = self._host.record(machine_id)
        machine = self._live.pop(machine_id, None)
        if machine is not None:
            await machine.kill()
        else:
            await self._end(self._find(record), record)
        await anyio.to_thread.run_sync(record.remove)

    def live(self, machine_id: str) -> M:
        """Return a machine that is looked after. Raises: NotFound."""
        machine = self._live.get(machine_id)
        if machine is None:
            raise errors.NotFound(f"machine {machine_id} does not run here")
        return machine

    def console(self, machine_id: str) -> Path:
        return self._host.record(machine_id).console

    def found(self) -> list[str]:
        folder = self._host.machines
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return sorted(name for name in names if NAME.fullmatch(name))

    def _unclaimed(self) -> list[tuple[str, Made | None]]:
        """Name the machines that an earlier daemon left before anybody claimed them."""
        records = ((machine_id, self._host.record(machine_id)) for machine_id in self.found())
        return [(machine_id, record.read()) for machine_id, record in records if record.unclaimed]

    async def tend(self) -> None:
        """Keep what consoles take on the disk bounded, and no control group of what has ended."""
        while True:
            for machine_id, machine in list(self._live.items()):
                if machine.state.ended:
                    del self._live[machine_id]
                else:
                    machine.bound_console()
            if self._host.groups is not None:
                self._host.groups.sweep()
            await anyio.sleep(_TEND_S)

    # What the kinds do in ways of their own.

    @abstractmethod
    def _machine(self, made: Made, resident: Resident) -> M: ...

    @abstractmethod
    def _find(self, record: Record) -> Resident | None:
        """Find the process of a machine, also when it was not written down any more."""

    @abstractmethod
    async def _take_over(self, machine: M) -> None:
        """Find out how an adopted machine stands, and go on from there."""

    # Steps.

    async def _make(
        self,
        spec: MachineSpec,
        accel: Accel,
        begin: Callable[[Handover, Record], Resident | Awaitable[Resident]],
        prepare: Callable[[M], Awaitable[None]],
        *,
        unclaimed: bool = False,
    ) -> M:
        """Start a process and see it through until its guest is ready."""
        record = self._host.record(spec.machine_id)
        self._check_free(record)
        record.create()
        try:
            record.unclaimed = unclaimed
            made = Made(spec, accel, console_from=console.size(record.console))
            record.write(made)
            with Handover() as given:
                begun = begin(given, record)
                resident = begun if isinstance(begun, Resident) else await begun
            machine = self._machine(made, resident)
            await self._group.start(machine.live, prepare)
        except BaseException:
            # Whoever is cancelled at the last moment leaves a machine that runs and is nobody's.
            with anyio.CancelScope(shield=True):
                await self._end(self._find(record), record)
            raise
        record.write(replace(made, ready=True))
        self._live[spec.machine_id] = machine
        return machine

    def _check_free(self, record: Record) -> None:
        """Raises: AlreadyExists when a machine of this name runs."""
        resident = self._find(record) if record.folder.exists() else None
        if resident is not None:
            resident.close()
            raise errors.AlreadyExists(f"machine {record.machine_id} runs already")

    async def _end(self, resident: Resident | None, record: Record) -> None:
        """End a process that nobody looks after, and take away what it needed."""
        if resident is not None:
            await resident.end()
            resident.close()
        leave_group(self._host, record.machine_id)
        record.clear()


class Cloner(Keeper[M]):
    """A keeper whose machines can begin where one was saved."""

    async def clone(self, snapshot: Snapshot, spec: MachineSpec) -> M:
        """Start where a saved machine stood. Raises: as `start`, NotFound, SnapshotDamaged."""
        return await self._clone(snapshot, spec, unclaimed=False)

    async def stand_by(self, snapshot: Snapshot, spec: MachineSpec) -> M:
        """Clone a machine that stands still until it is claimed. Raises: as `clone`."""
        try:
            machine = await self._clone(snapshot, spec, unclaimed=True)
            await self._make_ready(machine)
            await machine.pause()
        except BaseException:
            # Nobody knows its name, so nobody would take away even its console.
            with anyio.CancelScope(shield=True):
                await self.remove(spec.machine_id)
            raise
        return machine

    async def _make_ready(self, machine: M) -> None:
        """Do in a machine that will stand by what who claims it would wait for."""

    @abstractmethod
    async def _clone(self, snapshot: Snapshot, spec: MachineSpec, *, unclaimed: bool) -> M: ...


def _why_lost(record: Record, made: Made | None, resident: Resident | None) -> str:
    if made is None:
        return "its record is missing or damaged"
    if resident is not None:
        return "it had not finished booting when the daemon ended"
    said = console.tail(record.messages, most=300)
    return "its process is gone" + (f", after saying: {said}" if said else "")
