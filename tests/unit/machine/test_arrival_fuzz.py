"""Trees from a guest, of anything: whatever arrives, it lands in its folder or is refused.

The folder holds links to elsewhere before, and somebody turns folders into links while entries
arrive. `--whole` runs it long.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microvm_orchestrator.machine import wire
from microvm_orchestrator.machine.channel.beneath import Arrival
from microvm_orchestrator.machine.channel.stream import Data, End, Item, Note
from microvm_orchestrator.machine.shell import TreeLimits

LIMITS = TreeLimits(size=500, entries=8)

Swap: TypeAlias = bytes
PARTS = [b"a", b"b", b"A", b"link", b"file", b"fifo", b".", b"..", b"", b"x\0", b"\xff", b"n" * 250]
PATHS = st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map(b"/".join)
SIZES = st.integers(0, 300) | st.sampled_from([-1, 1 << 32, 2**62])


def entry(kind: bytes, path: bytes, size: int) -> Note:
    return Note({"type": kind, "path": path, "mode": 0o644, "size": size}, 0)


ENTRIES = st.fixed_dictionaries(
    {
        "type": st.sampled_from([b"file", b"folder", b"symlink", b"device", b"fifo", b""]),
        "path": PATHS | st.binary(max_size=20),
        "mode": st.integers(0, 0o7777) | st.just(0o120777),
        "size": SIZES,
    }
).map(lambda fields: Note({**fields}, 0))
GOOD = st.builds(
    entry,
    st.sampled_from([b"file", b"folder"]),
    st.lists(st.sampled_from([b"c", b"d", b"e"]), min_size=1, max_size=3).map(b"/".join),
    st.integers(0, 60),
)
PIECES = st.binary(min_size=1, max_size=70).map(lambda data: Data(0, data))
SWAPS = st.sampled_from([b"c", b"d", b"c/d", b"a"])
STEPS = st.lists(ENTRIES | GOOD | GOOD | PIECES | SWAPS | st.just(End()), max_size=14)


def told(folder: Path) -> str:
    """Tell a tree by all that may be changed of it."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found.update(repr((path.name, status.st_mode, status.st_nlink, content)).encode())
    return found.hexdigest()


def turn_into_link(into: Path, name: bytes, outside: Path) -> None:
    """Do what a user of the host could: put a link where a folder was."""
    place = into / os.fsdecode(name)
    if place.is_dir() and not place.is_symlink() and place.parent.resolve().is_relative_to(into):
        place.rename(into.parent / f"moved-{len(list(into.parent.iterdir()))}")
        place.symlink_to(outside)


def arrive(into: Path, outside: Path, steps: list[Item | Swap]) -> None:
    arrival = Arrival(into, LIMITS)
    try:
        for step in steps:
            if isinstance(step, bytes):
                turn_into_link(into, step, outside)
            else:
                arrival.take([step])
        arrival.finish()
    except (wire.Broken, OSError):
        pass  # a guest's fault, and a host's
    finally:
        arrival.close()
    assert arrival.size <= LIMITS.size
    assert arrival.files + arrival.folders <= LIMITS.entries + 1


def prepared(root: Path) -> tuple[Path, Path]:
    into, outside = root / "into", root / "outside"
    for folder in (into, outside, outside / "c", outside / "d"):
        folder.mkdir()
    (outside / "precious").write_text("keep me")
    (into / "link").symlink_to(outside)
    (into / "file").symlink_to(outside / "precious")
    os.mkfifo(into / "fifo")
    return into, outside


def check(into: Path) -> None:
    """See that nothing came into being but files and folders with no more rights than allowed."""
    for path in (into, *into.parent.glob("moved-*")):
        for each in path.rglob("*"):
            mode = each.lstat().st_mode
            if not stat.S_ISLNK(mode) and each.name != "fifo":
                assert stat.S_ISREG(mode) or stat.S_ISDIR(mode)
                assert not stat.S_IMODE(mode) & ~0o755


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_whatever_arrives_lands_in_its_folder_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, *, whole: bool
) -> None:
    @settings(
        max_examples=5000 if whole else 200,
        # The same examples each time, but for a long run.
        derandomize=not whole,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(steps=STEPS)
    def lands(steps: list[Item | Swap]) -> None:
        root = tmp_path_factory.mktemp("arrival")
        into, outside = prepared(root)
        before, open_before = told(outside), open_files()
        arrive(into, outside, steps)
        assert told(outside) == before
        assert open_files() == open_before
        check(into)
        assert (into / "link").is_symlink()
        assert (into / "fifo").is_fifo()
        shutil.rmtree(root)

    lands()
