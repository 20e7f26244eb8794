"""Leases: who holds a task, by which token, and for how long."""

from __future__ import annotations

import heapq
import json
from collections.abc import Sequence
from dataclasses import replace

from microvm_orchestrator import errors
from microvm_orchestrator.model import transition as t
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.task import Lease, Task, TaskState
from microvm_orchestrator.model.transition import TaskRow
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.store.base import (
    Beat,
    Claimed,
    Offer,
    Ref,
    Renewed,
    StuckTask,
    Verdict,
)
from microvm_orchestrator.store.read import whole_task
from microvm_orchestrator.store.rows import SELECT_TASK, Tx, compact, task_row
from microvm_orchestrator.store.view import (
    View,
    any_in,
    freed_from_elsewhere,
    next_due,
    view_of,
)

# Bounds what one verb does for the clock, so that it never holds the writer for long.
BATCH = 500
# How many stuck tasks a deadlock names; the rest is in the list of tasks.
_STUCK_TOLD = 10


def held(tx: Tx, ref: Ref) -> TaskRow:
    """The task, if `ref` holds it now.

    Raises: NotFound, LeaseLost.
    """
    row = tx.need(ref.address)
    if not holds(tx, row, ref):
        raise errors.LeaseLost(lost_message(row, ref), hint=LOST_HINT)
    return row


LOST_HINT = "stop working on it; task_get tells who has it now"


def lost_message(row: TaskRow, ref: Ref) -> str:
    return (
        f"{ref.worker} does not hold task {row.id} with token {ref.token}: "
        f"it is {row.state}, attempt {row.attempt}" + (f" by {row.worker}" if row.worker else "")
    )


def holds(tx: Tx, row: TaskRow, ref: Ref) -> bool:
    return (
        row.state is TaskState.RUNNING
        and row.attempt == ref.token
        and row.worker == ref.worker
        and (row.holder == tx.by.name or tx.by.role is Role.ADMIN)
    )


def claim(tx: Tx, offer: Offer) -> Claimed:
    """The best tasks that fit, or why there are none."""
    open_due(tx)
    offer, draining = _declared(tx, offer)
    if draining:
        return Claimed(Verdict.DRAINING)
    groups = tuple(dict.fromkeys(offer.groups))
    ready = (tx.classes.get(tx.connection, class_id) for class_id in _ready_classes(tx, groups))
    fitting = [
        found.id
        for found in ready
        if found.fits(offer.capabilities, offer.roles)
        and tx.by.sees(owner=found.owner, labels=found.labels)
    ]
    rows = _first_ready(tx, fitting, groups, offer.count)
    if not rows:
        return _why_none(tx, groups)
    taken = tuple(_take(tx, row, offer) for row in rows)
    tx.audit(taken[0][0].task_id + (f" and {len(taken) - 1} more" if len(taken) > 1 else ""))
    return Claimed(Verdict.CLAIMED, taken)


def open_due(tx: Tx) -> int:
    """Tasks whose time has come, at most a batch of them. How many there were."""
    due = tx.tasks(
        f"state = 'blocked' AND not_before <= ? ORDER BY not_before LIMIT {BATCH}", tx.now
    )
    opened = 0
    for row in due:
        step = tx.apply(row, t.Open())
        if step.event is None:
            # Its time came before its dependencies: from now on only these are in the way.
            tx.save(row, row._replace(not_before=None))
        else:
            opened += 1
    return opened


def _declared(tx: Tx, offer: Offer) -> tuple[Offer, bool]:
    """The offer with what the worker registered with, and whether it was told to take no more."""
    found = tx.one("SELECT capabilities, roles, draining FROM worker WHERE name = ?", offer.worker)
    if found is None:
        return offer, False
    _seen(tx, offer.worker)
    offer = replace(
        offer,
        capabilities=offer.capabilities | frozenset(json.loads(found[0])),
        roles=offer.roles | frozenset(json.loads(found[1])),
    )
    return offer, bool(found[2])


def _seen(tx: Tx, worker: str) -> None:
    """A worker that speaks is there, for as long again as it said when it registered."""
    tx.run(
        "UPDATE worker SET seen_until = ?1 + (seen_until - seen_at), seen_at = ?1, lost = 0"
        " WHERE name = ?2",
        tx.now,
        worker,
    )


def _ready_classes(tx: Tx, groups: Sequence[str]) -> list[int]:
    """Classes that have ready tasks, found by skipping through the index from class to class."""
    if not groups:
        return [
            row[0]
            for row in tx.all(
                "WITH RECURSIVE met (id) AS ("
                " SELECT min(class_id) FROM task WHERE state = 'ready'"
                " UNION ALL SELECT (SELECT min(class_id) FROM task"
                "   WHERE state = 'ready' AND class_id > met.id) FROM met WHERE met.id IS NOT NULL)"
                " SELECT id FROM met WHERE id IS NOT NULL"
            )
        ]
    return sorted(
        {
            row[0]
            for group in groups
            for row in tx.all(
                "WITH RECURSIVE met (id) AS ("
                " SELECT min(class_id) FROM task WHERE state = 'ready' AND grp = ?1"
                " UNION ALL SELECT (SELECT min(class_id) FROM task"
                "   WHERE state = 'ready' AND grp = ?1 AND class_id > met.id)"
                "   FROM met WHERE met.id IS NOT NULL)"
                " SELECT id FROM met WHERE id IS NOT NULL",
                group,
            )
        }
    )


def _first_ready(
    tx: Tx, classes: Sequence[int], groups: Sequence[str], count: int
) -> list[TaskRow]:
    order = "ORDER BY priority DESC, seq LIMIT ?"
    if groups:
        heads = [
            tx.all(
                f"{SELECT_TASK} WHERE state = 'ready' AND grp = ? AND class_id = ? {order}",
                group,
                class_id,
                count,
            )
            for group in groups
            for class_id in classes
        ]
    else:
        heads = [
            tx.all(f"{SELECT_TASK} WHERE state = 'ready' AND class_id = ? {order}", class_id, count)
            for class_id in classes
        ]
    rows = [task_row(row) for head in heads for row in head]
    return heapq.nsmallest(count, rows, key=lambda row: (-row.priority, row.seq))


def _take(tx: Tx, row: TaskRow, offer: Offer) -> tuple[Task, Lease]:
    step = tx.apply(row, t.Claim(offer.worker, tx.by.name, offer.lease_s))
    taken = step.row
    tx.run(
        "INSERT INTO run (task, attempt, worker, holder, state, waited_s, started_at)"
        " VALUES (?, ?, ?, ?, 'running', ?, ?)",
        taken.seq,
        taken.attempt,
        offer.worker,
        tx.by.name,
        tx.now - (taken.ready_at or tx.now),
        tx.now,
    )
    tx.run("UPDATE task_body SET progress = NULL WHERE seq = ? AND progress IS NOT NULL", taken.seq)
    task = whole_task(tx.connection, tx.classes, taken)
    return task, Lease(
        token=taken.attempt, worker=offer.worker, expires_at=moment(taken.expires_at or tx.now)
    )


# Why there is nothing to claim


def _why_none(tx: Tx, groups: Sequence[str]) -> Claimed:
    view = view_of(tx, groups)
    if any_in(tx, view, "ready"):
        return Claimed(Verdict.NO_MATCH)
    if any_in(tx, view, "running"):
        return Claimed(Verdict.BLOCKED)
    if not any_in(tx, view, "blocked"):
        return Claimed(Verdict.ALL_DONE)
    due = next_due(tx, view)
    if due is not None or freed_from_elsewhere(tx, view):
        return Claimed(Verdict.BLOCKED, due_at=due)
    return Claimed(Verdict.DEADLOCKED, stuck=_stuck(tx, view))


def _stuck(tx: Tx, view: View) -> tuple[StuckTask, ...]:
    """Some of the blocked tasks, first those of which it is known why."""
    rows = tx.tasks(
        f"state = 'blocked' AND {view.where} ORDER BY reason IS NULL, grp, seq LIMIT {_STUCK_TOLD}",
        *view.values,
    )
    return tuple(
        StuckTask(
            row.id,
            None if row.key == row.id else row.key,
            row.reason or "waits for a task that is stuck itself",
        )
        for row in rows
    )


def renew(tx: Tx, beats: Sequence[Beat]) -> list[Renewed]:
    """Raises: NotFound."""
    renewed = [_renew(tx, beat) for beat in beats]
    for worker in {beat.ref.worker for beat in beats}:
        _seen(tx, worker)
    return renewed


def _renew(tx: Tx, beat: Beat) -> Renewed:
    row = tx.need(beat.ref.address)
    if not holds(tx, row, beat.ref):
        return Renewed(row.id, held=False, state=row.state, expires_at=None)
    if row.deadline is not None and row.deadline <= tx.now:
        # Its time is up; the sweep will say so in a moment.
        return Renewed(row.id, held=False, state=row.state, expires_at=None)
    row = tx.apply(row, t.Beat(beat.lease_s)).row
    if beat.progress is not None:
        told = compact(beat.progress.model_dump())
        tx.run("UPDATE task_body SET progress = ? WHERE seq = ?", told, row.seq)
        tx.run(
            "UPDATE run SET progress = ? WHERE task = ? AND attempt = ?", told, row.seq, row.attempt
        )
        tx.event("task.progress", row, progress=beat.progress.model_dump())
    return Renewed(row.id, held=True, state=row.state, expires_at=row.expires_at)
