"""A tree written as the archive that the kernel unpacks into its first root."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, BinaryIO

from microvm_orchestrator.cpio import CpioWriter
from microvm_orchestrator.images.tree import Directory, File

if TYPE_CHECKING:
    from microvm_orchestrator.images.tree import Tree


def write_cpio(tree: Tree, out: BinaryIO) -> None:
    writer = CpioWriter(out)
    for path, node in tree:
        if isinstance(node, File):
            mode = stat.S_IFREG | node.mode
            content = node.content
            writer.add(path, mode, content.size, content.chunks(), node.uid, node.gid)
        elif isinstance(node, Directory):
            writer.add(path, stat.S_IFDIR | node.mode, 0, (), node.uid, node.gid)
        else:
            target = node.target.encode()
            writer.add(path, stat.S_IFLNK | 0o777, len(target), [target])
    writer.end()
