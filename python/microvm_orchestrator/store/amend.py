"""Changes that are asked for from outside: cancel, retry, reprioritise, rewire, delete."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from microvm_orchestrator import errors
from microvm_orchestrator.model import transition as t
from microvm_orchestrator.model.task import FINISHED, GroupedSpec, TaskState
from microvm_orchestrator.model.transition import UNMET, TaskRow, read_policy
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
from microvm_orchestrator.store.read import read_run, run_told
from microvm_orchestrator.store.rows import Tx, compact
from microvm_orchestrator.store.settle import ripple
from microvm_orchestrator.store.submit import (
    PlannedGate,
    class_of,
    due,
    gates_told,
    give_up_unmeetable,
    lineage,
    plan_gates,
    policy_of,
    refuse_ring,
    write_gates,
    write_labels,
)
from microvm_orchestrator.store.view import no_group, view_of

_NAMES_TOLD = 20


def amend(tx: Tx, which: Address | InGroup, change: Change) -> Amended:
    """Raises: NotFound, StateForbids, HasDependents, CycleFound, VersionMoved."""
    # Its id, not its key, which another may have one day; and before it may be gone.
    target = tx.need(which).id if isinstance(which, Address) else f"group {which.group}"
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
            if change.rehearsed:
                return Amended(tuple(changed))
    tx.audit(target)
    return Amended(tuple(changed))


_UNFINISHED = ("blocked", "ready", "running")
_UNLUCKY = ("failed", "cancelled")


def _single(tx: Tx, which: Address | InGroup) -> TaskRow:
    if isinstance(which, InGroup):
        raise errors.InvalidInput("this change is made to one task at a time")
    return tx.need(which)


def _chosen(tx: Tx, which: Address | InGroup, states: tuple[str, ...]) -> list[TaskRow]:
    """The task named, whatever its state, or those of a group that are in one of the states."""
    if isinstance(which, Address):
        return [tx.need(which)]
    view = view_of(tx, [which.group])
    if tx.one(f"SELECT 1 FROM task WHERE {view.where} LIMIT 1", *view.values) is None:
        raise no_group(which.group)
    rows = tx.tasks(
        f"{view.where} AND state IN ({', '.join('?' * len(states))}) ORDER BY seq",
        *view.values,
        *states,
    )
    return [row for row in rows if _labelled(tx, row, which)]


def _labelled(tx: Tx, row: TaskRow, which: InGroup) -> bool:
    return all(
        tx.one("SELECT 1 FROM label WHERE key = ? AND value = ? AND task = ?", key, value, row.seq)
        for key, value in which.labels
    )


# Cancel


def _cancel(tx: Tx, which: Address | InGroup, change: CancelTasks) -> list[str]:
    rows = {row.seq: row for row in _chosen(tx, which, _UNFINISHED)}
    if change.cascade:
        below = [tx.get(seq) for first in list(rows) for seq in tx.downstream(first)]
        rows |= {row.seq: row for row in below if row.state not in FINISHED and tx.sees(row)}
    # First all of them, then what follows: none of them is to be opened or given up by another.
    cancelled = [tx.apply(row, t.Cancel(change.reason or "cancelled")).row for row in rows.values()]
    for row in cancelled:
        ripple(tx, row)
    return [row.id for row in cancelled]


# Retry


def _retry(tx: Tx, which: Address | InGroup, change: RetryTasks) -> list[str]:
    rows = _chosen(tx, which, _UNLUCKY)
    if change.upstream:
        rows = [row for first in rows for row in _unlucky_above(tx, first)] + rows
    wanted = {row.seq for row in rows}
    changed: list[str] = []
    for seq in [row.seq for row in rows]:
        row = tx.get(seq)
        # One that waits for another of them comes back together with that one.
        if row.state.value in _UNLUCKY and not _unmeetable_gates(tx, row):
            changed += again(tx, row, wanted)
    if isinstance(which, Address):
        _refuse_vain_retry(tx, tx.get(rows[-1].seq), changed)
    return changed


def _refuse_vain_retry(tx: Tx, row: TaskRow, changed: Sequence[str]) -> None:
    if row.state.value in _UNLUCKY:
        raise errors.StateForbids(
            f"task {row.id} cannot be retried alone: its dependencies cannot be met",
            hint="retry what it depends on, or ask for upstream",
        )
    if not changed:
        # Refused by the rule that says which states may be retried.
        tx.apply(row, t.Again())


def _unlucky_above(tx: Tx, row: TaskRow) -> list[TaskRow]:
    found: dict[int, TaskRow] = {}
    layer = [row.seq]
    while layer:
        above = [tx.get(seq) for low in layer for seq in tx.upstreams(low) if seq not in found]
        fresh = {up.seq: up for up in above if up.state is not TaskState.DONE}
        found |= fresh
        layer = list(fresh)
    return [up for up in found.values() if up.state.value in _UNLUCKY and tx.sees(up)][::-1]


def again(tx: Tx, row: TaskRow, wanted: Collection[int] = ()) -> list[str]:
    """Try a task anew, and with it what was given up because of it or is wanted, too.

    Ids of all of these that the actor sees.
    """
    changed: list[str] = []
    revived = deque([row.seq])
    while revived:
        task = tx.get(revived.popleft())
        if task.state.value not in _UNLUCKY:
            # It came by two ways.
            continue
        task = tx.apply(task, t.Again()).row
        if tx.sees(task):
            changed.append(task.id)
        for dependent, number, state in tx.all(
            "SELECT dependent, gate, state FROM edge WHERE upstream = ? AND state <> 'open'",
            task.seq,
        ):
            lower = tx.get(dependent)
            if lower.state in {TaskState.RUNNING, TaskState.DONE}:
                # It went by what was true when it was claimed.
                continue
            lower = _reopen_edge(tx, task, lower, number, was_met=state == "met")
            given_up = (lower.reason or "").startswith(UNMET)
            back = lower.state.value in _UNLUCKY and (given_up or lower.seq in wanted)
            # Not while another of its dependencies still cannot be met.
            if back and not _unmeetable_gates(tx, lower):
                revived.append(lower.seq)
    return changed


def _reopen_edge(tx: Tx, upstream: TaskRow, row: TaskRow, number: int, *, was_met: bool) -> TaskRow:
    tx.run(
        "UPDATE edge SET state = 'open' WHERE upstream = ? AND dependent = ? AND gate = ?",
        upstream.seq,
        row.seq,
        number,
    )
    gate = tx.gate(row.seq, number)
    was_open, was_unmeetable = gate.open, gate.unmeetable
    gate.met -= was_met
    gate.missed -= not was_met
    tx.save_gate(gate)
    if was_open and not gate.open:
        row = tx.save(row, row._replace(gates_left=row.gates_left + 1))
        return tx.apply(row, t.Shut()).row
    if row.state is TaskState.BLOCKED and was_unmeetable and not gate.unmeetable:
        row = tx.save(row, row._replace(reason=None))
        # Another gate may have missed too; then that is the reason now.
        return give_up_unmeetable(tx, row)
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
    body = json.loads(tx.one("SELECT spec FROM task_body WHERE seq = ?", row.seq)[0])
    spec = _changed_spec(row, body, change)
    new = row._replace(
        priority=priority_number(spec.priority),
        lease_s=row.lease_s if spec.lease_s is None else spec.lease_s,
        timeout_s=spec.timeout_s,
        on_unmet=spec.on_unmet,
        policy=policy_of(spec),
        not_before=due(spec, tx.now) if "not_before" in change.fields else row.not_before,
        class_id=class_of(tx, spec, _owner(tx, row), change.visibility_labels),
    )
    if "depends_on" in change.fields:
        gates = _rewire(tx, row, spec)
        refuse_ring(tx, [row.seq], {row.seq})
        left = tx.one("SELECT count(*) FROM gate WHERE task = ? AND met < need", row.seq)[0]
        new = new._replace(gates_left=left, reason=None)
        body["depends_on"] = gates_told(gates)
    body |= {name: getattr(spec, name) for name in _BODY_FIELDS}
    body["run"] = run_told(spec)
    tx.run("UPDATE task_body SET spec = ? WHERE seq = ?", compact(body), row.seq)
    if "labels" in change.fields:
        tx.run("DELETE FROM label WHERE task = ?", row.seq)
        write_labels(tx, row.seq, spec.labels)
    new = tx.touch(row) if new == row else tx.save(row, new)
    tx.event("task.updated", new, fields=[*sorted(change.fields)])
    waits = new.gates_left > 0 or new.not_before is not None
    new = tx.apply(new, t.Shut() if waits else t.Open()).row
    if not change.fields.isdisjoint({"depends_on", "on_unmet"}):
        give_up_unmeetable(tx, new)
    return row.id


_BODY_FIELDS = ("title", "description", "input", "labels", "capabilities", "role")


def _changed_spec(row: TaskRow, body: Mapping[str, Any], change: UpdateTask) -> GroupedSpec:
    """What the task asks for now: the fields that are named anew, the others as they were."""
    policy = read_policy(row.policy)
    before: dict[str, Any] = {name: body[name] for name in _BODY_FIELDS} | {
        "run": read_run(body),
        "priority": row.priority,
        "lease_s": row.lease_s,
        "timeout_s": row.timeout_s,
        "on_unmet": row.on_unmet,
        "retry": policy.retry,
        "on_expiry": policy.on_expiry,
        "max_expiries": policy.max_expiries,
    }
    kept = {name: value for name, value in before.items() if name not in change.fields}
    if "lease_s" in change.fields:
        kept["lease_s"] = change.lease_s
    return change.spec.model_copy(update={**kept, "group": row.grp})


def _owner(tx: Tx, row: TaskRow) -> str:
    return tx.classes.get(tx.connection, row.class_id).owner


def _rewire(tx: Tx, row: TaskRow, spec: GroupedSpec) -> list[PlannedGate]:
    """Replace the gates the task asked for itself; what others put before it stays."""
    gates = plan_gates(tx, spec, {}, own_id=row.id, kin=lineage(tx, row.parent))
    tx.run(
        "DELETE FROM gate WHERE task = ?1 AND number IN"
        " (SELECT gate FROM edge WHERE dependent = ?1 AND origin <> 'before')",
        row.seq,
    )
    tx.run("DELETE FROM edge WHERE dependent = ? AND origin <> 'before'", row.seq)
    first = tx.one("SELECT coalesce(max(number), -1) + 1 FROM gate WHERE task = ?", row.seq)[0]
    write_gates(tx, row.seq, gates, first)
    return gates


# Delete


def _delete(tx: Tx, row: TaskRow, change: DeleteTask) -> list[str]:
    below = [tx.get(seq) for seq in tx.downstream(row.seq)]
    unseen = sum(not tx.sees(task) for task in below)
    if unseen or (below and not change.cascade):
        raise _has_dependents(row, [task.key for task in below if tx.sees(task)], unseen)
    doomed = [row, *below]
    for task in doomed:
        if task.state is TaskState.RUNNING:
            raise errors.StateForbids(
                f"cannot delete task {task.id}: it is running", hint="cancel it first"
            )
    for task in () if change.rehearsed else reversed(doomed):
        tx.event("task.deleted", task)
        drop_task(tx, task.seq)
    return [task.id for task in doomed]


def _has_dependents(row: TaskRow, names: Sequence[str], unseen: int) -> errors.HasDependents:
    told = list(names[:_NAMES_TOLD])
    if len(names) > _NAMES_TOLD:
        told.append(f"{len(names) - _NAMES_TOLD} more")
    if unseen:
        told.append(f"{unseen} that you cannot see")
    return errors.HasDependents(
        f"cannot delete task {row.key} as it has dependent tasks: {', '.join(told)}",
        hint="their owners have to delete theirs" if unseen else "delete these, or ask for cascade",
    )


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
