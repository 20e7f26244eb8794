"""`artifact`: what runs have left behind, to look at and to take along."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from microvm_orchestrator import errors
from microvm_orchestrator.cli import output
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.failure import harmless, say
from microvm_orchestrator.cli.options import KeyGroup, TaskId
from microvm_orchestrator.cli.values import octets_at

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

app = typer.Typer(help="Artifacts: files that runs have left behind, and trees for clusters.")

COLUMNS = ("name", "size", "kind", "media_type", "digest")
# As much as one answer may hold.
_PIECE = 1 << 20

Attempt = Annotated[
    int | None,
    typer.Option("--attempt", metavar="N", help="Which of the task's runs; by default the last."),
]


@command(app, "list", example="artifact list build")
def list_(here: Session, task_id: TaskId, group: KeyGroup = None, attempt: Attempt = None) -> None:
    """List what a run of a task has left behind, and what it was asked for and has not."""
    given = {"task_id": task_id, "group": group, "attempt": attempt}
    here.tell("artifact_list", given, show)


def show(answer: dict[str, Any]) -> None:
    """Show artifacts; what is missing is said aside."""
    if answer["artifacts"]:
        output.table(COLUMNS, answer["artifacts"])
    else:
        say("no artifacts")
    for each in answer["left_out"]:
        say(f"left out: {each['name']}: {each['reason']}")


@command(
    app,
    "get",
    example="""
artifact get build dist/site.tar.gz --file site.tar.gz
artifact get build console.log
artifact get build rest.patch | git apply
""",
)
def get(
    here: Session,
    task_id: TaskId,
    artifact: Annotated[
        str,
        typer.Argument(metavar="ARTIFACT", help="Its name or its digest.", show_default=False),
    ],
    group: KeyGroup = None,
    attempt: Attempt = None,
    offset: Annotated[
        int | None, typer.Option("--offset", metavar="N", help="Where to begin; 0 by default.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="BYTES", help="At most so many bytes; all by default."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="Write it there, whole or not at all."),
    ] = None,
) -> None:
    """Write what a run of a task has left behind, byte for byte, to standard output or a file.

    A whole one is compared with its digest. A terminal only shows it: what would command it is
    written out. With --json it is one piece, as the API answers.
    """
    asked = {
        "task_id": task_id,
        "group": group,
        "attempt": attempt,
        "artifact": artifact,
        "offset": offset,
        "limit": limit,
    }
    if here.json:
        here.tell("artifact_get", asked)
        return
    if file is None and sys.stdout.isatty():
        _take(here, asked, _draw)
        return
    with _target(file) as target:
        _take(here, asked, target.write)


def _draw(data: bytes) -> None:
    # A guest wrote it.
    sys.stdout.write(harmless(data.decode(errors="replace")))
    sys.stdout.flush()


def _take(here: Session, asked: dict[str, Any], write: Callable[[bytes], object]) -> None:
    whole = not asked["offset"] and asked["limit"] is None
    left = asked["limit"]
    seen = hashlib.sha256()
    while True:
        most = _PIECE if left is None else min(left, _PIECE)
        piece = here.client.call("artifact_get", {**asked, "limit": most}).value
        data = octets_at(piece["content"], piece.get("content_base64"))
        write(data)
        seen.update(data)
        left = None if left is None else left - len(data)
        # Named by what it holds, so that it is the same whatever runs begin meanwhile.
        asked = {**asked, "artifact": piece["digest"], "offset": piece["next"]}
        if not data or left == 0 or piece["next"] >= piece["size"]:
            break
    if whole and f"sha256:{seen.hexdigest()}" != piece["digest"]:
        raise errors.OrchestratorError(
            f"{piece['name']} is not what its digest says: it is damaged on the daemon's disk"
        )


@contextmanager
def _target(to: Path | None) -> Generator[IO[bytes]]:
    """Give what to write to; a file has its name only when the block has ended well."""
    if to is None:
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        fd, beside = tempfile.mkstemp(dir=to.parent, prefix=f".{to.name[:100]}.")
    except OSError as error:
        raise errors.InvalidInput(f"{to} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            os.fchmod(fd, 0o666 & ~_umask())
        Path(beside).replace(to)
    except OSError as error:
        raise errors.InvalidInput(f"{to} cannot be written: {error.strerror}") from error
    finally:
        Path(beside).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
