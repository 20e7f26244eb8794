"""Folders with all they hold over SSH: at the other end a tar of the guest, trusted as it is."""

from __future__ import annotations

import os
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from microvm_orchestrator import errors
from microvm_orchestrator.machine import wire
from microvm_orchestrator.machine.channel.beneath import Arrival
from microvm_orchestrator.machine.channel.stream import Data, Note
from microvm_orchestrator.machine.channel.trees import Piece, read_tree
from microvm_orchestrator.machine.shell import Channel, Fetched
from microvm_orchestrator.machine.ssh import tar
from microvm_orchestrator.machine.ssh.files import patience, say, succeeded
from microvm_orchestrator.machine.ssh.jobs import started
from microvm_orchestrator.machine.ssh.script import Script, absolute, finding, no_user, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from microvm_orchestrator.machine.shell import TreeLimits
    from microvm_orchestrator.machine.ssh.jobs import Running
    from microvm_orchestrator.machine.ssh.link import Link

_READ_BYTES = 64 * 1024
# Pieces of a tree that are read by one visit to a worker thread.
_PIECES = 16

_PUT = b"""command -v tar >/dev/null 2>&1 || no tar
mkdir -p %(path)s 2>/dev/null && cd %(path)s 2>/dev/null || no write
%(own)sok $u $g
exec tar -x -p -m %(same)s -f -
"""
_OWN = b"""x=$(id -u); [ $x = 0 ] || [ $x = $u ] || no rights
"""
_GET = b"""command -v tar >/dev/null 2>&1 || no tar
[ -e %(path)s ] || no missing
[ -d %(path)s ] || no kind
cd %(path)s 2>/dev/null || no read
ok
exec tar -c -f - .
"""


async def put(link: Link, source: Path, path: str, user: str | None) -> None:
    """Copy a folder of the host into the guest."""
    text = _PUT % {
        b"path": quoted(absolute(path)),
        b"own": _OWN if user else b"u= g=\n",
        b"same": b"" if user else b"-o",
    }
    refusals: dict[str, errors.OrchestratorError] = {
        "tar": errors.NotOffered("the guest has no tar"),
        "write": errors.GuestRefused(f"the guest does not let us write {path}"),
        "user": no_user(user),
        "rights": errors.GuestRefused(f"the guest does not let us write as {user}"),
    }
    try:
        async with started(link, Script(finding(user) + text, refusals)) as running:
            pieces = _archived(read_tree(os.fsencode(source), b""), _owner(running.words))
            await _send(running, pieces)
            running.line.end()
            await succeeded(running, f"{path} was not written whole")
    except errors.MachineFailed as failed:
        raise errors.UnknownOutcome(f"how much of {path} was written is not known: {failed}") from (
            failed
        )
    except OSError as error:
        raise errors.Unavailable(f"{source} cannot be read: {error}") from error


async def get(link: Link, path: str, into: Path, limits: TreeLimits) -> Fetched:
    """Copy a folder of the guest beneath `into`."""
    script = Script(
        _GET % {b"path": quoted(absolute(path))},
        {
            "tar": errors.NotOffered("the guest has no tar"),
            "missing": errors.NotFound(f"there is no {path} in the guest"),
            "kind": errors.InvalidInput(f"{path} is no folder"),
            "read": errors.GuestRefused(f"the guest does not let us read {path}"),
        },
    )
    try:
        arrival = Arrival(into, limits)
        try:
            async with started(link, script) as running:
                running.line.end()
                return await _receive(running, arrival, tar.TarReader(limits), path)
        finally:
            arrival.close()
    except wire.Broken as error:
        link.fail(errors.ProtocolBroken(f"the guest sent {error}"))
        link.check()
        raise
    except OSError as error:
        raise errors.Unavailable(f"{into} cannot be written: {error}") from error


async def _send(running: Running, pieces: Iterator[bytes]) -> None:
    while some := await anyio.to_thread.run_sync(lambda: list(islice(pieces, _PIECES))):
        if not await say(running, b"".join(some)):
            return  # the answer says why


def _archived(pieces: Iterator[Piece], owner: tuple[int, int] | None) -> Iterator[bytes]:
    padding = b""
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
            continue
        folder = wire.blob(piece, "type", 16) == b"folder"
        size = None if folder else wire.integer(piece, "size", 0, 2**62)
        path, mode = wire.blob(piece, "path", 4096), wire.integer(piece, "mode", 0, 0o7777)
        yield padding + tar.header(path, mode, size, owner)
        padding = tar.padding(size or 0)
    yield padding + tar.END


def _owner(words: list[bytes]) -> tuple[int, int] | None:
    if not words:
        return None
    try:
        uid, gid = map(int, words)
    except ValueError:
        raise errors.ProtocolBroken("the guest named a user without numbers") from None
    return uid, gid


async def _receive(running: Running, arrival: Arrival, reader: tar.TarReader, path: str) -> Fetched:
    while True:
        with patience():
            output = await anext(running, None)
        if output is None:
            break
        if output.channel is Channel.STDOUT:
            items = reader.feed(output.data)
            await anyio.to_thread.run_sync(arrival.take, items)
    await succeeded(running, f"{path} did not come whole")
    arrival.finish()
    reader.finish()
    for name, target, mode in reader.links:
        await anyio.to_thread.run_sync(partial(_copy, arrival, reader, name, target, mode))
    return Fetched(
        arrival.files, arrival.folders, arrival.size, reader.skipped, tuple(reader.skips)
    )


def _copy(arrival: Arrival, reader: tar.TarReader, name: bytes, target: bytes, mode: int) -> None:
    """Write a file that has arrived once more, under another name that it had."""
    file = arrival.reopen(target)
    try:
        left = os.fstat(file).st_size
        reader.count(left)
        arrival.take([Note({"type": b"file", "path": name, "mode": mode, "size": left}, 0)])
        while left and (piece := os.read(file, min(left, _READ_BYTES))):
            arrival.take([Data(wire.MAIN, piece)])
            left -= len(piece)
    finally:
        os.close(file)
