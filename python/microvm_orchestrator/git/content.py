"""Whether what a bundle brings is something that a work tree can bear.

Git itself has refused what is no object, and names like `.git` in all their spellings. Here are the
sizes: of what is unpacked, and of what a tree becomes when it is written out, since a few small
trees that hold each other many times over are more files than any disk has room for. Above stands
incoming.py; below, held.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio.to_thread

from microvm_orchestrator import errors
from microvm_orchestrator.git import modules
from microvm_orchestrator.git.held import Held, Room, listed
from microvm_orchestrator.git.names import Oid

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

_TREE_MODES = {b"40000", b"040000"}
_MODULES = b".gitmodules"
# What a file system takes.
_MAX_NAME = 255
# Of trees that are looked at together.
_PORTION = 1 << 24
# Of a line of `cat-file --batch-check`.
_LINE = 100


@dataclass(frozen=True, slots=True)
class _Object:
    oid: Oid
    kind: str
    size: int


@dataclass(frozen=True, slots=True)
class _Tree:
    """A tree as far as it counts, small because an attacker says how many there are."""

    names: int
    longest: int
    # The trees in it, and the length of each one's name.
    trees: tuple[Oid, ...]
    lengths: bytes
    # What is called .gitmodules.
    modules: tuple[Oid, ...]


@dataclass(frozen=True, slots=True)
class _Extent:
    """What a tree becomes when it is written out."""

    files: int
    path_bytes: int
    depth: int


async def check(held: Held, base: Oid | None) -> None:
    """Raises: BundleRefused when anything that came is too large, too many or too deep."""
    came = await _measure(held, held.came)
    _check_sizes(held.room, came)
    trees = await _read(held, [found for found in came if found.kind == "tree"])
    sizes = {found.oid: found.size for found in came if found.kind == "blob"}
    links = {oid for tree in trees.values() for oid in tree.modules}
    await _read_known(held, trees)
    await anyio.to_thread.run_sync(_check_extents, held.room, trees)
    await modules.check(held, {oid: sizes[oid] for oid in links if oid in sizes}, base)


async def _measure(held: Held, oids: Collection[Oid]) -> list[_Object]:
    words = ["cat-file", "--buffer", "--batch-check"]
    done = await held.git(*words, stdin=listed(oids), cap=_LINE * len(oids))
    found: list[_Object] = []
    for line in done.stdout.decode().splitlines():
        oid, kind, *size = line.split()
        if not size:
            raise errors.BundleRefused(f"it uses {oid}, which is {kind}")
        found.append(_Object(Oid(oid), kind, int(size[0])))
    return found


def _check_sizes(room: Room, objects: Sequence[_Object]) -> None:
    limits = {"blob": room.blob_bytes, "commit": room.commit_bytes, "tag": room.commit_bytes}
    for found in objects:
        limit = limits.get(found.kind, room.tree_bytes)
        if found.size > limit:
            raise errors.BundleRefused(
                f"the {found.kind} {found.oid} has {found.size} bytes and may have {limit}"
            )
    for kinds, what, limit in (
        ({"tree"}, "its trees", room.tree_bytes),
        ({"blob", "tree", "commit", "tag"}, "all that it brings", room.unpacked_bytes),
    ):
        size = sum(found.size for found in objects if found.kind in kinds)
        if size > limit:
            raise errors.BundleRefused(f"{what} has {size} bytes and may have {limit}")


async def _read(held: Held, objects: Sequence[_Object]) -> dict[Oid, _Tree]:
    """Read trees, of which all together are known to be bearable, some at a time."""
    half = (await held.mirror.object_format()).digits // 2
    trees: dict[Oid, _Tree] = {}
    seen: dict[Oid, Oid] = {}

    def parse(some: Sequence[_Object], said: bytes) -> None:
        at = 0
        for found in some:
            at = said.index(b"\n", at) + 1
            trees[found.oid] = _parse(said[at : at + found.size], half, seen)
            at += found.size + 1

    for some in _portions(objects):
        cap = sum(found.size + _LINE for found in some)
        words = ["cat-file", "--buffer", "--batch"]
        done = await held.git(*words, stdin=listed([found.oid for found in some]), cap=cap)
        await anyio.to_thread.run_sync(parse, some, done.stdout)
    return trees


def _portions(objects: Sequence[_Object]) -> Iterator[list[_Object]]:
    portion: list[_Object] = []
    size = 0
    for found in objects:
        if size > _PORTION:
            yield portion
            portion, size = [], 0
        portion.append(found)
        size += found.size
    if portion:
        yield portion


def _parse(content: bytes, half: int, seen: dict[Oid, Oid]) -> _Tree:
    """Read a tree that git has found to be well formed: mode, name and object, again and again.

    Raises: BundleRefused when a name is longer than file systems take.
    """
    trees: list[Oid] = []
    lengths = bytearray()
    links: list[Oid] = []
    names = longest = at = 0
    while at < len(content):
        space = content.index(b" ", at)
        end = content.index(b"\0", space)
        length = end - space - 1
        if length > _MAX_NAME:
            raise errors.BundleRefused(f"a name in a tree has more than {_MAX_NAME} bytes")
        names += 1
        longest = max(longest, length)
        if content[at:space] in _TREE_MODES:
            oid = Oid(content[end + 1 : end + 1 + half].hex())
            trees.append(seen.setdefault(oid, oid))
            lengths.append(length)
        elif length == len(_MODULES) and content[space + 1 : end].lower() == _MODULES:
            links.append(Oid(content[end + 1 : end + 1 + half].hex()))
        at = end + 1 + half
    return _Tree(names, longest, tuple(trees), bytes(lengths), tuple(links))


async def _read_known(held: Held, trees: dict[Oid, _Tree]) -> None:
    """Read the trees that new ones are made of and that were here before, level by level."""
    size = 0
    level = {oid for tree in trees.values() for oid in tree.trees} - trees.keys()
    while level:
        found = await _measure(held, level)
        size += sum(tree.size for tree in found)
        if size > held.room.known_tree_bytes:
            raise errors.BundleRefused(f"its trees are made of more than {size} bytes of others")
        if wrong := [tree.oid for tree in found if tree.kind != "tree"]:
            raise errors.BundleRefused(f"{wrong[0]} is used as a tree and is none")
        read = await _read(held, found)
        trees |= read
        level = {oid for tree in read.values() for oid in tree.trees} - trees.keys()


def _check_extents(room: Room, trees: Mapping[Oid, _Tree]) -> None:
    """Raises: BundleRefused when one of the trees, written out, would be too many or too deep."""
    extents: dict[Oid, _Extent] = {}
    for oid in _children_first(trees):
        tree = trees[oid]
        below = [
            (length, extents[child]) for length, child in zip(tree.lengths, tree.trees, strict=True)
        ]
        extent = _Extent(
            files=tree.names + sum(inner.files for _, inner in below),
            path_bytes=max(
                [tree.longest, *(length + 1 + inner.path_bytes for length, inner in below)]
            ),
            depth=1 + max((inner.depth for _, inner in below), default=0),
        )
        for what, found, limit in (
            ("bytes in a path", extent.path_bytes, room.path_bytes),
            ("levels", extent.depth, room.depth),
            ("files", extent.files, room.files),
        ):
            if found > limit:
                raise errors.BundleRefused(
                    f"written out, its tree {oid} has more than {limit} {what}"
                )
        extents[oid] = extent


def _children_first(trees: Mapping[Oid, _Tree]) -> Iterator[Oid]:
    """Walk trees so that each comes behind those it is made of; no tree holds itself."""
    done: set[Oid] = set()
    for root in trees:
        path = [(root, iter(trees[root].trees))] if root not in done else []
        while path:
            oid, children = path[-1]
            for child in children:
                if child not in done:
                    path.append((child, iter(trees[child].trees)))
                    break
            else:
                path.pop()
                if oid not in done:
                    done.add(oid)
                    yield oid
