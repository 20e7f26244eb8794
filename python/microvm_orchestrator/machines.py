"""The machines of this host: what was asked for, what runs, and what became of it.

Above are the services; below, the hypervisor that runs machines, the images they boot, the slots
they take and the store that remembers them. Every state a machine comes into is stored with its
event before anybody is told. Machines outlive this: at the start those that still run are adopted,
those that do not are `lost` with a reason, and nothing is swept.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from pathlib import Path

import anyio
import anyio.abc
from pydantic import JsonValue

from microvm_orchestrator import errors, log
from microvm_orchestrator.caches import Caches
from microvm_orchestrator.machine import base
from microvm_orchestrator.machine.shell import GuestEvent
from microvm_orchestrator.model.machine import (
    ENDED,
    MACHINE,
    Machine,
    MachineDisk,
    MachineState,
)
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.network import Place
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.network.base import PortChange, PortEvent
from microvm_orchestrator.networks import Attachment, Networks
from microvm_orchestrator.runner import Runner
from microvm_orchestrator.slots import Slots
from microvm_orchestrator.starting import Starting
from microvm_orchestrator.store.base import Store, Tell
from microvm_orchestrator.store.every import every_record
from microvm_orchestrator.store.questions import RecordById
from microvm_orchestrator.warm import Warm

_log = log.get(__name__)

# A state that was reached is worth writing down even while the daemon stops.
LAST_WORD_S = 3.0

# What a guest may report, and the event that tells it. A guest that reports without end is heard
# now and then.
_REPORTS = {"oom": "oom", "disk_full": "disk_full", "pids_full": "pids_full"}
_REPORT_EVERY_S = 5.0
_REPORT_CHARS = 500

_STARTABLE = frozenset({MachineState.DEFINED, *ENDED})

# Why a machine is paused that a fault lets stand still.
HELD = "a fault lets it stand still"
# Called when a machine has begun to run, before anybody is told; its turn is held meanwhile.
OnBegin = Callable[[str, base.Machine], Awaitable[None]]
# Called when a machine was written down that has a place in a network, before anybody is told.
OnDefine = Callable[[Machine], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Wish:
    """A machine as it is asked for."""

    # The digest of what it boots.
    image: str
    memory_mib: int
    vcpus: int
    accel: base.Accel
    name: str | None = None
    # Of an empty disk of its own; None for none.
    disk_mib: int | None = None
    # In the order of its interfaces.
    networks: tuple[Attachment, ...] = ()
    limits: base.Limits = base.NO_LIMITS
    # The domain of which it gets a cache disk.
    cache: str | None = None
    # The name of a repository's history that it gets to read.
    history: str | None = None
    disks: tuple[MachineDisk, ...] = ()
    # What its guest calls itself, where that is not its name.
    hostname: str | None = None

    def made(self, machine: Machine) -> bool:
        """Whether a machine is what this asked for."""
        limits = (machine.max_pids, machine.max_disk_operations_s, machine.max_disk_bytes_s)
        plain = ("image", "memory_mib", "vcpus", "accel", "name", "disk_mib", "cache")
        return (
            all(getattr(machine, name) == getattr(self, name) for name in plain)
            and tuple(machine.disks) == self.disks
            and base.Limits(*limits) == self.limits
            and len(machine.networks) == len(self.networks)
            and all(map(_is_at, machine.networks, self.networks))
        )


def _is_at(place: Place, wanted: Attachment) -> bool:
    given = {str(ip_interface(address).ip) for address in place.addresses}
    named = wanted.network in {place.name, place.network_id}
    return named and given.issuperset(map(_as_written, wanted.addresses))


def _as_written(address: str) -> str:
    """Return the one form of an address, which can be written in many; what is none stays."""
    try:
        return str(ip_address(address))
    except ValueError:
        return address


@contextlib.contextmanager
def _though_unwritten(machine_id: str, what: str) -> Generator[None]:
    """Let those who bring the news go on where it cannot be stored: all machines need them."""
    try:
        yield
    except errors.OrchestratorError as error:
        _log.error("machine_news_unwritten", machine=machine_id, what=what, reason=error.message)


class Machines:
    """The machines of one daemon; lives as long as `running`."""

    def __init__(
        self,
        store: Store,
        hypervisor: base.Hypervisor,
        slots: Slots,
        boot_of: Callable[[str], base.Boot | Runner | base.Qcow2],
        warm: Warm | None = None,
        caches: Caches | None = None,
        networks: Networks | None = None,
        history_of: Callable[[str], Path] | None = None,
        *,
        boot_timeout_s: float = base.BOOT_TIMEOUT_S,
        on_begin: OnBegin = base.untold,
        on_define: OnDefine = base.untold,
    ) -> None:
        """`boot_of` finds what an image boots by its name or digest; it reads files."""
        self._on_begin = on_begin
        self._on_define = on_define
        self._starting = Starting(
            hypervisor, slots, boot_of, warm, caches, networks, history_of, boot_timeout_s
        )
        self._networks = networks
        self._store = store
        self._hypervisor = hypervisor
        self._live: dict[str, base.Machine] = {}
        # The ids of those that run, by what the hypervisor calls them.
        self._ids: dict[str, str] = {}
        self._ended: dict[str, anyio.Event] = {}
        # Set when some machine has come to run.
        self._begun = anyio.Event()
        # Between looking whether a name is free and taking it.
        self._naming = anyio.Lock()
        # One verb at a time for each machine.
        self._turns: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)
        # When the guest of a machine was last heard of each thing.
        self._reported: dict[tuple[str, str], float] = {}
        self._watchers: anyio.abc.TaskGroup | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Adopt what runs, and watch it until the block ends. Machines go on after it."""
        async with anyio.create_task_group() as watchers:
            self._watchers = watchers
            await self._reconcile()
            try:
                yield
            finally:
                self._watchers = None
                watchers.cancel_scope.cancel()

    # What is known

    async def get(self, reference: str, by: Actor) -> Machine:
        """Find a machine by its id or name. Raises: NotFound, also for what `by` cannot see."""
        return (await self._find(reference, by))[0]

    async def visible(self, by: Actor) -> list[Machine]:
        records = await every_record(self._store, MACHINE, by)
        machines = [Machine.model_validate(record.body) for record in records]
        return [machine for machine in machines if by.sees_of(machine.owner)]

    def live(self, machine: Machine) -> base.Machine:
        """The running machine itself. Raises: StateForbids."""
        running = self._live.get(machine.machine_id)
        if running is None:
            raise errors.StateForbids(
                f"machine {machine.machine_id} is {machine.state}"
                + (f": {machine.reason}" if machine.reason else ""),
                hint="machine_start starts it",
            )
        return running

    async def until_it_runs(self, machine_id: str) -> base.Machine:
        """Wait for a machine to run, and give it."""
        while (running := self._live.get(machine_id)) is None:
            await self._begun.wait()
        return running

    def turn(self, machine_id: str) -> anyio.Lock:
        """What is held by who does something to a machine: one verb at a time."""
        return self._turns[machine_id]

    def runs(self, machine: Machine) -> bool:
        """Whether it does, whatever its record says: the end of one may be unwritten."""
        return machine.machine_id in self._live

    def console(self, machine: Machine) -> Path:
        """The file with the last of what its guest wrote; there may be none yet."""
        return self._hypervisor.console(machine.on_host)

    # Verbs

    async def define(
        self,
        wish: Wish,
        by: Actor,
        *,
        machine_id: str | None = None,
        snapshot_id: str | None = None,
    ) -> Machine:
        """Write a machine down; nothing runs yet. Raises: AlreadyExists when the name is taken."""
        async with self._naming:
            if wish.name is not None and any(
                m.name == wish.name for m in await self.visible(SYSTEM)
            ):
                raise errors.AlreadyExists(f"machine {wish.name} already exists")
            machine_id = machine_id or new_id("m")
            if self._networks is None or not wish.networks:
                return await self._write_down(wish, by, machine_id, snapshot_id, [])
            async with self._networks.giving:
                places = await self._networks.places(machine_id, wish.networks, by)
                machine = await self._write_down(wish, by, machine_id, snapshot_id, places)
        await self._on_define(machine)
        return machine

    async def _write_down(
        self,
        wish: Wish,
        by: Actor,
        machine_id: str,
        snapshot_id: str | None,
        places: list[Place],
    ) -> Machine:
        machine = Machine(
            machine_id=machine_id,
            name=wish.name,
            owner=by.name,
            image=wish.image,
            snapshot_id=snapshot_id,
            memory_mib=wish.memory_mib,
            vcpus=wish.vcpus,
            disk_mib=wish.disk_mib,
            networks=places,
            max_pids=wish.limits.pids,
            max_disk_operations_s=wish.limits.disk_operations,
            max_disk_bytes_s=wish.limits.disk_bytes,
            cache=wish.cache,
            history=wish.history,
            disks=list(wish.disks),
            hostname=wish.hostname,
            accel=wish.accel,
            state=MachineState.DEFINED,
            created_at=moment(await self._store.now()),
        )
        record = Record(MACHINE, machine.machine_id, machine.model_dump(mode="json"))
        # One that branches off is part of a larger deed.
        told: dict[str, JsonValue] = {"image": machine.image, "name": machine.name}
        tell = Tell("defined", told, audited=snapshot_id is None)
        await self._store.save(record, by, expect=0, tell=tell)
        return machine

    async def start(
        self,
        reference: str,
        by: Actor,
        *,
        wait_for_room: bool = True,
        snapshot_id: str | None = None,
    ) -> Machine:
        """Boot a machine, and return when its guest is ready.

        With a snapshot of a machine with the same parts it goes on where that one was saved, this
        once: it is itself, with its own names, and its disks are what was saved.

        Raises: NotFound, StateForbids, NoRoom, MachineBootFailed. One who is cancelled leaves the
            machine stopped and nothing of it on the host.
        """
        machine = await self.get(reference, by)
        async with self._turns[machine.machine_id]:
            machine = await self.get(machine.machine_id, by)
            if machine.state not in _STARTABLE and self.runs(machine):
                raise errors.StateForbids(
                    f"machine {machine.machine_id} is {machine.state} already"
                )

            async def enter(runtime_id: str | None) -> None:
                names = {"runtime_id": runtime_id, "cache_volume": lent and lent.name}
                await self._change(machine.machine_id, MachineState.BOOTING, "", by, names=names)

            lent = await self._starting.hold(machine, by, wait=wait_for_room)
            try:
                running = await self._starting.start(machine, lent, enter, snapshot_id)
            except BaseException as error:
                await self._not_started(machine.machine_id, error)
                raise
            # It runs: whoever leaves now leaves it as a running one.
            machine_id = machine.machine_id
            with anyio.CancelScope(shield=True):
                await self._take_on(machine_id, running, MachineState.RUNNING, by)
                await self._on_begin(machine_id, running)
        return await self.get(machine_id, by)

    async def _not_started(self, machine_id: str, error: BaseException) -> None:
        failed = isinstance(error, errors.OrchestratorError)
        state = MachineState.CRASHED if failed else MachineState.STOPPED
        reason = error.message if isinstance(error, errors.OrchestratorError) else "not started"
        try:
            with anyio.move_on_after(LAST_WORD_S, shield=True):
                await self._change(machine_id, state, reason, SYSTEM)
        finally:
            await self._let_go(machine_id)

    async def _let_go(self, machine_id: str) -> None:
        with anyio.CancelScope(shield=True):
            await self._starting.let_go(machine_id)

    async def stop(self, reference: str, by: Actor, *, grace_s: float) -> Machine:
        """Let the guest power off, and end it by force after `grace_s`.

        Raises: NotFound, StateForbids.
        """
        return await self._end(reference, by, lambda running: running.stop(grace_s))

    async def kill(self, reference: str, by: Actor) -> Machine:
        """End a machine as a power cut would. Raises: NotFound, StateForbids."""

        async def kill(running: base.Machine) -> None:
            await self._store.note(by, self._id_of(running), "ok")
            await running.kill()

        return await self._end(reference, by, kill)

    async def _end(
        self, reference: str, by: Actor, verb: Callable[[base.Machine], Awaitable[None]]
    ) -> Machine:
        machine = await self.get(reference, by)
        self.live(machine)  # one that boots, or waits in line for it, is not waited for
        async with self._turns[machine.machine_id]:
            running = self.live(await self.get(machine.machine_id, by))
            ended = self._ended[machine.machine_id]
            await verb(running)
            await ended.wait()
        return await self.get(machine.machine_id, by)

    async def pause(self, reference: str, by: Actor) -> Machine:
        """Raises: NotFound, StateForbids."""
        return await self._toggle(reference, by, MachineState.RUNNING, MachineState.PAUSED)

    async def resume(self, reference: str, by: Actor) -> Machine:
        """Raises: NotFound, StateForbids."""
        return await self._toggle(reference, by, MachineState.PAUSED, MachineState.RUNNING)

    async def _toggle(
        self, reference: str, by: Actor, was: MachineState, becomes: MachineState
    ) -> Machine:
        machine = await self.get(reference, by)
        async with self._turns[machine.machine_id]:
            machine = await self.get(machine.machine_id, by)
            if machine.state is not was:
                raise errors.StateForbids(
                    f"machine {machine.machine_id} is {machine.state}, not {was}"
                )
            if machine.reason == HELD:
                raise errors.StateForbids(
                    f"machine {machine.machine_id} is paused: {HELD}",
                    hint="fault_list shows the fault, fault_heal ends it",
                )
            running = self.live(machine)
            # Whoever leaves now leaves it as it is told.
            with anyio.CancelScope(shield=True):
                await (running.pause() if becomes is MachineState.PAUSED else running.resume())
                machine = await self._change(machine.machine_id, becomes, "", by, audited=True)
        return machine

    async def stand(self, machine_id: str, state: MachineState, reason: str) -> None:
        """Write down how a machine stands, by who holds its turn and has let it stand so."""
        machine = await self.get(machine_id, SYSTEM)
        if (machine.state, machine.reason) != (state, reason):
            await self._change(machine_id, state, reason, SYSTEM)

    async def delete(self, reference: str, by: Actor) -> Machine:
        """Forget a machine that does not run, with its console. Raises: NotFound, StateForbids."""
        machine = await self.get(reference, by)
        if self._turns[machine.machine_id].locked():
            raise errors.StateForbids(
                f"machine {machine.machine_id} is being started, saved or ended",
                hint="wait for the operation that does it, or cancel it",
            )
        async with self._turns[machine.machine_id]:
            machine = await self.get(machine.machine_id, by)
            if machine.state not in _STARTABLE and self.runs(machine):
                raise errors.StateForbids(
                    f"machine {machine.machine_id} is {machine.state}", hint="stop it first"
                )
            await self._hypervisor.remove(machine.on_host)
            await self._starting.forget(machine)
            await self._store.erase(MACHINE, machine.machine_id, by)
        del self._turns[machine.machine_id]
        return machine

    # What happens by itself

    async def hear(self, change: base.Change) -> None:
        """Write down what a machine did unasked: its disk failed, and it stands still."""
        machine_id = self._ids.get(change.machine_id, change.machine_id)
        running = self._live.get(machine_id)
        if running is None or change.state not in {MachineState.RUNNING, MachineState.PAUSED}:
            return  # starts and ends are written by who starts and who watches
        if self._turns[machine_id].locked():
            return  # it was asked to, and who asked writes it down
        with _though_unwritten(machine_id, change.state):
            machine, _ = await self._find(machine_id, SYSTEM)
            if machine.state is not change.state:
                await self._change(machine_id, change.state, change.reason, SYSTEM)

    async def hear_guest(self, machine_id: str, event: GuestEvent) -> None:
        """Pass on what the guest of a machine reports, which may be anything."""
        machine_id = self._ids.get(machine_id, machine_id)
        what = _REPORTS.get(event.kind)
        if what is None or machine_id not in self._live:
            return
        now = anyio.current_time()
        if now - self._reported.get((machine_id, what), -math.inf) < _REPORT_EVERY_S:
            return
        self._reported[machine_id, what] = now
        body: dict[str, JsonValue] = {**event.figures, "text": event.text[:_REPORT_CHARS]}
        tell = Tell(what, body, audited=False)
        with _though_unwritten(machine_id, what):
            await self._rewrite(machine_id, lambda machine: (machine, tell), SYSTEM)

    async def hear_port(self, event: PortEvent) -> None:
        """Write down that a machine which goes on is listened to in a network no more."""
        if event.change is PortChange.CUT_OFF and event.machine_id in self._live:
            body: dict[str, JsonValue] = {"network_id": event.network_id, "reason": event.reason}
            tell = Tell("cut_off", body, audited=False)
            with _though_unwritten(event.machine_id, "cut_off"):
                await self._rewrite(event.machine_id, lambda machine: (machine, tell), SYSTEM)

    def _id_of(self, running: base.Machine) -> str:
        return self._ids.get(running.spec.machine_id, running.spec.machine_id)

    async def _take_on(
        self, machine_id: str, running: base.Machine, state: MachineState, by: Actor
    ) -> Machine:
        """Watch a machine from now on."""
        watchers = self._watchers
        if watchers is None:
            raise errors.Stopping("the daemon takes on no more machines")
        self._ids[running.spec.machine_id] = machine_id
        self._live[machine_id] = running
        self._ended[machine_id] = anyio.Event()
        self._begun.set()
        self._begun = anyio.Event()
        try:
            return await self._change(machine_id, state, "", by)
        finally:
            # One whose state could not be written is watched all the same.
            watchers.start_soon(self._watch, machine_id, running)

    async def _watch(self, machine_id: str, running: base.Machine) -> None:
        change = await running.wait()
        # Before it is told: who hears that it has ended may start it again at once.
        await self._let_go(machine_id)
        try:
            await self._change(machine_id, change.state, change.reason, SYSTEM)
        except errors.OrchestratorError as error:
            # The next start finds out for itself: of the machine, or of the daemon.
            _log.error("machine_end_unwritten", machine=machine_id, reason=error.message)
        finally:
            del self._live[machine_id], self._ids[running.spec.machine_id]
            for what in _REPORTS.values():
                self._reported.pop((machine_id, what), None)
            self._ended.pop(machine_id).set()

    async def _reconcile(self) -> None:
        if self._networks is not None:
            await self._networks.restore()
        known: set[str] = set()
        for record in await every_record(self._store, MACHINE, SYSTEM):
            machine = Machine.model_validate(record.body)
            known.add(machine.on_host)
            if machine.state not in _STARTABLE:
                await self._adopt(machine)
        for stranger in set(self._hypervisor.found()) - known:
            # A store that was put back from a backup does not know it: told, not ended.
            _log.warning("machine_unknown", machine=stranger)
        if self._networks is not None:
            await self._networks.sweep()

    async def _adopt(self, machine: Machine) -> None:
        try:
            running = await self._hypervisor.adopt(machine.on_host)
        except errors.MachineFailed as error:
            await self._change(machine.machine_id, MachineState.LOST, error.message, SYSTEM)
            return
        await self._starting.keep(machine, running)
        await self._take_on(machine.machine_id, running, running.state, SYSTEM)

    # The records

    async def _find(self, reference: str, by: Actor) -> tuple[Machine, Record]:
        record = await self._store.query(RecordById(MACHINE, reference), by)
        if record is None:
            named = await every_record(self._store, MACHINE, by)
            record = next((each for each in named if each.body["name"] == reference), None)
        if record is not None:
            machine = Machine.model_validate(record.body)
            if by.sees_of(machine.owner):
                return machine, record
        raise errors.NotFound(f"no machine {reference}", hint="machine_list shows the machines")

    async def _change(
        self,
        machine_id: str,
        state: MachineState,
        reason: str,
        by: Actor,
        *,
        audited: bool = False,
        names: Mapping[str, str | None] | None = None,
    ) -> Machine:
        now = moment(await self._store.now())
        update: dict[str, object] = {"state": state, "reason": reason}
        if state is MachineState.BOOTING:
            update |= {"started_at": now, "ended_at": None, **(names or {})}
        elif state in ENDED:
            update["ended_at"] = now

        def entered(machine: Machine) -> tuple[Machine, Tell]:
            told: dict[str, JsonValue] = {"was": machine.state, "reason": reason}
            return machine.model_copy(update=update), Tell(state, told, audited=audited)

        return await self._rewrite(machine_id, entered, by)

    async def _rewrite(
        self, machine_id: str, change: Callable[[Machine], tuple[Machine, Tell]], by: Actor
    ) -> Machine:
        while True:
            machine, record = await self._find(machine_id, SYSTEM)
            machine, tell = change(machine)
            fresh = Record(MACHINE, machine_id, machine.model_dump(mode="json"))
            try:
                await self._store.save(fresh, by, expect=record.version, tell=tell)
            except errors.VersionMoved:
                continue  # what its guest reports comes at any time
            return machine
