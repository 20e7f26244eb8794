"""`backup`: copy the store while everything goes on, and put a copy in its place.

`create` asks the daemon. `restore` works on a daemon that is stopped: it holds the lock of the
state directory, so that none starts meanwhile, and keeps the store that was there.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import sqlite3
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from microvm_orchestrator import errors, places
from microvm_orchestrator.cli import output
from microvm_orchestrator.cli.command import Session, command, local_command
from microvm_orchestrator.cli.config import ConfigFile, StateDir, load
from microvm_orchestrator.cli.failure import say

if TYPE_CHECKING:
    from collections.abc import Generator

app = typer.Typer(help="Backups of the store: make one, put one back.")


@command(app, "create", example="backup create\nbackup create /backup/tasks.sqlite")
def create(
    here: Session,
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE]",
            help="A new file on the daemon's host, by its absolute path; by default a dated one "
            "under its state directory.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Copy the store to a new file while everything goes on.

    The copy is complete and on disk when this ends.
    """
    here.tell("backup_create", {"path": path})


@local_command(app, "restore", example="backup restore /backup/tasks.sqlite")
def restore(
    as_json: bool,  # noqa: FBT001 - every command's first parameter
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A backup of a store.", show_default=False)
    ],
    state_dir: StateDir = None,
    config: ConfigFile = None,
) -> None:
    """Put a backup in the store's place. The daemon must be stopped.

    The file is checked first; the store that was there stays beside it under a dated name. Cursors
    from before are refused afterwards, so that no reader skips events unseen.
    """
    directory = load(config, state_dir).settings.state_dir
    store = directory / places.STORE_FILE
    fresh = directory / f".{places.STORE_FILE}.restoring"
    with _stopped(directory):
        try:
            _copy(Path(file), fresh)
            kept = _keep(store)
            fresh.replace(store)
            _sync(directory)
        finally:
            fresh.unlink(missing_ok=True)
    told = {"store": str(store), "restored_from": file, "kept": kept and str(kept)}
    if as_json:
        output.emit_value(told)
    else:
        output.record(told)
        say(f"start the daemon again: systemctl start {places.NAME}, or {places.NAME} serve")


@contextmanager
def _stopped(directory: Path) -> Generator[None]:
    """Keep daemons out. Raises: AlreadyRunning; ConfigInvalid when the directory cannot be used."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / places.LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise errors.ConfigInvalid(
            f"cannot use the state directory {directory}: {error.strerror}",
            hint="run this as the daemon's user, or name another with --state-dir",
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise errors.AlreadyRunning(
                f"a daemon works in {directory}", hint=f"stop it: systemctl stop {places.NAME}"
            ) from error
        yield
    finally:
        os.close(lock)


def _copy(backup: Path, to: Path) -> None:
    """Copy a backup, check the copy, and make it a history of its own.

    Raises: InvalidInput when it is no whole store; StoreFull, StoreReadOnly.
    """
    try:
        with backup.open("rb") as source, to.open("wb") as target:
            to.chmod(0o600)
            shutil.copyfileobj(source, target)
        # A daemon runs as the owner of its directory, whoever restores.
        owner = to.parent.stat()
        if os.geteuid() == 0:
            os.chown(to, owner.st_uid, owner.st_gid)
    except OSError as error:
        raise errors.InvalidInput(f"cannot copy {backup}: {error.strerror}") from error
    try:
        with closing(sqlite3.connect(to, isolation_level=None)) as copy:
            found = copy.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if found != "ok":
                raise errors.InvalidInput(f"{backup} is damaged: {found}")
            epoch = copy.execute(
                "UPDATE meta SET value = ? WHERE name = 'epoch'", (secrets.token_hex(8),)
            )
            if not epoch.rowcount:
                raise errors.InvalidInput(f"{backup} is no store of a daemon")
    except sqlite3.Error as error:
        raise errors.InvalidInput(f"{backup} is no store of a daemon: {error}") from error
    _sync(to)


def _keep(store: Path) -> Path | None:
    """Give the store a second, dated name, with everything that belongs to it."""
    if not store.exists():
        return None
    _fold(store)
    kept = store.with_name(f"{store.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    os.link(store, kept)
    # What could not be folded in belongs to the old file, and would spoil the new one.
    for ending in ("-wal", "-shm"):
        beside = store.with_name(store.name + ending)
        if beside.exists():
            beside.rename(kept.with_name(kept.name + ending))
    return kept


def _fold(store: Path) -> None:
    """Write into the file what a killed daemon left in its log; a damaged store keeps it beside."""
    try:
        with closing(sqlite3.connect(store, isolation_level=None)) as old:
            old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        say(f"the old store is damaged ({error}); it is kept as it is")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
