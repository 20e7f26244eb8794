"""Keys: ours to come in by, and those of machines, by which we know them again.

A machine that is ours to make has two of its own, made here before it starts: its guest is given
the private half of its host key and the public half of ours. All foreign images let in one key of
the daemon's. Private halves stay on this host, in a folder that only we can read. Blocking: it
reads and writes files, and runs in a worker thread.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import asyncssh

from microvm_orchestrator import errors

if TYPE_CHECKING:
    from pathlib import Path

_ALGORITHM = "ssh-ed25519"
# The kinds of host key we believe in; what is signed with SHA-1 is not among them.
HOST_KEYS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
)
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
    key = asyncssh.generate_private_key(_ALGORITHM, comment)  # pyright: ignore[reportUnknownMemberType]  # asyncssh leaves it untyped
    return KeyPair(key.export_private_key(), key.export_public_key().decode().strip())


def keep_keys(folder: Path, machine: str) -> MachineKeys:
    """Return the keys of a machine that are kept in a folder, which makes them the first time.

    Raises: Unavailable when they cannot be read or written.
    """
    return MachineKeys(keep_key(folder / "client", machine), keep_key(folder / "host", machine))


def keep_key(path: Path, comment: str) -> KeyPair:
    """Return a key that is kept in a file, which makes it the first time.

    Raises: Unavailable when it cannot be read or written.
    """
    try:
        with suppress(FileExistsError):
            path.parent.mkdir(mode=0o700)
        return _keep(path, comment)
    except (OSError, asyncssh.KeyImportError) as error:
        raise errors.Unavailable(f"the SSH key {path} cannot be used: {error}") from error


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


def read_line(public: str) -> str:
    """Return the one form of the line of a public host key, which has no comment.

    Raises: InvalidInput.
    """
    line = public.strip()
    if "\n" in line or line.partition(" ")[0] not in HOST_KEYS:
        raise errors.InvalidInput(
            f"this is no public host key of SSH: {line[:80]!r}",
            hint=f"one line, as in ssh_host_ed25519_key.pub; of {', '.join(HOST_KEYS)}",
        )
    return written(read_public(line))


def written(key: asyncssh.SSHKey) -> str:
    """Write the public half as a line without a comment."""
    return " ".join(key.export_public_key().decode().split()[:2])


def write_once(path: Path, content: bytes) -> None:
    """Write a file that only we read, unless there is one. It has its name once it is whole."""
    part = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            path.hardlink_to(part)
    finally:
        part.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _keep(path: Path, comment: str) -> KeyPair:
    if not path.exists():
        write_once(path, make_key(comment).private)
    with path.open("rb") as file:
        private = file.read(_MAX_FILE)
    key = asyncssh.import_private_key(private)
    return KeyPair(private, key.export_public_key().decode().strip())
