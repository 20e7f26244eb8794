"""Bring a store's schema up to this release: numbered steps, forward only."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from microvm_orchestrator import errors


@dataclass(frozen=True, slots=True)
class Migration:
    number: int
    name: str
    sql: str


@cache
def migrations() -> tuple[Migration, ...]:
    """The steps in order, from the `.sql` files beside this module."""
    folder = resources.files("microvm_orchestrator.store") / "migrations"
    found = (
        Migration(int(match[1]), match[2], file.read_text(encoding="utf-8"))
        for file in folder.iterdir()
        if (match := re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name))
    )
    return tuple(sorted(found, key=lambda migration: migration.number))


def schema_version(connection: sqlite3.Connection) -> int:
    return connection.execute("PRAGMA user_version").fetchone()[0]


def migrate(connection: sqlite3.Connection, steps: Sequence[Migration] | None = None) -> None:
    """Each missing step and its number commit together; the steps are those of this release.

    Raises: SchemaTooNew when a newer release wrote the store.
    """
    have = schema_version(connection)
    steps = migrations() if steps is None else steps
    newest = steps[-1].number
    if have > newest:
        raise errors.SchemaTooNew(
            f"the store has schema {have}, and this release knows up to {newest}",
            hint="install the release that wrote it, or a later one; schemas go forward only",
        )
    for migration in steps:
        if migration.number > have:
            connection.execute("BEGIN EXCLUSIVE")
            try:
                for statement in _statements(migration.sql):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {migration.number}")
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise


def _statements(script: str) -> list[str]:
    statements: list[str] = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    if pending.strip():
        raise AssertionError(f"a migration ends within a statement: {pending[:80]!r}")
    return statements
