"""Leases: who holds a task, by which token, and for how long."""

from __future__ import annotations

import heapq
import json
from collections.abc import Sequence

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
    fitting = [
        found.id
        for found in map(
            lambda i: tx.classes.get(tx.connection, i), _ready_classes(tx, offer.groups)
        )
        if found.fits(offer.capabilities, offer.roles)
        and tx.by.sees(owner=found.owner, labels=found.labels)
    ]
    rows = _first_ready(tx, fitting, offer)
    if not rows:
        return _why_none(tx, offer)
    taken = tuple(_take(tx, row, offer) for row in rows)
    tx.audit(taken[0][0].task_id + (f" and {len(taken) - 1} more" if len(taken) > 1 else ""))
    return Claimed(Verdict.CLAIMED, taken)


def open_due(tx: Tx) -> int:
    """Tasks whose time has come. How many there were."""
    due = tx.tasks("state = 'blocked' AND not_before <= ? ORDER BY not_before", tx.now)
    opened = 0
    for row in due:
        step = tx.apply(row, t.Open())
        if step.event is None:
            # Its time came before its dependencies: from now on only these are in the way.
            tx.run("UPDATE task SET not_before = NULL WHERE seq = ?", row.seq)
        else:
            opened += 1
    return opened


def _declared(tx: Tx, offer: Offer) -> tuple[Offer, bool]:
    """The offer with what the worker registered with, and whether it was told to take no more."""
    found = tx.one("SELECT capabilities, roles, draining FROM worker WHERE name = ?", offer.worker)
    if found is None:
        return offer, False
    tx.run("UPDATE worker SET seen_at = ?, lost = 0 WHERE name = ?", tx.now, offer.worker)
    return Offer(
        worker=offer.worker,
        capabilities=offer.capabilities | frozenset(json.loads(found[0])),
        roles=offer.roles | frozenset(json.loads(found[1])),
        groups=offer.groups,
        count=offer.count,
        lease_s=offer.lease_s,
    ), bool(found[2])


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


def _first_ready(tx: Tx, classes: Sequence[int], offer: Offer) -> list[TaskRow]:
    order = "ORDER BY priority DESC, seq LIMIT ?"
    if offer.groups:
        heads = [
            tx.all(
                f"{SELECT_TASK} WHERE state = 'ready' AND grp = ? AND class_id = ? {order}",
                group,
                class_id,
                offer.count,
            )
            for group in offer.groups
            for class_id in classes
        ]
    else:
        heads = [
            tx.all(
                f"{SELECT_TASK} WHERE state = 'ready' AND class_id = ? {order}",
                class_id,
                offer.count,
            )
            for class_id in classes
        ]
    rows = [task_row(row) for head in heads for row in head]
    return heapq.nsmallest(offer.count, rows, key=lambda row: (-row.priority, row.seq))


def _take(tx: Tx, row: TaskRow, offer: Offer) -> tuple[Task, Lease]:
    step = tx.apply(row, t.Claim(offer.worker, tx.by.name, offer.lease_s))
    taken = step.row
    tx.run(
        "INSERT INTO run (task, attempt, worker, holder, state, started_at)"
        " VALUES (?, ?, ?, ?, 'running', ?)",
        taken.seq,
        taken.attempt,
        offer.worker,
        tx.by.name,
        tx.now,
    )
    tx.run("UPDATE task_body SET progress = NULL WHERE seq = ? AND progress IS NOT NULL", taken.seq)
    task = whole_task(tx.connection, tx.classes, taken)
    return task, Lease(
        token=taken.attempt, worker=offer.worker, expires_at=moment(taken.expires_at or tx.now)
    )


# Why there is nothing to claim


def _why_none(tx: Tx, offer: Offer) -> Claimed:
    where, values = _within(tx, offer.groups)
    if tx.one(f"SELECT 1 FROM task WHERE state = 'ready' AND {where} LIMIT 1", *values):
        return Claimed(Verdict.NO_MATCH)
    blocked = tx.one(f"SELECT 1 FROM task WHERE state = 'blocked' AND {where} LIMIT 1", *values)
    running = tx.one(f"SELECT 1 FROM task WHERE state = 'running' AND {where} LIMIT 1", *values)
    if running:
        return Claimed(Verdict.BLOCKED)
    if not blocked:
        return Claimed(Verdict.ALL_DONE)
    due = tx.one(
        "SELECT min(not_before) FROM task"
        f" WHERE state = 'blocked' AND not_before IS NOT NULL AND {where}",
        *values,
    )[0]
    if due is not None or _somebody_else_may_free(tx, where, values):
        return Claimed(Verdict.BLOCKED, due_at=due)
    rows = tx.tasks(f"state = 'blocked' AND {where} ORDER BY grp, seq LIMIT {_STUCK_TOLD}", *values)
    stuck = tuple(
        StuckTask(
            row.id,
            None if row.key == row.id else row.key,
            row.reason or "waits for a task that is stuck itself",
        )
        for row in sorted(rows, key=lambda row: row.reason is None)
    )
    return Claimed(Verdict.DEADLOCKED, stuck=stuck)


def _within(tx: Tx, groups: Sequence[str]) -> tuple[str, list[object]]:
    """The tasks a claim looks at, as a condition: its groups, and what the actor sees."""
    where, values = "1", list[object]()
    if groups:
        where += f" AND grp IN ({', '.join('?' * len(groups))})"
        values += groups
    visible = tx.classes.visible(tx.connection, tx.by)
    if visible is not None:
        where += f" AND class_id IN ({', '.join(map(str, visible)) or 'NULL'})"
    return where, values


def _somebody_else_may_free(tx: Tx, where: str, values: Sequence[object]) -> bool:
    """Whether a blocked task waits for one outside this claim's view that can still finish."""
    found = tx.one(
        "SELECT 1 FROM edge JOIN task AS up ON up.seq = edge.upstream"
        " WHERE edge.state = 'open' AND (up.state IN ('ready', 'running')"
        "   OR (up.state = 'blocked' AND up.not_before IS NOT NULL))"
        f" AND edge.dependent IN (SELECT seq FROM task WHERE state = 'blocked' AND {where}) LIMIT 1",
        *values,
    )
    return found is not None


def renew(tx: Tx, beats: Sequence[Beat]) -> list[Renewed]:
    """Raises: NotFound."""
    renewed = [_renew(tx, beat) for beat in beats]
    for worker in {beat.ref.worker for beat in beats}:
        tx.run("UPDATE worker SET seen_at = ?, lost = 0 WHERE name = ?", tx.now, worker)
    return renewed


def _renew(tx: Tx, beat: Beat) -> Renewed:
    row = tx.need(beat.ref.address)
    if not holds(tx, row, beat.ref):
        return Renewed(row.id, held=False, state=row.state, expires_at=None)
    if row.expires_at is not None and row.deadline is not None and row.deadline <= tx.now:
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
