"""Answers to questions about tasks, runs, records, workers and the audit log, a page at a time."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from microvm_orchestrator import errors
from microvm_orchestrator.model.records import AuditRow, Record, WorkerRow
from microvm_orchestrator.model.task import Run, Task, TaskBrief
from microvm_orchestrator.store.base import Address
from microvm_orchestrator.store.questions import (
    AuditList,
    FullTaskList,
    OneTask,
    Page,
    RecordById,
    RecordList,
    RunList,
    TaskList,
    WorkerByName,
    WorkerList,
)
from microvm_orchestrator.store.read import RUN_COLUMNS, brief_task, one_run, whole_task
from microvm_orchestrator.store.rows import COLUMNS, SELECT_TASK, Tx, task_row
from microvm_orchestrator.store.view import visible

T = TypeVar("T")
Place = TypeVar("Place", int, str)
_WIDTH = len(COLUMNS)


def page_cursor(place: object) -> str:
    text = json.dumps([place], ensure_ascii=False, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def page_place(cursor: str | None, begin: Place) -> Place:
    """Where a list goes on, which begins at `begin`.

    Raises: CursorInvalid.
    """
    if cursor is None:
        return begin
    place: Any = None
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        (place,) = json.loads(text)
    if type(place) is not type(begin) or not _storable(place):
        raise errors.CursorInvalid(
            f"{cursor[:60]!r} is no cursor of this list",
            hint="use next_cursor as it was given, or none to begin anew",
        )
    return place


def _storable(place: int | str) -> bool:
    if isinstance(place, int):
        return 0 <= place < 1 << 63
    return not any("\ud800" <= letter <= "\udfff" for letter in place)


def page(
    rows: Sequence[Any], limit: int, item: Callable[[Any], T], place: Callable[[Any], object]
) -> Page[T]:
    """A page of at most `limit` from rows that were asked for with one more."""
    more = len(rows) > limit
    shown = rows[:limit]
    return Page([item(row) for row in shown], page_cursor(place(shown[-1])) if more else None)


def one_task(tx: Tx, question: OneTask) -> Task:
    row = tx.need(Address(question.ref, question.group))
    return whole_task(tx.connection, tx.classes, row)


def task_list(tx: Tx, question: TaskList) -> Page[TaskBrief]:
    where, values = _task_filter(tx, question)
    rows = tx.all(
        f"{_with_body('task_body.spec, task_body.progress')} WHERE {where}"
        f" ORDER BY task.seq {'DESC' if question.newest_first else 'ASC'} LIMIT ?",
        *values,
        question.limit + 1,
    )

    def brief(row: Sequence[Any]) -> TaskBrief:
        spec, progress = row[_WIDTH:]
        return brief_task(tx.connection, tx.classes, task_row(row[:_WIDTH]), spec, progress)

    return page(rows, question.limit, brief, lambda row: row[0])


def full_task_list(tx: Tx, question: FullTaskList) -> Page[Task]:
    after = page_place(question.cursor, 0)
    where, values = "grp = ? AND seq > ?", [question.group, after]
    where += visible(tx, "task.class_id")
    rows = tx.all(f"{SELECT_TASK} WHERE {where} ORDER BY seq LIMIT ?", *values, question.limit + 1)
    return page(
        rows,
        question.limit,
        lambda row: whole_task(tx.connection, tx.classes, task_row(row)),
        lambda row: row[0],
    )


def _with_body(columns: str) -> str:
    return SELECT_TASK.replace(
        " FROM task", f", {columns} FROM task JOIN task_body ON task_body.seq = task.seq"
    )


def _task_filter(tx: Tx, question: TaskList) -> tuple[str, list[object]]:
    begin = (1 << 63) - 1 if question.newest_first else 0
    beyond = "<" if question.newest_first else ">"
    where, values = f"task.seq {beyond} ?", list[object]([page_place(question.cursor, begin)])
    if question.states:
        where += f" AND task.state IN ({', '.join('?' * len(question.states))})"
        values += question.states
    for column, value in (("grp", question.group), ("worker", question.worker)):
        if value is not None:
            where += f" AND task.{column} = ?"
            values.append(value)
    for key, value in question.labels:
        where += " AND task.seq IN (SELECT task FROM label WHERE key = ? AND value = ?)"
        values += [key, value]
    if question.owner is not None:
        owned = [
            class_id
            for (class_id,) in tx.all("SELECT id FROM class")
            if tx.classes.get(tx.connection, class_id).owner == question.owner
        ]
        where += f" AND task.class_id IN ({', '.join(map(str, owned)) or 'NULL'})"
    if question.text is not None:
        where += (
            " AND (instr(lower(task.key), lower(?)) OR"
            " instr(lower(json_extract(task_body.spec, '$.title')), lower(?)))"
        )
        values += [question.text, question.text]
    return where + visible(tx, "task.class_id"), values


def run_list(tx: Tx, question: RunList) -> Page[Run]:
    row = tx.need(Address(question.ref, question.group))
    after = page_place(question.cursor, 0)
    rows = tx.all(
        f"SELECT {RUN_COLUMNS} FROM run WHERE task = ? AND attempt > ? ORDER BY attempt LIMIT ?",
        row.seq,
        after,
        question.limit + 1,
    )
    return page(rows, question.limit, lambda run: one_run(row.id, run), lambda run: run[0])


# Records

_RECORD = "SELECT kind, id, body, version, created_at, updated_at FROM record"


def _record(row: Sequence[Any]) -> Record:
    kind, id_, body, version, created_at, updated_at = row
    return Record(kind, id_, json.loads(body), version, created_at, updated_at)


def record_by_id(tx: Tx, question: RecordById) -> Record | None:
    found = tx.one(f"{_RECORD} WHERE kind = ? AND id = ?", question.kind, question.id)
    return None if found is None else _record(found)


def record_list(tx: Tx, question: RecordList) -> Page[Record]:
    after = page_place(question.cursor, question.after)
    rows = tx.all(
        f"{_RECORD} WHERE kind = ? AND id > ? AND id >= ? AND substr(id, 1, ?) = ?"
        " ORDER BY id LIMIT ?",
        question.kind,
        after,
        question.prefix,
        len(question.prefix),
        question.prefix,
        question.limit + 1,
    )
    return page(rows, question.limit, _record, lambda row: row[1])


# Workers

_WORKER = (
    "SELECT name, principal, capabilities, roles, labels, draining, registered_at, seen_at,"
    " seen_until, lost FROM worker"
)


def _worker(row: Sequence[Any]) -> WorkerRow:
    name, principal, capabilities, roles, labels, draining, *times, lost = row
    return WorkerRow(
        name,
        principal,
        tuple(json.loads(capabilities)),
        tuple(json.loads(roles)),
        json.loads(labels),
        bool(draining),
        *times,
        lost=bool(lost),
    )


def worker_by_name(tx: Tx, question: WorkerByName) -> WorkerRow | None:
    found = tx.one(f"{_WORKER} WHERE name = ?", question.name)
    return None if found is None else _worker(found)


def worker_list(tx: Tx, question: WorkerList) -> Page[WorkerRow]:
    after = page_place(question.cursor, "")
    rows = tx.all(f"{_WORKER} WHERE name > ? ORDER BY name LIMIT ?", after, question.limit + 1)
    return page(rows, question.limit, _worker, lambda row: row[0])


# The audit log


def audit_list(tx: Tx, question: AuditList) -> Page[AuditRow]:
    where, values = "1", list[object]()
    if question.cursor is not None:
        where += " AND seq < ?"
        values.append(page_place(question.cursor, 0))
    for column in ("actor", "action", "target", "outcome"):
        value = getattr(question, column)
        if value is not None:
            where += f" AND {column} = ?"
            values.append(value)
    if question.since is not None:
        where += " AND at >= ?"
        values.append(question.since)
    rows = tx.all(
        "SELECT seq, at, actor, role, via, action, target, outcome FROM audit"
        f" WHERE {where} ORDER BY seq DESC LIMIT ?",
        *values,
        question.limit + 1,
    )
    return page(rows, question.limit, lambda row: AuditRow(*row), lambda row: row[0])
