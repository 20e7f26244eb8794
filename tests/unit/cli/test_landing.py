from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.cli import duplex
from microvm_orchestrator.cli.landing import Landing
from microvm_orchestrator.service.talk import Kind
from microvm_orchestrator.web.duplex import HEADER, MAX_PAYLOAD


def test_frames_are_those_of_the_daemon() -> None:
    names = ("DATA", "STDERR", "END", "ERROR", "SIZE", "LEAVE", "ENTRY")
    assert {name: getattr(duplex, name) for name in names} == {kind.name: kind for kind in Kind}
    assert (duplex.HEADER.format, duplex.MAX_PAYLOAD) == (HEADER.format, MAX_PAYLOAD)


def test_files_and_folders_land_with_their_bytes_and_no_more_rights_than_0755(
    tmp_path: Path,
) -> None:
    with closing(Landing(tmp_path, 100, 10)) as landing:
        landing.begin("folder", b"a", 0o7777, 0)
        landing.begin("file", b"a/\xff", 0o6777, 5)
        landing.write(b"he")
        landing.write(b"llo")
        landing.begin("file", b"empty", 0o400, 0)
        landing.finish()
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a/\xff"))
    assert (odd.read_bytes(), odd.stat().st_mode & 0o7777) == (b"hello", 0o755)
    assert (tmp_path / "empty").read_bytes() == b""


@pytest.mark.parametrize(
    "path",
    [
        *(b"", b"/etc/x", b"../x", b"a/../../x", b"a/./x", b"a//x", b"x\0y"),
        *(b"/".join([b"d"] * 66), b"n" * 256),
    ],
)
def test_no_name_reaches_elsewhere(tmp_path: Path, path: bytes) -> None:
    (tmp_path / "a").mkdir()
    with closing(Landing(tmp_path, 100, 10)) as landing, pytest.raises(errors.InvalidInput):
        landing.begin("file", path, 0o644, 0)
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["a"]


def test_nothing_goes_through_a_link_or_over_what_is_there(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (inside / "link").symlink_to(outside)
    (inside / "there").write_text("mine")
    with closing(Landing(inside, 100, 10)) as landing:
        for path in (b"link/x", b"link", b"there", b"there/x", b"missing/x"):
            with pytest.raises(OSError):
                landing.begin("file", path, 0o644, 0)
        with pytest.raises(errors.InvalidInput):
            landing.begin("link", b"x", 0o644, 0)
    assert (list(outside.iterdir()), (inside / "there").read_text()) == ([], "mine")


def test_no_more_comes_than_was_announced_or_is_allowed(tmp_path: Path) -> None:
    with closing(Landing(tmp_path, 10, 2)) as landing:
        landing.begin("file", b"short", 0o644, 3)
        landing.write(b"ab")
        with pytest.raises(errors.InvalidInput):
            landing.finish()
        with pytest.raises(errors.InvalidInput):
            landing.write(b"cd")
        landing.write(b"c")
        with pytest.raises(errors.TooLarge):
            landing.begin("file", b"large", 0o644, 8)
    with closing(Landing(tmp_path, 10, 1)) as landing:
        landing.begin("folder", b"one", 0o755, 0)
        with pytest.raises(errors.TooLarge):
            landing.begin("folder", b"two", 0o755, 0)
