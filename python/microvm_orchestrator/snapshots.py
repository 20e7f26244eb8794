"""Saved machines of this host, and machines that start where one was saved.

That there will be a snapshot is stored before it is made, and that it goes before it does, so a
daemon that ends in between leaves none that nobody knows of, and none that looks whole and is not.
Above are the services; below, the machines and the hypervisor that saves and clones them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial

import anyio
from pydantic import JsonValue

from microvm_orchestrator import errors, log
from microvm_orchestrator.machine import base
from microvm_orchestrator.machines import LAST_WORD_S, Machines, Wish
from microvm_orchestrator.model.machine import SNAPSHOT, Machine, MachineSnapshot, SnapshotState
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.networks import Attachment
from microvm_orchestrator.store.base import Store, Tell
from microvm_orchestrator.store.every import every_record
from microvm_orchestrator.store.seen import find_seen
from microvm_orchestrator.together import together

_log = log.get(__name__)


class Snapshots:
    """The snapshots of one daemon."""

    def __init__(self, store: Store, hypervisor: base.Hypervisor, machines: Machines) -> None:
        self._store = store
        self._hypervisor = hypervisor
        self._machines = machines

    async def reconcile(self) -> None:
        """Drop what a daemon was saving or deleting when it ended."""
        for snapshot in await self.visible(SYSTEM):
            if snapshot.state is not SnapshotState.READY:
                await self._drop_or_leave(snapshot)

    async def save(
        self, reference: str, by: Actor, *, snapshot_id: str | None = None
    ) -> MachineSnapshot:
        """Save a running machine, which goes on. Raises: NotFound, StateForbids, MachineFailed."""
        machine = await self._machines.get(reference, by)
        async with self._machines.turn(machine.machine_id):
            running = self._machines.live(await self._machines.get(machine.machine_id, by))
            return await self.save_held(machine, running, by, snapshot_id=snapshot_id)

    async def save_held(
        self,
        machine: Machine,
        running: base.Machine,
        by: Actor,
        *,
        snapshot_id: str | None = None,
        part_of: str | None = None,
        memory: bool = True,
        on_taken: Callable[[], None] = base.unheeded,
    ) -> MachineSnapshot:
        """Write down that there will be a snapshot, make it, and write down what came of it.

        The caller holds the machine's turn. Raises: StateForbids, MachineFailed.
        """
        snapshot = MachineSnapshot(
            snapshot_id=snapshot_id or new_id("s"),
            state=SnapshotState.SAVING,
            machine_id=machine.machine_id,
            part_of=part_of,
            owner=by.name,
            image=machine.image,
            memory_mib=machine.memory_mib,
            vcpus=machine.vcpus,
            disk_mib=machine.disk_mib,
            disks=machine.disks,
            networks=[place.network_id for place in machine.networks],
            memory=memory,
            created_at=moment(await self._store.now()),
        )
        told: dict[str, JsonValue] = {"machine_id": machine.machine_id}
        tell = Tell("saving", told, audited=False)
        await self._store.save(_record_of(snapshot), by, expect=0, tell=tell)
        try:
            saved = await running.save(snapshot.snapshot_id, memory=memory, on_taken=on_taken)
            done = {"pause_s": saved.pause_s, "unique_mib": saved.unique_mib}
            snapshot = snapshot.model_copy(update={"state": SnapshotState.READY, **done})
            tell = Tell("saved", {**told, **done}, audited=False)
            await self._store.save(_record_of(snapshot), by, tell=tell)
        except BaseException:
            with anyio.move_on_after(LAST_WORD_S, shield=True):
                await self._drop_or_leave(snapshot)
            raise
        return snapshot

    async def _drop(self, snapshot: MachineSnapshot, by: Actor) -> None:
        """Raises: Unavailable while its files cannot be removed."""
        going = snapshot.model_copy(update={"state": SnapshotState.DELETING})
        told: dict[str, JsonValue] = {"machine_id": snapshot.machine_id}
        tell = Tell("deleting", told, audited=False)
        await self._store.save(_record_of(going), SYSTEM, tell=tell)
        await self._hypervisor.forget(snapshot.snapshot_id)
        await self._store.erase(SNAPSHOT, snapshot.snapshot_id, by)

    async def _drop_or_leave(self, snapshot: MachineSnapshot) -> None:
        """Drop one that is none; what cannot be removed is told by its record, and stays known."""
        try:
            await self._drop(snapshot, SYSTEM)
        except errors.Unavailable as error:
            _log.error("snapshot_left", snapshot=snapshot.snapshot_id, why=error.message)

    async def get(self, snapshot_id: str, by: Actor) -> MachineSnapshot:
        """Raises: NotFound."""
        snapshot = await find_seen(self._store, SNAPSHOT, snapshot_id, MachineSnapshot, by)
        if snapshot is None:
            raise errors.NotFound(f"no snapshot {snapshot_id}", hint="snapshot_list shows them")
        return snapshot

    async def _ready(self, snapshot_id: str, by: Actor) -> MachineSnapshot:
        snapshot = await self.get(snapshot_id, by)
        if snapshot.state is not SnapshotState.READY:
            raise errors.StateForbids(f"snapshot {snapshot_id} is {snapshot.state}")
        return snapshot

    async def visible(self, by: Actor) -> list[MachineSnapshot]:
        records = await every_record(self._store, SNAPSHOT, by)
        found = [MachineSnapshot.model_validate(record.body) for record in records]
        return [snapshot for snapshot in found if by.sees_of(snapshot.owner)]

    async def branch(
        self,
        snapshot_id: str,
        by: Actor,
        *,
        name: str | None = None,
        machine_id: str | None = None,
    ) -> Machine:
        """Start a machine where a saved one stood. Raises: as `start`."""
        snapshot = await self._ready(snapshot_id, by)
        saved = await self._hypervisor.find_snapshot(snapshot_id)
        if saved is None:
            raise errors.NotFound(f"the files of snapshot {snapshot_id} are gone")
        wish = Wish(
            snapshot.image,
            snapshot.memory_mib,
            snapshot.vcpus,
            saved.spec.accel,
            name=name,
            disk_mib=snapshot.disk_mib,
            disks=tuple(snapshot.disks),
            networks=tuple(Attachment(network_id) for network_id in snapshot.networks),
            limits=saved.spec.limits,
        )
        machine = await self._machines.define(
            wish, by, machine_id=machine_id, snapshot_id=snapshot_id
        )
        try:
            return await self._machines.start(machine.machine_id, by)
        except BaseException:
            with anyio.move_on_after(LAST_WORD_S, shield=True):
                await self._machines.delete(machine.machine_id, SYSTEM)
            raise

    async def branch_all(
        self, snapshot_id: str, by: Actor, names: Sequence[str | None]
    ) -> list[Machine]:
        """Start as many machines where one was saved: all, or none. Raises: as `branch`."""
        started: dict[int, Machine] = {}

        async def start(number: int, name: str | None) -> None:
            started[number] = await self.branch(snapshot_id, by, name=name)

        try:
            await together([partial(start, *each) for each in enumerate(names)])
        except BaseException:
            with anyio.CancelScope(shield=True):
                for machine in started.values():
                    await self._take_away(machine.machine_id)
            raise
        return [started[number] for number in range(len(names))]

    async def _take_away(self, machine_id: str) -> None:
        with contextlib.suppress(errors.NotFound, errors.StateForbids):
            await self._machines.kill(machine_id, SYSTEM)
        with contextlib.suppress(errors.NotFound):
            await self._machines.delete(machine_id, SYSTEM)

    async def check(self, snapshot_id: str, by: Actor) -> MachineSnapshot:
        """Find one from which a machine can be started. Raises: NotFound, SnapshotDamaged."""
        snapshot = await self._ready(snapshot_id, by)
        await self._hypervisor.check(snapshot_id)
        return snapshot

    async def verify(self, snapshot_id: str, by: Actor) -> None:
        """Read all of a snapshot, and compare. Raises: NotFound, SnapshotDamaged."""
        await self._ready(snapshot_id, by)
        await self._hypervisor.verify(snapshot_id)

    async def forget(self, snapshot_id: str, by: Actor, *, part_of: str | None = None) -> None:
        """Remove a snapshot, or what is left of it; machines that were started from it go on.

        Who removes a part of a cluster's says of which. Raises: NotFound, StateForbids; Unavailable
        while its files cannot be removed.
        """
        snapshot = await self.get(snapshot_id, by)
        if snapshot.part_of not in {None, part_of}:
            raise errors.StateForbids(
                f"snapshot {snapshot_id} is a part of one of cluster {snapshot.part_of}",
                hint="cluster_snapshot_delete deletes that as a whole",
            )
        if snapshot.state is not SnapshotState.DELETING:
            snapshot = await self._ready(snapshot_id, by)
        await self._drop(snapshot, by)


def _record_of(snapshot: MachineSnapshot) -> Record:
    return Record(SNAPSHOT, snapshot.snapshot_id, snapshot.model_dump(mode="json"))
