"""A machine that is a QEMU: what its monitor adds to any machine.

The monitor is held for as long as a daemon looks after the machine. The machine's state follows
what the monitor tells of it, also when nobody here asked. Above stand the hypervisors.
"""

from __future__ import annotations

import os
import resource
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.machine import sockets
from microvm_orchestrator.machine.base import Boot, Within, unheeded
from microvm_orchestrator.machine.cpu_harming import SlowCpu
from microvm_orchestrator.machine.living import LAST_WORDS_S, LivingMachine
from microvm_orchestrator.machine.qemu import disks, migration, saving
from microvm_orchestrator.machine.qemu.harming import FailingDisks, OwnDrives, SlowDisks
from microvm_orchestrator.machine.qemu.host import file_limit
from microvm_orchestrator.machine.qemu.qmp import ANSWER_S, Event, Qmp, open_qmp
from microvm_orchestrator.model.machine import MachineState

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from anyio.abc import TaskGroup, TaskStatus, UNIXSocketStream

    from microvm_orchestrator.machine.base import Snapshot
    from microvm_orchestrator.machine.harming import Harming
    from microvm_orchestrator.machine.process import Resident
    from microvm_orchestrator.machine.qemu.host import Host
    from microvm_orchestrator.machine.record import Made

# How long a monitor's event may come after the answer to what caused it.
_EVENT_S = 5.0


class QemuMachine(LivingMachine):
    """A QEMU."""

    def __init__(self, host: Host, made: Made, resident: Resident) -> None:
        super().__init__(host, made, resident)
        self._qmp: Qmp | None = None
        # Why it is about to stand still.
        self._pausing: str | None = None
        # While it is saved it stands still for a moment, which is no change of its state.
        self._still = False
        # The file that its memory is in, while it runs. That of one which an earlier daemon
        # started is known to its QEMU alone; a clone's own pages are in none.
        self.memory: int | None = None

    @property
    def qmp(self) -> Qmp:
        """The monitor. Raises: StateForbids once the machine has ended."""
        self._check()
        if self._qmp is None:
            raise errors.MachineUnreachable(f"machine {self.machine_id} has no monitor yet")
        return self._qmp

    async def pause(self) -> Within:
        done = await self._come(lambda qmp: qmp.execute("stop"), MachineState.PAUSED)
        self.record.paused = True
        return done

    async def resume(self) -> Within:
        self.record.paused = False
        return await self._come(migration.go_on, MachineState.RUNNING)

    async def save(
        self,
        snapshot_id: str,
        *,
        memory: bool = True,
        on_taken: Callable[[], None] = unheeded,
    ) -> Snapshot:
        if memory:
            self.check_unheld()
        return await saving.save(self, snapshot_id, memory=memory, on_taken=on_taken)

    # What the hypervisor does with it.

    @contextmanager
    def standing_still(self) -> Generator[None]:
        """Let it stand still without anybody being told."""
        self._still = True
        try:
            yield
        finally:
            self._still = False

    async def name(self) -> str:
        """Return what the QEMU behind the monitor takes itself for."""
        answer = await self.qmp.execute("query-name")
        return str(answer.get("name")) if isinstance(answer, dict) else ""

    async def go_on(self) -> None:
        """Take up, after it was adopted, what it was doing."""
        if self.record.paused:
            await self.enter(MachineState.PAUSED, "it was paused, as asked")
        else:
            # It stands still where a daemon died while it was saved; one that runs takes no notice.
            await self.qmp.execute("cont")
            await self.enter(MachineState.RUNNING)
        self.reach_later()

    # What any machine asks of its kind.

    @property
    def harmings(self) -> Sequence[Harming]:
        """A runner's disks are its own, and called as it likes."""
        processors = (SlowCpu(self),)
        ours = isinstance(self.spec.boot, Boot)
        own = (SlowDisks(self), FailingDisks(self.spec, OwnDrives(self))) if ours else ()
        return (*super().harmings, *processors, *own)

    @property
    def _greeting_s(self) -> float:
        """How long its monitor may take to greet."""
        return ANSWER_S

    @asynccontextmanager
    async def _controlled(self, group: TaskGroup) -> AsyncGenerator[None]:
        name = f"machine {self.machine_id}"
        try:
            async with open_qmp(name, self.record.monitor, within_s=self._greeting_s) as qmp:
                self._qmp = qmp
                await group.start(self._follow, qmp)
                await migration.prepare(qmp)
                await disks.slow_down(qmp, self.spec)
                yield
        finally:
            if self.memory is not None:
                os.close(self.memory)
                self.memory = None

    async def _call(self) -> UNIXSocketStream:
        try:
            return await sockets.connect(self.record.agent)
        except OSError as error:
            raise errors.MachineUnreachable(f"its port is closed: {error.strerror}") from error

    async def _press_power(self) -> None:
        await self.qmp.execute("system_powerdown")

    async def _hear_last_words(self) -> None:
        """Its last events are in the monitor's socket already."""
        if self._qmp is not None:
            with anyio.move_on_after(LAST_WORDS_S):
                await self._qmp.over.wait()

    def _bound_files(self, console_size: int) -> None:
        self._resident.limit(resource.RLIMIT_FSIZE, file_limit(self.spec, console_size))

    async def _clean_up(self) -> None:
        self._qmp = None

    async def _follow(
        self, qmp: Qmp, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Let the machine's state follow what its monitor tells."""
        with qmp.listen() as events:
            task_status.started()
            async for event in events:
                await self._on_event(event)

    async def _on_event(self, event: Event) -> None:
        told = self._ready and not self._still
        if event.name == "SHUTDOWN":
            self._shutdown = str(event.data.get("reason"))
        elif event.name == "GUEST_PANICKED":
            self._shutdown = "guest-panic"
        elif event.name == "STOP" and told:
            await self.enter(MachineState.PAUSED, self._pausing or "its hypervisor stopped it")
        elif event.name == "RESUME" and told:
            await self.enter(MachineState.RUNNING)

    async def _come(self, tell: Callable[[Qmp], Awaitable[object]], state: MachineState) -> Within:
        """Tell the monitor, and wait until the machine has come into the state."""
        self._pausing = "it was paused, as asked"
        since = anyio.current_time()
        await tell(self.qmp)
        # That it came into the state is told to others first, which may take much longer.
        done = Within(since, anyio.current_time())
        with anyio.move_on_after(_EVENT_S):
            while self.state is not state:
                self._check()
                await self._changed.wait()
            return done
        raise errors.MachineUnreachable(f"machine {self.machine_id} did not come to be {state}")
