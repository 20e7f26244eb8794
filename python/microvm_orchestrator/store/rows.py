"""A transaction as the verbs see it: tasks, gates, runs, events and audit rows, loaded and written.

Knows tables and columns, decides nothing. One `Tx` serves one verb; the `Classes` it interns
requirements with outlive it and are thrown away whenever something is rolled back.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.model.names import DEFAULT_GROUP, is_task_id
from microvm_orchestrator.model.records import Actor
from microvm_orchestrator.model.run import IN_A_MACHINE
from microvm_orchestrator.model.task import RunState, TaskState, Unmet
from microvm_orchestrator.model.transition import Step, TaskRow, Verb, transition
from microvm_orchestrator.store.base import Address

COLUMNS = TaskRow._fields
_SELECT = ", ".join(f"task.{name}" for name in COLUMNS)
SELECT_TASK = f"SELECT {_SELECT} FROM task"
_INSERT_TASK = f"INSERT INTO task ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"


def digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


# Made once: `json.dumps` with options makes an encoder for every call.
compact = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def task_row(values: Sequence[Any]) -> TaskRow:
    """A row selected with SELECT_TASK."""
    row = list(values)
    row[_STATE] = _STATES[row[_STATE]]
    row[_ON_UNMET] = _UNMETS[row[_ON_UNMET]]
    return TaskRow._make(row)


_STATES = {state.value: state for state in TaskState}
_UNMETS = {unmet.value: unmet for unmet in Unmet}
_STATE = COLUMNS.index("state")
_ON_UNMET = COLUMNS.index("on_unmet")


@dataclass(frozen=True, slots=True)
class TaskClass:
    """What a claimant must have, and who may see the task."""

    id: int
    owner: str
    capabilities: frozenset[str]
    role: str | None
    labels: dict[str, str]

    def fits(self, capabilities: frozenset[str], roles: frozenset[str]) -> bool:
        # Who runs tasks in machines takes no others: these are for workers.
        alike = (IN_A_MACHINE in self.capabilities) == (IN_A_MACHINE in capabilities)
        able = self.capabilities <= capabilities
        return alike and able and (self.role is None or self.role in roles)


class Classes:
    """The interned classes, as far as they have been met. Rows never change, so they are cached."""

    def __init__(self) -> None:
        self._by_id: dict[int, TaskClass] = {}
        self._by_signature: dict[str, int] = {}

    def forget(self) -> None:
        """After a rollback an id may belong to another class."""
        self._by_id.clear()
        self._by_signature.clear()

    def get(self, connection: sqlite3.Connection, class_id: int) -> TaskClass:
        if class_id not in self._by_id:
            row = connection.execute(
                "SELECT signature FROM class WHERE id = ?", (class_id,)
            ).fetchone()
            owner, capabilities, role, labels = json.loads(row[0])
            self._by_id[class_id] = TaskClass(
                class_id, owner, frozenset(capabilities), role, labels
            )
        return self._by_id[class_id]

    def intern(
        self,
        connection: sqlite3.Connection,
        *,
        owner: str,
        capabilities: Iterable[str],
        role: str | None,
        labels: dict[str, str],
    ) -> int:
        signature = compact([owner, sorted(set(capabilities)), role, dict(sorted(labels.items()))])
        if signature not in self._by_signature:
            connection.execute("INSERT OR IGNORE INTO class (signature) VALUES (?)", (signature,))
            found = connection.execute("SELECT id FROM class WHERE signature = ?", (signature,))
            self._by_signature[signature] = found.fetchone()[0]
        return self._by_signature[signature]

    def visible(self, connection: sqlite3.Connection, by: Actor) -> list[int] | None:
        """Ids of the classes an actor sees; None when it sees all."""
        if by.scope.everything:
            return None
        ids = [row[0] for row in connection.execute("SELECT id FROM class ORDER BY id")]
        return [class_id for class_id in ids if self.sees(connection, class_id, by)]

    def sees(self, connection: sqlite3.Connection, class_id: int, by: Actor) -> bool:
        if by.scope.everything:
            return True
        found = self.get(connection, class_id)
        return by.sees(owner=found.owner, labels=found.labels)


@dataclass(slots=True)
class GateRow:
    task: int
    number: int
    need: int
    total: int
    met: int
    missed: int

    @property
    def open(self) -> bool:
        return self.met >= self.need

    @property
    def unmeetable(self) -> bool:
        return self.total - self.missed < self.need


class Tx:
    """One verb's view of the store."""

    def __init__(
        self, connection: sqlite3.Connection, classes: Classes, now: float, by: Actor
    ) -> None:
        self.connection = connection
        self.classes = classes
        self.now = now
        self.by = by

    def one(self, sql: str, *values: object) -> Any:
        return self.connection.execute(sql, values).fetchone()

    def all(self, sql: str, *values: object) -> list[Any]:
        return self.connection.execute(sql, values).fetchall()

    def run(self, sql: str, *values: object) -> int:
        return self.connection.execute(sql, values).rowcount

    # Tasks

    def find(self, address: Address) -> TaskRow | None:
        """The task, if it exists where the actor can see it."""
        if is_task_id(address.ref):
            found = self.one(f"{SELECT_TASK} WHERE id = ?", address.ref)
        else:
            found = self.one(f"{SELECT_TASK} WHERE grp = ? AND key = ?", address.group, address.ref)
        if found is None:
            return None
        row = task_row(found)
        return row if self.sees(row) else None

    def sees(self, row: TaskRow) -> bool:
        """Whether the actor may know of the task: a graph may tie one's own to others."""
        return self.classes.sees(self.connection, row.class_id, self.by)

    def need(self, address: Address) -> TaskRow:
        """Raises: NotFound."""
        row = self.find(address)
        if row is None:
            raise errors.NotFound(
                f"no task {address.ref}"
                + (f" in group {address.group}" if address.group != DEFAULT_GROUP else ""),
                hint="task_list shows the tasks there are; a key also needs its group",
            )
        return row

    def find_by_id(self, task_id: str) -> TaskRow | None:
        found = self.one(f"{SELECT_TASK} WHERE id = ?", task_id)
        return None if found is None else task_row(found)

    def get(self, seq: int) -> TaskRow:
        return task_row(self.one(f"{SELECT_TASK} WHERE seq = ?", seq))

    def tasks(self, where: str, *values: object) -> list[TaskRow]:
        return [task_row(row) for row in self.all(f"{SELECT_TASK} WHERE {where}", *values)]

    def insert(self, row: TaskRow) -> None:
        self.connection.execute(_INSERT_TASK, row)

    def save(self, old: TaskRow, new: TaskRow) -> TaskRow:
        """Write what differs, and count the change."""
        if old == new:
            return new
        changed = {
            name: after
            for name, before, after in zip(COLUMNS, old, new, strict=True)
            if before != after
        }
        sets = ", ".join([f"{name} = ?" for name in changed])
        self.connection.execute(
            f"UPDATE task SET {sets}, version = version + 1 WHERE seq = ?",
            (*changed.values(), new.seq),
        )
        return new._replace(version=old.version + 1)

    def touch(self, row: TaskRow) -> TaskRow:
        """Count a change of what is kept beside the row."""
        self.run("UPDATE task SET version = version + 1 WHERE seq = ?", row.seq)
        return row._replace(version=row.version + 1)

    def apply(self, row: TaskRow, verb: Verb, **told: JsonValue) -> Step:
        """Let a verb happen to a task: state, attempt and event together."""
        step = transition(row, verb, self.now)
        step = step._replace(row=self.save(row, step.row))
        if step.run is not None and step.run is not RunState.RUNNING:
            self.run(
                "UPDATE run SET state = ?, finished_at = ? WHERE task = ? AND attempt = ?",
                step.run,
                self.now,
                row.seq,
                row.attempt,
            )
        if step.event is not None:
            self.event(step.event, step.row, was=row.state, **told)
        return step

    # Gates and edges

    def gate(self, task: int, number: int) -> GateRow:
        found = self.one(
            "SELECT task, number, need, total, met, missed FROM gate WHERE task = ? AND number = ?",
            task,
            number,
        )
        return GateRow(*found)

    def save_gate(self, gate: GateRow) -> None:
        self.run(
            "UPDATE gate SET met = ?, missed = ? WHERE task = ? AND number = ?",
            gate.met,
            gate.missed,
            gate.task,
            gate.number,
        )

    def dependents(self, seq: int) -> list[int]:
        return [
            row[0]
            for row in self.all("SELECT DISTINCT dependent FROM edge WHERE upstream = ?", seq)
        ]

    def upstreams(self, seq: int) -> list[int]:
        return [
            row[0]
            for row in self.all("SELECT DISTINCT upstream FROM edge WHERE dependent = ?", seq)
        ]

    def downstream(self, seq: int) -> Iterator[int]:
        """Everything that depends on a task, directly or not, nearest first."""
        seen, layer = {seq}, [seq]
        while layer:
            layer = [
                dependent
                for upstream in layer
                for dependent in self.dependents(upstream)
                if dependent not in seen and not seen.add(dependent)
            ]
            yield from layer

    def result(self, seq: int) -> JsonValue:
        found = self.one("SELECT result FROM task_body WHERE seq = ?", seq)[0]
        return None if found is None else json.loads(found)

    # The journal and the audit log

    def event(self, kind: str, row: TaskRow, /, **told: JsonValue) -> None:
        """Write down what happened to a task, with what a reader of the journal needs of it."""
        body: dict[str, JsonValue] = {"task_id": row.id, "state": row.state}
        if row.key != row.id:
            body["key"] = row.key
        if row.attempt:
            body["attempt"] = row.attempt
        if row.worker is not None:
            body["worker"] = row.worker
        if row.reason is not None:
            body["reason"] = row.reason
        body.update(told)
        self.connection.execute(
            "INSERT INTO event (at, kind, subject, grp, class_id, actor, body)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (self.now, kind, row.id, row.grp, row.class_id, self.by.name, compact(body)),
        )

    def plain_event(self, kind: str, subject: str, /, **told: JsonValue) -> None:
        """Write down what happened to something that is no task."""
        self._event_of_class(None, kind, subject, told)

    def owned_event(self, owner: str, kind: str, subject: str, /, **told: JsonValue) -> None:
        """Write down what happened to something that belongs to somebody, who is to see it."""
        seen_by = self.classes.intern(
            self.connection, owner=owner, capabilities=(), role=None, labels={}
        )
        self._event_of_class(seen_by, kind, subject, told)

    def _event_of_class(
        self, class_id: int | None, kind: str, subject: str, told: dict[str, JsonValue]
    ) -> None:
        self.connection.execute(
            "INSERT INTO event (at, kind, subject, class_id, actor, body)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (self.now, kind, subject, class_id, self.by.name, compact(told)),
        )

    def audit(self, target: str, outcome: str = "ok") -> None:
        by = self.by
        self.connection.execute(
            "INSERT INTO audit (at, actor, role, via, action, target, outcome)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (self.now, by.name, by.role, by.via, by.action, target, outcome),
        )
