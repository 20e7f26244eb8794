"""Rows become what callers read."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import JsonValue, TypeAdapter

from microvm_orchestrator.model.run import Kind, RunSpec
from microvm_orchestrator.model.task import (
    Edge,
    Gate,
    OnExpiry,
    Run,
    RunState,
    Task,
    TaskBrief,
    TaskError,
    TaskProgress,
    TaskSpec,
    TaskState,
    Unmet,
)
from microvm_orchestrator.model.transition import TaskRow, read_policy
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.store.rows import Classes

_GATES: TypeAdapter[list[Gate | Edge]] = TypeAdapter(list[Gate | Edge])
_WAITING_TOLD = 100


def moment_or_none(value: float | None) -> datetime | None:
    return None if value is None else moment(value)


def _progress(text: str | None) -> TaskProgress | None:
    return None if text is None else TaskProgress.model_validate_json(text)


def _error(text: str | None) -> TaskError | None:
    return None if text is None else TaskError.model_validate_json(text)


def _value(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def whole_task(connection: sqlite3.Connection, classes: Classes, row: TaskRow) -> Task:
    """All that is known of a task."""
    spec_text, result, error, progress = connection.execute(
        "SELECT spec, result, error, progress FROM task_body WHERE seq = ?", (row.seq,)
    ).fetchone()
    spec = json.loads(spec_text)
    policy = read_policy(row.policy)
    waiting: list[str] = []
    if row.gates_left:
        waiting = [
            found[0]
            for found in connection.execute(
                "SELECT DISTINCT up.id FROM edge JOIN task AS up ON up.seq = edge.upstream"
                " WHERE edge.dependent = ? AND edge.state = 'open' LIMIT ?",
                (row.seq, _WAITING_TOLD),
            )
        ]
    parent_id: str | None = None
    if row.parent is not None:
        parent_id = connection.execute(
            "SELECT id FROM task WHERE seq = ?", (row.parent,)
        ).fetchone()[0]
    return Task.model_construct(
        **_brief_fields(row, spec, classes.get(connection, row.class_id).owner, progress),
        description=spec["description"],
        input=spec["input"],
        run=read_run(spec),
        depends_on=_GATES.validate_python(spec["depends_on"]) if spec["depends_on"] else [],
        waiting_for=waiting,
        on_unmet=Unmet(row.on_unmet),
        parent_id=parent_id,
        timeout_s=row.timeout_s,
        lease_s=row.lease_s,
        lease_expires_at=moment_or_none(row.expires_at),
        retry=policy.retry,
        on_expiry=OnExpiry(policy.on_expiry),
        max_expiries=policy.max_expiries,
        not_before=moment_or_none(row.not_before),
        ready_at=moment_or_none(row.ready_at),
        result=_value(result),
        error=_error(error),
        template=spec["template"],
        version=row.version,
    )


def run_told(spec: TaskSpec) -> JsonValue:
    return None if spec.run is None else spec.run.model_dump(mode="json", exclude_defaults=True)


def read_run(spec: Mapping[str, Any]) -> RunSpec | None:
    """What was stored of a run; tasks that are older than runs have none."""
    told = spec.get("run")
    return None if told is None else RunSpec.model_validate(told)


def brief_task(
    connection: sqlite3.Connection, classes: Classes, row: TaskRow, spec: str, progress: str | None
) -> TaskBrief:
    owner = classes.get(connection, row.class_id).owner
    return TaskBrief.model_construct(**_brief_fields(row, json.loads(spec), owner, progress))


def _brief_fields(
    row: TaskRow, spec: dict[str, Any], owner: str, progress: str | None
) -> dict[str, Any]:
    return {
        "task_id": row.id,
        "key": None if row.key == row.id else row.key,
        "group": row.grp,
        "title": spec["title"],
        "kind": Kind.MANUAL if not spec.get("run") else Kind(spec["run"]["kind"]),
        "state": TaskState(row.state),
        "reason": row.reason,
        "priority": row.priority,
        "labels": spec["labels"],
        "role": spec["role"],
        "capabilities": spec["capabilities"],
        "owner": owner,
        "worker": row.worker,
        "attempt": row.attempt,
        "progress": _progress(progress),
        "created_at": moment(row.created_at),
        "started_at": moment_or_none(row.started_at),
        "finished_at": moment_or_none(row.finished_at),
    }


RUN_COLUMNS = "attempt, worker, state, started_at, finished_at, progress, result, error"


def one_run(task_id: str, row: tuple[Any, ...]) -> Run:
    attempt, worker, state, started_at, finished_at, progress, result, error = row
    return Run.model_construct(
        run_id=f"{task_id}.{attempt}",
        task_id=task_id,
        attempt=attempt,
        worker=worker,
        state=RunState(state),
        started_at=moment(started_at),
        finished_at=moment_or_none(finished_at),
        progress=_progress(progress),
        result=_value(result),
        error=_error(error),
    )
