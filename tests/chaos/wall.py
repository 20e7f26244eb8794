"""A wall clock of the daemon's own, that can be set while it runs; its other clocks stay true.

Made by libfaketime (package `faketime`), which comes between the process and the kernel: the
program under test is not touched. The machine's own clock is left alone.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

_SHARED = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Wall:
    """What the clock on the wall says, as a distance from the truth."""

    file: Path
    env: Mapping[str, str]

    def set(self, ahead_s: int) -> None:
        changed = self.file.with_suffix(".new")
        changed.write_text(f"{ahead_s:+d}\n")
        changed.rename(self.file)


def find_library() -> str | None:
    """Tell where the library lies: what `faketime` would preload."""
    command = shutil.which("faketime")
    if command is None:
        return None
    found = subprocess.run(
        [command, "-m", "-f", "+0", "printenv", "LD_PRELOAD"],
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip()


@contextlib.contextmanager
def wall_in(folder: Path, library: str) -> Generator[Wall]:
    file = folder / "wall"
    wall = Wall(
        file,
        {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Else the waits of the interpreter's own lock are shifted too, and threads starve.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        },
    )
    wall.set(0)
    before = set(_SHARED.glob("*faketime_*"))
    try:
        yield wall
    finally:
        # A process that was killed could not remove what the library keeps there.
        for left in set(_SHARED.glob("*faketime_*")) - before:
            left.unlink(missing_ok=True)
