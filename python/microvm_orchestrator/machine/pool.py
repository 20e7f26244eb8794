"""Machines of one kind that stand ready: claimed in milliseconds, replaced in the background.

They are clones of a template, a machine that was booted and saved once, and stand still until
somebody claims one. Who opens the pool owns it: with the block, what nobody has claimed ends. Above
stand slots and lifecycle; below, any hypervisor.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio

from microvm_orchestrator import errors, log
from microvm_orchestrator.machine.base import (
    Hypervisor,
    Machine,
    MachineSpec,
    Qcow2,
    Snapshot,
    untold,
)
from microvm_orchestrator.machine.shell import Command
from microvm_orchestrator.together import beside

# The names of all templates begin with it.
TEMPLATE = "template-"
# After a machine could not be made ready: what is wrong with the host will not mend faster.
_AGAIN_S = 5.0
# Whoever has just claimed a machine has the host's processors first.
_AFTER_CLAIM_S = 0.5
_log = log.get(__name__)


def template_id(spec: MachineSpec) -> str:
    """Name the template of all machines that are made like this one, but for who they are.

    Raises: NotOffered for one that is started by a runner, whose machines are not saved.
    """
    boot = spec.boot if isinstance(spec.boot, Qcow2) else spec.parts
    kind = replace(spec, machine_id="", hostname="", boot=boot, boot_timeout_s=0)
    return TEMPLATE + hashlib.sha256(repr(kind).encode()).hexdigest()[:24]


async def find_or_make_template(
    hypervisor: Hypervisor, spec: MachineSpec, warm: Command | None = None
) -> Snapshot:
    """Return a saved machine of this kind; `spec` names the one that is booted for it if needed.

    `warm` is run before it is saved, so that clones find in memory what it has used.
    Raises: MachineFailed.
    """
    name = template_id(spec)
    if found := await hypervisor.find_snapshot(name):
        try:
            await hypervisor.check(name)
            return found
        except errors.SnapshotDamaged as damaged:
            _log.warning("template_damaged", snapshot=name, why=damaged.message)
            await hypervisor.forget(name)
    machine = await hypervisor.start(spec)
    try:
        if warm is not None:
            await machine.shell.exec(warm)
        return await machine.save(name)
    finally:
        with anyio.CancelScope(shield=True):
            await hypervisor.remove(spec.machine_id)


class Pool:
    """Clones of one template."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        template: Snapshot,
        new_machine_id: Callable[[], str],
        size: int,
    ) -> None:
        self._hypervisor = hypervisor
        self._template = template
        self._new_machine_id = new_machine_id
        self._size = size
        self._ready: deque[Machine] = deque()
        self._wanted = anyio.Event()
        self._filled = anyio.Event()

    @property
    def ready(self) -> int:
        """How many can be claimed at once."""
        return len(self._ready)

    async def claim(
        self, hostname: str, on_taken: Callable[[str], Awaitable[None]] = untold
    ) -> Machine:
        """Return a machine of one's own; where none stands ready, one is made.

        Its id is told before it is anybody's: a daemon that dies in between knows it by that, or
        takes it away as nobody's. Of several that are told the last one counts.

        Raises: MachineFailed, SnapshotDamaged.
        """
        while self._ready:
            machine = self._ready.popleft()
            try:
                await on_taken(machine.spec.machine_id)
                await machine.claim(hostname)
                return machine
            except errors.OrchestratorError as error:
                _log.warning("pooled_machine_useless", why=error.message)
                await self._hypervisor.remove(machine.spec.machine_id)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await self._hypervisor.remove(machine.spec.machine_id)
                raise
            finally:
                self._wanted.set()
        spec = self._spec(hostname)
        await on_taken(spec.machine_id)
        return await self._hypervisor.clone(self._template, spec)

    async def filled(self) -> None:
        """Wait until as many stand ready as are wanted."""
        while len(self._ready) < self._size:
            await self._filled.wait()

    async def fill(self) -> None:
        """Make machines ready whenever some are missing; needs a task of its own."""
        while True:
            while len(self._ready) < self._size:
                try:
                    spec = self._spec("ready")
                    self._ready.append(await self._hypervisor.stand_by(self._template, spec))
                except errors.OrchestratorError as error:
                    _log.warning("pool_not_filled", why=error.message)
                    await anyio.sleep(_AGAIN_S)
            self._filled.set()
            self._filled, self._wanted = anyio.Event(), anyio.Event()
            await self._wanted.wait()
            await anyio.sleep(_AFTER_CLAIM_S)

    async def end(self) -> None:
        """Take away what nobody has claimed."""
        while self._ready:
            await self._hypervisor.remove(self._ready.popleft().spec.machine_id)

    def _spec(self, hostname: str) -> MachineSpec:
        return replace(self._template.spec, machine_id=self._new_machine_id(), hostname=hostname)


@asynccontextmanager
async def open_pool(
    hypervisor: Hypervisor, template: Snapshot, new_machine_id: Callable[[], str], size: int
) -> AsyncGenerator[Pool]:
    """Keep so many machines ready for as long as the block."""
    pool = Pool(hypervisor, template, new_machine_id, size)
    try:
        async with beside(pool.fill):
            yield pool
    finally:
        with anyio.CancelScope(shield=True):
            await pool.end()
