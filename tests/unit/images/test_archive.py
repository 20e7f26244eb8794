from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microvm_orchestrator import errors
from microvm_orchestrator.images.archive import read_tar
from microvm_orchestrator.images.tree import Directory, File, Link
from unit.images.debs import folder, hard_link, link, member, tar_of

if TYPE_CHECKING:
    from pathlib import Path

    from microvm_orchestrator.images.tree import Tree


def read(tmp_path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Tree:
    path = tmp_path / "package.tar"
    path.write_bytes(tar_of(*members))
    return read_tar(path)


def test_files_directories_and_links_come_as_they_are(tmp_path: Path) -> None:
    tree = read(
        tmp_path,
        folder("./"),
        folder("./usr/bin/"),
        member("./usr/bin/a", b"first", mode=0o4755, uid=7, gid=8),
        hard_link("./usr/bin/b", "./usr/bin/a"),
        link("./usr/bin/c", "/etc/alternatives/c"),
        member("./etc/empty", mode=0o600),
    )
    a = tree.file("usr/bin/a")
    assert (a.read(), a.mode, a.uid, a.gid) == (b"first", 0o4755, 7, 8)
    assert tree.find("usr/bin/b") == a
    assert tree.find("usr/bin/c") == Link("/etc/alternatives/c")
    assert tree.file("etc/empty").read() == b""
    assert tree.find("usr/bin") == Directory(0o755)
    assert "" not in tree


def test_what_is_not_wanted_may_still_be_what_a_hard_link_names(tmp_path: Path) -> None:
    path = tmp_path / "package.tar"
    path.write_bytes(tar_of(member("./doc/a", b"x"), hard_link("./usr/a", "./doc/a")))
    tree = read_tar(path, lambda name: not name.startswith("doc"))
    assert tree.file("usr/a").read() == b"x"
    assert "doc/a" not in tree


def test_the_links_of_merged_directories_vanish_in_the_directories(tmp_path: Path) -> None:
    tree = read(tmp_path, link("./bin", "usr/bin"), member("./bin/sh", b"x"))
    assert tree.file("usr/bin/sh").read() == b"x"
    assert tree.find("usr/bin") == Directory()


@pytest.mark.parametrize(
    "hostile",
    [
        member("../../etc/cron.d/x", b"x"),
        member("/etc/cron.d/x", b"x"),
        folder("./usr/../../x"),
        link("../x", "y"),
        hard_link("./x", "/etc/shadow"),
        hard_link("./x", "../../etc/shadow"),
        hard_link("./x", "./not-in-here"),
        hard_link("./x", "./x"),
        link("./x", ""),
        link("./x", "y" * 5000),
        link("./bin", "/etc"),
        member("./x", type=tarfile.CHRTYPE, devmajor=1, devminor=1),
        member("./x", type=tarfile.BLKTYPE, devmajor=8, devminor=0),
        member("./x", type=tarfile.FIFOTYPE),
        member("./x", size=1 << 40),
        member("./x", type=b"S", size=512),
        member("./x", type=b"?"),
    ],
    ids=lambda hostile: f"{hostile[0].type!r} {hostile[0].name} {hostile[0].linkname}"[:60],
)
def test_what_reaches_out_or_is_no_file_is_refused(
    tmp_path: Path, hostile: tuple[tarfile.TarInfo, bytes]
) -> None:
    before = member("./bin/before", b"x")
    with pytest.raises(errors.PackageRefused, match="package"):
        read(tmp_path, before, hostile)


def test_a_file_cannot_be_put_through_a_link_of_its_own_archive(tmp_path: Path) -> None:
    with pytest.raises(errors.PackageRefused, match="no directory"):
        read(tmp_path, link("./x", "/etc"), member("./x/passwd", b"root::0:0::/:/bin/sh"))


def test_a_hard_link_cannot_give_a_link_another_name(tmp_path: Path) -> None:
    with pytest.raises(errors.PackageRefused, match="no file before it"):
        read(tmp_path, link("./x", "/etc/shadow"), hard_link("./y", "./x"))


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("x")
        info.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "x",
            "GNU.sparse.realsize": str(1 << 42),
        }
        data = b"0\n".ljust(512, b"\0")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    path = tmp_path / "package.tar"
    path.write_bytes(out.getvalue())
    with pytest.raises(errors.PackageRefused):
        read_tar(path)


def test_an_archive_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    whole = tar_of(member("./a", b"x" * 600), member("./b", b"y" * 600))
    path = tmp_path / "package.tar"
    path.write_bytes(whole[: 512 + 1024 + 512 + 100])
    with pytest.raises(errors.PackageRefused, match="cut off"):
        read_tar(path)


def test_what_has_become_shorter_since_it_was_read_is_refused(tmp_path: Path) -> None:
    tree = read(tmp_path, member("./a", b"x" * 600))
    (tmp_path / "package.tar").write_bytes(b"")
    with pytest.raises(errors.PackageRefused, match="cut off"):
        tree.file("a").read()


VALID = tar_of(
    folder("./usr/"),
    member("./usr/a", b"content" * 100),
    hard_link("./usr/b", "./usr/a"),
    link("./usr/c", "a"),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=6))
def test_a_garbled_archive_is_refused_or_stays_inside(
    tmp_path: Path, garbles: list[tuple[int, int]]
) -> None:
    data = bytearray(VALID)
    for at, value in garbles:
        data[at] = value
    path = tmp_path / "package.tar"
    path.write_bytes(data)
    try:
        tree = read_tar(path)
        nodes = list(tree)
        contents = [node.read() for _, node in nodes if isinstance(node, File)]
    except errors.PackageRefused:
        return
    assert sum(map(len, contents)) <= 3 * len(VALID)
    for name, _ in nodes:
        assert not name.startswith("/")
        assert ".." not in name.split("/")
