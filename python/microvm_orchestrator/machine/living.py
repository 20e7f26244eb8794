"""One machine of any kind: a process, the way into its guest, and what became of it.

`live` runs as a task of the keeper from the start of the process, or its adoption, to its end. When
the daemon goes, that task is cancelled and the machine runs on. States change here and nowhere
else; each change is told before the next one happens. Above stand the kinds of machines, each with
what its hypervisor can do, and their keepers.
"""

from __future__ import annotations

import hashlib
import signal
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import anyio
import anyio.to_thread

from microvm_orchestrator import errors, log
from microvm_orchestrator.machine import console, ending, harming
from microvm_orchestrator.machine.base import (
    STOP_GRACE_S,
    Boot,
    Change,
    Link,
    MachineSpec,
    Snapshot,
    Terminal,
    Usage,
    Within,
    unheeded,
)
from microvm_orchestrator.machine.channel import open_shell
from microvm_orchestrator.machine.channel.connection import GREETING_S
from microvm_orchestrator.machine.guest_harming import HELD_INSIDE, Clock, FullDisk, Memory
from microvm_orchestrator.machine.qemu.host import killed_for_memory, leave_group
from microvm_orchestrator.machine.qemu.terminal import open_terminal
from microvm_orchestrator.machine.shell import Identity, Interface
from microvm_orchestrator.machine.ssh import login_of, open_ssh
from microvm_orchestrator.machine.ssh.connection import GREETING_S as SSH_GREETING_S
from microvm_orchestrator.model.machine import MachineState

if TYPE_CHECKING:
    from anyio.abc import ByteStream, TaskGroup, TaskStatus

    from microvm_orchestrator.machine.process import Resident
    from microvm_orchestrator.machine.qemu.host import Host
    from microvm_orchestrator.machine.record import Made
    from microvm_orchestrator.machine.shell import GuestUsage, Shell
    from microvm_orchestrator.model.fault import Harm
    from microvm_orchestrator.runner import Ssh

# A hypervisor that ends lets go of what it holds first, and of the process after.
LAST_WORDS_S = 1.0
# Between two tries to reach an agent that hung up; an agent that restarts needs as long. So does a
# guest to see that a port was closed, and not only opened again.
_AGAIN_S = 1.0
# A busy guest may not see that a port was closed and opened again. Its server waits then for who
# has left, until the port is closed for longer; one that is free begins in a tenth of this.
_FIRST_WORD_S = 10.0
# An agent that was hung up is there again in a moment, also on a busy host.
_REACH_S = 30.0
# One that breaks the rules each time, or lets us not in, is tried more and more seldom.
_SELDOM_S = 10.0
_SELDOM = (errors.ProtocolBroken, errors.HostKeyWrong, errors.GuestRefused)
# What a guest reports is for people and the journal: it is heard no faster, and no longer.
_REPORT_EVERY_S = 0.25
_REPORT_CHARS = 200
# A guest that is up and not busy answers in a hundredth of it.
_GUEST_S = 2.0
# Behind the words of a panic come registers and a call trace.
_PANIC_BYTES = 32 << 10


def identity(spec: MachineSpec) -> Identity:
    """Return who the guest of a machine is."""
    return Identity(
        hostname=spec.hostname,
        machine_id=hashlib.sha256(spec.machine_id.encode()).hexdigest()[:32],
        interfaces=[
            interface
            for number, link in enumerate(spec.links)
            for interface in _interfaces(f"eth{number}", link)
        ],
        hook=True,
    )


def _interfaces(name: str, link: Link) -> list[Interface]:
    first = Interface(name, link.mac, link.address, link.gateway)
    return [first] if link.ipv6 is None else [first, Interface(name, address=link.ipv6)]


class LivingMachine(ABC):
    """A machine that has, or had, a process."""

    def __init__(self, host: Host, made: Made, resident: Resident) -> None:
        self.spec = made.spec
        self.accel = made.accel
        self._console_from = made.console_from
        self.state = MachineState.DEFINED
        self.reason = ""
        self.host = host
        self.record = host.record(made.spec.machine_id)
        self._log = log.get(__name__).bind(machine=made.spec.machine_id)
        self._resident = resident
        self._group: TaskGroup | None = None
        self._shell: Shell | None = None
        # Why there is none, as far as that is known.
        self._unreached: errors.OrchestratorError | None = None
        self._reached = anyio.Event()
        self._hung_up = anyio.Event()
        self._changed = anyio.Event()
        self._over = anyio.Event()
        self._ready = False
        # Whether somebody holds the console; a QEMU serves one.
        self._attached = False
        self._failure: errors.OrchestratorError | None = None
        # For the end: who asked for it, and what its hypervisor said of it.
        self._asked: str | None = None
        self._shutdown: str | None = None
        # What processes of ours have of its guest.
        self._holders = frozenset[str]()

    @property
    def machine_id(self) -> str:
        return self.spec.machine_id

    @property
    def pid(self) -> int:
        return self._resident.identity.pid

    @property
    def console(self) -> Path:
        return self.record.console

    async def hung_up(self) -> None:
        if self._shell is not None:
            await self._hung_up.wait()

    @property
    def links(self) -> Sequence[Path]:
        return [self.record.link(number) for number in range(len(self.spec.links))]

    @property
    def shell(self) -> Shell:
        """The way into the guest. Raises: StateForbids, MachineUnreachable."""
        self._check()
        if self._shell is None:
            who = "agent" if self.ssh is None else "SSH server"
            raise errors.MachineUnreachable(
                f"the {who} in machine {self.machine_id} is not there{self._why_unreached()}",
                hint=self._unreached and self._unreached.hint,
            )
        return self._shell

    @property
    def ssh(self) -> Ssh | None:
        """How its guest is reached, where that is not by our agent."""
        return None if isinstance(self.spec.boot, Boot) else self.spec.boot.ssh

    @property
    def ssh_port(self) -> int | None:
        """The port of this host's loopback that leads to that server, where one does."""
        return None

    async def reached(self) -> Shell:
        """Wait for the way into the guest. Raises: StateForbids, MachineUnreachable."""
        with anyio.move_on_after(_REACH_S):
            while self._shell is None and not isinstance(self._unreached, errors.HostKeyWrong):
                self._check()
                await self._reached.wait()
        return self.shell

    # What callers do with it.

    @asynccontextmanager
    async def attach(self) -> AsyncGenerator[Terminal]:
        """Hold the console. Raises: StateForbids, MachineUnreachable."""
        self._check()
        if self._attached:
            raise errors.StateForbids(f"the console of machine {self.machine_id} is held already")
        self._attached = True
        try:
            async with open_terminal(self.record.terminal) as terminal:
                yield terminal
        finally:
            self._attached = False

    @abstractmethod
    async def pause(self) -> Within: ...

    @abstractmethod
    async def resume(self) -> Within: ...

    @abstractmethod
    async def save(
        self,
        snapshot_id: str,
        *,
        memory: bool = True,
        on_taken: Callable[[], None] = unheeded,
    ) -> Snapshot: ...

    async def wait(self) -> Change:
        await self._over.wait()
        return Change(self.machine_id, self.state, self.reason)

    async def claim(self, hostname: str) -> None:
        await self.resume()
        await self.shell.fresh(identity(replace(self.spec, hostname=hostname)))
        self.record.unclaimed = False

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        if self.state.ended:
            return
        with anyio.move_on_after(grace_s):
            try:
                await self._power_off(grace_s)
            except errors.OrchestratorError as error:
                self._log.info("machine_not_told", why=error.message)
            await self._over.wait()
            return
        await self._end(await self._why_forced(grace_s))

    async def kill(self) -> None:
        await self._end("it was ended by force, as asked")

    async def usage(self) -> Usage:
        self._check()
        return Usage(
            cpu_s=self._resident.cpu_s,
            rss_mib=self._resident.rss_mib,
            peak_mib=self._resident.peak_mib,
            pss_mib=await anyio.to_thread.run_sync(lambda: self._resident.pss_mib),
            disk_mib=self.record.disk_mib,
            guest=await self._guest_usage(),
        )

    async def check_harm(self, harm: Harm) -> None:
        self._check()
        await harming.check(self.machine_id, self.harmings, harm)

    async def harm(self, harm: Harm, touched: frozenset[str]) -> None:
        self._check()
        # Kept from before anything is held until after nothing is.
        self._holders |= HELD_INSIDE & touched & harm.touched
        await harming.make(self.harmings, harm, touched)
        self._holders -= HELD_INSIDE & touched - harm.touched

    def check_unheld(self) -> None:
        """Raises: StateForbids while a process of ours has part of its guest: it would be saved."""
        if self._holders:
            raise errors.StateForbids(
                f"machine {self.machine_id} is not saved while a fault has its guest's memory or "
                "disk: what is started from it would suffer for ever",
                hint="fault_list shows the fault, fault_heal ends it",
            )

    async def harmed(self, touched: frozenset[str]) -> Harm:
        self._check()
        return await harming.see(self.harmings, touched)

    @property
    def harmings(self) -> Sequence[harming.Harming]:
        """What can befall it: for any kind, what is inside its guest."""
        return (Clock(self), Memory(self), FullDisk(self))

    async def _guest_usage(self) -> GuestUsage | None:
        if self._shell is None or self.state is not MachineState.RUNNING:
            return None
        with anyio.move_on_after(_GUEST_S), suppress(errors.OrchestratorError):
            return await self._shell.usage()
        return None

    # What its keeper does with it.

    def bound_console(self) -> None:
        """Keep small what its console takes on the disk, and what its hypervisor complains of."""
        console.let_go(self.record.messages)
        self._bound_files(console.let_go(self.record.console))

    async def reach(self, greeting_s: float) -> Shell:
        """Begin to keep a connection to the agent; returns once it has answered.

        Raises: MachineUnreachable, ProtocolBroken.
        """
        if self._group is None:
            raise errors.StateForbids(f"machine {self.machine_id} is {self.state}")
        await self._group.start(self._begin_shell, greeting_s)
        return self.shell

    async def reach_booting(
        self, try_s: float, again_s: float, may_mend: tuple[type[errors.OrchestratorError], ...]
    ) -> None:
        """Try to reach the guest until it answers; whoever calls sets the deadline.

        Raises: what does not mend while a guest boots.
        """
        while True:
            try:
                await self.reach(try_s)
            except may_mend as error:
                self._unreached = error
                await anyio.sleep(again_s)
            else:
                return

    async def reach_by_ssh(self) -> None:
        """Try to log in until the server lets us; whoever calls sets the deadline.

        It may break off while the guest makes its keys, and let nobody in while it boots.
        Raises: HostKeyWrong.
        """
        may_mend = (errors.MachineUnreachable, errors.ProtocolBroken, errors.GuestRefused)
        await self.reach_booting(SSH_GREETING_S, _AGAIN_S, may_mend)

    def reach_later(self) -> None:
        """Begin to keep a connection to the agent, whenever it answers."""
        if self._group is not None:
            self._group.start_soon(self._keep_shell)

    async def live(
        self,
        prepare: Callable[[Self], Awaitable[None]],
        *,
        task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """Look after the process until it ends; has started once the guest is ready.

        `prepare` is what is done between the start of the process and that. Raises: MachineFailed
            if it does not come about. The process has ended then.
        """
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                group.start_soon(self._watch, group.cancel_scope)
                await self._serve(prepare, group, task_status)
            await self._conclude()
        finally:
            if not self._ready and not self._over.is_set():  # nobody will ever ask for it again
                await self._end_process()
                with anyio.CancelScope(shield=True):
                    await self._conclude()
            self._resident.close()
        if not self._ready:
            raise self._why_not_ready()

    async def enter(self, state: MachineState, reason: str = "") -> None:
        """Come into a state, and tell."""
        if state is self.state:
            return
        self.state, self.reason = state, reason
        self._changed.set()
        self._changed = anyio.Event()
        self._log.info("machine_changed", state=state.value, reason=reason)
        await self.host.on_change(Change(self.machine_id, state, reason, at=datetime.now(UTC)))

    # What the kinds of machines do in ways of their own.

    @abstractmethod
    def _controlled(self, group: TaskGroup) -> AbstractAsyncContextManager[None]:
        """Hold what the hypervisor is told things by. Raises: MachineFailed."""

    @abstractmethod
    async def _call(self) -> ByteStream:
        """Connect to the agent. Raises: MachineUnreachable."""

    async def _press_power(self) -> None:
        """Ask a guest whose agent is not there to power off. Raises: MachineFailed."""
        raise errors.MachineUnreachable(f"machine {self.machine_id} has no power button")

    async def _why_forced(self, grace_s: float) -> str:
        """Say why one is ended by force that was given time to power off."""
        return f"it had not powered off within {grace_s:g} s and was ended by force"

    @abstractmethod
    async def _hear_last_words(self) -> None:
        """Take in what the hypervisor said before its end."""

    @abstractmethod
    def _bound_files(self, console_size: int) -> None:
        """Limit what files its hypervisor may write."""

    @abstractmethod
    async def _clean_up(self) -> None:
        """End what it has started beside itself; the process itself has ended."""

    # Its tasks.

    async def _watch(self, life: anyio.CancelScope) -> None:
        """Wait for the process's end, hear its last words, and end the other tasks."""
        await self._resident.wait()
        await self._hear_last_words()
        life.cancel()

    async def _serve(
        self,
        prepare: Callable[[Self], Awaitable[None]],
        group: TaskGroup,
        task_status: TaskStatus[None],
    ) -> None:
        """Hold the hypervisor. A failure ends the process, and with it, by `_watch`, this task."""
        limit_s = self.spec.boot_timeout_s
        try:
            async with self._controlled(group):
                with anyio.fail_after(limit_s):
                    await prepare(self)
                self._ready = True
                if self.state is MachineState.BOOTING:
                    await self.enter(MachineState.RUNNING)
                task_status.started()
                await anyio.sleep_forever()
        except TimeoutError:
            self._failure = errors.MachineUnreachable(
                f"it was not ready within {limit_s:g} s{self._why_unreached()}"
            )
        except errors.OrchestratorError as error:
            self._failure = error
            # A hypervisor that ends lets go of us first. How it ends says more than that it did.
            await anyio.sleep(LAST_WORDS_S)
        await self._end_process()
        await anyio.sleep_forever()

    async def _begin_shell(
        self, greeting_s: float, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Be connected to the agent, and stay so; has started when it answers the first time."""
        answered = anyio.Event()

        def on_answer() -> None:
            answered.set()
            task_status.started()

        try:
            await self._talk(greeting_s, on_answer)
        except errors.OrchestratorError as error:
            if not answered.is_set():
                raise
            self._not_there(error)
        await self._keep_shell()

    async def _keep_shell(self) -> None:
        """Be connected to the agent whenever it lets us."""
        again_s = _AGAIN_S
        greeting_s = GREETING_S if self.ssh is None else SSH_GREETING_S
        while True:
            try:
                await self._talk(greeting_s, lambda: None)
            except errors.OrchestratorError as error:
                self._not_there(error)
                if not isinstance(error, _SELDOM):
                    again_s = _AGAIN_S
            await anyio.sleep(again_s)
            again_s = min(2 * again_s, _SELDOM_S)

    async def _talk(self, greeting_s: float, on_answer: Callable[[], None]) -> None:
        """Hold one connection to the agent until it breaks."""
        async with await self._open(greeting_s) as shell:
            self._shell, self._unreached = shell, None
            self._reached.set()
            try:
                on_answer()
                async for event in shell.events():
                    text = event.text[:_REPORT_CHARS]
                    self._log.info("guest_event", kind=event.kind, text=text)
                    await self.host.on_guest_event(self.machine_id, event)
                    await anyio.sleep(_REPORT_EVERY_S)
                await shell.ping()  # raises what broke the connection
            finally:
                self._shell = None
                self._reached = anyio.Event()
                self._hung_up.set()
                self._hung_up = anyio.Event()

    async def _open(self, greeting_s: float) -> AbstractAsyncContextManager[Shell]:
        """Connect to who answers in the guest. Raises: MachineUnreachable, Unavailable."""
        if self.ssh is None:
            return open_shell(await self._call(), greeting_s=greeting_s)
        find = partial(
            login_of,
            self.host.state_dir,
            self.record.folder,
            self.ssh,
            boots=self.state is MachineState.BOOTING,
        )
        login = await anyio.to_thread.run_sync(find)
        first_word_s = self._first_word_s(greeting_s)
        return open_ssh(await self._call(), login, greeting_s=greeting_s, first_word_s=first_word_s)

    def _first_word_s(self, greeting_s: float) -> float:
        """How long an SSH server may take to begin, once it is called."""
        return greeting_s if self.state is MachineState.BOOTING else _FIRST_WORD_S

    def _not_there(self, error: errors.OrchestratorError) -> None:
        self._unreached = error
        self._reached.set()
        self._reached = anyio.Event()
        self._log.info("agent_not_there", why=error.message)

    # Steps.

    async def _end_process(self) -> bool:
        """Kill the hypervisor and wait, also when cancelled; False if even that does not end it."""
        return await self._resident.end()

    def _why_unreached(self) -> str:
        return f": {self._unreached.message}" if self._unreached else ""

    def _check(self) -> None:
        if self.state.ended:
            raise errors.StateForbids(f"machine {self.machine_id} is {self.state}: {self.reason}")

    async def _power_off(self, grace_s: float) -> None:
        """Ask the guest, by its agent or as a power button does."""
        self._asked = "it was stopped, as asked"
        if self.state is MachineState.PAUSED:
            await self.resume()  # a guest that stands still cannot power off
        if self.ssh is not None:
            # A machine that was just adopted is not reached yet: a login takes a while.
            with anyio.move_on_after(grace_s / 2), suppress(errors.MachineUnreachable):
                await self.reached()
        if self._shell is not None:
            with suppress(errors.NotOffered):
                await self._shell.shutdown(grace_s=grace_s / 2)
                return
        await self._press_power()

    async def _end(self, reason: str) -> None:
        if self.state.ended:
            return
        before, self._asked = self._asked, reason
        try:
            if not await self._end_process():
                raise errors.MachineUnreachable(
                    f"machine {self.machine_id} does not end when killed"
                )
        except errors.OrchestratorError:
            # It runs on, and will end for a reason of its own.
            self._asked = before
            raise
        await self._over.wait()

    async def _conclude(self) -> None:
        """Say how it ended and take away what only a running machine needs."""
        state, reason = ending.conclude(
            ending.Seen(
                asked=self._asked,
                shutdown=self._shutdown,
                status=self._resident.status,
                console=console.tail(self.record.console, self._console_from, _PANIC_BYTES),
                messages=console.tail(self.record.messages),
                out_of_memory=killed_for_memory(self.host, self.machine_id),
            )
        )
        # A failure that ended the process; one that came of the process's own end says less.
        if self._failure is not None and self._resident.status == -signal.SIGKILL:
            state, reason = MachineState.CRASHED, self._failure.message
        await self._clean_up()
        self.record.clear()
        leave_group(self.host, self.machine_id)
        self._shell = None
        await self.enter(state, reason)
        self._reached.set()
        self._over.set()

    def _why_not_ready(self) -> errors.MachineBootFailed:
        said = console.tail(self.record.console, self._console_from)
        return errors.MachineBootFailed(
            f"machine {self.machine_id} did not come up: {self.reason}",
            console=said,
            hint=f"the end of its console:\n{said}" if said else "it wrote nothing to its console",
        )
