"""Folders with all they hold through the channel, entry by entry."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

import anyio
import anyio.to_thread

from microvm_orchestrator import errors
from microvm_orchestrator.machine import wire
from microvm_orchestrator.machine.channel.beneath import Arrival
from microvm_orchestrator.machine.channel.requests import ANSWER_S, IDLE_S, opened
from microvm_orchestrator.machine.channel.stream import Over, printable
from microvm_orchestrator.machine.shell import Fetched

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from microvm_orchestrator.machine.channel.link import Link
    from microvm_orchestrator.machine.channel.stream import Stream
    from microvm_orchestrator.machine.shell import TreeLimits

_READ_BYTES = 256 * 1024
# Pieces of a tree that are read by one visit to a worker thread.
_PIECES = 16
_MAX_SKIPS = 16

# An entry, or a piece of the file before it.
Piece: TypeAlias = dict[str, int | bytes | list[bytes]] | bytes


async def put(link: Link, source: Path, path: str, user: str | None) -> None:
    """Copy a folder of the host into the guest."""
    owner = {} if user is None else {"user": os.fsencode(user)}
    request = {"verb": b"put_tree", "path": os.fsencode(path), **owner}
    pieces = read_tree(os.fsencode(source), b"")
    try:
        async with opened(link, request) as stream:
            with suppress(Over):  # the answer says why
                await _send(stream, pieces)
                stream.end()
            await stream.answer(IDLE_S)
    except errors.MachineFailed as failed:
        raise errors.UnknownOutcome(f"how much of {path} was written is not known: {failed}") from (
            failed
        )
    except OSError as error:
        raise errors.Unavailable(f"{source} cannot be read: {error}") from error


async def get(link: Link, path: str, into: Path, limits: TreeLimits) -> Fetched:
    """Copy a folder of the guest beneath `into`."""
    request = {
        "verb": b"get_tree",
        "path": os.fsencode(path),
        "max_size": limits.size,
        "max_entries": limits.entries,
    }
    try:
        arrival = Arrival(into, limits)
        try:
            async with opened(link, request) as stream:
                return await _receive(stream, arrival)
        finally:
            arrival.close()
    except OSError as error:
        raise errors.Unavailable(f"{into} cannot be written: {error}") from error


async def _send(stream: Stream, pieces: Iterator[Piece]) -> None:
    while some := await anyio.to_thread.run_sync(lambda: list(islice(pieces, _PIECES))):
        for piece in some:
            if isinstance(piece, bytes):
                await stream.send(piece, IDLE_S)
            else:
                await stream.send_note(piece, IDLE_S)


async def _receive(stream: Stream, arrival: Arrival) -> Fetched:
    try:
        while items := await stream.receive(IDLE_S):
            await anyio.to_thread.run_sync(arrival.take, items)
        answer = await stream.answer(ANSWER_S)
        arrival.finish()
        skipped = wire.integer(answer, "skipped", 0, 2**62)
        skips = wire.blobs(answer, "skips", _MAX_SKIPS)
    except wire.Broken as error:
        stream.broken(str(error))
    names = tuple(printable(name[:512]) for name in skips)
    return Fetched(arrival.files, arrival.folders, arrival.size, skipped, names)


def read_tree(folder: bytes, below: bytes) -> Iterator[Piece]:
    """Give every folder and file below a folder of this host; links and the like are left out."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        path = below + entry.name
        if entry.is_dir(follow_symlinks=False):
            mode = entry.stat(follow_symlinks=False).st_mode & 0o777
            yield {"type": b"folder", "path": path, "mode": mode}
            yield from read_tree(entry.path, path + b"/")
        elif entry.is_file(follow_symlinks=False):
            yield from _read_file(entry.path, path)


def _read_file(file: bytes, path: bytes) -> Iterator[Piece]:
    fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return
        left = status.st_size
        yield {"type": b"file", "path": path, "mode": status.st_mode & 0o777, "size": left}
        while left:
            piece = os.read(fd, min(left, _READ_BYTES))
            if not piece:
                raise OSError(f"{os.fsdecode(file)} became shorter while it was read")
            left -= len(piece)
            yield piece
    finally:
        os.close(fd)
