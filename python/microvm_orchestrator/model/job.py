"""A task that runs in a machine, in the words of a program that delegated jobs.

Its clients and the receivers of its callbacks know six states and two payloads. How a job stands is
read off its task and its run each time. Above are the profile `delegation` and the webhooks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from microvm_orchestrator.model.artifact import ArtifactKind
from microvm_orchestrator.model.run import Step
from microvm_orchestrator.model.task import TaskState

if TYPE_CHECKING:
    from pydantic import JsonValue

    from microvm_orchestrator.model.run import RunRecord
    from microvm_orchestrator.model.task import Task

Status = Literal["pending", "provisioning", "running", "success", "failed", "timeout"]
CANCELLED = "Cancelled by user"
_NOT_YET = {Step.PREPARING, Step.STARTING, Step.SENDING}


def job_id_of(task: Task) -> str:
    return task.key or task.task_id


def status_of(task: Task, run: RunRecord | None) -> Status:
    """Say how a job stands."""
    match task.state:
        case TaskState.DONE:
            return "failed" if reported(run, "status") == "failed" else "success"
        case TaskState.FAILED:
            return "timeout" if _timed_out(task) else "failed"
        case TaskState.CANCELLED:
            return "failed"
        case TaskState.RUNNING:
            return "provisioning" if run is None or run.step in _NOT_YET else "running"
        case _:
            return "pending"


def error_of(task: Task, run: RunRecord | None) -> str | None:
    """Say why a job did not succeed."""
    if task.state is TaskState.CANCELLED:
        return CANCELLED
    if task.state is TaskState.DONE:
        if reported(run, "status") != "failed":
            return None
        return str(reported(run, "error") or "its program said that it failed")
    if task.error is None:
        return task.reason if task.state is TaskState.FAILED else None
    if _timed_out(task):
        return "Job exceeded timeout"
    if task.error.code == "machine-lost":
        return f"Job lost: {task.error.message}"
    if task.error.code == "run-failed" or (run is not None and run.exec_id is not None):
        return task.error.message
    return f"Provisioning failed: {task.error.message}"


def exit_code_of(run: RunRecord | None) -> int | None:
    return None if run is None or run.result is None else run.result.exit_code


def duration_s(task: Task) -> float | None:
    if task.started_at is None or task.finished_at is None:
        return None
    return (task.finished_at - task.started_at).total_seconds()


def reported(run: RunRecord | None, what: str) -> JsonValue:
    """Tell what its program said of itself; None where it said nothing of that."""
    return None if run is None or run.reported is None else getattr(run.reported, what)


def artifacts_of(run: RunRecord | None) -> list[str]:
    """Name the files that are kept of a job."""
    kept = [] if run is None else run.artifacts
    return [each.name for each in kept if each.kind is ArtifactKind.FILE]


def failed_with(run: RunRecord | None, complaints: str) -> str | None:
    """Give what a command that failed wrote on standard error, if that is why it failed."""
    return complaints if complaints and exit_code_of(run) not in {None, 0} else None


def complete_payload(
    task: Task, run: RunRecord | None, output: str, complaints: str
) -> dict[str, Any]:
    """Write the callback of a job that ended."""
    status = status_of(task, run)
    told: dict[str, Any] = {
        "job_id": job_id_of(task),
        "status": "success" if status == "success" else "failed",
        # Of one that did not come so far, what a shell says of a command that was ended.
        "exit_code": -1 if exit_code_of(run) is None else exit_code_of(run),
        "output": output,
        "duration_seconds": duration_s(task) or 0.0,
    }
    if kept := artifacts_of(run):
        told["artifacts"] = kept
    error = None if status == "timeout" else failed_with(run, complaints)
    error = error or error_of(task, run)
    return told if error is None else {**told, "error": error}


def status_payload(task: Task, run: RunRecord | None, message: str) -> dict[str, Any]:
    """Write the callback of a job that is under way."""
    said = message or reported(run, "progress") or status_of(task, run)
    told: dict[str, Any] = {"job_id": job_id_of(task), "progress": said}
    output = reported(run, "output")
    return told if output is None else {**told, "output": output}


def _timed_out(task: Task) -> bool:
    detail = None if task.error is None else task.error.detail
    return isinstance(detail, dict) and detail.get("timed_out") is True
