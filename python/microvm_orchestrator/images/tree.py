"""A file tree that exists only as a description: what the guest will have, and where its bytes lie.

Whatever the paths in a package say, nothing is written anywhere on this host while trees are read
and merged; `add` keeps every path inside the tree and never lets one thing silently replace
another. Parents always exist. Above stand the readers of packages and the writers of archives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from microvm_orchestrator import errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

# What Linux takes as a path, and as the text of a symbolic link.
MAX_PATH = 4095
# These are links into usr on every Debian since 12; packages may still name them.
MERGED = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Slice:
    """Bytes that lie somewhere in a file of ours."""

    path: Path
    offset: int
    size: int

    def chunks(self) -> Iterator[bytes]:
        left = self.size
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while left:
                chunk = file.read(min(left, _CHUNK))
                if not chunk:
                    raise errors.PackageRefused(f"{self.path.name} is cut off")
                left -= len(chunk)
                yield chunk


@dataclass(frozen=True, slots=True)
class Text:
    """Bytes we made ourselves."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def chunks(self) -> Iterator[bytes]:
        yield self.data


@dataclass(frozen=True, slots=True)
class File:
    """A regular file."""

    content: Slice | Text
    mode: int = 0o644
    uid: int = 0
    gid: int = 0

    def read(self) -> bytes:
        return b"".join(self.content.chunks())

    def write_to(self, out: BinaryIO) -> None:
        out.writelines(self.content.chunks())


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory; what is in it stands beside it in the tree."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link. It is text for the guest and is never followed on the host."""

    target: str


Node = File | Directory | Link


def clean(name: str) -> str:
    """Write a package's path our way: from the root, without a slash in front, merged into usr.

    Raises: PackageRefused when it may lead out of the tree.
    """
    parts = [part for part in name.removeprefix("./").split("/") if part != "."]
    if parts and not parts[-1]:
        parts.pop()  # a directory may be written with a slash at its end
    if (
        ".." in parts
        or "" in parts
        or "\0" in name
        or len(name.encode(errors="replace")) > MAX_PATH
    ):
        raise errors.PackageRefused(f"{name!r} is no path inside a tree")
    if parts and parts[0] in MERGED:
        parts.insert(0, "usr")
    return "/".join(parts)


class Tree:
    """Nodes by their path."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._nodes

    def __iter__(self) -> Iterator[tuple[str, Node]]:
        """Give every node in an order that depends on nothing but the paths; parents come first."""
        return iter(sorted(self._nodes.items()))

    def __len__(self) -> int:
        return len(self._nodes)

    def find(self, path: str) -> Node | None:
        return self._nodes.get(path)

    def file(self, path: str) -> File:
        """Raises: PackageRefused when there is no regular file."""
        node = self._nodes.get(path)
        if not isinstance(node, File):
            raise errors.PackageRefused(f"the packages hold no file {path}")
        return node

    def add(self, path: str, node: Node) -> None:
        """Put what a package brings where it says.

        Raises: PackageRefused when something else is there, or above it.
        """
        there = self._nodes.get(path)
        if there is None:
            self._make_parents(path)
            self._nodes[path] = node
        elif not (isinstance(there, Directory) and isinstance(node, Directory)) and not _same(
            there, node
        ):
            raise errors.PackageRefused(f"two packages bring different things as {path}")

    def put(self, path: str, node: Node) -> None:
        """Put something of our own, whatever was there."""
        self._make_parents(path)
        self._nodes[path] = node

    def write(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        raw = data.encode() if isinstance(data, str) else data
        self.put(path, File(Text(raw), mode))

    def remove(self, path: str) -> None:
        """Remove a node and all below it, if it is there."""
        below = path + "/"
        self._nodes = {
            name: node
            for name, node in self._nodes.items()
            if name != path and not name.startswith(below)
        }

    def merge(self, other: Tree) -> None:
        """Raises: PackageRefused as `add` does."""
        for path, node in other:
            self.add(path, node)

    def _make_parents(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        if not parent:
            return
        there = self._nodes.get(parent)
        if there is None:
            self._make_parents(parent)
            self._nodes[parent] = Directory()
        elif not isinstance(there, Directory):
            raise errors.PackageRefused(f"{path} would lie below {parent}, which is no directory")


def _same(one: Node, other: Node) -> bool:
    if isinstance(one, File) and isinstance(other, File):
        # Where the bytes lie does not matter, what they are does.
        alike = replace(one, content=other.content) == other
        return alike and one.content.size == other.content.size and one.read() == other.read()
    return one == other
