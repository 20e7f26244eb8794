"""Programs of the packages, run on this host without being installed.

They run with the libraries and the loader they were packaged with, so an image does not depend on
what the host has: the same packages make the same bytes everywhere. Only regular files are written
here, at places inside a fresh folder; links of the packages are followed within the tree alone.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING

from microvm_orchestrator import errors
from microvm_orchestrator.images.tree import Directory, File, Link, Tree, clean

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path, PurePath

_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_LOADER = f"{_LIBRARIES}/ld-linux-x86-64.so.2"
_IS_LIBRARY = re.compile(re.escape(_LIBRARIES) + r"/[^/]*\.so(\.[0-9.]+)?")
# As many as the kernel follows.
_MAX_LINKS = 40


class Toolbox:
    """A folder with programs and the libraries they need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def command(self, program: str, *words: str | PurePath) -> list[str]:
        """Write the command that runs a program of the box."""
        start = [self.folder / _LOADER, "--library-path", self.folder / _LIBRARIES]
        return [str(word) for word in (*start, self.folder / program, *words)]


def open_toolbox(tree: Tree, folder: Path, wanted: Callable[[str], bool]) -> Toolbox:
    """Write what is wanted of a tree, and every library, into a folder; not for the event loop."""
    write_out(tree, folder, lambda path: wanted(path) or bool(_IS_LIBRARY.fullmatch(path)))
    return Toolbox(folder)


def write_out(tree: Tree, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Write files of a tree; a link becomes a copy of the file it leads to, or nothing."""
    for path, node in tree:
        if isinstance(node, Directory) or not wanted(path):
            continue
        file = follow(tree, path)
        if isinstance(file, File):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as out:
                file.write_to(out)
            target.chmod(0o755)


def follow(tree: Tree, path: str) -> File | Directory | None:
    """Find what a path leads to, as the guest will see it.

    Raises: PackageRefused when links lead round in a ring.
    """
    for _ in range(_MAX_LINKS):
        node = tree.find(path)
        if not isinstance(node, Link):
            return node
        # Joined to a root first: `..` at the root stays there, as it does in the guest.
        path = posixpath.normpath(posixpath.join("/", posixpath.dirname(path), node.target))
        path = clean(path.lstrip("/"))
    raise errors.PackageRefused(f"the links at {path} lead round in a ring")
