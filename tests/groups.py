"""Control groups of the second version, for tests that need the kernel's own."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


def root() -> Path | None:
    """Find the second version of control groups as it is mounted here."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return next((Path(words[4]) for words in mounts if "cgroup2" in words), None)


@contextmanager
def own_group() -> Generator[Path]:
    """Make a control group, and take it away with all that was made in it."""
    top = root()
    assert top is not None
    group = top / f"test-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        for path, _, _ in os.walk(group, topdown=False):
            Path(path).rmdir()


def without_new_keys(said: str) -> str:
    """Leave out what a systemd before 254 says of a key of ours that it does not know yet."""
    lines = said.splitlines(keepends=True)
    return "".join(line for line in lines if "Unknown key 'DelegateSubgroup'" not in line)
