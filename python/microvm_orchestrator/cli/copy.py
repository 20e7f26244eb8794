"""`machine cp`: files and folders from here into a machine, and out of one.

Above sits the program; below, the streams of frames. What comes out of a machine comes from a
stranger: it is written only where it was meant to be.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import posixpath
import select
import stat
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from microvm_orchestrator import errors
from microvm_orchestrator.cli import output
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.duplex import (
    DATA,
    END,
    ENTRY,
    ERROR,
    HEADER,
    MAX_PAYLOAD,
    Cut,
    Duplex,
    open_duplex,
    refusal,
)
from microvm_orchestrator.cli.landing import Landing
from microvm_orchestrator.cli.machine_run import app

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from microvm_orchestrator.cli.client import Client

_STDIO = "-"
_DRAWN_EVERY_S = 0.2
# As the daemon has them for a tree.
_MAX_TREE = 1 << 30
_MAX_ENTRIES = 100_000

Recursive = Annotated[
    bool | None,
    typer.Option(
        "--recursive",
        "-r",
        help="Copy a folder: what SRC holds comes into DST, which is made where it is missing.",
        show_default=False,
    ),
]
Parents = Annotated[
    bool | None,
    typer.Option("--parents", help="Make the folders above a file.", show_default=False),
]


@dataclass(frozen=True, slots=True)
class _There:
    """A place in a machine, or of an agent."""

    noun: str
    name: str
    path: str

    def opened(self, client: Client, call: str, **more: object) -> Duplex:
        own = "" if self.noun == "machine" else f"{self.noun}_"
        return open_duplex(client, own + call, {self.noun: self.name, "path": self.path, **more})


@dataclass(slots=True)
class _Progress:
    """How far it is, on one line of a terminal."""

    total: int = 0
    done: int = 0
    _at: float = 0.0
    _drawn: bool = False

    def __post_init__(self) -> None:
        self._drawn = sys.stderr.isatty()

    def add(self, size: int) -> None:
        self.done += size
        now = time.monotonic()
        if self._drawn and now - self._at >= _DRAWN_EVERY_S:
            self._at = now
            of = f" of {self.total >> 10}" if self.total else ""
            sys.stderr.write(f"\r\x1b[K{self.done >> 10}{of} KiB")
            sys.stderr.flush()

    def end(self) -> None:
        if self._drawn and self._at:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


@command(
    app,
    "cp",
    example="machine cp notes.txt box:/srv/\n"
    "machine cp -r src box:/src\n"
    "machine cp -r box:/src/out results\n"
    "machine cp box:/var/log/messages -",
)
def cp(
    here: Session,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="A path, MACHINE:PATH, or - for standard input.", show_default=False
        ),
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="DST",
            help="A path, MACHINE:PATH, or - for standard output.",
            show_default=False,
        ),
    ],
    recursive: Recursive = None,
    parents: Parents = None,
    user: Annotated[
        str | None,
        typer.Option("--user", metavar="USER", help="Who owns it in the machine; root by default."),
    ] = None,
) -> None:
    """Copy a file or a folder between here and a machine.

    DST with a slash at its end is a folder to copy into. A file is written whole or not at all;
    nothing that is here is written over by a folder. Links and devices do not travel.
    """
    far, near = _place(source), _place(target)
    copied(here, far, near, recursive=recursive, parents=parents, user=user)


def copied(
    here: Session,
    far: _There | str,
    near: _There | str,
    *,
    recursive: bool | None,
    parents: bool | None,
    user: str | None,
) -> None:
    """Copy between a place here and one there. Raises: InvalidInput, UnknownOutcome."""
    try:
        if isinstance(near, _There) and isinstance(far, str):
            copy = _send_tree if recursive else _send_file
            there = replace(near, path=_inside(near.path, far))
            told = copy(here.client, far, there, parents=parents, user=user)
        elif isinstance(far, _There) and isinstance(near, str):
            told = (_fetch_tree if recursive else _fetch_file)(here.client, far, near)
        else:
            raise errors.InvalidInput(
                "one of SRC and DST is there, written NAME:PATH", hint="as in box:/srv/"
            )
    except Cut as cut:
        raise errors.UnknownOutcome(
            "the daemon went away in the middle: a file is there whole or not at all, of a folder "
            "there may be a part"
        ) from cut
    if here.json:
        output.emit_value(told)
    elif told.get("skipped"):
        output.line(f"{told['skipped']} links or devices were left out")


def _place(word: str) -> _There | str:
    found = place(word, "machine")
    if isinstance(found, _There) and not found.path.startswith("/"):
        raise errors.InvalidInput(f"{word}: a path in a machine begins with /")
    return found


def place(word: str, noun: str) -> _There | str:
    """Read NAME:PATH as a place there, and anything else as one here."""
    name, colon, path = word.partition(":")
    if not colon or not name or "/" in name or name.startswith("."):
        return word
    return _There(noun, name, path)


def _inside(path: str, source: str) -> str:
    if not path.endswith("/"):
        return path
    if source == _STDIO:
        raise errors.InvalidInput("standard input has no name; write the whole DST")
    return posixpath.join(path, Path(source).resolve().name)


# Into a machine


def _send_file(
    client: Client, source: str, target: _There, *, parents: bool | None, user: str | None
) -> dict[str, Any]:
    with _opened(source) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise errors.InvalidInput(f"{source} is no file", hint="-r copies a folder")
        asked = {
            "size": status.st_size,
            "mode": f"{status.st_mode & 0o777:04o}" if source != _STDIO else "0644",
            "parents": parents,
            "user": user,
        }
        duplex = target.opened(client, "file_put", **asked)
        return _send(duplex, _read(file, status.st_size), status.st_size)


@contextlib.contextmanager
def _opened(source: str) -> Generator[IO[bytes]]:
    try:
        if source != _STDIO:
            with Path(source).open("rb") as file:
                yield file
            return
        # How much it is must be known before it is sent.
        with tempfile.TemporaryFile() as file:
            while data := os.read(0, MAX_PAYLOAD):
                file.write(data)
            file.seek(0)
            yield file
    except OSError as error:
        raise errors.InvalidInput(f"{source}: {error.strerror}") from error


def _read(file: IO[bytes], left: int) -> Iterator[tuple[int, bytes]]:
    while left:
        data = file.read(min(left, MAX_PAYLOAD))
        if not data:
            raise errors.InvalidInput("a file became shorter while it was read")
        left -= len(data)
        yield DATA, data


def _send_tree(
    client: Client, source: str, target: _There, *, parents: bool | None, user: str | None
) -> dict[str, Any]:
    if parents is not None:
        raise errors.InvalidInput("--parents is for a file; a folder is made with those above it")
    if not Path(source).is_dir():
        raise errors.InvalidInput(f"{source} is no folder")
    duplex = target.opened(client, "tree_put", user=user)
    try:
        return _send(duplex, _tree(os.fsencode(source), b""), 0)
    except OSError as error:
        raise errors.InvalidInput(f"{source} cannot be read: {error}") from error


def _tree(folder: bytes, below: bytes) -> Iterator[tuple[int, bytes]]:
    """Give every folder and file below a folder as frames; links and the like are left out."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        path = below + entry.name
        if entry.is_dir(follow_symlinks=False):
            yield ENTRY, _entry("folder", path, entry.stat(follow_symlinks=False).st_mode, 0)
            yield from _tree(entry.path, path + b"/")
        elif entry.is_file(follow_symlinks=False):
            fd = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(fd, "rb") as file:
                status = os.fstat(fd)
                if stat.S_ISREG(status.st_mode):
                    yield ENTRY, _entry("file", path, status.st_mode, status.st_size)
                    yield from _read(file, status.st_size)


def _entry(kind: str, path: bytes, mode: int, size: int) -> bytes:
    written = base64.b64encode(path).decode()
    return json.dumps({"type": kind, "path": written, "mode": mode & 0o777, "size": size}).encode()


def _send(duplex: Duplex, frames: Iterator[tuple[int, bytes]], total: int) -> dict[str, Any]:
    """Send frames as fast as they are taken, and give what the daemon says in the end."""
    progress = _Progress(total)
    with contextlib.closing(duplex.sock):
        try:
            for kind, payload in frames:
                _push(duplex, HEADER.pack(kind, len(payload)) + payload)
                progress.add(len(payload))
            _push(duplex, HEADER.pack(END, 0))
            while True:
                for kind, payload in _arrived(duplex):
                    if kind == END:
                        return json.loads(payload)
        finally:
            progress.end()


def _push(duplex: Duplex, data: bytes) -> None:
    view = memoryview(data)
    while view:
        ready, free, _ = select.select([duplex.sock], [duplex.sock], [])
        if ready:
            _refused(duplex.frames())
        if free:
            try:
                view = view[duplex.sock.send(view) :]
            except BlockingIOError:
                continue
            except OSError as error:
                _refused(duplex.frames())
                raise Cut from error


def _arrived(duplex: Duplex) -> list[tuple[int, bytes]]:
    select.select([duplex.sock], [], [])
    return _refused(duplex.frames())


def _refused(frames: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    for kind, payload in frames:
        if kind == ERROR:
            raise refusal(json.loads(payload))
    return frames


# Out of a machine


def _fetch_file(client: Client, source: _There, target: str) -> dict[str, Any]:
    duplex = source.opened(client, "file_get")
    size, mode = int(duplex.told["size"]), int(duplex.told["mode"]) & 0o777
    with contextlib.closing(duplex.sock):
        if target == _STDIO:
            sys.stdout.flush()
            _receive_file(duplex, sys.stdout.buffer, size)
            sys.stdout.buffer.flush()
            return {"size": size}
        path = Path(target)
        if target.endswith("/") or path.is_dir():
            path /= _name(source.path)
        try:
            _replace(duplex, path, size, mode)
        except OSError as error:
            raise errors.InvalidInput(f"{path} cannot be written: {error.strerror}") from error
    return {"path": str(path), "size": size}


def _name(path: str) -> str:
    name = posixpath.basename(path.rstrip("/"))
    if name in ("", ".", ".."):
        raise errors.InvalidInput(f"{path} has no name to write it under")
    return name


def _replace(duplex: Duplex, path: Path, size: int, mode: int) -> None:
    fd, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    try:
        with os.fdopen(fd, "wb") as file:
            _receive_file(duplex, file, size)
            os.fchmod(fd, mode)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def _receive_file(duplex: Duplex, file: IO[bytes], size: int) -> None:
    progress = _Progress(size)
    try:
        while True:
            for kind, payload in _arrived(duplex):
                if kind == DATA:
                    file.write(payload)
                    progress.add(len(payload))
                elif kind == END:
                    if progress.done != size:
                        raise errors.OrchestratorError("the file is not of the size announced")
                    return
    finally:
        progress.end()


def _fetch_tree(client: Client, source: _There, target: str) -> dict[str, Any]:
    path = Path(target)
    if target.endswith("/"):
        path /= _name(source.path)
    duplex = source.opened(client, "tree_get")
    with contextlib.closing(duplex.sock):
        try:
            path.mkdir(parents=True, exist_ok=True)
            landing = Landing(path, _MAX_TREE, _MAX_ENTRIES)
            with contextlib.closing(landing):
                return _receive_tree(duplex, landing)
        except OSError as error:
            raise errors.InvalidInput(f"{path} cannot be written: {error}") from error


def _receive_tree(duplex: Duplex, landing: Landing) -> dict[str, Any]:
    progress = _Progress(int(duplex.told["size"]))
    try:
        while True:
            for kind, payload in _arrived(duplex):
                if kind == ENTRY:
                    told = json.loads(payload)
                    written = base64.b64decode(told["path"])
                    landing.begin(told["type"], written, int(told["mode"]), int(told["size"]))
                elif kind == DATA:
                    landing.write(payload)
                    progress.add(len(payload))
                elif kind == END:
                    landing.finish()
                    return json.loads(payload)
    finally:
        progress.end()
