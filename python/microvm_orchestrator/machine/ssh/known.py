"""How a foreign image is entered: by which key of ours, and past which host key of its own.

A host key that was given with the image is the only one that is believed. Where none was, the first
one that a machine proves to have while it boots is remembered in its folder, and is the only one
from then on, until the machine is deleted. Blocking: it reads and writes files, and runs in a
worker thread. Above is the machine.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from microvm_orchestrator import errors, log, places
from microvm_orchestrator.machine.ssh.connection import Login
from microvm_orchestrator.machine.ssh.keys import (
    KeyPair,
    fingerprint,
    keep_key,
    read_line,
    write_once,
)

if TYPE_CHECKING:
    from pathlib import Path

    from microvm_orchestrator.runner import Ssh

# In the machine's folder: a line, as in an image's manifest.
HOST_KEY = "ssh_host_key"
_MAX_LINE = 16 * 1024
_log = log.get(__name__)


def our_key(state_dir: Path) -> KeyPair:
    """Return the key that every foreign image has to let in. Raises: Unavailable."""
    return keep_key(our_key_path(state_dir), places.NAME)


def our_key_path(state_dir: Path) -> Path:
    """Name the file of its private half, which only the daemon's user can read."""
    return state_dir / places.SSH / "client"


def login_of(state_dir: Path, folder: Path, ssh: Ssh, *, boots: bool) -> Login:
    """Tell how to enter a machine, whose folder this is. Raises: Unavailable."""
    key = our_key(state_dir)
    if ssh.host_key is not None:
        return Login(ssh.user, key, (ssh.host_key,))
    path = folder / HOST_KEY
    if known := _read(path):
        return Login(ssh.user, key, (known,))
    # Who is not known any more is not met for the first time.
    return Login(ssh.user, key, (), partial(_remember, path) if boots else None)


def remember_host_key(folder: Path, public: str) -> None:
    """Let a machine, whose folder this is, be known by a key from the first time on.

    Raises: Unavailable.
    """
    if _read(folder / HOST_KEY) is None:
        _remember(folder / HOST_KEY, read_line(public))


def _read(path: Path) -> str | None:
    try:
        with path.open(encoding="ascii") as file:
            return file.read(_MAX_LINE).strip()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise errors.Unavailable(f"the host key in {path} cannot be read: {error}") from error


def _remember(path: Path, line: str) -> None:
    try:
        write_once(path, f"{line}\n".encode())
    except OSError as error:
        raise errors.Unavailable(f"the host key cannot be kept in {path}: {error}") from error
    _log.info("host_key_remembered", machine=path.parent.name, fingerprint=fingerprint(line))
