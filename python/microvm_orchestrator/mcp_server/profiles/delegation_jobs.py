"""The jobs of the profile `delegation`, translated onto tasks that run in machines.

A job is a task whose key is the job's id, in a group of its own; its manifest is the task's input.
How a job stands is read off its task and its run each time, so a restart of the daemon forgets
nothing and a late word of a guest changes nothing that is settled.
"""

from __future__ import annotations

import uuid
from base64 import b64decode
from typing import TYPE_CHECKING, Any, cast

from pydantic import ConfigDict, Field, ValidationError

from microvm_orchestrator import errors
from microvm_orchestrator.machine.shell import Channel
from microvm_orchestrator.mcp_server.profiles import manifest as manifests
from microvm_orchestrator.mcp_server.profiles.manifest import JobManifest
from microvm_orchestrator.model import job
from microvm_orchestrator.model.run import Kind
from microvm_orchestrator.model.task import FINISHED, Task, TaskState
from microvm_orchestrator.model.values import rfc3339
from microvm_orchestrator.service.calls import Request
from microvm_orchestrator.service.page import PageOf
from microvm_orchestrator.service.runs import RunInfo, RunOutput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.execs import OutputPiece
    from microvm_orchestrator.service.service import Service

GROUP = "delegation"
_PAGE = 1000
_TITLE_MOST = 100
# Of each channel; that program gave all of it, which may be more than a client can take.
OUTPUT_MOST = 1 << 20
_PIECE = 1 << 20
_CHANNELS = (Channel.STDOUT, Channel.STDERR)

Shown = dict[str, Any] | list[dict[str, Any]]


class Asked(Request):
    # That program never minded an argument too many.
    model_config = ConfigDict(extra="ignore", frozen=True)


class Submit(Asked):
    manifest: JobManifest = Field(
        description="Job manifest with task, agentType, and optional config"
    )


class Named(Asked):
    job_id: str = Field(description="The job ID")


class Filter(Asked):
    status: job.Status | None = Field(default=None, description="Filter by status")


class Refused(Exception):
    """What that program answers with a tool's error."""


class DelegatedJobs:
    """The five tools, translated."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def submit(
        self, caller: Caller, arguments: Mapping[str, Any], settings: Mapping[str, str]
    ) -> Shown:
        try:
            manifest = JobManifest.model_validate(arguments.get("manifest"))
        except ValidationError as error:
            raise Refused(f"Invalid manifest: {manifests.problems(error)}") from error
        try:
            usual = manifests.defaults_of(settings)
        except ValidationError as error:
            raise Refused(f"Invalid environment: {manifests.problems(error)}") from error
        job_id = str(uuid.uuid4())
        spec = {
            "group": GROUP,
            "key": job_id,
            "title": " ".join(manifest.task.split())[:_TITLE_MOST],
            "description": manifest.task,
            "input": manifest.model_dump(mode="json", exclude={"env", "files"}, exclude_unset=True),
            "run": manifests.run_of(job_id, manifest, usual),
        }
        try:
            await self._service.invoke(caller, "task_submit", spec)
        except (errors.InvalidInput, errors.NotFound, errors.TooLarge) as error:
            raise Refused(f"Invalid manifest: {error.message}") from error
        return {"job_id": job_id}

    async def status(self, caller: Caller, asked: Named) -> Shown:
        info = await self._info(caller, asked.job_id)
        task = info.task
        told: dict[str, Any] = {
            "job_id": task.key,
            "status": job.status_of(task, info.run),
            "progress": progress_of(info),
            "error": job.error_of(task, info.run),
            "created_at": rfc3339(task.created_at),
            "started_at": None if task.started_at is None else rfc3339(task.started_at),
            "completed_at": None if task.finished_at is None else rfc3339(task.finished_at),
        }
        if _mode(task) == "streaming":
            told["output"] = (await self._said(caller, task))[0]
        return {name: value for name, value in told.items() if value is not None}

    async def result(self, caller: Caller, asked: Named) -> Shown:
        info = await self._info(caller, asked.job_id)
        task, run = info.task, info.run
        status = job.status_of(task, run)
        if task.state not in FINISHED:
            raise Refused(f"Job not complete. Status: {status}")
        output, complaints = await self._said(caller, task)
        # As there: of a command that failed, what it wrote on standard error.
        error = job.failed_with(run, complaints) if status == "failed" else None
        told: dict[str, Any] = {
            "job_id": task.key,
            "status": status,
            "output": output or job.reported(run, "output"),
            "error": error or job.error_of(task, run),
            "exit_code": job.exit_code_of(run),
            "artifacts": job.artifacts_of(run) or None,
        }
        known = {name: value for name, value in told.items() if value is not None}
        return {**known, "duration_seconds": job.duration_s(task)}

    async def cancel(self, caller: Caller, asked: Named) -> Shown:
        info = await self._info(caller, asked.job_id)
        if info.task.state in FINISHED:
            raise Refused("Job already completed")
        named = {"task_id": info.task.task_id, "reason": job.CANCELLED}
        try:
            await self._service.invoke(caller, "task_cancel", named)
        except errors.StateForbids as error:
            raise Refused("Job already completed") from error
        return {"cancelled": True}

    async def listed(self, caller: Caller, asked: Filter) -> Shown:
        told: list[dict[str, Any]] = []
        for task in await self._all(caller):
            # Of one that is under way the run says more than the task does.
            told_by_run = task.state in {TaskState.RUNNING, TaskState.DONE}
            info = await self._info(caller, task.task_id) if told_by_run else None
            run = None if info is None else info.run
            status = job.status_of(task, run)
            if asked.status in {None, status}:
                told.append(
                    {
                        "job_id": job.job_id_of(task),
                        "status": status,
                        "task": task.description[:_TITLE_MOST],
                        "created_at": rfc3339(task.created_at),
                    }
                )
        return told

    async def _info(self, caller: Caller, job_id: str) -> RunInfo:
        named = {"task_id": job_id, "group": GROUP}
        try:
            info = cast("RunInfo", await self._service.invoke(caller, "run_get", named))
        except (errors.NotFound, errors.InvalidInput, errors.StateForbids) as error:
            raise Refused("Job not found") from error
        if info.task.group != GROUP:
            raise Refused("Job not found")
        return info

    async def _all(self, caller: Caller) -> list[Task]:
        tasks: list[Task] = []
        asked: dict[str, object] = {"group": GROUP, "limit": _PAGE}
        try:
            while True:
                page = cast(
                    "PageOf[Task]", await self._service.invoke(caller, "group_tasks", asked)
                )
                tasks += [task for task in page.items if task.kind is not Kind.MANUAL]
                if page.next_cursor is None:
                    return tasks
                asked["cursor"] = page.next_cursor
        except errors.NotFound:
            # Nothing was ever submitted here.
            return tasks

    async def _said(self, caller: Caller, task: Task) -> tuple[str, str]:
        """Give what a job wrote on its two channels, each up to a bound."""
        said = {channel: bytearray() for channel in Channel}
        asked: dict[str, object] = {"task_id": task.task_id, "limit": _PIECE}
        while min(map(len, said.values())) < OUTPUT_MOST:
            read = cast("RunOutput", await self._service.invoke(caller, "run_output", asked))
            for piece in read.pieces:
                kept = said[piece.channel]
                kept += _octets(piece)[: OUTPUT_MOST - len(kept)]
            if not read.pieces:
                break
            asked["offset"] = read.next
        stdout, stderr = (said[each].decode(errors="replace") for each in _CHANNELS)
        return stdout, stderr


def progress_of(info: RunInfo) -> str | None:
    """Say how far a job is: by its own word, or, where that is wished, by what it writes."""
    reported = job.reported(info.run, "progress")
    if reported is None and _mode(info.task) != "simple" and info.saying:
        return info.saying
    return None if reported is None else str(reported)


def _mode(task: Task) -> str:
    match task.input:
        case {"statusMode": str(mode)}:
            return mode
        case _:
            return "simple"


def _octets(piece: OutputPiece) -> bytes:
    return piece.text.encode() if piece.base64 is None else b64decode(piece.base64)
