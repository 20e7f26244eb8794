"""Groups as wholes: how many of their tasks stand where, and what that makes of the group.

Counting reads each task of the group once, by the index on group and key; so it runs in the lane of
the slow questions.
"""

from __future__ import annotations

from microvm_orchestrator.model.report import GroupStatus, StateCounts
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.store.lists import page, page_place
from microvm_orchestrator.store.questions import GroupList, OneGroup, Page
from microvm_orchestrator.store.read import moment_or_none
from microvm_orchestrator.store.rows import Tx
from microvm_orchestrator.store.view import (
    freed_from_elsewhere,
    next_due,
    no_group,
    view_of,
    visible,
)


def group_list(tx: Tx, question: GroupList) -> Page[GroupStatus]:
    after = page_place(question.cursor, "")
    seen = visible(tx, "class_id")
    # From name to name by the index on group and key, not over all tasks.
    rows = tx.all(
        "WITH RECURSIVE met (name) AS ("
        " SELECT min(grp) FROM task WHERE grp > ?"
        " UNION ALL SELECT (SELECT min(grp) FROM task WHERE grp > met.name)"
        "  FROM met WHERE met.name IS NOT NULL)"
        " SELECT name FROM met WHERE name IS NOT NULL"
        f" AND EXISTS (SELECT 1 FROM task WHERE grp = met.name{seen}) LIMIT ?",
        after,
        question.limit + 1,
    )
    return page(rows, question.limit, lambda row: _status(tx, row[0]), lambda row: row[0])


def one_group(tx: Tx, question: OneGroup) -> GroupStatus:
    """Raises: NotFound."""
    return _status(tx, question.group)


def _status(tx: Tx, group: str) -> GroupStatus:
    view = view_of(tx, [group])
    rows = tx.all(
        # A task that is tried again forgets when it started; its first attempt knows.
        "SELECT state, count(*), min(created_at), max(finished_at), min(CASE WHEN attempt > 0 THEN"
        " (SELECT run.started_at FROM run WHERE run.task = task.seq ORDER BY attempt LIMIT 1) END)"
        f" FROM task WHERE {view.where} GROUP BY state",
        *view.values,
    )
    if not rows:
        raise no_group(group)
    counts = StateCounts(**{state: count for state, count, *_ in rows})
    total = sum(row[1] for row in rows)
    finished = counts.done + counts.failed + counts.cancelled == total
    return GroupStatus(
        group=group,
        state=_state(tx, group, counts),
        counts=counts,
        total=total,
        fraction_done=counts.done / total,
        created_at=moment(min(row[2] for row in rows)),
        started_at=moment_or_none(
            min((row[4] for row in rows if row[4] is not None), default=None)
        ),
        finished_at=moment_or_none(max(row[3] for row in rows) if finished else None),
    )


def _state(tx: Tx, group: str, counts: StateCounts) -> str:
    if counts.running:
        return "running"
    if counts.ready:
        return "waiting"
    if counts.blocked:
        view = view_of(tx, [group])
        moves = next_due(tx, view) is not None or freed_from_elsewhere(tx, view)
        return "blocked" if moves else "deadlocked"
    if counts.failed:
        return "failed"
    return "cancelled" if counts.cancelled else "done"
