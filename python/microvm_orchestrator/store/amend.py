"""Changes that are asked for from outside: cancel, retry, reprioritise, rewire, delete."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

from microvm_orchestrator import errors
from microvm_orchestrator.model import transition as t
from microvm_orchestrator.model.task import FINISHED, TaskState
from microvm_orchestrator.model.transition import UNMET, TaskRow
from microvm_orchestrator.model.values import priority_number
from microvm_orchestrator.store.base import (
    Address,
    Amended,
    CancelTasks,
    Change,
    DeleteTask,
    InGroup,
    RetryTasks,
    SetPriority,
    UpdateTask,
)
from microvm_orchestrator.store.rows import Tx, compact
from microvm_orchestrator.store.settle import ripple
from microvm_orchestrator.store.submit import (
    PlannedGate,
    class_of,
    due,
    plan_gates,
    policy_of,
    refuse_ring,
    settle_unmeetable,
    spec_text,
    write_gates,
    write_labels,
)

_NAMES_TOLD = 20


def amend(tx: Tx, which: Address | InGroup, change: Change) -> Amended:
    """Raises: NotFound, StateForbids, HasDependents, CycleFound, VersionMoved."""
    match change:
        case CancelTasks():
            changed = _cancel(tx, which, change)
        case RetryTasks():
            changed = _retry(tx, which, change)
        case SetPriority(priority):
            changed = [_set_priority(tx, row, priority) for row in _chosen(tx, which, _UNFINISHED)]
        case UpdateTask():
            changed = [_update(tx, _single(tx, which), change)]
        case DeleteTask():
            changed = _delete(tx, _single(tx, which), change)
    tx.audit(_target(which))
    return Amended(tuple(changed))


_UNFINISHED = ("blocked", "ready", "running")
_UNLUCKY = ("failed", "cancelled")


def _target(which: Address | InGroup) -> str:
    return which.ref if isinstance(which, Address) else f"group {which.group}"


def _single(tx: Tx, which: Address | InGroup) -> TaskRow:
    if isinstance(which, InGroup):
        raise errors.InvalidInput("this change is made to one task at a time")
    return tx.need(which)


def _chosen(tx: Tx, which: Address | InGroup, states: tuple[str, ...]) -> list[TaskRow]:
    """The task named, whatever its state, or those of a group that are in one of the states."""
    if isinstance(which, Address):
        return [tx.need(which)]
    if tx.one("SELECT 1 FROM task WHERE grp = ? LIMIT 1", which.group) is None:
        raise errors.NotFound(
            f"no group {which.group}", hint="group_list shows the groups there are"
        )
    rows = tx.tasks(
        f"grp = ? AND state IN ({', '.join('?' * len(states))}) ORDER BY seq", which.group, *states
    )
    return [
        row
        for row in rows
        if tx.classes.sees(tx.connection, row.class_id, tx.by) and _labelled(tx, row, which)
    ]


def _labelled(tx: Tx, row: TaskRow, which: InGroup) -> bool:
    return all(
        tx.one("SELECT 1 FROM label WHERE key = ? AND value = ? AND task = ?", key, value, row.seq)
        for key, value in which.labels
    )


# Cancel


def _cancel(tx: Tx, which: Address | InGroup, change: CancelTasks) -> list[str]:
    rows = _chosen(tx, which, _UNFINISHED)
    if change.cascade:
        below = [tx.get(seq) for row in rows for seq in tx.downstream(row.seq)]
        rows += [row for row in below if row.state not in FINISHED]
    changed: list[str] = []
    for row in rows:
        now = tx.get(row.seq)
        if now.state in FINISHED and now.seq != rows[0].seq:
            # An earlier one of the list took it along.
            continue
        cancelled = tx.apply(now, t.Cancel(change.reason or "cancelled")).row
        changed.append(cancelled.id)
        ripple(tx, cancelled)
    return changed


# Retry


def _retry(tx: Tx, which: Address | InGroup, change: RetryTasks) -> list[str]:
    rows = _chosen(tx, which, _UNLUCKY)
    if change.upstream:
        rows = [row for first in rows for row in _unlucky_above(tx, first)] + rows
    if isinstance(which, Address) and not change.upstream:
        return again(tx, _retriable(tx, rows[0]))
    changed: list[str] = []
    for row in rows:
        now = tx.get(row.seq)
        # What was given up because of another comes back together with that one.
        if now.state.value in _UNLUCKY and not _unmeetable_gates(tx, now):
            changed += again(tx, now)
    return changed


def _retriable(tx: Tx, row: TaskRow) -> TaskRow:
    if row.state.value in _UNLUCKY and _unmeetable_gates(tx, row):
        raise errors.StateForbids(
            f"task {row.id} cannot be retried alone: {row.reason}",
            hint="retry what it depends on, or ask for upstream",
        )
    return row


def _unlucky_above(tx: Tx, row: TaskRow) -> list[TaskRow]:
    found: dict[int, TaskRow] = {}
    layer = [row.seq]
    while layer:
        above = [tx.get(seq) for low in layer for seq in tx.upstreams(low) if seq not in found]
        fresh = {up.seq: up for up in above if up.state is not TaskState.DONE}
        found |= fresh
        layer = list(fresh)
    return [up for up in list(found.values())[::-1] if up.state.value in _UNLUCKY]


def again(tx: Tx, row: TaskRow) -> list[str]:
    """Try a task anew, and with it what was given up because of it. Ids of all of these."""
    changed: list[str] = []
    reopened = deque([row])
    while reopened:
        task = reopened.popleft()
        revived = tx.apply(task, t.Again()).row
        changed.append(revived.id)
        for dependent, number, state in tx.all(
            "SELECT dependent, gate, state FROM edge WHERE upstream = ? AND state <> 'open'",
            task.seq,
        ):
            lower = tx.get(dependent)
            given_up = lower.state.value in _UNLUCKY and (lower.reason or "").startswith(UNMET)
            if lower.state in {TaskState.BLOCKED, TaskState.READY} or given_up:
                lower = _reopen_edge(tx, task, lower, number, was_met=state == "met")
                if given_up:
                    reopened.append(lower)
    return changed


def _reopen_edge(tx: Tx, upstream: TaskRow, row: TaskRow, number: int, *, was_met: bool) -> TaskRow:
    tx.run(
        "UPDATE edge SET state = 'open' WHERE upstream = ? AND dependent = ? AND gate = ?",
        upstream.seq,
        row.seq,
        number,
    )
    gate = tx.gate(row.seq, number)
    was_open = gate.open
    gate.met -= was_met
    gate.missed -= not was_met
    tx.save_gate(gate)
    if was_open and not gate.open:
        row = tx.save(row, row._replace(gates_left=row.gates_left + 1))
        return tx.apply(row, t.Shut()).row
    if row.state is TaskState.BLOCKED and not _unmeetable_gates(tx, row):
        return tx.save(row, row._replace(reason=None))
    return row


def _unmeetable_gates(tx: Tx, row: TaskRow) -> bool:
    return (
        tx.one("SELECT 1 FROM gate WHERE task = ? AND total - missed < need LIMIT 1", row.seq)
        is not None
    )


# Priority and the rest of what was asked for


def _set_priority(tx: Tx, row: TaskRow, priority: int) -> str:
    if row.state in FINISHED:
        raise errors.StateForbids(
            f"task {row.id} is {row.state}; its priority decides nothing any more"
        )
    row = tx.save(row, row._replace(priority=priority))
    tx.event("task.updated", row, fields=["priority"], priority=priority)
    return row.id


def _update(tx: Tx, row: TaskRow, change: UpdateTask) -> str:
    if row.state not in {TaskState.BLOCKED, TaskState.READY}:
        raise errors.StateForbids(
            f"cannot update task {row.id}: it is {row.state}",
            hint="a task can be changed only while nobody has claimed it",
        )
    if change.expect_version is not None and row.version != change.expect_version:
        raise errors.VersionMoved(
            f"task {row.id} is at version {row.version}, not {change.expect_version}",
            hint="read it again and decide anew",
        )
    spec = change.spec.model_copy(update={"group": row.grp})
    old = row
    row = row._replace(priority=priority_number(spec.priority),
        lease_s=change.lease_s or row.lease_s,
        timeout_s=spec.timeout_s,
        on_unmet=spec.on_unmet,
        policy=policy_of(spec),
        not_before=due(spec, tx.now) if "not_before" in change.fields else row.not_before,
        class_id=class_of(tx, spec, _owner(tx, row), change.visibility_labels),
    )
    gates: list[PlannedGate] = []
    if "depends_on" in change.fields:
        row, gates = _rewired(tx, row, change)
        refuse_ring(tx, row)
    else:
        row = _redue(tx, row)
    row = tx.save(old, row)
    _rewrite_body(tx, row, change)
    tx.event("task.updated", row, fields=sorted(change.fields))
    settle_unmeetable(tx, row, gates)
    return row.id


def _owner(tx: Tx, row: TaskRow) -> str:
    return tx.classes.get(tx.connection, row.class_id).owner


def _redue(tx: Tx, row: TaskRow) -> TaskRow:
    blocked = row.gates_left > 0 or row.not_before is not None
    if blocked is (row.state is TaskState.BLOCKED):
        return row
    state = TaskState.BLOCKED if blocked else TaskState.READY
    return row._replace(state=state, ready_at=None if blocked else tx.now)


def _rewired(tx: Tx, row: TaskRow, change: UpdateTask) -> tuple[TaskRow, list[PlannedGate]]:
    """Replace the gates the task asked for itself; what others put before it stays."""
    spec = change.spec.model_copy(update={"group": row.grp})
    gates = plan_gates(tx, spec, {}, own_id=row.id)
    tx.run(
        "DELETE FROM gate WHERE task = ?1 AND number IN"
        " (SELECT gate FROM edge WHERE dependent = ?1 AND origin <> 'before')",
        row.seq,
    )
    tx.run("DELETE FROM edge WHERE dependent = ? AND origin <> 'before'", row.seq)
    first = tx.one("SELECT coalesce(max(number), -1) + 1 FROM gate WHERE task = ?", row.seq)[0]
    write_gates(tx, row.seq, gates, first)
    left = tx.one("SELECT count(*) FROM gate WHERE task = ? AND met < need", row.seq)[0]
    stored = _stored_spec(tx, row)
    told = spec_text(spec, gates, stored["template"])
    tx.run("UPDATE task_body SET spec = ? WHERE seq = ?", told, row.seq)
    return _redue(tx, row._replace(gates_left=left, reason=None)), gates


def _stored_spec(tx: Tx, row: TaskRow) -> dict[str, Any]:
    return json.loads(tx.one("SELECT spec FROM task_body WHERE seq = ?", row.seq)[0])


def _rewrite_body(tx: Tx, row: TaskRow, change: UpdateTask) -> None:
    stored = _stored_spec(tx, row)
    spec = change.spec
    stored |= {
        "title": spec.title,
        "description": spec.description,
        "input": spec.input,
        "labels": spec.labels,
        "capabilities": spec.capabilities,
        "role": spec.role,
    }
    tx.run("UPDATE task_body SET spec = ? WHERE seq = ?", compact(stored), row.seq)
    if "labels" in change.fields:
        tx.run("DELETE FROM label WHERE task = ?", row.seq)
        write_labels(tx, row.seq, spec.labels)


# Delete


def _delete(tx: Tx, row: TaskRow, change: DeleteTask) -> list[str]:
    below = [tx.get(seq) for seq in tx.downstream(row.seq)]
    if below and not change.cascade:
        names = [tx.get(seq).key for seq in tx.dependents(row.seq)]
        more = f" and {len(names) - _NAMES_TOLD} more" if len(names) > _NAMES_TOLD else ""
        raise errors.HasDependents(
            f"cannot delete task {row.key} as it has dependent tasks: "
            f"{', '.join(names[:_NAMES_TOLD])}{more}",
            hint="delete these first, or ask for cascade",
        )
    doomed = [row, *below]
    for task in doomed:
        if task.state is TaskState.RUNNING:
            raise errors.StateForbids(
                f"cannot delete task {task.id}: it is running", hint="cancel it first"
            )
    for task in reversed(doomed):
        tx.event("task.deleted", task)
        drop_task(tx, task.seq)
    return [task.id for task in doomed]


def drop_task(tx: Tx, seq: int) -> None:
    """Remove a task nothing depends on, with all that belongs to it. Its events stay."""
    for table, column in (
        ("edge", "dependent"),
        ("gate", "task"),
        ("label", "task"),
        ("run", "task"),
        ("effect", "task"),
        ("task_body", "seq"),
        ("task", "seq"),
    ):
        tx.run(f"DELETE FROM {table} WHERE {column} = ?", seq)
    tx.run("UPDATE task SET parent = NULL WHERE parent = ?", seq)
