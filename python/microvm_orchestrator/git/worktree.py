"""Files of a work tree, reached without following a link and never overwritten.

What a landing replaces is kept as a second name for as long as it lasts: somebody who writes into a
file at the moment git replaces it writes into what is kept, and gets it back. Everything here
blocks, and is called as the owner of the work tree. Above stands checkout.py.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextlib.contextmanager
def beneath(root: Path, path: bytes) -> Generator[tuple[int, bytes]]:
    """Open the folder of a path in a work tree. Raises: OSError when a link is on the way."""
    *folders, name = path.split(b"/")
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            inner = os.open(folder, _FOLDER, dir_fd=handle)
            os.close(handle)
            handle = inner
        yield handle, name
    finally:
        os.close(handle)


def find(root: Path, path: bytes) -> os.stat_result | None:
    """Look at what is there itself, not at what it points to."""
    with contextlib.suppress(OSError), beneath(root, path) as (folder, name):
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    return None


def read(root: Path, path: bytes, cap: int) -> bytes | None:
    """Read a file or the text of a link; None for what is neither or larger."""
    with contextlib.suppress(OSError), beneath(root, path) as (folder, name):
        about = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISLNK(about.st_mode):
            return os.readlink(name, dir_fd=folder)
        if not stat.S_ISREG(about.st_mode) or about.st_size > cap:
            return None
        with open(os.open(name, _FILE, dir_fd=folder), "rb") as file:  # noqa: PTH123 - a handle
            return file.read(cap + 1)
    return None


def remove(root: Path, path: bytes) -> None:
    """Remove a file, and the folders that are empty without it."""
    with contextlib.suppress(OSError), beneath(root, path) as (folder, name):
        os.unlink(name, dir_fd=folder)
    while path := path.rpartition(b"/")[0]:
        try:
            with beneath(root, path) as (folder, name):
                os.rmdir(name, dir_fd=folder)
        except OSError:
            return


@dataclass(frozen=True, slots=True)
class _Kept:
    path: bytes
    place: Path
    changed: tuple[int, int]


class Keepsakes:
    """Second names for the files that are about to be replaced."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root, self._folder = root, folder
        self._kept: list[_Kept] = []

    def keep(self, paths: Iterable[bytes]) -> None:
        """Keep these; where a file system knows no second names there is nothing to be kept."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for number, path in enumerate(paths):
            place = self._folder / str(number)
            with contextlib.suppress(OSError), beneath(self._root, path) as (folder, name):
                if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                    continue
                os.link(name, place, src_dir_fd=folder, follow_symlinks=False)
                self._kept.append(_Kept(path, place, _changed(place.lstat())))

    def find_written(self) -> list[bytes]:
        """Name those that somebody has written into since they were kept."""
        return [kept.path for kept in self._kept if _changed(kept.place.lstat()) != kept.changed]

    def give_back(self, written: Collection[bytes], again: Collection[bytes]) -> None:
        """Put these in the place of what git put there, as if written a moment later.

        What has been written there `again` stays, and the earlier one goes beside it.
        """
        for kept in self._kept:
            if kept.path not in written:
                continue
            beside = b".written-meanwhile" if kept.path in again else b""
            try:
                with beneath(self._root, kept.path) as (folder, name):
                    os.replace(kept.place, name + beside, dst_dir_fd=folder)
            except OSError:  # its folder has gone, or is a file now
                with beneath(self._root, kept.path.rpartition(b"/")[2]) as (folder, name):
                    os.replace(kept.place, name + b".written-meanwhile", dst_dir_fd=folder)


def _changed(about: os.stat_result) -> tuple[int, int]:
    return about.st_mtime_ns, about.st_size
