"""Our own files for a guest, which ship inside this package: the agent and both inits."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDER = Path(__file__).parents[1] / "guest"
AGENT = "agent"
ROOT = "embedded/root"
INITRD = "embedded/initrd"

_SCRIPT = b"#!"
_PROTOCOL = re.compile(r"^VERSION = (\d+)$", re.MULTILINE)


def read_folder(name: str) -> dict[str, tuple[bytes, int]]:
    """Read every file below a folder of ours: content and mode by path.

    What begins as a script is executable: an installed package may have lost the modes.
    """
    base = FOLDER / name
    found: dict[str, tuple[bytes, int]] = {}
    for path in sorted(base.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            data = path.read_bytes()
            mode = 0o755 if data.startswith(_SCRIPT) else 0o644
            found[path.relative_to(base).as_posix()] = data, mode
    return found


def protocol() -> int:
    """Tell which version of the protocol the agent speaks."""
    found = _PROTOCOL.search((FOLDER / AGENT / "wire.py").read_text())
    assert found, "the agent does not say its version"  # noqa: S101 # our own file
    return int(found[1])


def guest_digest() -> str:
    """Tell one set of these files from another."""
    return _digest(
        (f"{name}/{path}\0{mode:o}", data)
        for name in (AGENT, ROOT, INITRD)
        for path, (data, mode) in read_folder(name).items()
    )


def builder_digest() -> str:
    """Tell one state of the code that builds from another: it too decides what comes out."""
    modules = sorted(Path(__file__).parent.glob("*.py"))
    return _digest((path.name, path.read_bytes()) for path in modules)


def _digest(files: Iterable[tuple[str, bytes]]) -> str:
    total = hashlib.sha256()
    for label, data in files:
        total.update(f"{label}\0{len(data)}\0".encode() + data)
    return total.hexdigest()
