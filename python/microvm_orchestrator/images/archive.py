"""A tree read from a tar, as packages hold it: nothing in it is believed.

Only regular files, directories and links inside the archive come through. Devices, pipes, sparse
files, paths that lead out and links to things the archive does not hold are refused, each with the
name of the archive. Contents stay where they are; the tree points into the tar.
"""

from __future__ import annotations

import tarfile
from itertools import islice
from typing import TYPE_CHECKING

from microvm_orchestrator import errors
from microvm_orchestrator.images.tree import (
    MAX_PATH,
    MERGED,
    Directory,
    File,
    Link,
    Node,
    Slice,
    Tree,
    clean,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Debian's largest package has a tenth of it.
MAX_ENTRIES = 500_000


def read_tar(path: Path, wanted: Callable[[str], bool] = lambda _: True) -> Tree:
    """Describe what an archive holds, of what is wanted.

    Raises: PackageRefused.
    """
    tree = Tree()
    # What a hard link may name, wanted or not.
    files: dict[str, File] = {}
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in islice(archive, MAX_ENTRIES):
                name = clean(member.name)
                node = _node(path, size, name, member, files)
                if isinstance(node, File):
                    files[name] = node
                if name and node is not None and wanted(name):
                    tree.add(name, node)
            complete = archive.next() is None
    except errors.PackageRefused as error:
        raise errors.PackageRefused(f"{path.stem}: {error}") from error
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise errors.PackageRefused(f"{path.stem} is no archive: {error}") from error
    if not complete:
        raise errors.PackageRefused(f"{path.stem} holds more than {MAX_ENTRIES} entries")
    return tree


def _node(
    path: Path, size: int, name: str, member: tarfile.TarInfo, files: dict[str, File]
) -> Node | None:
    mode = member.mode & 0o7777
    if member.isdir():
        return Directory(mode, member.uid, member.gid)
    if member.issym():
        return _link(name, member.linkname)
    if member.islnk():
        target = files.get(clean(member.linkname))
        if target is None:
            raise errors.PackageRefused(
                f"{name} is a link to {member.linkname!r}, which is no file before it"
            )
        return target
    if not member.isreg() or member.issparse():
        raise errors.PackageRefused(f"{name} is neither file, directory nor link")
    if not 0 <= member.size <= size - member.offset_data:
        raise errors.PackageRefused(f"{name} is cut off")
    return File(Slice(path, member.offset_data, member.size), mode, member.uid, member.gid)


def _link(name: str, target: str) -> Link | None:
    if not target or "\0" in target or len(target.encode(errors="replace")) > MAX_PATH:
        raise errors.PackageRefused(f"{name} is a link to nothing")
    if name.removeprefix("usr/") in MERGED and target.strip("/") == name:
        return None  # the link of a merged directory, whose own name `clean` has already followed
    return Link(target)
