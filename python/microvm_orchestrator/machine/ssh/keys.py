"""The keys of one machine: ours to come in by, and its own, by which we know it again.

Both are made here before the machine starts. The guest is given the private half of its host key
and the public half of ours; ours stays on this host, in a folder that only we can read. Blocking:
it reads and writes files, and runs in a worker thread.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import asyncssh

from microvm_orchestrator import errors

if TYPE_CHECKING:
    from pathlib import Path

_ALGORITHM = "ssh-ed25519"
_MAX_FILE = 16 * 1024


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A key of ours, as OpenSSH writes it."""

    private: bytes = field(repr=False)
    # One line: the algorithm, the key, a comment.
    public: str


@dataclass(frozen=True, slots=True)
class MachineKeys:
    """What belongs to one machine."""

    client: KeyPair
    host: KeyPair


def make_key(comment: str) -> KeyPair:
    """Make a key of its own."""
    key = asyncssh.generate_private_key(_ALGORITHM, comment)  # pyright: ignore[reportUnknownMemberType]
    return KeyPair(key.export_private_key(), key.export_public_key().decode().strip())


def keep_keys(folder: Path, machine: str) -> MachineKeys:
    """Return the keys of a machine that are kept in a folder, which makes them the first time.

    Raises: Unavailable when they cannot be read or written.
    """
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        return MachineKeys(_keep(folder / "client", machine), _keep(folder / "host", machine))
    except (OSError, asyncssh.KeyImportError) as error:
        raise errors.Unavailable(f"the SSH keys in {folder} cannot be used: {error}") from error


def fingerprint(public: str) -> str:
    """Name a public key as `ssh-keygen -l` does. Raises: InvalidInput."""
    return read_public(public).get_fingerprint()


def read_public(public: str) -> asyncssh.SSHKey:
    """Read a line of a public key. Raises: InvalidInput."""
    try:
        return asyncssh.import_public_key(public)
    except (asyncssh.KeyImportError, ValueError) as error:
        raise errors.InvalidInput(f"this is no public key of SSH: {public[:80]!r}") from error


def read_private(pair: KeyPair) -> asyncssh.SSHKey:
    """Read a key of ours. Raises: InvalidInput."""
    try:
        return asyncssh.import_private_key(pair.private)
    except (asyncssh.KeyImportError, ValueError) as error:
        raise errors.InvalidInput("this is no private key of SSH") from error


def _keep(path: Path, comment: str) -> KeyPair:
    """Read a key, or make it. The file has its name only once it is whole."""
    if not path.exists():
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(make_key(comment).private)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    with path.open("rb") as file:
        private = file.read(_MAX_FILE)
    key = asyncssh.import_private_key(private)
    return KeyPair(private, key.export_public_key().decode().strip())
