"""The store's file: how it is opened, and what must hold of it."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from microvm_orchestrator import errors

# Only our own backup and a curious reader share the file; they are done quickly.
_BUSY_MS = 10_000


def connect(path: Path) -> sqlite3.Connection:
    """Raises: StoreReadOnly, StoreFull, or what SQLite raises."""
    if not path.exists():
        _create(path)
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=512
    )
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
    return connection


def _create(path: Path) -> None:
    try:
        # A store holds secrets of webhooks; nobody but its owner reads it.
        path.touch(mode=0o600)
    except OSError as error:
        kind = errors.StoreFull if error.errno == errno.ENOSPC else errors.StoreReadOnly
        raise kind(
            f"cannot create {path}: {error.strerror}",
            hint="check the owner and the mode of the state directory, and its disk",
        ) from error


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def refuse_damaged(connection: sqlite3.Connection) -> None:
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise errors.StoreCorrupt(f"the copy is damaged: {found}")


# What must hold of every store at every moment, as questions whose right answer is "none".
_INVARIANTS = {
    "tasks whose gates_left is not the number of their closed gates": (
        "SELECT id FROM task WHERE gates_left <> (SELECT count(*) FROM gate"
        " WHERE gate.task = task.seq AND met < need)"
    ),
    "ready or running tasks that wait for something": (
        "SELECT id FROM task WHERE state IN ('ready', 'running')"
        " AND (gates_left > 0 OR not_before IS NOT NULL)"
    ),
    "blocked tasks that wait for nothing": (
        "SELECT id FROM task WHERE state = 'blocked' AND gates_left = 0 AND not_before IS NULL"
    ),
    "gates that miscount their edges": (
        "SELECT task FROM gate WHERE total <> (SELECT count(*) FROM edge WHERE dependent = task"
        " AND edge.gate = number) OR met <> (SELECT count(*) FROM edge WHERE dependent = task"
        " AND edge.gate = number AND state = 'met') OR missed <> (SELECT count(*) FROM edge"
        " WHERE dependent = task AND edge.gate = number AND state = 'missed')"
    ),
    "running tasks without a running attempt": (
        "SELECT id FROM task WHERE state = 'running' AND NOT EXISTS (SELECT 1 FROM run"
        " WHERE run.task = task.seq AND run.attempt = task.attempt AND run.state = 'running')"
    ),
    "attempts that run though their task does not": (
        "SELECT id FROM task JOIN run ON run.task = task.seq WHERE run.state = 'running'"
        " AND (task.state <> 'running' OR run.attempt <> task.attempt)"
    ),
    "open edges from finished tasks to unfinished ones": (
        "SELECT task.id FROM task JOIN edge ON edge.upstream = task.seq"
        " JOIN task AS low ON low.seq = edge.dependent WHERE edge.state = 'open'"
        " AND task.state IN ('done', 'failed', 'cancelled')"
    ),
    "gaps in the journal": (
        "SELECT max(seq) FROM event HAVING max(seq) - min(seq) + 1 <> count(*)"
    ),
}


def problems_of(connection: sqlite3.Connection) -> list[str]:
    problems = [
        f"integrity: {row[0]}"
        for row in connection.execute("PRAGMA integrity_check(10)")
        if row[0] != "ok"
    ]
    problems += [
        f"reference: {row[0]} row {row[1]} names a missing {row[2]}"
        for row in connection.execute("PRAGMA foreign_key_check").fetchmany(10)
    ]
    for what, question in _INVARIANTS.items():
        rows = connection.execute(question).fetchmany(5)
        if rows:
            problems.append(f"{what}: {', '.join(str(row[0]) for row in rows)}")
    return problems
