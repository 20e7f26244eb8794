"""A machine that libvirt runs: a process like any other, told what to do by libvirtd.

The process tells whether the machine is alive, and how it ended; libvirtd may be restarted, or be
gone for a while, and no machine is taken for gone by that. What libvirt knows beside it, that a
machine stands still and why, is asked for twice a second. Above stands the keeper.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread

from microvm_orchestrator import errors
from microvm_orchestrator.machine import process, sockets
from microvm_orchestrator.machine.base import Within, unheeded
from microvm_orchestrator.machine.libvirt import domain, saving
from microvm_orchestrator.machine.libvirt.harming import NamedDrives, SlowTunedDisks
from microvm_orchestrator.machine.libvirt.library import (
    SHUTDOWN_ACPI,
    DomainState,
    OffReason,
    PauseReason,
)
from microvm_orchestrator.machine.living import LAST_WORDS_S, LivingMachine
from microvm_orchestrator.machine.qemu.harming import FailingDisks
from microvm_orchestrator.model.machine import MachineState

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from pathlib import Path

    from anyio.abc import ByteStream, TaskGroup

    from microvm_orchestrator.machine.base import Snapshot
    from microvm_orchestrator.machine.harming import Harming
    from microvm_orchestrator.machine.libvirt.connection import Connection
    from microvm_orchestrator.machine.libvirt.library import Domain
    from microvm_orchestrator.machine.process import Resident
    from microvm_orchestrator.machine.qemu.host import Host
    from microvm_orchestrator.machine.record import Made, Record

T = TypeVar("T")

# Between two looks at what libvirt says; a look takes less than a millisecond.
_LOOK_S = 0.5
# Between two looks whether libvirt has seen the end of a process that we have seen.
_AGAIN_S = 0.02
# From the end of a process until libvirt has put another in its place, which loads its memory.
_REWIND_S = 30.0
# libvirt ends a process by asking it first.
_DESTROY_S = 30.0
# An SSH server that listens begins in a tenth of it, on a busy host under emulation too.
_FIRST_WORD_S = 4.0
_LOCALHOST = "127.0.0.1"
_LOG_BYTES = 4096

# What libvirt does with a machine for a moment, and nobody need be told of.
_PASSING = frozenset(
    {
        PauseReason.SAVE,
        PauseReason.DUMP,
        PauseReason.SNAPSHOT,
        PauseReason.FROM_SNAPSHOT,
        PauseReason.STARTING_UP,
        PauseReason.SHUTTING_DOWN,
        PauseReason.MIGRATION,
    }
)
_WHY_PAUSED = {
    PauseReason.USER: "somebody paused it by libvirt",
    PauseReason.IOERROR: "libvirt stopped it: its disk cannot be read or written",
    PauseReason.WATCHDOG: "libvirt stopped it: its watchdog was not served",
    PauseReason.CRASHED: "libvirt stopped it: its guest has crashed",
}


def find_process(uuid: str, users: frozenset[int]) -> Resident | None:
    """Find the QEMU that libvirt has started for a machine."""
    found = process.find_by_words(("-uuid", uuid), users)
    return None if found is None else process.find(found)


def port_file(record: Record) -> Path:
    """Name the file with the port of this host behind which the guest's SSH server is."""
    return record.folder / "management"


class LibvirtMachine(LivingMachine):
    """A QEMU that libvirt has started, and is asked about."""

    def __init__(
        self,
        host: Host,
        made: Made,
        resident: Resident,
        connection: Connection,
        users: frozenset[int],
        messages: Path,
    ) -> None:
        """`users` are those whom QEMU may run as, `messages` the file of libvirt with its words."""
        super().__init__(host, made, resident)
        self.uuid = domain.uuid_of(self.record.folder)
        self._connection = connection
        self._users = users
        self._messages = messages
        # One looks or changes at a time, so that no old look undoes what was just done.
        self._looking = anyio.Lock()
        # Whether it stands still because it was restored, and was not told to go on yet.
        self.restored = False
        # Why it does not run any more, by libvirt.
        self._off: OffReason | None = None

    # What callers do with it.

    async def pause(self) -> Within:
        async with self._looking:
            self._check()
            done = await self.tell(_timed(lambda machine: machine.suspend()))
            self.record.paused = True
            await self.enter(MachineState.PAUSED, "it was paused, as asked")
            return done

    async def resume(self) -> Within:
        async with self._looking:
            self._check()
            self.record.paused = False
            done = await self.tell(_timed(lambda machine: machine.resume()))
            await self.enter(MachineState.RUNNING)
            return done

    async def save(
        self,
        snapshot_id: str,
        *,
        memory: bool = True,
        on_taken: Callable[[], None] = unheeded,
    ) -> Snapshot:
        self._check()
        if memory:
            self.check_unheld()
        return await saving.save(self, self._looking, snapshot_id, memory=memory, on_taken=on_taken)

    @property
    def harmings(self) -> Sequence[Harming]:
        """Its group is libvirt's, and so is its monitor, which is lent."""
        return (*super().harmings, SlowTunedDisks(self), FailingDisks(self.spec, NamedDrives(self)))

    # What its keeper does with it.

    async def wake(self) -> None:
        """Let one go on that was restored."""
        async with self._looking:
            await self.tell(lambda machine: machine.resume())
            self.restored = False

    async def go_on(self) -> None:
        """Take up, after it was adopted, what it was doing. libvirtd need not be there."""
        if self.record.paused:
            await self.enter(MachineState.PAUSED, "it was paused, as asked")
        else:
            await self.enter(MachineState.RUNNING)
        self.reach_later()

    async def ask(self, question: Callable[[Domain], T]) -> T:
        return await self._connection.ask(lambda virt: question(virt.lookupByUUIDString(self.uuid)))

    async def tell(self, deed: Callable[[Domain], T]) -> T:
        """Tell libvirt to do something to it. Raises: as `Connection.tell`."""
        return await self._connection.tell(lambda virt: deed(virt.lookupByUUIDString(self.uuid)))

    @property
    def ssh_port(self) -> int | None:
        if self.ssh is None:
            return None
        try:
            return int(port_file(self.record).read_text(encoding="ascii"))
        except OSError:
            return None

    # What any machine asks of its kind.

    @asynccontextmanager
    async def _controlled(self, group: TaskGroup) -> AsyncGenerator[None]:
        group.start_soon(self._follow)
        yield

    async def _call(self) -> ByteStream:
        try:
            if self.ssh is None:
                return await sockets.connect(self.record.agent)
            port = int(port_file(self.record).read_text(encoding="ascii"))
            return await anyio.connect_tcp(_LOCALHOST, port)
        except OSError as error:
            why = error.strerror or error
            raise errors.MachineUnreachable(f"its port is closed: {why}") from error

    def _first_word_s(self, greeting_s: float) -> float:
        """A QEMU takes a call for its guest before there is anybody, and loses it then."""
        return min(greeting_s, _FIRST_WORD_S)

    async def _press_power(self) -> None:
        await self.tell(lambda machine: machine.shutdownFlags(SHUTDOWN_ACPI))

    async def _why_forced(self, grace_s: float) -> str:
        """It is libvirt that ends the process of a guest that has powered off."""
        forced = await super()._why_forced(grace_s)
        try:
            await self.ask(lambda machine: machine.state())
        except (errors.MachineFailed, errors.NotFound, errors.StateForbids):
            return forced  # it has answered
        except errors.Unavailable:
            return (
                f"libvirt does not answer, and it had not ended within {grace_s:g} s: it was ended"
                " by force"
            )
        return forced

    async def _watch(self, life: anyio.CancelScope) -> None:
        """Wait for the end. One that somebody rewinds by libvirt comes again as another process."""
        await self._resident.wait()
        while (again := await self._find_again()) is not None:
            self._resident.close()
            self._resident = again
            self.record.write_process(again.identity)
            await self._resident.wait()
        await self._hear_last_words()
        life.cancel()

    async def _find_again(self) -> Resident | None:
        """Ask libvirt how a process ended, until it has seen the end, and find the next one."""
        rewound = False
        with anyio.move_on_after(LAST_WORDS_S) as asking, suppress(errors.OrchestratorError):
            while (again := find_process(self.uuid, self._users)) is None:
                self._off = await self._why_off()
                if self._off is OffReason.FROM_SNAPSHOT and not rewound:
                    rewound = True
                    asking.deadline = anyio.current_time() + _REWIND_S
                elif not rewound and self._off is not None:
                    break
                await anyio.sleep(_AGAIN_S)
            return again
        return None

    async def _hear_last_words(self) -> None:
        """What libvirt has said of the end is known; what its QEMU has is taken in."""
        status = self._resident.status
        if self._off is OffReason.SHUTDOWN:
            self._shutdown = "guest-ended"
        elif self._off is OffReason.DESTROYED:
            self._shutdown = "host-qmp-quit"
        elif self._off is OffReason.CRASHED and status is not None and status >= 0:
            # Of one that was killed libvirt says the same; the kernel may not tell us of it.
            self._shutdown = "guest-panic"
        await anyio.to_thread.run_sync(self.take_messages)

    def _bound_files(self, console_size: int) -> None:
        """Let it write files of any size: they are libvirt's to bound."""

    async def _clean_up(self) -> None:
        """There is nothing beside the process."""

    async def _end_process(self) -> bool:
        return await end_process(self._resident, self._connection, self.uuid)

    # Steps.

    async def _follow(self) -> None:
        """Let the machine's state follow what libvirt says, whenever it answers."""
        told = False
        while True:
            try:
                async with self._looking:
                    state, reason, *_ = await self.ask(lambda machine: machine.state())
                    await self._see(state, reason)
                told = False
            except errors.OrchestratorError as error:
                if not told:
                    self._log.info("libvirt_does_not_say", why=error.message)
                told = True
            await anyio.sleep(_LOOK_S)

    async def _see(self, state: int, reason: int) -> None:
        if self._resident.ended:
            return
        if state == DomainState.PAUSED and reason not in _PASSING and not self.restored:
            why = _WHY_PAUSED.get(PauseReason(reason), "libvirt stopped it")
            if self._ready:
                if self.state is MachineState.RUNNING:
                    await self.enter(MachineState.PAUSED, why)
                return
            # One that was just started has no reason to stand still, and will never be ready.
            await anyio.to_thread.run_sync(self.take_messages)
            said = self.record.messages.read_text(encoding="utf-8", errors="replace").strip()
            self._failure = errors.MachineUnreachable(f"{why}, {said or 'and does not say why'}")
            await self._end_process()
        elif state == DomainState.RUNNING and self._ready and not self.record.paused:
            await self.enter(MachineState.RUNNING)

    async def _why_off(self) -> OffReason | None:
        """Ask libvirt why it does not run; None for as long as libvirt takes it to run."""
        state, reason, *_ = await self.ask(lambda machine: machine.state())
        return OffReason(reason) if state == DomainState.SHUTOFF else None

    def take_messages(self) -> None:
        """Keep the last words of its hypervisor, which libvirt has in a file of its own."""
        said = b""
        with suppress(OSError), self._messages.open("rb") as file:
            file.seek(max(0, self._messages.stat().st_size - _LOG_BYTES))
            said = file.read(_LOG_BYTES)
        self.record.messages.write_bytes(said)


def _timed(deed: Callable[[Domain], object]) -> Callable[[Domain], Within]:
    """Tell of a call between which moments libvirt made it."""

    def act(machine: Domain) -> Within:
        since = time.monotonic()
        deed(machine)
        return Within(since, time.monotonic())

    return act


async def end_process(resident: Resident, connection: Connection, uuid: str) -> bool:
    """Kill a process of libvirt's; by libvirt where it is none of ours to kill."""
    try:
        return await resident.end()
    except PermissionError:
        with anyio.CancelScope(shield=True), anyio.move_on_after(_DESTROY_S):
            with suppress(errors.NotFound, errors.StateForbids):  # it has ended meanwhile
                await connection.tell(lambda virt: virt.lookupByUUIDString(uuid).destroy())
            await resident.wait()
    return resident.ended
