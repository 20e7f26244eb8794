"""Sources in a node: brought there from a folder of this host, and built, with all complaints.

Only what differs is sent, so a build makes no more than it has to. Above are the services; below,
folders of this host and the guests.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from microvm_orchestrator import errors
from microvm_orchestrator.artifact_trees import Seen, read_folder
from microvm_orchestrator.clusters import compiler
from microvm_orchestrator.clusters.guest_trees import (
    Brought,
    Stage,
    missing,
    must,
    script,
    send,
    sums_of,
)
from microvm_orchestrator.machine.shell import Command, Shell
from microvm_orchestrator.model.artifact import PREFIX
from microvm_orchestrator.model.artifact_tree import TreeFile

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Built:
    """How a build ended."""

    exit_code: int | None
    timed_out: bool
    said: bytes
    diagnosed: compiler.Diagnosed
    # Of what it was to make; None when that is not there.
    digest: str | None = None
    size: int = 0


async def bring_source(shell: Shell, folder: Path, path: str, stage: Stage) -> Brought:
    """Let a folder of the guest have what one of this host has; what else it has stays.

    Raises: InvalidInput when the folder cannot be read; Conflict when it changes meanwhile;
        GuestRefused.
    """
    seen, _ = await anyio.to_thread.run_sync(read_folder, folder)
    files = await anyio.to_thread.run_sync(_digested, seen)
    places = {each.path: each for each in seen}

    async def lay_out(some: Sequence[TreeFile], into: Path) -> None:
        await anyio.to_thread.run_sync(_copy_all, some, places, into)

    await must(shell, f"{path} cannot be used", 'mkdir -p "$1" && cd "$1"\n', path)
    lacking = missing(files, await sums_of(shell, path, files))
    await send(shell, path, lacking, lay_out, stage)
    if lacking and missing(lacking, await sums_of(shell, path, lacking)):
        raise errors.GuestRefused(f"{path} does not have what was sent")
    return Brought(len(lacking), sum(each.size for each in lacking), skipped=not lacking)


def _digested(seen: Sequence[Seen]) -> list[TreeFile]:
    try:
        return [_digest(each) for each in seen]
    except OSError as error:
        raise errors.InvalidInput(f"{error.filename}: {error.strerror}") from error


def _digest(seen: Seen) -> TreeFile:
    with os.fdopen(seen.open(), "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = os.fstat(file.fileno()).st_size
    return TreeFile(path=seen.path, size=size, digest=PREFIX + digest, executable=seen.executable)


def _copy_all(files: Sequence[TreeFile], places: Mapping[str, Seen], into: Path) -> None:
    for each in files:
        path = into / each.path
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with os.fdopen(places[each.path].open(), "rb") as file, path.open("xb") as copy:
            shutil.copyfileobj(file, copy, _PIECE)
        path.chmod(0o755 if each.executable else 0o644)
        with path.open("rb") as copy:
            if PREFIX + hashlib.file_digest(copy, "sha256").hexdigest() != each.digest:
                raise errors.StateForbids(f"{each.path} is being changed", hint="try again")


_BUILD = """mkdir -p "$1" && cd "$1" || exit 1
exec /bin/sh -c "$2" 2>&1
"""
_MADE = """cd "$1" 2>/dev/null && [ -f "$2" ] || exit 0
sha256sum <"$2" && wc -c <"$2"
"""


async def build(
    shell: Shell,
    folder: str,
    command: str,
    made: str | None,
    *,
    env: Mapping[str, str],
    timeout_s: float,
) -> Built:
    """Run a build in a folder of the guest, and look at what it has made.

    Raises: as `Shell.exec`.
    """
    words = ["/bin/sh", "-c", _BUILD, "sh", folder, command]
    asked = Command(words, env=dict(env), timeout_s=timeout_s)
    ran = await shell.exec(asked, output_cap=compiler.MAX_BYTES)
    found = await anyio.to_thread.run_sync(compiler.diagnose, ran.stdout)
    digest, size = None, 0
    if made is not None and ran.exit.code == 0:
        digest, size = _made((await script(shell, _MADE, folder, made)).stdout)
    return Built(ran.exit.code, ran.exit.timed_out, ran.stdout, found, digest, size)


def _made(told: bytes) -> tuple[str | None, int]:
    words = told.split()
    if len(words) != 3 or len(words[0]) != 64 or not words[2].isdigit() or len(words[2]) > 15:
        return None, 0
    try:
        return PREFIX + bytes.fromhex(words[0].decode()).hex(), int(words[2])
    except ValueError:
        return None, 0
