from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.images.toolbox import follow, write_out
from microvm_orchestrator.images.tree import Directory, File, Link, Text, Tree, clean

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("./usr/bin/git", "usr/bin/git"),
        ("usr/bin/git", "usr/bin/git"),
        ("./bin/sh", "usr/bin/sh"),
        ("./lib64/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2"),
        ("./sbin/", "usr/sbin"),
        ("./library/x", "library/x"),
        ("./", ""),
        ("./usr/./share", "usr/share"),
        ("./usr/..hidden", "usr/..hidden"),
    ],
)
def test_a_path_of_a_package_is_written_our_way(name: str, path: str) -> None:
    assert clean(name) == path


@pytest.mark.parametrize(
    "name",
    [
        "../etc/passwd",
        "./../etc/passwd",
        "usr/../../etc/passwd",
        "/etc/passwd",
        "//etc/passwd",
        "..",
        "usr//bin",
        "usr/bin\0/x",
        "x/" * 2500,
    ],
)
def test_a_path_that_leads_out_or_is_none_is_refused(name: str) -> None:
    with pytest.raises(errors.PackageRefused):
        clean(name)


def test_parents_are_made_when_they_are_missing() -> None:
    tree = Tree()
    tree.write("a/b/c", "x")
    assert [path for path, _ in tree] == ["a", "a/b", "a/b/c"]
    assert tree.find("a") == Directory(0o755)


def test_two_packages_may_share_a_directory_and_a_file_that_is_the_same() -> None:
    tree = Tree()
    for _ in range(2):
        tree.add("usr/share", Directory())
        tree.add("usr/share/x", File(Text(b"same"), 0o644))
    assert len(tree) == 3


@pytest.mark.parametrize(
    "other",
    [
        File(Text(b"else"), 0o644),
        File(Text(b"same"), 0o755),
        File(Text(b"same"), 0o644, uid=1),
        Link("elsewhere"),
        Directory(),
    ],
)
def test_two_packages_may_not_bring_different_things_under_one_name(
    other: File | Link | Directory,
) -> None:
    tree = Tree()
    tree.add("usr/share/x", File(Text(b"same"), 0o644))
    with pytest.raises(errors.PackageRefused, match="usr/share/x"):
        tree.add("usr/share/x", other)


@pytest.mark.parametrize("above", [Link("/etc"), Link("../../.."), File(Text(b""))])
def test_nothing_lies_below_what_is_no_directory(above: Link | File) -> None:
    tree = Tree()
    tree.add("usr/lib/x", above)
    with pytest.raises(errors.PackageRefused, match="no directory"):
        tree.add("usr/lib/x/passwd", File(Text(b"root::0:0::/:/bin/sh\n")))


def test_a_link_may_not_take_the_place_of_a_directory_that_is_in_use() -> None:
    tree = Tree()
    tree.add("usr/lib/x/y", File(Text(b"")))
    with pytest.raises(errors.PackageRefused):
        tree.add("usr/lib/x", Link("/etc"))


def test_removing_takes_all_that_lies_below_and_nothing_beside() -> None:
    tree = Tree()
    for path in ("a/b/c", "a/b/d", "a/bc"):
        tree.write(path, "")
    tree.remove("a/b")
    assert [path for path, _ in tree] == ["a", "a/bc"]


def test_links_are_followed_within_the_tree_alone() -> None:
    tree = Tree()
    tree.write("usr/lib/real", "x")
    for path, target in {
        "usr/lib/near": "real",
        "usr/lib/far": "/lib/real",
        "usr/lib/up": "../../../../../../lib/near",
        "usr/lib/out": "/etc/hostname",
        "usr/lib/nowhere": "nothing",
    }.items():
        tree.add(path, Link(target))
    found = {path: follow(tree, path) for path, _ in tree}
    assert found["usr/lib/near"] == found["usr/lib/far"] == found["usr/lib/up"]
    assert found["usr/lib/near"] == File(Text(b"x"))
    assert found["usr/lib/out"] is None
    assert found["usr/lib/nowhere"] is None


def test_links_that_lead_round_are_refused() -> None:
    tree = Tree()
    tree.add("a", Link("b"))
    tree.add("b", Link("a"))
    with pytest.raises(errors.PackageRefused, match="ring"):
        follow(tree, "a")


def test_what_is_written_out_is_files_and_never_a_link(tmp_path: Path) -> None:
    tree = Tree()
    tree.write("usr/bin/tool", "#!", 0o755)
    tree.add("usr/bin/same", Link("tool"))
    tree.add("usr/bin/secret", Link("/etc/passwd"))
    tree.add("usr/bin/above", Link("../.."))
    write_out(tree, tmp_path / "out", lambda _: True)
    written = sorted((tmp_path / "out").rglob("*"))
    assert [path.name for path in written if path.is_file()] == ["same", "tool"]
    assert not any(path.is_symlink() for path in written)
