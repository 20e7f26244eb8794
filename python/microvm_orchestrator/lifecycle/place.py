"""The machines that a run has: as its task, its repository and this host want them, and put away.

A machine's name is written down before there is one, so whoever comes later finds it. Above are the
steps of a run; below, the machines.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors, log
from microvm_orchestrator.images.store import fixed_by
from microvm_orchestrator.machine.base import Accel
from microvm_orchestrator.machines import Wish
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.model.repo import RepoDefaults

if TYPE_CHECKING:
    from microvm_orchestrator.lifecycle.live import Ground
    from microvm_orchestrator.lifecycle.run import Work
    from microvm_orchestrator.lifecycle.source import Source
    from microvm_orchestrator.machines import Machines

_log = log.get(__name__)

# To be rid of a machine.
_AWAY_S = 30.0


def usual_of(source: Source | None) -> RepoDefaults:
    """What a run has where its task says nothing."""
    return RepoDefaults() if source is None else source.repo.defaults


def timeout_of(work: Work, ground: Ground, source: Source | None) -> float:
    """How long a program of it may take."""
    return work.spec.timeout_s or usual_of(source).timeout_s or ground.usual.timeout_s


async def define(work: Work, ground: Ground, source: Source | None, machine_id: str) -> None:
    """Define a machine in which the commit that a source starts from can be worked on."""
    spec, usual = work.spec, usual_of(source)
    async with ground.sources.history(source) as history:
        image = await ground.image(spec.image or usual.image)
        own, host = fixed_by(image), ground.usual
        wish = Wish(
            image=image.digest,
            memory_mib=spec.memory_mib or own.memory_mib or usual.memory_mib or host.memory_mib,
            vcpus=spec.vcpus or own.vcpus or usual.vcpus or 1,
            accel=Accel.AUTO,
            disk_mib=spec.disk_mib or usual.disk_mib,
            history=history,
        )
        await ground.machines.define(wish, work.by, machine_id=machine_id)


async def put_away(machines: Machines, machine_id: str) -> None:
    """End a machine, and leave nothing of it; one that is gone is gone."""
    with anyio.move_on_after(_AWAY_S, shield=True):
        try:
            with suppress(errors.NotFound, errors.StateForbids):
                await machines.kill(machine_id, SYSTEM)
            await machines.delete(machine_id, SYSTEM)
        except errors.NotFound:
            pass
        except errors.OrchestratorError as error:
            _log.error("run_machine_left", machine=machine_id, reason=error.message)
