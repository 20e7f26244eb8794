"""The images of this host: folders named by their digest, and names that point at them.

    <folder>/<digest>/manifest.json, kernel, initrd, disks     never changed, mode 0444
    <folder>/names/<name> -> ../<digest>                       moved when a name is built anew
    <folder>/.new-*                                            a build under way

An image appears and goes at once, by a rename; a build that was killed leaves only its own folder,
which goes after a day. Who still uses an image is the caller's to know before it removes one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeVar, overload

from microvm_orchestrator import errors, runner
from microvm_orchestrator.images.files import remove_abandoned, sync
from microvm_orchestrator.images.manifest import (
    MANIFEST,
    MAX_MANIFEST,
    AnyManifest,
    DiskManifest,
    Inputs,
    Manifest,
    RunnerManifest,
    StoredFile,
    digest_of,
    read_manifest,
)

if TYPE_CHECKING:
    from collections.abc import Generator

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_NEW = ".new-"
_GONE = ".gone-"
_LIST = "image list shows those there are"


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is complete, and the names that point at it."""

    digest: str
    folder: Path
    manifest: Manifest
    names: tuple[str, ...]

    def path(self, file: StoredFile) -> Path:
        return self.folder / file.file


@dataclass(frozen=True, slots=True)
class RunnerImage:
    """A runner directory that is known here, and the names that point at it."""

    digest: str
    folder: Path
    manifest: RunnerManifest
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DiskImage:
    """A disk with a whole system on it, and the names that point at it."""

    digest: str
    folder: Path
    manifest: DiskManifest
    names: tuple[str, ...]

    def path(self, file: StoredFile) -> Path:
        return self.folder / file.file


AnyImage = Image | RunnerImage | DiskImage


@dataclass(frozen=True, slots=True)
class Fixed:
    """What every machine of an image has, where the image says so."""

    memory_mib: int | None
    vcpus: int | None


def fixed_by(image: AnyImage) -> Fixed:
    """A runner was made for so much; other images boot in any machine."""
    own = image.manifest if isinstance(image, RunnerImage) else None
    return Fixed(own and own.memory_mib, own and own.vcpus)


_Kind = TypeVar("_Kind", Image, RunnerImage, DiskImage)


def check_name(name: str) -> str:
    """Raises: InvalidInput when it is no name for an image, or could be taken for a digest."""
    if not _NAME.fullmatch(name) or _DIGEST.fullmatch(name):
        raise errors.InvalidInput(
            f"{name!r} is no name for an image",
            hint="at most 63 of a-z, 0-9, '.', '_' and '-', the first a letter or digit",
        )
    return name


class ImageStore:
    """Every image below one folder. Its methods read and write files: not for the event loop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names = folder / "names"

    def list(self) -> list[AnyImage]:
        """Give every whole image, those with a name first, in the order of the names."""
        names = self._read_names()
        found: list[AnyImage] = []
        for digest in self._digests():
            # It went while we looked, or `damaged` tells.
            with contextlib.suppress(errors.NotFound, errors.ImageDamaged):
                found.append(self._open(digest, names))
        return sorted(found, key=lambda image: (not image.names, image.names, image.digest))

    def damaged(self) -> dict[str, str]:
        """Give the digests of the images that cannot be used, and why."""
        found: dict[str, str] = {}
        for digest in self._digests():
            try:
                self._open(digest, {})
            except errors.ImageDamaged as error:
                found[digest] = error.message
            except errors.NotFound:  # it went while we looked
                continue
        return found

    def get(self, reference: str) -> AnyImage:
        """Find an image by a name or its whole digest.

        Raises: NotFound, ImageDamaged.
        """
        names = self._read_names()
        return self._open(_digest_in(names, reference), names)

    def find_made_of(self, inputs: Inputs) -> Image | None:
        """Find an image that was made of just these things."""
        images = (image for image in self.list() if isinstance(image, Image))
        return next((image for image in images if image.manifest.inputs == inputs), None)

    def verify(self, image: AnyImage) -> list[str]:
        """Name the files that are not what they were when the image was made."""
        if isinstance(image, RunnerImage):
            return [] if _is_unchanged(image.manifest) else [image.manifest.path]
        return [
            file.file
            for file in image.manifest.files()
            if _digest_of_file(image.path(file)) != file.sha256
        ]

    def name(self, image: _Kind, name: str) -> _Kind:
        """Let a name point at an image, and no longer at another.

        Raises: InvalidInput.
        """
        self._names.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.folder, prefix=_NEW) as scratch:
            link = Path(scratch) / "link"
            link.symlink_to(f"../{image.digest}")
            link.replace(self._names / check_name(name))
        sync(self._names)
        return replace(image, names=_pointing(self._read_names(), image.digest))

    def remove(self, reference: str) -> str:
        """Remove an image, a damaged one too, with its names; return its digest.

        Raises: NotFound.
        """
        names = self._read_names()
        digest = _digest_in(names, reference)
        # Names first: none ever points at nothing.
        for name, target in names.items():
            if target == digest:
                (self._names / name).unlink(missing_ok=True)
        if not self._put_away(digest):
            raise errors.NotFound(f"there is no image {digest}", hint=_LIST)
        return digest

    @contextmanager
    def new_folder(self) -> Generator[Path]:
        """Hold a folder to build in, on the same disk; what `publish` does not take is removed."""
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        for leftover in (_NEW, _GONE):
            remove_abandoned(self.folder, leftover + "*")
        with TemporaryDirectory(dir=self.folder, prefix=_NEW) as folder:
            yield Path(folder)

    @overload
    def publish(self, folder: Path, manifest: Manifest) -> Image: ...
    @overload
    def publish(self, folder: Path, manifest: RunnerManifest) -> RunnerImage: ...
    @overload
    def publish(self, folder: Path, manifest: DiskManifest) -> DiskImage: ...
    def publish(self, folder: Path, manifest: AnyManifest) -> AnyImage:
        """Make an image of a folder that holds the manifest's files and nothing else."""
        written = manifest.written()
        (folder / MANIFEST).write_bytes(written)
        for path in folder.iterdir():
            path.chmod(0o444)
            sync(path)
        folder.chmod(0o755)
        sync(folder)
        digest = digest_of(written)
        try:
            folder.rename(self.folder / digest)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not self._is_whole(digest):
                self._put_away(digest)
                folder.rename(self.folder / digest)
            # Else another build was quicker; what it made is the same to the last byte.
        sync(self.folder)
        return self._open(digest, self._read_names())

    def _digests(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*") if _DIGEST.fullmatch(path.name))

    def _is_whole(self, digest: str) -> bool:
        try:
            return not self.verify(self._open(digest, {}))
        except (errors.NotFound, errors.ImageDamaged):
            return False

    def _put_away(self, digest: str) -> bool:
        """Remove a folder at once; tell whether it was there."""
        with TemporaryDirectory(dir=self.folder, prefix=_GONE) as gone:
            try:
                (self.folder / digest).rename(Path(gone) / digest)
            except FileNotFoundError:
                return False
        return True

    def _read_names(self) -> dict[str, str]:
        names: dict[str, str] = {}
        with contextlib.suppress(FileNotFoundError):
            for path in self._names.iterdir():
                with contextlib.suppress(OSError):  # it was moved just now, or is no link
                    names[path.name] = path.readlink().name
        return names

    def _open(self, digest: str, names: dict[str, str]) -> AnyImage:
        folder = self.folder / digest
        try:
            with (folder / MANIFEST).open("rb") as file:
                written = file.read(MAX_MANIFEST)
        except FileNotFoundError as error:
            raise errors.NotFound(f"there is no image {digest}", hint=_LIST) from error
        if digest_of(written) != digest:
            raise errors.ImageDamaged(f"the manifest of image {digest} has been changed")
        manifest, pointing = read_manifest(written), _pointing(names, digest)
        if isinstance(manifest, RunnerManifest):
            return RunnerImage(digest, folder, manifest, pointing)
        if isinstance(manifest, DiskManifest):
            return DiskImage(digest, folder, manifest, pointing)
        return Image(digest, folder, manifest, pointing)


def _pointing(names: dict[str, str], digest: str) -> tuple[str, ...]:
    return tuple(sorted(name for name, target in names.items() if target == digest))


def _is_unchanged(manifest: RunnerManifest) -> bool:
    try:
        return runner.read(Path(manifest.path)).digest == manifest.runner
    except errors.InvalidInput:  # it is gone, or is no runner any more
        return False


def _digest_in(names: dict[str, str], reference: str) -> str:
    digest = reference if _DIGEST.fullmatch(reference) else names.get(reference)
    if digest is None:
        raise errors.NotFound(f"there is no image {reference}", hint=_LIST)
    return digest


def stored(path: Path) -> StoredFile:
    """Describe a file of an image that is being made."""
    return StoredFile(file=path.name, bytes=path.stat().st_size, sha256=_digest_of_file(path))


def _digest_of_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return ""
