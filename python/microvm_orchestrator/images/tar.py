"""A tree written as a tar whose bytes depend on nothing but the tree."""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING, BinaryIO

from microvm_orchestrator.images.tree import Directory, File, Slice

if TYPE_CHECKING:
    from microvm_orchestrator.images.tree import Node, Tree

# The time of every file of an image, as SOURCE_DATE_EPOCH says it to tools that write images: a
# constant (2023-11-14 22:13:20 UTC) because an image made of the same things is the same image.
EPOCH = 1_700_000_000
_RECORD = bytes(tarfile.RECORDSIZE)


def write_tar(tree: Tree, out: BinaryIO) -> None:
    written = 0
    first: dict[File, str] = {}
    for path, node in tree:
        head = _head(path, node)
        if isinstance(node, File) and isinstance(node.content, Slice) and node.content.size:
            # One place in a package under two names is what a hard link was before.
            earlier = first.setdefault(node, path)
            if earlier != path:
                head.type, head.linkname, head.size = tarfile.LNKTYPE, earlier, 0
        block = head.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        written += out.write(block)
        if isinstance(node, File) and head.isreg():
            node.write_to(out)
            padding = -head.size % tarfile.BLOCKSIZE
            written += head.size + out.write(bytes(padding))
    out.write(bytes(2 * tarfile.BLOCKSIZE))
    out.write(_RECORD[: -(written + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE])


def _head(path: str, node: Node) -> tarfile.TarInfo:
    head = tarfile.TarInfo(path)
    head.mtime = EPOCH
    if isinstance(node, File):
        head.size = node.content.size
    elif isinstance(node, Directory):
        head.type = tarfile.DIRTYPE
    else:
        head.type, head.mode, head.linkname = tarfile.SYMTYPE, 0o777, node.target
        return head
    head.mode, head.uid, head.gid = node.mode, node.uid, node.gid
    return head
