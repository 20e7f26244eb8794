"""Artifacts: what runs have left behind, listed and read, by whoever sees the task.

Above are the front ends; below, the records of runs and the artifacts of this host.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from microvm_orchestrator import errors
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.artifact import MAX_NAME, Artifact, LeftOut
from microvm_orchestrator.model.run import RunRecord
from microvm_orchestrator.model.values import Int
from microvm_orchestrator.service import octets
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, declare
from microvm_orchestrator.service.service import Service, actor
from microvm_orchestrator.service.tasks import TaskRef
from microvm_orchestrator.store.questions import OneTask
from microvm_orchestrator.store.runs import last_run, run_of

_USUAL = 1 << 16
_MOST = 1 << 20


class ListArtifacts(TaskRef):
    """Of which run."""

    attempt: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = Field(
        default=None, description="which of the task's runs; by default the last"
    )


class ReadArtifact(ListArtifacts):
    """Which artifact, and which part of it."""

    artifact: Annotated[str, Field(min_length=1, max_length=MAX_NAME + 2)] = Field(
        description="its name, or its digest"
    )
    offset: Annotated[int, Field(strict=True, ge=0, le=1 << 62)] = 0
    limit: Annotated[int, Field(strict=True, ge=1, le=_MOST)] = Field(
        default=_USUAL, description="at most so many bytes"
    )


class ArtifactsOfRun(Answer):
    """What a run has left behind."""

    run_id: str
    artifacts: list[Artifact]
    left_out: list[LeftOut] = Field(description="what was asked for and is not there, and why")


class ArtifactPiece(Answer):
    """A part of an artifact."""

    run_id: str
    name: str
    digest: str
    media_type: str
    size: Int = Field(description="of the whole")
    offset: Int
    next: Int = Field(description="where to go on reading; the size at its end")
    content: str
    content_base64: str | None = Field(default=None, description="when content is not UTF-8")


@declare(
    "artifact_list",
    "GET /v1/runs/{task_id}/artifacts",
    role=Role.VIEWER,
    effect=Effect.READ,
)
async def artifact_list(service: Service, caller: Caller, request: ListArtifacts) -> ArtifactsOfRun:
    """List what a run of a task has left behind: files it was asked for, its patch, its console."""
    record = await _record(service, caller, request, "artifact_list")
    return ArtifactsOfRun(
        run_id=record.run_id, artifacts=record.artifacts, left_out=record.left_out
    )


@declare(
    "artifact_get",
    "GET /v1/runs/{task_id}/artifacts/content",
    role=Role.VIEWER,
    effect=Effect.READ,
)
async def artifact_get(service: Service, caller: Caller, request: ReadArtifact) -> ArtifactPiece:
    """Read a part of what a run of a task has left behind; ask again with `next` as `offset`."""
    record = await _record(service, caller, request, "artifact_get")
    wanted = request.artifact
    found = [each for each in record.artifacts if wanted in {each.name, each.digest}]
    if not found:
        raise errors.NotFound(
            f"run {record.run_id} has left no artifact {wanted}",
            hint="artifact_list shows what it has left",
        )
    artifact = found[0]
    data = await service.host.artifacts.read(
        record.run_id, artifact.digest, request.offset, request.limit
    )
    text, encoded = octets.told(data)
    return ArtifactPiece(
        run_id=record.run_id,
        name=artifact.name,
        digest=artifact.digest,
        media_type=artifact.media_type,
        size=artifact.size,
        offset=request.offset,
        next=request.offset + len(data),
        content=text,
        content_base64=encoded,
    )


async def _record(service: Service, caller: Caller, request: ListArtifacts, call: str) -> RunRecord:
    """Find the record of a run that the caller sees. Raises: NotFound."""
    by = actor(caller, call)
    task = await service.store.query(OneTask(request.task_id, request.group), by)
    if request.attempt is None:
        record = await last_run(service.store, task, by)
    else:
        record = await run_of(service.store, task, request.attempt, by)
    if record is None:
        raise errors.NotFound(
            f"task {task.task_id} has no run {request.attempt or task.attempt} on this host",
            hint="run_get shows how it stands",
        )
    return record


CALLS: tuple[Call, ...] = (artifact_list, artifact_get)
