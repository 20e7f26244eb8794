"""Reading the journal: cursors that say nothing to whoever carries them, and filters."""

from __future__ import annotations

import base64
import binascii
import json
import sqlite3
from typing import Any

from microvm_orchestrator import errors
from microvm_orchestrator.model.event import Event
from microvm_orchestrator.model.records import Actor
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.store.base import Events, Match
from microvm_orchestrator.store.rows import Classes

# How far one read looks for events that match a filter before it hands back where it got to.
_SCAN_MAX = 20_000


def write_cursor(epoch: str, seq: int) -> str:
    return base64.urlsafe_b64encode(f"{epoch}.{seq}".encode()).decode().rstrip("=")


def read_cursor(epoch: str, cursor: str) -> int:
    """Raises: CursorInvalid, CursorExpired when the store was put back from a backup since."""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
        made_in, _, number = text.partition(".")
        seq = int(number)
    except (binascii.Error, ValueError):
        seq, made_in = -1, ""
    if seq < 0 or not made_in:
        raise errors.CursorInvalid(
            f"{cursor[:60]!r} is no cursor of this journal",
            hint="use a cursor as it was given, or none to begin anew",
        )
    if made_in != epoch:
        raise errors.CursorExpired(
            "the store was put back from a backup since this cursor was made",
            hint="begin anew without a cursor",
        )
    return seq


def epoch_of(connection: sqlite3.Connection) -> str:
    return connection.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()[0]


def ends_of(connection: sqlite3.Connection) -> tuple[int, int]:
    """The numbers of the first and the last event that are kept; 1 and 0 when there is none."""
    # Each by itself is a glance at the index; asked for together they are a walk over the table.
    return connection.execute(
        "SELECT coalesce((SELECT min(seq) FROM event), 1),"
        " coalesce((SELECT max(seq) FROM event), 0)"
    ).fetchone()


def end_of(connection: sqlite3.Connection) -> int:
    return ends_of(connection)[1]


def read_events(
    connection: sqlite3.Connection,
    classes: Classes,
    after: str | None,
    match: Match,
    limit: int,
    by: Actor,
) -> Events:
    """Raises: CursorInvalid, CursorExpired."""
    epoch = epoch_of(connection)
    first, last = ends_of(connection)
    seq = first - 1 if after is None else read_cursor(epoch, after)
    if seq > last:
        raise errors.CursorInvalid("the cursor lies behind the end of the journal")
    if seq < first - 1:
        raise errors.CursorExpired(
            f"events {seq + 1} to {first - 1} are past their retention",
            hint="begin anew without a cursor; task_list tells how things stand",
        )
    if match.subjects:
        rows = _of_subjects(connection, match, seq, limit)
        scanned_to = rows[-1][0] if len(rows) > limit else last
    else:
        rows, scanned_to = _scan(connection, match, seq, last, limit)
    events = [event for row in rows[:limit] if (event := _seen(connection, classes, row, by))]
    more = len(rows) > limit or scanned_to < last
    reached = rows[limit - 1][0] if len(rows) > limit else scanned_to
    return Events(tuple(events), write_cursor(epoch, reached), more)


def _seen(
    connection: sqlite3.Connection, classes: Classes, row: tuple[Any, ...], by: Actor
) -> Event | None:
    """The event of a task or of what has an owner is seen by who sees that.

    Any other is seen by who sees all, or did it.
    """
    class_id, actor = row[5], row[6]
    if class_id is None:
        seen = by.scope.everything or actor == by.name
    else:
        seen = classes.sees(connection, class_id, by)
    return _event(row) if seen else None


_SELECT = "SELECT seq, at, kind, subject, grp, class_id, actor, body FROM event"


def _of_subjects(
    connection: sqlite3.Connection, match: Match, after: int, limit: int
) -> list[tuple[Any, ...]]:
    """The history of a few things, by the index instead of the whole journal."""
    where, values = _filter(match)
    return connection.execute(
        f"{_SELECT} WHERE {where} AND seq > ? ORDER BY seq LIMIT ?", (*values, after, limit + 1)
    ).fetchall()


def _scan(
    connection: sqlite3.Connection, match: Match, after: int, last: int, limit: int
) -> tuple[list[tuple[Any, ...]], int]:
    where, values = _filter(match)
    through = min(last, after + _SCAN_MAX)
    rows = connection.execute(
        f"{_SELECT} WHERE seq > ? AND seq <= ? AND {where} ORDER BY seq LIMIT ?",
        (after, through, *values, limit + 1),
    ).fetchall()
    return rows, through


def _filter(match: Match) -> tuple[str, list[object]]:
    parts: list[str] = ["1"]
    values: list[object] = []
    if match.kinds:
        tests: list[str] = []
        for kind in match.kinds:
            if kind.endswith(".*"):
                tests.append("(kind >= ? AND kind < ?)")
                # "/" is the letter after "."
                values += [kind[:-1], kind[:-2] + "/"]
            else:
                tests.append("kind = ?")
                values.append(kind)
        parts.append(f"({' OR '.join(tests)})")
    for column, wanted in (("grp", match.groups), ("subject", match.subjects)):
        if wanted:
            parts.append(f"{column} IN ({', '.join('?' * len(wanted))})")
            values += wanted
    return " AND ".join(parts), values


def _event(row: tuple[Any, ...]) -> Event:
    seq, at, kind, subject, group, _, actor, body = row
    return Event.model_construct(
        seq=seq,
        at=moment(at),
        kind=kind,
        subject=subject,
        group=group,
        actor=actor,
        body=json.loads(body),
    )
