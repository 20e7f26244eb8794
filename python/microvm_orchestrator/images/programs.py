"""The programs of agents, each as a disk of its own that every image can share.

One comes as the npm package of its platform, from where this host's npm is told to look; npm's
checksum of the package is what it is known by. No script of the package runs. To offer another, it
takes an entry in PROGRAMS, and a driver for what it says.
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
from collections.abc import Mapping
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

    from microvm_orchestrator.images.manifest import Inputs

# What they want around them that the plain guest has not.
PACKAGES = ("bash",)
# They are 0.4 GB.
_MAX_BYTES = 4 << 30
_ASK_S = 120.0
_PACK_S = 1800.0
_FETCHING = ".fetching-"


@dataclass(frozen=True, slots=True)
class Program:
    """A program of agents, as npm has it."""

    # As its driver, its disk and its command are called.
    name: str
    # As people call it.
    title: str
    package: str
    # What of the package is taken, and where to on its disk.
    files: Mapping[str, str]
    # Names that stand for a version.
    channels: frozenset[str] = frozenset({"latest"})
    # What the package of our platform has behind the version, where it is a version of the whole.
    platform: str = ""
    # As an image's manifest names it.
    input: str = ""

    @property
    def listed(self) -> str:
        return self.input or self.name

    @property
    def serial(self) -> str:
        """The serial of its disk, by which the guest's init knows where to mount it."""
        return f"opt-{self.name}"

    @property
    def command(self) -> str:
        """Where it is in the guest."""
        return f"opt/{self.name}/bin/{self.name}"


_VENDORED = "package/vendor/x86_64-unknown-linux-musl/"
PROGRAMS: Mapping[str, Program] = {
    program.name: program
    for program in (
        Program(
            "claude",
            "Claude Code",
            "@anthropic-ai/claude-code-linux-x64",
            {"package/claude": "bin/claude"},
            frozenset({"latest", "stable", "next"}),
            input="claude-code",
        ),
        Program(
            "codex",
            "Codex",
            "@openai/codex",
            # Not its sandbox, which stays unused in a machine of its own, and not its voice.
            {
                f"{_VENDORED}bin/codex": "bin/codex",
                # Runs what newer models write.
                f"{_VENDORED}bin/codex-code-mode-host": "bin/codex-code-mode-host",
                f"{_VENDORED}codex-path/rg": "codex-path/rg",
                # By this it knows where the others are.
                f"{_VENDORED}codex-package.json": "codex-package.json",
            },
            platform="-linux-x64",
        ),
        Program(
            "opencode",
            "opencode",
            # The other one wants AVX2, which a guest without KVM has not.
            "opencode-linux-x64-baseline",
            {"package/bin/opencode": "bin/opencode"},
        ),
    )
}
_NUMBERS = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+")


@dataclass(frozen=True, slots=True)
class Release:
    """One version of a program's package, by npm's checksum."""

    program: Program
    version: str
    # Base64, as npm writes it.
    sha512: str

    @property
    def wanted(self) -> str:
        return f"{self.program.package}@{self.version}{self.program.platform}"

    def place(self, kept: Path) -> Path:
        digest = base64.b64decode(self.sha512).hex()
        return kept / f"{self.program.listed}_{self.version}_{digest[:64]}.tgz"


class _Told(BaseModel):
    """What `npm view` answers."""

    version: str = Field(pattern=r"^[0-9A-Za-z.+-]{1,64}$")
    integrity: str = Field(alias="dist.integrity", pattern=r"^sha512-[A-Za-z0-9+/]{86}==$")


async def find_release(program: Program, version: str, kept: Path) -> Release:
    """Ask npm which version that is.

    Raises: InvalidInput, CommandFailed, PackageRefused.
    """
    channel = version in program.channels
    if not channel and not _NUMBERS.fullmatch(version):
        names = ", ".join(sorted(program.channels))
        raise errors.InvalidInput(
            f"{version!r} is no version of {program.title}", hint=f"such as 1.2.3, or {names}"
        )
    if channel and program.platform:
        # The channels are those of the whole.
        version = read_told(program, await _view(f"{program.package}@{version}", kept)).version
    wanted = f"{program.package}@{version}{program.platform}"
    return read_told(program, await _view(wanted, kept))


async def _view(wanted: str, kept: Path) -> bytes:
    async with scratch_folder(kept, _FETCHING) as folder:
        words = ["view", wanted, "version", "dist.integrity", "--json"]
        return (await _npm(words, _ASK_S, folder)).stdout


def read_told(program: Program, answer: bytes) -> Release:
    """Raises: PackageRefused."""
    try:
        told = TypeAdapter(_Told).validate_json(answer)
        checksum = told.integrity.removeprefix("sha512-")
        base64.b64decode(checksum, validate=True)
    except (ValidationError, binascii.Error) as error:
        raise errors.PackageRefused(f"npm does not describe {program.package}: {error}") from error
    return Release(program, told.version.removesuffix(program.platform), checksum)


async def fetch(release: Release, kept: Path, progress: Progress) -> None:
    """Have the package of a release in a folder.

    Raises: CommandFailed, PackageRefused.
    """
    if await anyio.to_thread.run_sync(_is, release.place(kept), release):
        return
    progress(Stage.DOWNLOAD, 0, 1)
    async with scratch_folder(kept, _FETCHING) as folder:
        await _npm(["pack", release.wanted, "--ignore-scripts", "--silent"], _PACK_S, folder)
        await anyio.to_thread.run_sync(_keep, folder, release, kept)
    progress(Stage.DOWNLOAD, 1, 1)


def read_program(release: Release, kept: Path, folder: Path) -> Tree:
    """Unpack the package into a folder of the build and describe the disk: not for the event loop.

    Raises: PackageRefused.
    """
    tar = folder / f"{release.program.name}.tar"
    _unzip(release.place(kept), tar)
    inside = read_tar(tar)
    tree = Tree()
    for path, place in release.program.files.items():
        mode = 0o644 if place.endswith(".json") else 0o755
        tree.put(place, File(inside.file(path).content, mode))
    for path, node in inside:
        if path.startswith("package/LICENSE") and isinstance(node, File):
            tree.put(path.removeprefix("package/"), File(node.content))
    return tree


def programs_of(inputs: Inputs) -> list[Program]:
    """Tell which programs an image was made with."""
    return [program for program in PROGRAMS.values() if program.listed in inputs.extras]


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
        raise errors.PackageRefused(f"what npm fetched is not {release.wanted}")
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
