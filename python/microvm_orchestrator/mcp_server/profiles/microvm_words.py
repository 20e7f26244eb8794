"""A task and its run in the words of the program that `microvm-orchestrator-mcp` is a profile of.

Its readers knew four states and two files of results; both are made here of what the store has.
Above are the tools and the copies; below, the models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from microvm_orchestrator.model.run import MergeState
from microvm_orchestrator.model.task import FINISHED, TaskState
from microvm_orchestrator.model.values import rfc3339

if TYPE_CHECKING:
    from datetime import datetime

    from microvm_orchestrator.model.run import RunRecord
    from microvm_orchestrator.model.task import Task

_SHORT_OID = 7
_METHODS = {"fast_forward": "fast-forward"}
# That program's word for what a user finds in the result of a merge that did not happen.
_REASONS = {MergeState.CONFLICT: "conflicts"}


def status_of(task: Task, run: RunRecord | None) -> str:
    """pending, running, completed or failed; a result that was not merged is one all the same."""
    if task.state not in FINISHED:
        return "running" if task.state is TaskState.RUNNING else "pending"
    if task.state is TaskState.DONE:
        return "completed"
    succeeded = run is not None and run.result is not None and run.result.success
    return "completed" if task.state is TaskState.FAILED and succeeded else "failed"


def error_of(task: Task, run: RunRecord | None) -> str | None:
    if task.state is TaskState.CANCELLED:
        return f"Task cancelled{f': {task.reason}' if task.reason else ''}"
    if status_of(task, run) != "failed":
        return None
    return task.reason if task.error is None else task.error.message


def exit_code_of(run: RunRecord | None) -> int | None:
    """Give the exit status; of one that a signal ended, as a shell would."""
    if run is None or run.result is None:
        return None
    if run.result.signal is not None:
        return 128 + run.result.signal
    return run.result.exit_code


def result_of(task: Task, run: RunRecord | None) -> dict[str, Any] | None:
    """Write what its `result.json` says; None until there is something to say."""
    if run is None or run.result is None or task.state not in FINISHED:
        return None
    result = run.result
    return {
        "success": result.success and task.state is not TaskState.CANCELLED,
        "summary": result.summary,
        "files_changed": [file.path for file in result.files_changed],
        "commit_count": result.commit_count,
        "commits": [f"{each.commit[:_SHORT_OID]} {each.subject}" for each in result.commits],
        "runner_exit_code": exit_code_of(run),
        "error": result.error or error_of(task, run),
    }


def merge_result_of(task: Task, run: RunRecord | None) -> dict[str, Any] | None:
    """Write what its `merge-result.json` says; None where nothing was to be merged."""
    if run is None or run.result is None or task.state not in FINISHED:
        return None
    if not run.result.success or task.state is TaskState.CANCELLED:
        return None
    merge = run.merge
    if merge.state is MergeState.MERGED:
        return {
            "merged": True,
            "method": _METHODS.get(merge.how or "", merge.how),
            "commits": run.result.commit_count,
            "conflicts": [],
        }
    if run.tip is None:
        return {"merged": True, "method": "none", "commits": 0, "conflicts": []}
    return {
        "merged": False,
        "reason": _REASONS.get(merge.state) or merge.reason or str(merge.state),
        "conflicts": [file.path for file in merge.conflicts],
        "commits": run.result.commit_count,
        "task_ref": merge.ref or task_ref(task),
    }


def is_unmerged(run: RunRecord | None) -> bool:
    """Whether there are commits of it that only this host has."""
    return run is not None and run.tip is not None and run.merge.state is not MergeState.MERGED


def task_ref(task: Task) -> str:
    return f"refs/tasks/{task.task_id}"


def slot_of(task: Task) -> int:
    """Tell which number a task goes by; of one that was submitted by other ways it is the first."""
    match task.input:
        case {"slot": int(slot)}:
            return slot
        case _:
            return 1


def facts_of(task: Task, run: RunRecord | None, repo_path: str | None) -> dict[str, Any]:
    """Write what its `task.json` says."""
    return {
        "description": task.description,
        "status": status_of(task, run),
        "slot": slot_of(task),
        "repo_path": repo_path,
        "created_at": _at(task.created_at),
        "started_at": _at(task.started_at),
        "completed_at": _at(task.finished_at),
        # A machine has no process that its users could do anything with.
        "pid": None,
        "exit_code": exit_code_of(run),
        "error": error_of(task, run),
    }


def event_of(task: Task, run: RunRecord | None) -> dict[str, Any]:
    """Write the event of a task's end; its readers knew it by either of two keys."""
    kind = status_of(task, run)
    return {
        "task_id": task.task_id,
        "event": kind,
        "type": kind,
        "timestamp": _at(task.finished_at),
        "exit_code": exit_code_of(run),
        "error": error_of(task, run),
        "result": result_of(task, run),
        "merge_result": merge_result_of(task, run),
    }


def _at(moment: datetime | None) -> str | None:
    return None if moment is None else rfc3339(moment)
