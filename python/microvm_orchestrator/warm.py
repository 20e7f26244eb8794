"""Machines that stand ready by kind: for each that the settings name, a pool of clones.

A pool lives as long as the daemon and is made anew when its image is. Its machines take no slot
until they are claimed: they stand still and have of the host's memory only what they have written.
Above are the machines, which claim them; below, the pools and a hypervisor.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import anyio
import anyio.abc

from microvm_orchestrator import errors, log
from microvm_orchestrator.machine.base import Hypervisor, MachineSpec
from microvm_orchestrator.machine.pool import (
    TEMPLATE,
    Pool,
    find_or_make_template,
    open_pool,
    template_id,
)
from microvm_orchestrator.machine.shell import Command
from microvm_orchestrator.model.names import new_id

# Run before a template is saved, so that its clones find in memory what most begin with: git, and
# whatever program of agents its image has. What that writes down is nobody's.
_FIRST = Command(
    [
        "/bin/sh",
        "-c",
        """
        HOME=$(mktemp -d)
        export HOME
        for each in git claude codex opencode; do
            command -v $each && $each --help
        done </dev/null >/dev/null 2>&1
        rm -rf "$HOME"
        """,
    ],
    timeout_s=60,
)
# What the machine is called that is booted for a template.
_BOOTED_FOR = "template_"
# After a template could not be made: an image that is built meanwhile is noticed at once.
_AGAIN_S = 60.0
_log = log.get(__name__)


@dataclass(slots=True)
class Kind:
    """Machines of one image that are made alike."""

    image: str
    wanted: int
    # Gives how one of them is made; raises NotFound, ImageDamaged.
    spec_of: Callable[[str], Awaitable[MachineSpec]]
    for_agents: bool = False
    # Why none stands ready; empty when nothing is wrong.
    reason: str = "it has not been looked at yet"
    template: str = ""
    pool: Pool | None = None

    @property
    def ready(self) -> int:
        return 0 if self.pool is None else self.pool.ready


class Warm:
    """The pools of one daemon; they live as long as `running`."""

    def __init__(self, hypervisor: Hypervisor, kinds: Sequence[Kind]) -> None:
        self._hypervisor = hypervisor
        self._images_changed = anyio.Event()
        self._news = anyio.Event()
        self.kinds = kinds

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Keep the pools filled until the block ends; what nobody has claimed ends with it."""
        for machine_id in self._hypervisor.found():
            if machine_id.startswith(_BOOTED_FOR):  # its daemon died before it was saved
                await self._hypervisor.remove(machine_id)
        async with anyio.create_task_group() as group:
            group.start_soon(self._begin, group)
            try:
                yield
            finally:
                group.cancel_scope.cancel()

    def look_again(self) -> None:
        """An image was built or removed."""
        self._images_changed.set()
        self._images_changed = anyio.Event()

    def find(self, spec: MachineSpec) -> Pool | None:
        """Find the pool of machines that are made just like this one."""
        wanted = template_id(spec) if self.kinds else ""
        return next(
            (kind.pool for kind in self.kinds if kind.pool and kind.template == wanted), None
        )

    async def news(self) -> None:
        """Wait until a pool was opened or closed, or could not be."""
        await self._news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    async def _begin(self, group: anyio.abc.TaskGroup) -> None:
        wanted = {await self._template_of(kind) for kind in self.kinds}
        for name in await self._hypervisor.saved():
            # Of an image that was built anew, or is no longer to be kept ready.
            if name.startswith(TEMPLATE) and name not in wanted:
                await self._hypervisor.forget(name)
        for kind in self.kinds:
            group.start_soon(self._keep, kind)

    async def _spec_of(self, kind: Kind) -> MachineSpec:
        machine_id = new_id(_BOOTED_FOR.removesuffix("_"))
        return replace(await kind.spec_of(kind.image), machine_id=machine_id, hostname="template")

    async def _template_of(self, kind: Kind) -> str:
        try:
            return template_id(await self._spec_of(kind))
        except errors.OrchestratorError:
            return ""

    async def _keep(self, kind: Kind) -> None:
        while True:
            changed = self._images_changed
            try:
                spec = await self._spec_of(kind)
                kind.reason = "its template is being made"
                kind.template = template_id(spec)
                template = await find_or_make_template(self._hypervisor, spec, _FIRST)
                kind.reason = ""
                new_machine_id = partial(new_id, "m")
                async with open_pool(
                    self._hypervisor, template, new_machine_id, kind.wanted
                ) as kind.pool:
                    self._tell()
                    await self._until_made_anew(kind)
                await self._hypervisor.forget(template.snapshot_id)
                self._tell()
            except errors.OrchestratorError as error:
                kind.reason = error.message
                self._tell()
                _log.warning("nothing_kept_ready", image=kind.image, why=error.message)
                with anyio.move_on_after(_AGAIN_S):
                    await changed.wait()

    async def _until_made_anew(self, kind: Kind) -> None:
        try:
            while True:
                changed = self._images_changed
                if await self._template_of(kind) != kind.template:
                    return
                await changed.wait()
        finally:
            kind.pool = None
