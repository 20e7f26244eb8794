"""Which tasks a question is about, and whether those of them that wait can still move.

A view is what an actor sees of some groups. A claim asks of it why there is nothing to take, a
group's status whether it is deadlocked: the same question, answered here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from microvm_orchestrator import errors
from microvm_orchestrator.store.rows import Tx


@dataclass(frozen=True, slots=True)
class View:
    """A condition on rows of `task`, with its values."""

    where: str
    values: tuple[object, ...] = ()

    @property
    def whole(self) -> bool:
        return self.where == "1"


def view_of(tx: Tx, groups: Sequence[str] = ()) -> View:
    """The tasks of these groups (none named: of all) that the actor sees."""
    where, values = "1", tuple[object, ...]()
    if groups:
        where = f"task.grp IN ({', '.join('?' * len(groups))})"
        values = tuple(groups)
    return View(where + visible(tx, "task.class_id"), values)


def visible(tx: Tx, column: str) -> str:
    """What to add to a condition so that only what the actor sees passes."""
    classes = tx.classes.visible(tx.connection, tx.by)
    if classes is None:
        return ""
    return f" AND {column} IN ({', '.join(map(str, classes)) or 'NULL'})"


def no_group(group: str) -> errors.NotFound:
    return errors.NotFound(f"no group {group}", hint="group_list shows the groups there are")


def any_in(tx: Tx, view: View, state: str) -> bool:
    # The state is written out so that the partial index of that state serves.
    sql = f"SELECT 1 FROM task WHERE state = '{state}' AND {view.where} LIMIT 1"
    return tx.one(sql, *view.values) is not None


def next_due(tx: Tx, view: View) -> float | None:
    """When the first task falls due that waits for nothing but its time."""
    return tx.one(
        "SELECT min(not_before) FROM task WHERE state = 'blocked' AND not_before IS NOT NULL"
        f" AND gates_left = 0 AND {view.where}",
        *view.values,
    )[0]


def freed_from_elsewhere(tx: Tx, view: View) -> bool:
    """Whether a blocked task waits, however far up, for one that can still finish.

    To be asked of a view in which nothing runs, is ready or falls due: what is found is elsewhere.
    """
    if view.whole:
        return False
    found = tx.one(
        "WITH RECURSIVE above (seq) AS ("
        f" SELECT seq FROM task WHERE state = 'blocked' AND {view.where}"
        " UNION SELECT edge.upstream FROM above"
        "   JOIN edge ON edge.dependent = above.seq AND edge.state = 'open')"
        " SELECT 1 FROM above CROSS JOIN task ON task.seq = above.seq"
        " WHERE task.state IN ('ready', 'running')"
        "  OR (task.state = 'blocked' AND task.not_before IS NOT NULL AND task.gates_left = 0)"
        " LIMIT 1",
        *view.values,
    )
    return found is not None
