"""Debian packages, as the apt of this host offers them: resolved, fetched, checked, kept.

apt's own configuration says from where and with whose keys; its state is ours, so no privilege is
needed and the host's packages play no part. An index is a folder that is never changed once it is
complete: a newer one takes its place by name, and whoever reads the older one is not disturbed.
Packages are kept by the SHA-256 that the signed index announces. Below stands `proc`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from microvm_orchestrator import errors, log, proc
from microvm_orchestrator.images.files import remove_abandoned, scratch_folder, write_whole
from microvm_orchestrator.images.progress import Progress, Stage
from microvm_orchestrator.together import together

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ARCHITECTURE = "amd64"
# As Debian's policy has it, less what apt takes for a wish: `name-` removes, `name=version` pins.
PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]*[a-z0-9+]")
# Security updates come several times a week; a mirror is asked again when this much has passed.
FRESH_S = 6 * 3600.0
_UPDATE_S = 300.0
# Solving takes a second, two on a busy machine.
_ASK_S = 120.0
_DOWNLOAD_S = 1800.0
_CAP = 16 << 20
_FETCHING = ".fetching-"

_CONFIG = """\
Dir::State "{folder}";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "";
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Install-Recommends "0";
APT::Install-Suggests "0";
Acquire::GzipIndexes "false";
Acquire::Languages "none";
Acquire::Retries "3";
Debug::NoLocking "1";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""
_INST = re.compile(r"^Inst (?P<name>[^ :]+)\S* (?:\[[^\]]*\] )?\((?P<version>\S+) ", re.MULTILINE)
_URI = re.compile(r"'[^']*' (?P<file>\S+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})")
_SHARE = re.compile(rb"dlstatus:\d+:([\d.]+):")
_UNMET = re.compile(r"\S+ : (?:Pre-)?Depends: .*\S")
_UNKNOWN = re.compile(r"Unable to locate package (\S+)|Package '?([^' ]+)'? has no installation")


@dataclass(frozen=True, slots=True)
class Package:
    """One version of a package, known by its content."""

    name: str
    version: str
    sha256: str
    size: int


def check_names(names: Iterable[str]) -> None:
    """Raises: PackageUnknown for what cannot be the name of a package."""
    for name in names:
        if not PACKAGE_NAME.fullmatch(name):
            raise errors.PackageUnknown(f"{name!r} is no name of a package")


class Index:
    """What the sources offer, at one moment."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def resolve(self, names: Sequence[str]) -> dict[str, str]:
        """Name everything that is needed to have these packages, with its version.

        Raises: PackageUnknown, CommandFailed.
        """
        check_names(names)
        try:
            plan = await self._ask("install", "--simulate", "--yes", *sorted(names))
        except errors.CommandFailed as error:
            if unknown := _UNKNOWN.search(error.stderr):
                name = unknown.group(1) or unknown.group(2)
                raise errors.PackageUnknown(
                    f"no source of this host has a package {name}",
                    hint=f"look for it with: apt-cache search {name}",
                ) from error
            if unmet := _UNMET.findall(error.stdout):
                raise errors.PackageUnknown(
                    f"the sources of this host lack what is depended on: {'; '.join(unmet)}"
                ) from error
            raise
        return read_plan(plan)

    async def describe(self, versions: dict[str, str]) -> list[Package]:
        """Look up what is announced of these versions, in the order of their names.

        Raises: PackageRefused, CommandFailed.
        """
        wanted = [f"{name}={version}" for name, version in sorted(versions.items())]
        return read_announced(await self._ask("download", "--print-uris", *wanted), versions)

    async def fetch(self, packages: Sequence[Package], kept: Path, progress: Progress) -> None:
        """Have the files of these packages in a folder, each named by its content.

        Raises: CommandFailed, PackageRefused.
        """
        missing = await anyio.to_thread.run_sync(_find_missing, packages, kept)
        total = sum(package.size for package in missing)
        if missing:
            async with scratch_folder(kept, _FETCHING) as folder:
                await self._download(missing, folder, total, progress)
                await anyio.to_thread.run_sync(_keep, folder, missing, kept)
        progress(Stage.DOWNLOAD, total, total)

    async def _download(
        self, packages: Sequence[Package], folder: Path, total: int, progress: Progress
    ) -> None:
        wanted = [f"{package.name}={package.version}" for package in packages]
        ends = os.pipe()
        reading, writing = os.fdopen(ends[0], "rb", 0), os.fdopen(ends[1], "wb", 0)

        async def download() -> None:
            with writing:
                told = writing.fileno()
                await proc.run(
                    [*self._command("download"), "-o", f"APT::Status-Fd={told}", *wanted],
                    timeout_s=_DOWNLOAD_S,
                    cwd=folder,
                    env=_environment(),
                    pass_fds=[told],
                )

        async def follow() -> None:
            source = proc.Reader(reading)
            while said := await source.read():
                if shares := _SHARE.findall(said):
                    progress(Stage.DOWNLOAD, int(total * min(float(shares[-1]) / 100, 1)), total)

        with reading, writing:
            await together([download, follow])

    async def _ask(self, *words: str) -> str:
        """Ask apt once; an index does not change, so neither does the answer."""
        key = hashlib.sha256("\0".join(words).encode()).hexdigest()
        answer = self._folder / "answers" / key
        if not answer.exists():
            done = await proc.run(
                self._command(*words), timeout_s=_ASK_S, cap=_CAP, env=_environment()
            )
            write_whole(answer, done.stdout)
        return answer.read_text()

    def _command(self, *words: str) -> list[str]:
        # Any quieter, and it does not say what is lacking.
        return ["apt-get", "-c", str(self._folder / "apt.conf"), "-q", *words]


async def open_index(cache: Path, progress: Progress, *, fresh_s: float = FRESH_S) -> Index:
    """Have what the sources offer, no older than asked.

    Where they cannot be reached an older index serves too, and the log tells.
    Raises: CommandFailed.
    """
    current = cache / "current"
    known = current.resolve() if current.exists() else None
    # A clock that was set back is as good a reason to ask again as an old answer.
    if known is not None and 0 <= time.time() - known.stat().st_mtime < fresh_s:
        return Index(known)
    progress(Stage.INDEX, 0, 1)
    folder = Path(await anyio.to_thread.run_sync(_new_folder, cache, known))
    try:
        await proc.run(
            ["apt-get", "-c", folder / "apt.conf", "-qq", "update"],
            timeout_s=_UPDATE_S,
            env=_environment(),
        )
    except BaseException as error:
        shutil.rmtree(folder)
        if known is None or not isinstance(error, errors.CommandFailed):
            raise
        log.get(__name__).warning("package_index_is_old", why=str(error))
        return Index(known)
    await anyio.to_thread.run_sync(_replace, cache, folder, known)
    progress(Stage.INDEX, 1, 1)
    return Index(folder)


def _new_folder(cache: Path, known: Path | None) -> str:
    cache.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(dir=cache, prefix="index-"))
    folder.chmod(0o755)  # as root, apt fetches as a user of its own where that one may enter
    if known is not None:
        # apt then asks only for what has changed.
        shutil.copytree(known / "lists", folder / "lists", symlinks=True, ignore=_only_lists)
    for name in ("lists/partial", "archives/partial", "answers"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    config = _CONFIG.format(folder=folder, architecture=ARCHITECTURE)
    (folder / "apt.conf").write_text(config)
    return str(folder)


def _only_lists(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "lock" or (Path(folder) / name).is_dir()]


def _replace(cache: Path, folder: Path, known: Path | None) -> None:
    os.utime(folder)
    fresh = folder / "link"
    fresh.symlink_to(folder.name)
    fresh.replace(cache / "current")
    # The one before may still be read by a build that began with it.
    remove_abandoned(cache, "index-*", folder, *([known] if known else []))


def _environment() -> dict[str, str]:
    """Ours, with its proxies and the like, but in the language we read."""
    return {**os.environ, "LC_ALL": "C.UTF-8"}


def read_plan(text: str) -> dict[str, str]:
    """Read what `apt-get install --simulate` would install: versions by name."""
    return {found["name"]: found["version"] for found in _INST.finditer(text)}


def read_announced(text: str, versions: dict[str, str]) -> list[Package]:
    """Read what `apt-get download --print-uris` announces of these versions.

    Raises: PackageRefused when it says nothing of one, or has no SHA-256 for it.
    """
    found: dict[str, Package] = {}
    for line in _URI.finditer(text):
        name = line["file"].partition("_")[0]
        if name in versions:
            found[name] = Package(name, versions[name], line["sha256"], int(line["size"]))
    if missing := versions.keys() - found.keys():
        raise errors.PackageRefused(f"apt announces no SHA-256 of {', '.join(sorted(missing))}")
    return [found[name] for name in sorted(found)]


def place(kept: Path, package: Package) -> Path:
    return kept / f"{package.name}_{package.sha256}.deb"


def _find_missing(packages: Sequence[Package], kept: Path) -> list[Package]:
    return [package for package in packages if not _is(place(kept, package), package)]


def _keep(fetched: Path, packages: Sequence[Package], kept: Path) -> None:
    found = {path.name.partition("_")[0]: path for path in fetched.glob("*.deb")}
    for package in packages:
        path = found.get(package.name)
        if path is None or not _is(path, package):
            raise errors.PackageRefused(f"what came as {package.name} is not what was announced")
        path.replace(place(kept, package))


def _is(path: Path, package: Package) -> bool:
    """Whether a file is there and whole: one may have been cut off with the power."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256
    except FileNotFoundError:
        return False
