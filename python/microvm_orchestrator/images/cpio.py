"""A tree written as the cpio that the kernel unpacks into its first root (format `newc`)."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, BinaryIO

from microvm_orchestrator.images.tree import Directory, File

if TYPE_CHECKING:
    from microvm_orchestrator.images.tree import Node, Tree

_MAGIC = b"070701"
_ALIGN = 4
# The kernel takes inode 0 with several links for a hard link; none of ours has several.
_FIRST_INODE = 1


def write_cpio(tree: Tree, out: BinaryIO) -> None:
    for number, (path, node) in enumerate(tree, _FIRST_INODE):
        mode, uid, gid, size = _about(node)
        _write_head(out, path, number, mode, uid, gid, size)
        if isinstance(node, File):
            node.write_to(out)
        elif not isinstance(node, Directory):
            out.write(node.target.encode())
        out.write(bytes(-size % _ALIGN))
    _write_head(out, "TRAILER!!!", 0, 0, 0, 0, 0)


def _about(node: Node) -> tuple[int, int, int, int]:
    if isinstance(node, File):
        return stat.S_IFREG | node.mode, node.uid, node.gid, node.content.size
    if isinstance(node, Directory):
        return stat.S_IFDIR | node.mode, node.uid, node.gid, 0
    return stat.S_IFLNK | 0o777, 0, 0, len(node.target.encode())


def _write_head(
    out: BinaryIO, path: str, inode: int, mode: int, uid: int, gid: int, size: int
) -> None:
    name = path.encode() + b"\0"
    links, time, device = 1, 0, 0
    numbers = (inode, mode, uid, gid, links, time, size, device, device, device, device)
    head = _MAGIC + b"".join(b"%08X" % number for number in (*numbers, len(name), 0)) + name
    out.write(head + bytes(-len(head) % _ALIGN))
