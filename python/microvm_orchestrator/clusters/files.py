"""Topologies that lie in a folder of this host, each in a file of its name.

A name is one word, so that it leads nowhere else; whoever may write the folder says what is there.
Not for the event loop. Above are the services; below are the errors alone.
"""

from __future__ import annotations

import re
from pathlib import Path

from microvm_orchestrator import errors
from microvm_orchestrator.clusters.strict_yaml import MAX_CHARS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ENDINGS = (".yaml", ".yml")


def find(folder: Path, name: str) -> str:
    """Read the topology of a name. Raises: InvalidInput, NotFound, Unavailable."""
    if not _NAME.fullmatch(name):
        raise errors.InvalidInput(f"{name[:64]!r} is no name of a topology")
    for ending in _ENDINGS:
        path = folder / f"{name}{ending}"
        if path.is_file():
            return _read(path)
    there = ", ".join(names(folder)[:20]) or "none"
    raise errors.NotFound(f"no topology {name} in {folder}", hint=f"there are: {there}")


def names(folder: Path) -> list[str]:
    """Name the topologies that lie in a folder."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.suffix in _ENDINGS)
    return sorted({path.stem for path in found if _NAME.fullmatch(path.stem) and path.is_file()})


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            # A character has up to four bytes; what is longer is refused by who reads it.
            return file.read(4 * MAX_CHARS + 4).decode()
    except UnicodeDecodeError:
        raise errors.InvalidInput(f"the topology {path.stem} is not UTF-8") from None
    except OSError as error:
        raise errors.Unavailable(
            f"the topology {path.stem} cannot be read: {error.strerror}"
        ) from error
