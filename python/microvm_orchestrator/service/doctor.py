"""Health: what was checked of the service and of its host, what it means, and what to do.

A failure is what keeps the service from doing its work; what a host merely lacks is a warning.
Above are the front ends; below, the store, the machines' facts, the images and the slots.
"""

from __future__ import annotations

import dataclasses
import platform
import shutil
import sys
from typing import TYPE_CHECKING, Literal

import anyio
import anyio.to_thread
from pydantic import Field

from microvm_orchestrator import __version__, errors
from microvm_orchestrator.machine.facts import explain, observe
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.values import Json
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.service import Service

if TYPE_CHECKING:
    from pathlib import Path

    from microvm_orchestrator.faults.ledger import Ledger
    from microvm_orchestrator.images.store import ImageStore
    from microvm_orchestrator.slots import Slots
    from microvm_orchestrator.warm import Kind, Warm

# Below this a busy store fills its disk within minutes.
_DISK_LOW_BYTES = 256 * 1024 * 1024
_DIGEST_SHOWN = 12


class Nothing(Request):
    """No parameters."""


class Check(Answer):
    """One thing that was checked."""

    name: str
    state: Literal["ok", "warning", "failed"]
    found: str
    meaning: str = Field(description="what it means, and what to do where it is not ok")


class DoctorAnswer(Answer):
    """What was checked, worst first."""

    healthy: bool
    version: str
    checks: list[Check]
    facts: dict[str, Json]


@declare("doctor_run", "GET /v1/doctor", role=Role.OPERATOR, effect=Effect.READ)
async def doctor_run(service: Service, caller: Caller, request: Nothing) -> DoctorAnswer:
    """Check the service: the store, the disk, the clock, and what machines need of the host.

    Each with what it means and what to do.
    """
    del caller, request
    health = await service.store.check()
    settings = service.settings
    seen = await observe(settings.state_dir, settings.machines.qemu, settings.libvirt.uri)
    checks = [
        _store_check(health.problems),
        await anyio.to_thread.run_sync(_disk_check, settings.state_dir),
        _clock_check(health.facts.get("clock_behind_s", 0)),
        await anyio.to_thread.run_sync(_images_check, service.host.images),
        _slots_check(service.host.slots),
        _pools_check(service.host.warm),
        await _faults_check(service.host.faults),
        *(Check(**dataclasses.asdict(fact)) for fact in explain(seen)),
    ]
    order = {"failed": 0, "warning": 1, "ok": 2}
    return DoctorAnswer(
        healthy=all(check.state != "failed" for check in checks),
        version=__version__,
        checks=sorted(checks, key=lambda check: order[check.state]),
        facts={
            **health.facts,
            "engine": health.engine,
            "python": platform.python_version(),
            "platform": sys.platform,
        },
    )


def _store_check(problems: tuple[str, ...]) -> Check:
    return Check(
        name="store",
        state="failed" if problems else "ok",
        found="; ".join(problems) or "integrity, references and the graph's invariants hold",
        meaning="The store is the truth about every task. Where it is damaged: stop the daemon, "
        "keep the file for inspection, put the newest backup in its place.",
    )


def _disk_check(state_dir: Path) -> Check:
    free = shutil.disk_usage(state_dir).free
    return Check(
        name="disk",
        state="warning" if free < _DISK_LOW_BYTES else "ok",
        found=f"{free // 1_048_576} MiB free under {state_dir}",
        meaning="When it is full, changes are refused and nothing that was acknowledged is lost. "
        "Free some space, or shorten store.events retention.",
    )


def _clock_check(behind: Json) -> Check:
    late = behind if isinstance(behind, int | float) else 0
    return Check(
        name="clock",
        state="warning" if late > 2 else "ok",
        found=f"the wall clock is {late:.0f} s behind the store's"
        if late > 2
        else "the wall clock and the store's agree",
        meaning="The store's time never runs backwards; leases are right either way, and times are "
        "written in the store's time until the wall clock catches up.",
    )


def _images_check(images: ImageStore) -> Check:
    whole, damaged = images.list(), images.damaged()
    if damaged:
        found = "; ".join(damaged.values())
    elif not whole:
        found = "none has been built yet"
    else:
        found = ", ".join(
            image.names[0] if image.names else _short(image.digest) for image in whole
        )
    return Check(
        name="images",
        state="failed" if damaged else "ok" if whole else "warning",
        found=found,
        meaning="Every machine boots an image. image_build makes one. One that is damaged boots "
        "nothing: image_remove takes it away, and image_build makes it anew.",
    )


def _short(digest: str) -> str:
    return digest[:_DIGEST_SHOWN]


def _slots_check(slots: Slots) -> Check:
    used, most = slots.used(), slots.capacity
    waiting = len(slots.waiting)
    return Check(
        name="slots",
        state="warning" if waiting else "ok",
        found=f"{used.count} of {most.count} are busy, with {used.memory_mib} of "
        f"{most.memory_mib} MiB and {used.vcpus} of {most.vcpus} processors; {waiting} wait",
        meaning="A machine takes a slot from its start to its end; who finds none waits in line. "
        "Stop machines, or raise machines.count, machines.memory_mib and machines.vcpus.",
    )


def _pools_check(warm: Warm) -> Check:
    wrong = [f"{_called(kind)}: {kind.reason}" for kind in warm.kinds if kind.reason]
    ready = [f"{kind.ready} of {kind.wanted} of {_called(kind)}" for kind in warm.kinds]
    return Check(
        name="pools",
        state="warning" if wrong else "ok",
        found="; ".join(wrong) or ", ".join(ready) or "none is asked for",
        meaning="Machines that stand ready are claimed in place of a boot; without them machines "
        "are booted. The settings machines.warm and agents.warm name their images, which have to "
        "be built.",
    )


def _called(kind: Kind) -> str:
    return f"{kind.image} for agents" if kind.for_agents else kind.image


async def _faults_check(faults: Ledger) -> Check:
    meaning = (
        "What fault_inject can do between machines, as it was just tried out. Networks in "
        'userspace can do all of it, without any right: networks.kind = "userspace".'
    )
    try:
        abilities = await faults.abilities()
    except errors.OrchestratorError as error:
        return Check(name="faults", state="warning", found=error.message, meaning=meaning)
    can = ", ".join(sorted(abilities.can))
    return Check(
        name="faults",
        state="warning" if abilities.reason else "ok",
        found=f"{abilities.kind} networks: {can}"
        + (f"; {abilities.reason}" if abilities.reason else ""),
        meaning=meaning,
    )


CALLS: tuple[Call, ...] = (doctor_run,)
