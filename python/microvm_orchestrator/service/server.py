"""The service itself: figures, health, backups."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Annotated, Literal

import anyio
from pydantic import Field

from microvm_orchestrator import __version__, errors
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.report import Measures
from microvm_orchestrator.model.values import Json, Moment, Name, moment
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.service import Service, actor
from microvm_orchestrator.store.questions import Figures

# Below this a busy store fills its disk within minutes.
_DISK_LOW_BYTES = 256 * 1024 * 1024
# Most file systems take 255, and while it is written the file is called something longer.
_MAX_NAME_BYTES = 240


class MetricsRequest(Request):
    """Over which stretch of time, and of which group."""

    window_s: Annotated[float, Field(strict=True, gt=0, le=31_536_000)] = 3600.0
    group: Name | None = None


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


HostPath = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]


class BackupCreate(Request):
    """Where to."""

    path: HostPath | None = Field(
        default=None,
        description="a new file on the daemon's host; default: a dated one in its state directory",
    )


class BackupAnswer(Answer):
    """A consistent copy of the store, complete and synced."""

    path: str
    bytes: int
    created_at: Moment


@declare("metrics_get", "GET /v1/metrics", role=Role.VIEWER, effect=Effect.READ)
async def metrics_get(service: Service, caller: Caller, request: MetricsRequest) -> Measures:
    """Read figures: counts by state, waiting and running times, throughput, workers."""
    question = Figures(request.window_s, request.group)
    return await service.store.query(question, actor(caller, "metrics_get"))


@declare("doctor_run", "GET /v1/doctor", role=Role.OPERATOR, effect=Effect.READ)
async def doctor_run(service: Service, caller: Caller, request: Nothing) -> DoctorAnswer:
    """Check the service: the store's integrity, the disk, the clock; each with what to do."""
    del caller, request
    health = await service.store.check()
    checks = [
        _store_check(health.problems),
        await anyio.to_thread.run_sync(_disk_check, service.settings.state_dir),
        _clock_check(health.facts.get("clock_behind_s", 0)),
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


@declare("backup_create", "POST /v1/backups", role=Role.ADMIN)
async def backup_create(service: Service, caller: Caller, request: BackupCreate) -> BackupAnswer:
    """Copy the store to a new file while everything goes on.

    The copy is complete and synced when this answers. To restore: stop the daemon and put the file
    in the store's place; cursors from before are then refused instead of skipping events.
    """
    by = actor(caller, "backup_create")
    now = await service.store.now()
    to = await anyio.to_thread.run_sync(_backup_path, service.settings.state_dir, request.path, now)
    await service.store.backup(to)
    await service.store.note(by, str(to), "ok")
    return BackupAnswer(path=str(to), bytes=to.stat().st_size, created_at=moment(now))


def _backup_path(state_dir: Path, asked: str | None, now: float) -> Path:
    if asked is None:
        folder = state_dir / "backups"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / f"store-{moment(now):%Y%m%dT%H%M%S.%f}Z.sqlite"
    to = Path(asked)
    if not to.is_absolute():
        raise errors.InvalidInput(
            f"path {asked} is relative", hint="name an absolute path on the daemon's host"
        )
    if len(os.fsencode(to.name)) > _MAX_NAME_BYTES:
        raise errors.InvalidInput(f"the name of the file is longer than {_MAX_NAME_BYTES} bytes")
    if not to.parent.is_dir():
        raise errors.NotFound(f"no directory {to.parent}", hint="make it first")
    return to


CALLS: tuple[Call, ...] = (metrics_get, doctor_run, backup_create)
