"""What an image is: its files, how to boot it and what it was made of. Its digest is its name.

The digest is the SHA-256 of the manifest as it is written, and the manifest has that of every file;
so two images of one digest are the same image, and a damaged one does not have its digest.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from microvm_orchestrator import errors

FORMAT = 1
MANIFEST = "manifest.json"
# Far above any real one.
MAX_MANIFEST = 4 << 20

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# A name inside the image's folder: no path.
FileName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredFile(_Part):
    """A file of the image."""

    file: FileName
    bytes: int
    sha256: Sha256


class Disk(StoredFile):
    """A file the machine has as a read-only disk; the guest knows its use by the serial."""

    serial: str


class Input(_Part):
    """Something the image was made of, by what it was."""

    version: str
    # Of the package's file; as its registry gives it for what is no Debian package.
    checksum: str


class Inputs(_Part):
    """All that decides what an image becomes. The same inputs make the same image."""

    # Of the modules that build, and of our own files in the guest.
    builder: Sha256
    guest: Sha256
    packages: dict[str, Input]
    tools: dict[str, Input]
    extras: dict[str, Input]


class Agent(_Part):
    """Who answers in the guest, and where."""

    protocol: int
    port: str


class _Document(_Part):
    """The document in an image's folder."""

    format: Literal[1] = FORMAT

    def written(self) -> bytes:
        """Write it in the one form that has its digest."""
        document = self.model_dump(mode="json", exclude=self._unsaid())
        return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"

    def _unsaid(self) -> set[str]:
        """Name what is left out, so that what never had it keeps its digest."""
        return set()


class Manifest(_Document):
    """An image that we have built."""

    kind: Literal["embedded"] = "embedded"
    architecture: str
    kernel_release: str
    kernel: StoredFile
    initrd: StoredFile
    disks: tuple[Disk, ...]
    # What the image wants beyond what every machine says to its kernel.
    cmdline: str
    agent: Agent
    inputs: Inputs

    def files(self) -> list[StoredFile]:
        return [self.kernel, self.initrd, *self.disks]

    def size(self) -> int:
        return sum(file.bytes for file in self.files())


class SshLogin(_Part):
    """How a guest is reached that has an SSH server instead of our agent."""

    user: str
    # Where none is given, each machine's first one is remembered.
    host_key: str | None


class RunnerManifest(_Document):
    """An image that is a runner directory somewhere else; nothing of it is copied."""

    kind: Literal["runner"] = "runner"
    architecture: str
    hypervisor: str
    path: str
    # Over all that stands in the directory.
    runner: Sha256
    # What the guest has, where that can be told.
    memory_mib: int | None
    vcpus: int | None
    ssh: SshLogin | None = None

    def _unsaid(self) -> set[str]:
        return set() if self.ssh else {"ssh"}


class DiskManifest(_Document):
    """An image that is a disk with a whole system on it, as clouds boot them."""

    kind: Literal["qcow2"] = "qcow2"
    architecture: str
    disk: StoredFile
    # Where none is given, our agent answers.
    ssh: SshLogin | None
    cloud_init: bool

    def files(self) -> list[StoredFile]:
        return [self.disk]

    def size(self) -> int:
        return self.disk.bytes


AnyManifest = Manifest | RunnerManifest | DiskManifest
_MANIFESTS: TypeAdapter[AnyManifest] = TypeAdapter(
    Annotated[AnyManifest, Field(discriminator="kind")]
)


def digest_of(written: bytes) -> str:
    return hashlib.sha256(written).hexdigest()


def read_manifest(written: bytes) -> AnyManifest:
    """Raises: ImageDamaged when it is none, or one of another release that we cannot read."""
    try:
        return _MANIFESTS.validate_json(written)
    except ValidationError as error:
        raise errors.ImageDamaged(f"the manifest of an image cannot be read: {error}") from error
