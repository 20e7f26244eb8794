"""The store's file: how it is opened, and what must hold of it."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from microvm_orchestrator import errors

# Only our own backup and a curious reader share the file; they are done quickly.
_BUSY_MS = 10_000


def connect(path: Path) -> sqlite3.Connection:
    """Raises: StoreReadOnly, StoreFull, StoreCorrupt, or what SQLite raises."""
    if not path.exists():
        _create(path)
    elif path.stat().st_size == 0:
        # SQLite takes it for a new store. Ours is never empty, so something has cut it off.
        raise _robbed(f"the store's file {path} is empty")
    return _open(path)


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=512
    )
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
    return connection


def _create(path: Path) -> None:
    """Make a store that holds nothing yet, in one step: it is there whole or not at all."""
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        raise _robbed(f"the store's file {path} is gone, and its log {log.name} is not")
    unfinished = path.with_name(f".{path.name}.new")
    try:
        unfinished.unlink(missing_ok=True)
        # A store holds secrets of webhooks; nobody but its owner reads it.
        unfinished.touch(mode=0o600)
        with contextlib.closing(_open(unfinished)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        unfinished.rename(path)
        sync(path.parent)
    except OSError as error:
        kind = errors.StoreFull if error.errno == errno.ENOSPC else errors.StoreReadOnly
        raise kind(
            f"cannot create {path}: {error.strerror}",
            hint="check the owner and the mode of the state directory, and its disk",
        ) from error


def _robbed(message: str) -> errors.StoreCorrupt:
    return errors.StoreCorrupt(
        message, hint="put a backup in its place, or move what is left of it away to begin anew"
    )


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
    """Say what is wrong; damage that stands in the way of a question is an answer, too."""
    problems: list[str] = []
    for what, ask in _QUESTIONS.items():
        try:
            found = ask(connection)
        except sqlite3.DatabaseError as error:
            found = [str(error)]
        if found:
            problems.append(f"{what}: {', '.join(found)}")
    return problems


def _integrity(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute("PRAGMA integrity_check(10)").fetchall()
    return [row[0] for row in rows if row[0] != "ok"]


def _references(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute("PRAGMA foreign_key_check").fetchmany(10)
    return [f"{row[0]} row {row[1]} names a missing {row[2]}" for row in rows]


def _subjects(question: str) -> Callable[[sqlite3.Connection], list[str]]:
    return lambda connection: [str(row[0]) for row in connection.execute(question).fetchmany(5)]


_QUESTIONS: dict[str, Callable[[sqlite3.Connection], list[str]]] = {
    "integrity": _integrity,
    "references": _references,
    **{what: _subjects(question) for what, question in _INVARIANTS.items()},
}


def count_of(connection: sqlite3.Connection, table: str) -> int | None:
    """Count the rows of a table; None where damage stands in the way."""
    try:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    except sqlite3.DatabaseError:
        return None
