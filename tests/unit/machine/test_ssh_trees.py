"""Trees over SSH: what the tar of a guest says, honest or not, and what comes of it here."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.machine.shell import Shell, TreeLimits
from sshd import set_up_sshd, shell_with


def archive(*entries: tarfile.TarInfo, content: bytes = b"") -> bytes:
    """Return an archive as no honest tar would write it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for entry in entries:
            entry.size = len(content) if entry.isreg() and not entry.size else entry.size
            tar.addfile(entry, io.BytesIO(content.ljust(entry.size)))
    return file.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, 0o6777
    return info


@asynccontextmanager
async def shell_that_sends(tmp_path: Path, archive: bytes) -> AsyncGenerator[Shell]:
    """Give a shell on a guest whose tar says this."""
    (tmp_path / "archive").write_bytes(archive)
    async with shell_with(tmp_path, "tar", f"exec cat {tmp_path}/archive") as shell:
        yield shell


_PAX_SIZE = entry("./PaxHeaders/f", b"x")
_PAX_SIZE.size = 1 << 20
_NEGATIVE = archive(entry("a"), content=b"x").replace(b"00000000001\0", b"\xff" * 12, 1)


@pytest.mark.parametrize(
    "sent",
    [
        archive(entry("../outside"), content=b"x"),
        archive(entry("a/../../outside"), content=b"x"),
        archive(entry("/outside"), content=b"x"),
        archive(entry("a", tarfile.DIRTYPE), entry("a"), content=b"x"),
        archive(entry("a"), entry("a"), content=b"x"),
        archive(entry("a/b"), content=b"x"),
        archive(entry("a"), entry("a/b"), content=b"x"),
        archive(entry("l", tarfile.SYMTYPE, "/"), entry("l/outside"), content=b"x"),
        archive(entry("l", tarfile.LNKTYPE, "../outside")),
        archive(entry("l", tarfile.LNKTYPE, "/etc/passwd")),
        archive(entry("d", tarfile.DIRTYPE), entry("l", tarfile.LNKTYPE, "d")),
        archive(entry(""), content=b"x"),
        archive(_PAX_SIZE),
        archive(entry("a"), content=b"x")[:600],
        archive(entry("a"), content=b"x") + bytes(2 << 20),
        b"x" * 5000,
        _NEGATIVE,
        b"",
    ],
)
async def test_a_tree_never_reaches_outside_nor_is_half_a_tree(tmp_path: Path, sent: bytes) -> None:
    into = tmp_path / "into" / "it"
    into.mkdir(parents=True)
    async with shell_that_sends(tmp_path, sent) as shell:
        with pytest.raises(errors.ProtocolBroken):
            await shell.get_tree("/tmp", into)
    assert [path.name for path in into.parent.iterdir()] == ["it"]
    for path in into.rglob("*"):
        assert path.is_dir() or path.is_file()
        assert not path.is_symlink()


async def test_devices_and_links_are_named_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "into").mkdir()
    sent = archive(
        entry("null", tarfile.CHRTYPE),
        entry("disk", tarfile.BLKTYPE),
        entry("fifo", tarfile.FIFOTYPE),
        entry("link", tarfile.SYMTYPE, "/etc/passwd"),
        entry("file"),
        content=b"content",
    )
    async with shell_that_sends(tmp_path, sent) as shell:
        fetched = await shell.get_tree("/tmp", tmp_path / "into")
    assert (fetched.files, fetched.skipped) == (1, 4)
    assert fetched.skips == ("null", "disk", "fifo", "link")
    assert [path.name for path in (tmp_path / "into").iterdir()] == ["file"]
    assert stat.S_IMODE((tmp_path / "into" / "file").stat().st_mode) == 0o755  # and no more


async def test_a_file_of_many_names_counts_as_often_as_it_is_written(tmp_path: Path) -> None:
    links = [entry(f"l{number}", tarfile.LNKTYPE, "a") for number in range(10)]
    sent = archive(entry("a"), *links, content=bytes(1000))
    for limit, whole in ((11_000, True), (10_999, False)):
        into = tmp_path / str(limit)
        into.mkdir()
        async with shell_that_sends(into, sent) as shell:
            (into / "tree").mkdir()
            try:
                fetched = await shell.get_tree("/tmp", into / "tree", TreeLimits(size=limit))
            except errors.TooLarge:
                assert not whole
            else:
                assert (fetched.files, fetched.size) == (11, 11_000)
                assert {path.read_bytes() for path in (into / "tree").iterdir()} == {bytes(1000)}


async def test_names_longer_than_a_header_come_in_both_forms(tmp_path: Path) -> None:
    name = "/".join(["a" * 120] * 3)
    folders = [entry("/".join(["a" * 120] * depth), tarfile.DIRTYPE) for depth in (1, 2)]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form) as tar:
            for info in (*folders, entry(name)):
                tar.addfile(info)
        into = tmp_path / str(form)
        (into / "tree").mkdir(parents=True)
        async with shell_that_sends(into, file.getvalue()) as shell:
            await shell.get_tree("/tmp", into / "tree")
        assert (into / "tree" / name).is_file()


async def test_files_with_two_names_of_a_real_tar_are_two_files(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "one").write_bytes(b"content")
    os.link(tmp_path / "from" / "one", tmp_path / "from" / "two")
    (tmp_path / "into").mkdir()
    async with set_up_sshd(tmp_path / "sshd").shell() as shell:
        await shell.get_tree(str(tmp_path / "from"), tmp_path / "into")
    for name in ("one", "two"):
        assert (tmp_path / "into" / name).read_bytes() == b"content"
