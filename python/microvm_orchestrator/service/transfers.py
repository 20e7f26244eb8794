"""Files and folders on their way into a machine or out of one, of any size, as streams of frames.

A file goes straight through. A tree stops in a folder of the daemon on its way: written there by
the rules for what comes from a guest, whoever it comes from, and read from there. Above are the
streams; below, the way into the guest.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import anyio
import anyio.to_thread
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from microvm_orchestrator import errors, places
from microvm_orchestrator.machine import wire
from microvm_orchestrator.machine.channel.beneath import Arrival
from microvm_orchestrator.machine.channel.stream import Data, Item, Note
from microvm_orchestrator.machine.channel.trees import read_tree
from microvm_orchestrator.machine.shell import MAX_TREE_ENTRIES, MAX_TREE_SIZE, TreeLimits
from microvm_orchestrator.model.values import Flag, Line
from microvm_orchestrator.service.calls import Answer, Caller, Request
from microvm_orchestrator.service.files import GuestPath, Mode
from microvm_orchestrator.service.machines import NamedMachine
from microvm_orchestrator.service.service import Service, actor
from microvm_orchestrator.service.talk import ClientGone, Kind, Stream, Talk

if TYPE_CHECKING:
    from microvm_orchestrator.machine.shell import Shell

MAX_FILE = 1 << 40
# Each may take what a tree may have of the disk.
_TREES_MOST = 16
# Entries and pieces of a tree that one visit to a worker thread reads.
_PIECES = 16

Size = Annotated[int, Field(strict=True, ge=0, le=MAX_FILE)]
Limit = Annotated[int, Field(strict=True, ge=0, le=MAX_TREE_SIZE)]


class FileToSend(Request):
    """A file that comes as DATA, then END."""

    size: Size
    mode: Mode = "0644"
    parents: Flag = False
    user: Line | None = None


class FileToFetch(Request):
    """A file to give as DATA, then END."""

    max_size: Size = MAX_FILE


class TreeToSend(Request):
    """A tree that comes as ENTRY and DATA, then END."""

    user: Line | None = None


class TreeToFetch(Request):
    """A tree to give as ENTRY and DATA, then END."""

    max_size: Limit = MAX_TREE_SIZE
    max_entries: Annotated[int, Field(strict=True, ge=0, le=MAX_TREE_ENTRIES)] = MAX_TREE_ENTRIES


class _OfMachine(NamedMachine):
    path: GuestPath


class SendFile(FileToSend, _OfMachine):
    """Where it goes."""


class FetchFile(FileToFetch, _OfMachine):
    """Where it is."""


class SendTree(TreeToSend, _OfMachine):
    """Where it goes."""


class FetchTree(TreeToFetch, _OfMachine):
    """Where it is."""


class Entry(BaseModel):
    """A file or folder of a tree; its path is in base64, for it is bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["file", "folder"]
    path: str = Field(max_length=8192)
    mode: Annotated[int, Field(strict=True, ge=0, le=0o7777)]
    size: Annotated[int, Field(strict=True, ge=0)] = 0


async def _send_file(service: Service, caller: Caller, request: SendFile, talk: Talk) -> Answer:
    by = actor(caller, "file_put")
    machine, running = await service.host.execs.awake(request.machine, by)
    shell = await running.reached()
    await service.store.note(by, machine.machine_id, "ok")
    await talk.begin({"machine_id": machine.machine_id})
    await shell.put(
        request.path,
        _content(talk),
        size=request.size,
        mode=int(request.mode, 8),
        user=request.user,
        parents=request.parents,
    )
    await _done(talk, {"path": request.path, "size": request.size})
    return Answer()


async def _content(talk: Talk) -> AsyncIterator[bytes]:
    while True:
        kind, payload = await _next(talk)
        if kind == Kind.END:
            return
        if kind != Kind.DATA:
            _unexpected(kind)
        yield payload


async def _fetch_file(service: Service, caller: Caller, request: FetchFile, talk: Talk) -> Answer:
    shell = await _shell(service, caller, request, "file_get")
    async with shell.get(request.path, max_size=request.max_size) as file:
        await talk.begin({"size": file.size, "mode": file.mode})
        async for piece in file:
            await talk.send(Kind.DATA, piece)
    await _done(talk, {})
    return Answer()


async def _send_tree(service: Service, caller: Caller, request: SendTree, talk: Talk) -> Answer:
    by = actor(caller, "file_put")
    machine, running = await service.host.execs.awake(request.machine, by)
    shell = await running.reached()
    await service.store.note(by, machine.machine_id, "ok")
    async with halfway(service) as folder:
        await talk.begin({"machine_id": machine.machine_id})
        arrival = Arrival(folder, TreeLimits())
        try:
            await _receive(talk, arrival)
        except wire.Broken as error:
            raise errors.InvalidInput(f"the tree has {error}") from error
        finally:
            arrival.close()
        await shell.put_tree(folder, request.path, user=request.user)
    told: dict[str, object] = {
        "files": arrival.files,
        "folders": arrival.folders,
        "size": arrival.size,
    }
    await _done(talk, told)
    return Answer()


async def _receive(talk: Talk, arrival: Arrival) -> None:
    while True:
        kind, payload = await _next(talk)
        items: list[Item]
        if kind == Kind.ENTRY:
            items = [Note(_fields(payload), 0)]
        elif kind == Kind.DATA:
            items = [Data(wire.MAIN, payload)]
        elif kind == Kind.END:
            arrival.finish()
            return
        else:
            _unexpected(kind)
        await anyio.to_thread.run_sync(arrival.take, items)


def _fields(payload: bytes) -> wire.Fields:
    try:
        entry = Entry.model_validate_json(payload)
        path = base64.b64decode(entry.path, validate=True)
    except (ValidationError, binascii.Error, ValueError) as error:
        raise errors.InvalidInput("this is no entry of a tree") from error
    return {
        "type": entry.type.encode(),
        "path": path,
        "mode": entry.mode,
        "size": entry.size,
    }


async def _fetch_tree(service: Service, caller: Caller, request: FetchTree, talk: Talk) -> Answer:
    shell = await _shell(service, caller, request, "file_get")
    async with halfway(service) as folder:
        limits = TreeLimits(request.max_size, request.max_entries)
        fetched = await shell.get_tree(request.path, folder, limits)
        told: dict[str, object] = {
            "files": fetched.files,
            "folders": fetched.folders,
            "size": fetched.size,
            "skipped": fetched.skipped,
            "skips": list(fetched.skips),
        }
        await talk.begin(told)
        pieces = read_tree(os.fsencode(folder), b"")
        while some := await anyio.to_thread.run_sync(lambda: list(islice(pieces, _PIECES))):
            for piece in some:
                if isinstance(piece, bytes):
                    await talk.send(Kind.DATA, piece)
                else:
                    await talk.send(Kind.ENTRY, _entry(piece))
    await _done(talk, told)
    return Answer()


def _entry(piece: wire.Fields) -> bytes:
    told = {
        "type": wire.blob(piece, "type", 16).decode(),
        "path": base64.b64encode(wire.blob(piece, "path", 4096)).decode(),
        "mode": piece["mode"],
        "size": piece.get("size", 0),
    }
    return json.dumps(told).encode()


async def _shell(
    service: Service, caller: Caller, request: FetchFile | FetchTree, call: str
) -> Shell:
    _, running = await service.host.execs.awake(request.machine, actor(caller, call))
    return await running.reached()


async def _next(talk: Talk) -> tuple[int, bytes]:
    frame = await talk.receive()
    if frame is None:
        raise ClientGone
    return frame


async def _done(talk: Talk, told: dict[str, object]) -> None:
    await talk.send(Kind.END, json.dumps(told).encode())


def _unexpected(kind: int) -> NoReturn:
    raise errors.InvalidInput(f"a frame of the kind {kind} has no place here")


@asynccontextmanager
async def halfway(service: Service) -> AsyncGenerator[Path]:
    """Hold a folder of the daemon's own, which goes with all it holds.

    Raises: NoRoom, Unavailable.
    """
    above = service.settings.state_dir / places.TRANSFERS
    try:
        above.mkdir(mode=0o700, exist_ok=True)
        if sum(1 for _ in above.iterdir()) >= _TREES_MOST:
            raise errors.NoRoom(f"{_TREES_MOST} folders are being copied", hint="try again later")
        folder = Path(await anyio.to_thread.run_sync(lambda: tempfile.mkdtemp(dir=above)))
    except OSError as error:
        raise errors.Unavailable(f"no folder for a transfer: {error.strerror}") from error
    try:
        yield folder
    except OSError as error:
        raise errors.Unavailable(f"the transfer cannot go on: {error.strerror}") from error
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(shutil.rmtree, folder, True)  # noqa: FBT003  # run_sync passes positions only


STREAMS = (
    Stream("file_put", SendFile, _send_file),
    Stream("file_get", FetchFile, _fetch_file),
    Stream("tree_put", SendTree, _send_tree),
    Stream("tree_get", FetchTree, _fetch_tree),
)
