"""The Claude Code command line, as a disk of its own that every image can share.

It comes as the npm package of its platform, one program in it, from where this host's npm is told
to look; npm's checksum of the package is what it is known by. No script of the package runs.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import os
import re
import shutil
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from microvm_orchestrator import errors, proc
from microvm_orchestrator.images.archive import read_tar
from microvm_orchestrator.images.files import scratch_folder
from microvm_orchestrator.images.progress import Progress, Stage
from microvm_orchestrator.images.tree import File, Tree

if TYPE_CHECKING:
    from collections.abc import Sequence

_PACKAGE = "@anthropic-ai/claude-code-linux-x64"
VERSION = re.compile(r"latest|stable|next|[0-9]+\.[0-9]+\.[0-9]+")
# Where the guest's init mounts it, by the serial of the disk.
SERIAL = "opt-claude"
PROGRAM = "opt/claude/bin/claude"
# What the program wants around it that the plain guest has not.
PACKAGES = ("bash",)
# The program is 0.4 GB.
_MAX_BYTES = 4 << 30
_ASK_S = 120.0
_PACK_S = 1800.0
_FETCHING = ".fetching-"


@dataclass(frozen=True, slots=True)
class Release:
    """One version of the package, by npm's checksum."""

    version: str
    # Base64, as npm writes it.
    sha512: str

    def place(self, kept: Path) -> Path:
        digest = base64.b64decode(self.sha512).hex()
        return kept / f"claude-code_{self.version}_{digest[:64]}.tgz"


class _Told(BaseModel):
    """What `npm view` answers."""

    version: str = Field(pattern=r"^[0-9A-Za-z.+-]{1,64}$")
    integrity: str = Field(alias="dist.integrity", pattern=r"^sha512-[A-Za-z0-9+/]{86}==$")


async def find_release(version: str, kept: Path) -> Release:
    """Ask npm which version that is.

    Raises: InvalidInput, CommandFailed, PackageRefused.
    """
    if not VERSION.fullmatch(version):
        raise errors.InvalidInput(f"{version!r} is no version of Claude Code")
    wanted = f"{_PACKAGE}@{version}"
    async with scratch_folder(kept, _FETCHING) as folder:
        words = ["view", wanted, "version", "dist.integrity", "--json"]
        done = await _npm(words, _ASK_S, folder)
    return read_told(done.stdout)


def read_told(answer: bytes) -> Release:
    """Raises: PackageRefused."""
    try:
        told = TypeAdapter(_Told).validate_json(answer)
        checksum = told.integrity.removeprefix("sha512-")
        base64.b64decode(checksum, validate=True)
    except (ValidationError, binascii.Error) as error:
        raise errors.PackageRefused(f"npm does not describe {_PACKAGE}: {error}") from error
    return Release(told.version, checksum)


async def fetch(release: Release, kept: Path, progress: Progress) -> None:
    """Have the package of a release in a folder.

    Raises: CommandFailed, PackageRefused.
    """
    if await anyio.to_thread.run_sync(_is, release.place(kept), release):
        return
    progress(Stage.DOWNLOAD, 0, 1)
    async with scratch_folder(kept, _FETCHING) as folder:
        wanted = f"{_PACKAGE}@{release.version}"
        await _npm(["pack", wanted, "--ignore-scripts", "--silent"], _PACK_S, folder)
        await anyio.to_thread.run_sync(_keep, folder, release, kept)
    progress(Stage.DOWNLOAD, 1, 1)


def read_program(release: Release, kept: Path, folder: Path) -> Tree:
    """Unpack the package into a folder of the build and describe the disk: not for the event loop.

    Raises: PackageRefused.
    """
    tar = folder / "claude.tar"
    _unzip(release.place(kept), tar)
    inside = read_tar(tar)
    tree = Tree()
    tree.put("bin/claude", File(inside.file("package/claude").content, 0o755))
    for path, node in inside:
        if path.startswith("package/LICENSE") and isinstance(node, File):
            tree.put(path.removeprefix("package/"), File(node.content))
    return tree


async def _npm(words: Sequence[str], timeout_s: float, folder: Path) -> proc.Finished:
    beside = Path(sys.executable).parent / "npm"
    found = str(beside) if beside.exists() else shutil.which("npm")
    if found is None:
        raise errors.CommandFailed(
            "npm is not installed", argv=("npm", *words), hint="install npm, or a wheel that has it"
        )
    # Sources and keys are the host's; what npm and node keep for themselves goes with the folder.
    env = {**os.environ, "npm_config_cache": str(folder / "cache"), "TMPDIR": str(folder)}
    return await proc.run([found, *words], timeout_s=timeout_s, cwd=folder, env=env)


def _keep(fetched: Path, release: Release, kept: Path) -> None:
    found = list(fetched.glob("*.tgz"))
    if len(found) != 1 or not _is(found[0], release):
        raise errors.PackageRefused(f"what npm fetched is not {_PACKAGE} {release.version}")
    found[0].replace(release.place(kept))


def _is(path: Path, release: Release) -> bool:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha512").digest()
    except FileNotFoundError:
        return False
    return digest == base64.b64decode(release.sha512)


def _unzip(packed: Path, target: Path) -> None:
    """Write what a gzip file holds, up to a bound: what a few bytes stand for may be endless."""
    left = _MAX_BYTES
    try:
        with gzip.open(packed) as source, target.open("xb") as out:
            while chunk := source.read(min(left, 1 << 20)):
                left -= out.write(chunk)
            if not left:
                raise errors.PackageRefused(f"{packed.name} holds more than {_MAX_BYTES} bytes")
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise errors.PackageRefused(f"{packed.name} is damaged: {error}") from error
