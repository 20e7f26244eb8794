"""An attempt ends, and what that means for the tasks that wait: the ripple.

Costs what the finished task has edges, not what the graph has tasks.
"""

from __future__ import annotations

import json
from collections import deque

from pydantic import JsonValue

from microvm_orchestrator.model import transition as t
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.task import FINISHED, TaskState
from microvm_orchestrator.model.transition import TaskRow, edge_met
from microvm_orchestrator.store.base import (
    Done,
    Failed,
    Outcome,
    Ref,
    Released,
    Settled,
    SubmittedTask,
)
from microvm_orchestrator.store.lease import holds
from microvm_orchestrator.store.read import whole_task
from microvm_orchestrator.store.rows import Tx, compact, digest

# A late result is kept with the event that refuses it, unless it is longer than this.
_LATE_KEPT = 65_536


def settle(tx: Tx, ref: Ref, outcome: Outcome) -> Settled:
    """Raises: NotFound."""
    row = tx.need(ref.address)
    if not holds(tx, row, ref):
        return _repeated(tx, row, ref, outcome) or _fenced(tx, row, ref, outcome)
    match outcome:
        case Done(result):
            row, unlocked = _done(tx, row, result)
        case Failed(error, retryable):
            told = compact(error.model_dump())
            tx.run("UPDATE task_body SET error = ? WHERE seq = ?", told, row.seq)
            _note_attempt(tx, row, "error", told)
            row = tx.apply(row, t.Fail(retryable), error=error.model_dump()).row
            unlocked = ripple(tx, row) if row.state in FINISHED else ()
        case Released(reason, delay_s):
            row, unlocked = tx.apply(row, t.Release(delay_s, reason)).row, ()
    tx.audit(row.id)
    return Settled("accepted", whole_task(tx.connection, tx.classes, row), unlocked)


def _done(tx: Tx, row: TaskRow, result: JsonValue) -> tuple[TaskRow, tuple[SubmittedTask, ...]]:
    told = compact(result)
    tx.run("UPDATE task_body SET result = ?, error = NULL WHERE seq = ?", told, row.seq)
    _note_attempt(tx, row, "result", told)
    row = tx.apply(row, t.Complete()).row
    unlocked = ripple(tx, row)
    if unlocked:
        _note_attempt(tx, row, "unlocked", compact([task.task_id for task in unlocked]))
    return row, unlocked


def _note_attempt(tx: Tx, row: TaskRow, column: str, told: str) -> None:
    tx.run(
        f"UPDATE run SET {column} = ? WHERE task = ? AND attempt = ?",
        told,
        row.seq,
        row.attempt,
    )


def _repeated(tx: Tx, row: TaskRow, ref: Ref, outcome: Outcome) -> Settled | None:
    """The same word again, because its answer was lost: it was heard the first time."""
    attempt = tx.one(
        "SELECT state, result, error, unlocked, worker, holder FROM run"
        " WHERE task = ? AND attempt = ?",
        row.seq,
        ref.token,
    )
    if attempt is None:
        return None
    state, result, error, unlocked, worker, holder = attempt
    if worker != ref.worker or (holder != tx.by.name and tx.by.role is not Role.ADMIN):
        return None
    match outcome:
        case Done():
            same = state == "succeeded" and result == compact(outcome.result)
        case Failed():
            same = state == "failed" and error == compact(outcome.error.model_dump())
        case Released():
            # Whoever holds it now, the one who gave it back is heard; a cancelled task was not.
            given_back = row.attempt > ref.token or row.state not in FINISHED
            same = state == "cancelled" and given_back
    if not same:
        return None
    freed = [tx.find_by_id(task_id) for task_id in json.loads(unlocked or "[]")]
    return Settled(
        "repeated",
        whole_task(tx.connection, tx.classes, row),
        tuple(_unlocked(task) for task in freed if task is not None and tx.sees(task)),
    )


def _fenced(tx: Tx, row: TaskRow, ref: Ref, outcome: Outcome) -> Settled:
    """Too late: refused, and written down so that the work is not lost without a trace."""
    told: dict[str, JsonValue] = {"token": ref.token, "by": ref.worker}
    match outcome:
        case Done(result):
            text = compact(result)
            told |= {"word": "complete", "result_sha256": digest(text)}
            if len(text) <= _LATE_KEPT:
                told["result"] = result
        case Failed(error):
            told |= {"word": "fail", "error": error.model_dump()}
        case Released():
            told["word"] = "release"
    tx.event("task.fenced", row, **told)
    tx.audit(row.id, "lease-lost")
    return Settled("fenced", whole_task(tx.connection, tx.classes, row))


def _unlocked(row: TaskRow) -> SubmittedTask:
    return SubmittedTask(row.id, None if row.key == row.id else row.key, row.grp, row.state)


def ripple(tx: Tx, finished: TaskRow) -> tuple[SubmittedTask, ...]:
    """Tell the tasks that wait for a finished one, and those that finish because of it.

    The tasks that became ready, as far as the actor sees them.
    """
    ready: list[SubmittedTask] = []
    ended = deque([finished])
    while ended:
        upstream = ended.popleft()
        edges = tx.all(
            "SELECT dependent, gate, condition FROM edge WHERE upstream = ? AND state = 'open'"
            " ORDER BY dependent",
            upstream.seq,
        )
        needs_result = any(condition[0] == "[" for _, _, condition in edges)
        result = tx.result(upstream.seq) if needs_result else None
        for dependent, number, condition in edges:
            met = edge_met(condition, upstream.state, result)
            before = tx.get(dependent)
            after = _close_edge(tx, upstream, before, number, met=met)
            if after.state is before.state:
                continue
            if after.state is TaskState.READY and tx.sees(after):
                ready.append(_unlocked(after))
            elif after.state in FINISHED:
                ended.append(after)
    return tuple(ready)


def _close_edge(tx: Tx, upstream: TaskRow, row: TaskRow, number: int, *, met: bool) -> TaskRow:
    """The dependent task after one of its edges was decided."""
    tx.run(
        "UPDATE edge SET state = ? WHERE upstream = ? AND dependent = ? AND gate = ?",
        "met" if met else "missed",
        upstream.seq,
        row.seq,
        number,
    )
    gate = tx.gate(row.seq, number)
    was_open, was_unmeetable = gate.open, gate.unmeetable
    gate.met += met
    gate.missed += not met
    tx.save_gate(gate)
    if gate.open and not was_open:
        row = tx.save(row, row._replace(gates_left=row.gates_left - 1))
        return tx.apply(row, t.Open()).row
    if gate.unmeetable and not was_unmeetable:
        return tx.apply(row, t.Unmeetable(upstream.id, upstream.state)).row
    return row
