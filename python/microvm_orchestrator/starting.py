"""What a machine has of this host while it runs, and the ways in which one comes to run.

A place comes first, then a cache, then ports in networks; all go back when the machine ends, by its
name alone. A machine that is like those that stand ready is claimed, one that was branched off is
cloned, any other is booted. Above are the machines; below, slots, caches, networks, pools and the
hypervisor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Generator
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.to_thread

from microvm_orchestrator import errors, log
from microvm_orchestrator.caches import Caches, Volume
from microvm_orchestrator.machine import base
from microvm_orchestrator.machine.pool import Pool
from microvm_orchestrator.model.machine import Machine
from microvm_orchestrator.model.records import Actor
from microvm_orchestrator.networks import Networks
from microvm_orchestrator.runner import Runner
from microvm_orchestrator.slots import Need, Slots
from microvm_orchestrator.warm import Warm

# By its serial a guest knows the disk that is for whatever it likes.
SCRATCH_SERIAL = "scratch"
# And the history of a repository, which lies below /opt by the rest of this name.
HISTORY_SERIAL = "opt-history"
_log = log.get(__name__)


@contextlib.contextmanager
def refusing(by: Actor) -> Generator[None]:
    """Tell somebody of want of room, and no more: not all see whose machines there are."""
    try:
        yield
    except errors.NoRoom as error:
        if by.scope.everything:
            raise
        words = "all slots or caches are busy, or too few are free"
        raise errors.NoRoom(words, hint=error.hint) from None


class Starting:
    """How the machines of one daemon come to run."""

    def __init__(
        self,
        hypervisor: base.Hypervisor,
        slots: Slots,
        boot_of: Callable[[str], base.Boot | Runner | base.Qcow2],
        warm: Warm | None,
        caches: Caches | None,
        networks: Networks | None,
        history_of: Callable[[str], Path] | None,
        boot_timeout_s: float,
    ) -> None:
        self._boot_timeout_s = boot_timeout_s
        self._history_of = history_of
        self._hypervisor = hypervisor
        self._slots = slots
        self._boot_of = boot_of
        self._warm = warm
        self._caches = caches
        self._networks = networks

    async def hold(self, machine: Machine, by: Actor, *, wait: bool) -> Volume | None:
        """Take a place for a machine, and a cache disk if it wants one.

        Raises: NoRoom; it has neither then.
        """
        with refusing(by):
            return await self._hold(machine, wait=wait)

    async def _hold(self, machine: Machine, *, wait: bool) -> Volume | None:
        need = Need(machine.memory_mib, machine.vcpus)
        while True:
            await self._slots.hold(machine.machine_id, need, wait=wait)
            if machine.cache is None or self._caches is None:
                return None
            # One may come back while this one is looked for.
            released = self._caches.released
            try:
                return await self._caches.take(machine.machine_id, machine.cache)
            except BaseException as error:
                # Whoever waits for a cache keeps nobody from a place.
                self._slots.release(machine.machine_id)
                if not wait or not isinstance(error, errors.NoRoom):
                    raise
            await released.wait()

    async def keep(self, machine: Machine, running: base.Machine) -> None:
        """Take note of what a machine has that runs already, and connect it again."""
        if self._caches is not None and machine.cache_volume is not None:
            self._caches.keep(machine.machine_id, machine.cache_volume)
        self._slots.keep(machine.machine_id, Need(machine.memory_mib, machine.vcpus))
        try:
            await self._links(machine)
            await self._connect(machine, running)
        except errors.OrchestratorError as error:
            _log.error("machine_not_connected", machine=machine.machine_id, why=error.message)

    async def let_go(self, machine_id: str) -> None:
        """Give back what only a machine that runs has."""
        if self._networks is not None:
            await self._networks.release(machine_id)
        if self._caches is not None:
            self._caches.release(machine_id)
        self._slots.release(machine_id)

    async def forget(self, machine: Machine) -> None:
        """A machine was deleted."""
        if self._caches is not None and machine.cache is not None:
            await self._caches.forget(machine.machine_id)

    async def start(
        self,
        machine: Machine,
        lent: Volume | None,
        enter: Callable[[str | None], Awaitable[None]],
        snapshot_id: str | None = None,
    ) -> base.Machine:
        """Let a machine run; `enter` is told what it is called on the host, before it is.

        It goes on where a snapshot was saved, if one is given, or it was branched off from one.

        Raises: NotFound, MachineBootFailed.
        """
        snapshot_id = snapshot_id or machine.snapshot_id
        again = machine.runtime_id
        if again is not None and (snapshot_id is not None or not _own_disks(machine)):
            # It begins anew, and has kept nothing but its console.
            await self._hypervisor.remove(again)
            again = None
        if (snapshot_id or again) is None and (pool := await self._pool(machine)) is not None:
            return await pool.claim(_hostname(machine), enter)
        await enter(again)
        spec = await self._spec(machine)
        if again is not None:
            # Its disks lie where those lie of what it has claimed.
            spec = replace(spec, machine_id=again)
        spec = replace(spec, links=await self._links(machine))
        if lent is not None:
            spec = replace(spec, disks=(*spec.disks, lent.disk))
        running = await self._begin(spec, snapshot_id)
        try:
            await self._connect(machine, running)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await running.kill()
            raise
        return running

    async def _begin(self, spec: base.MachineSpec, snapshot_id: str | None) -> base.Machine:
        if snapshot_id is None:
            return await self._hypervisor.start(spec)
        snapshot = await self._hypervisor.find_snapshot(snapshot_id)
        if snapshot is None:
            raise errors.NotFound(f"snapshot {snapshot_id} is gone")
        # Of a cache that the saved machine had, it gets a copy of its own.
        return await self._hypervisor.clone(snapshot, replace(spec, disks=snapshot.spec.disks))

    async def _links(self, machine: Machine) -> tuple[base.Link, ...]:
        return () if self._networks is None else await self._networks.prepare(machine)

    async def _connect(self, machine: Machine, running: base.Machine) -> None:
        if self._networks is not None:
            await self._networks.connect(machine, running.links)

    async def _pool(self, machine: Machine) -> Pool | None:
        if self._warm is None or machine.cache or machine.networks:
            return None
        with contextlib.suppress(errors.OrchestratorError):  # what is wrong is told by the boot
            return self._warm.find(await self._spec(machine))
        return None

    async def _spec(self, machine: Machine) -> base.MachineSpec:
        boot = await anyio.to_thread.run_sync(self._boot_of, machine.image)
        # Others know nothing of a disk that is there for it; what is in a history is sent then.
        with_history = isinstance(boot, base.Boot)
        return base.MachineSpec(
            machine_id=machine.machine_id,
            boot=boot,
            disks=_own_disks(machine) + (self._history(machine) if with_history else ()),
            memory_mib=machine.memory_mib,
            vcpus=machine.vcpus,
            accel=base.Accel(machine.accel),
            hostname=_hostname(machine),
            boot_timeout_s=self._boot_timeout_s,
            limits=base.Limits(
                pids=machine.max_pids,
                disk_operations=machine.max_disk_operations_s,
                disk_bytes=machine.max_disk_bytes_s,
            ),
        )

    def _history(self, machine: Machine) -> tuple[base.Disk, ...]:
        if machine.history is None or self._history_of is None:
            return ()
        return (base.Disk(HISTORY_SERIAL, self._history_of(machine.history)),)


def _hostname(machine: Machine) -> str:
    return machine.hostname or machine.name or machine.machine_id.replace("_", "-")


def _own_disks(machine: Machine) -> tuple[base.Disk, ...]:
    sizes = {disk.serial: disk.size_mib for disk in machine.disks}
    if machine.disk_mib is not None:
        sizes = {SCRATCH_SERIAL: machine.disk_mib, **sizes}
    return tuple(base.Disk(name, read_only=False, size_mib=size) for name, size in sizes.items())
