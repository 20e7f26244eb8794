from __future__ import annotations

import io
import random
import stat
import tarfile
from typing import TYPE_CHECKING

from microvm_orchestrator.images.archive import read_tar
from microvm_orchestrator.images.cpio import write_cpio
from microvm_orchestrator.images.tar import EPOCH, write_tar
from microvm_orchestrator.images.tree import Directory, File, Link, Slice, Text, Tree

if TYPE_CHECKING:
    from pathlib import Path

    from microvm_orchestrator.images.tree import Node

LONG = "d" * 200
NODES: dict[str, Node] = {
    "bin": Directory(0o755),
    "bin/busybox": File(Text(b"\x7fELF" + b"x" * 1001), 0o4755),
    "bin/sh": Link("busybox"),
    "empty": File(Text(b""), 0o600, 3, 4),
    "tmp": Directory(0o1777, 1, 2),
    LONG: Directory(0o700),
    f"{LONG}/{LONG}": Link("/" + LONG),
    "umlaut-ä": File(Text("ä".encode())),
}


def tree_in(order: list[str]) -> Tree:
    tree = Tree()
    for path in order:
        tree.put(path, NODES[path])
    return tree


def shuffled() -> Tree:
    order = list(NODES)
    random.Random(7).shuffle(order)
    return tree_in(order)


def as_tar(tree: Tree) -> bytes:
    out = io.BytesIO()
    write_tar(tree, out)
    return out.getvalue()


def as_cpio(tree: Tree) -> bytes:
    out = io.BytesIO()
    write_cpio(tree, out)
    return out.getvalue()


def test_the_bytes_do_not_depend_on_the_order_things_came_in() -> None:
    assert as_tar(tree_in(list(NODES))) == as_tar(shuffled())
    assert as_cpio(tree_in(list(NODES))) == as_cpio(shuffled())


def test_the_bytes_do_not_depend_on_where_contents_lie(tmp_path: Path) -> None:
    def tree(path: Path, before: bytes) -> Tree:
        path.write_bytes(before + b"content")
        tree = Tree()
        for name in ("a", "b"):
            tree.put(name, File(Slice(path, len(before), 7)))
        return tree

    one, other = tree(tmp_path / "one", b""), tree(tmp_path / "other", b"much before it")
    assert as_tar(one) == as_tar(other)
    assert as_cpio(one) == as_cpio(other)


def test_a_tar_read_back_is_the_tree_that_was_written(tmp_path: Path) -> None:
    path = tmp_path / "root.tar"
    path.write_bytes(as_tar(tree_in(list(NODES))))
    read = dict(read_tar(path))
    wanted = {name.replace("bin", "usr/bin", 1): node for name, node in NODES.items()}
    assert read.keys() == wanted.keys() | {"usr"}
    for name, node in wanted.items():
        found = read[name]
        if isinstance(node, File) and isinstance(found, File):
            assert found.read() == node.read()
            assert (found.mode, found.uid, found.gid) == (node.mode, node.uid, node.gid)
        else:
            assert found == node


def test_every_entry_of_a_tar_has_the_one_time_and_no_name_of_an_owner() -> None:
    data = as_tar(tree_in(list(NODES)))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        about = {(info.mtime, info.uname, info.gname) for info in archive}
    assert about == {(EPOCH, "", "")}
    assert len(data) % tarfile.RECORDSIZE == 0


def test_one_place_under_two_names_is_one_file_with_two_links(tmp_path: Path) -> None:
    path = tmp_path / "package"
    path.write_bytes(b"content")
    tree = Tree()
    for name in ("a", "b"):
        tree.put(name, File(Slice(path, 0, 7)))
    tree.put("c", File(Slice(path, 0, 7), 0o755))
    with tarfile.open(fileobj=io.BytesIO(as_tar(tree))) as archive:
        kinds = {info.name: (info.type, info.linkname) for info in archive}
    assert kinds == {
        "a": (tarfile.REGTYPE, ""),
        "b": (tarfile.LNKTYPE, "a"),
        "c": (tarfile.REGTYPE, ""),
    }


def read_cpio(data: bytes) -> dict[str, tuple[int, int, int, int, bytes]]:
    """Read what the kernel would: mode, owner, group, time and content by name."""
    found: dict[str, tuple[int, int, int, int, bytes]] = {}
    inodes: set[int] = set()
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        numbers = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        inode, mode, uid, gid, links, time, size, *_, name_size, checksum = numbers
        assert (links, checksum) == (1, 0)
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        at += 110 + name_size + (-(110 + name_size) % 4)
        if name == "TRAILER!!!":
            assert at == len(data)
            return found
        assert inode not in inodes
        inodes.add(inode)
        found[name] = mode, uid, gid, time, data[at : at + size]
        at += size + (-size % 4)


def test_a_cpio_read_back_is_the_tree_that_was_written() -> None:
    found = read_cpio(as_cpio(tree_in(list(NODES))))
    assert found == {
        "bin": (stat.S_IFDIR | 0o755, 0, 0, 0, b""),
        "bin/busybox": (stat.S_IFREG | 0o4755, 0, 0, 0, b"\x7fELF" + b"x" * 1001),
        "bin/sh": (stat.S_IFLNK | 0o777, 0, 0, 0, b"busybox"),
        "empty": (stat.S_IFREG | 0o600, 3, 4, 0, b""),
        "tmp": (stat.S_IFDIR | 0o1777, 1, 2, 0, b""),
        LONG: (stat.S_IFDIR | 0o700, 0, 0, 0, b""),
        f"{LONG}/{LONG}": (stat.S_IFLNK | 0o777, 0, 0, 0, b"/" + LONG.encode()),
        "umlaut-ä": (stat.S_IFREG | 0o644, 0, 0, 0, "ä".encode()),
    }


def test_parents_stand_before_what_is_in_them() -> None:
    names = list(read_cpio(as_cpio(shuffled())))
    for at, name in enumerate(names):
        parent = name.rpartition("/")[0]
        assert not parent or parent in names[:at]
