"""The service itself: figures, backups."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import anyio
from pydantic import Field

from microvm_orchestrator import errors
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.report import Measures
from microvm_orchestrator.model.values import Moment, Name, moment
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.service import Service, actor
from microvm_orchestrator.store.questions import Figures

# Most file systems take 255, and while it is written the file is called something longer.
_MAX_NAME_BYTES = 240


class MetricsRequest(Request):
    """Over which stretch of time, and of which group."""

    window_s: Annotated[float, Field(strict=True, gt=0, le=31_536_000)] = 3600.0
    group: Name | None = None


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


CALLS: tuple[Call, ...] = (metrics_get, backup_create)
