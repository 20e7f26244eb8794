"""A schema goes forward step by step, each whole or not at all."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.store.migrate import Migration, migrate, migrations, schema_version

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FIRST = Migration(1, "first", "CREATE TABLE t (i INTEGER);\nINSERT INTO t VALUES (1);")
SECOND = Migration(2, "second", "ALTER TABLE t ADD COLUMN v TEXT;\nUPDATE t SET v = 'kept;';")
THIRD = Migration(3, "third", "UPDATE t SET i = 2;\nINSERT INTO nowhere VALUES (1);")


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    path = tmp_path / "store.sqlite"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def test_the_steps_of_this_release_are_numbered_without_a_gap() -> None:
    assert [step.number for step in migrations()] == list(range(1, len(migrations()) + 1))


def test_an_older_store_is_brought_up_by_the_steps_it_lacks_and_keeps_its_rows(
    connection: sqlite3.Connection,
) -> None:
    migrate(connection, [FIRST])
    for _ in range(2):
        migrate(connection, [FIRST, SECOND])
        assert connection.execute("SELECT i, v FROM t").fetchall() == [(1, "kept;")]
        assert schema_version(connection) == 2


def test_a_step_that_fails_leaves_the_store_where_the_one_before_it_had_brought_it(
    connection: sqlite3.Connection,
) -> None:
    migrate(connection, [FIRST])
    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        migrate(connection, [FIRST, SECOND, THIRD])
    assert connection.execute("SELECT i, v FROM t").fetchall() == [(1, "kept;")]
    assert (schema_version(connection), connection.in_transaction) == (2, False)


def test_a_store_of_a_newer_release_is_refused_and_not_touched(
    connection: sqlite3.Connection,
) -> None:
    migrate(connection, [FIRST, SECOND])
    with pytest.raises(errors.SchemaTooNew, match="has schema 2, and this release knows up to 1"):
        migrate(connection, [FIRST])
    assert schema_version(connection) == 2
