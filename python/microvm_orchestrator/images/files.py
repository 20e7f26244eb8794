"""Files of our own: written whole or not at all, and cleared away when nobody comes back."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile, mkdtemp
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

# What a build that was killed has left may go after this long; none takes nearly that.
ABANDONED_S = 86_400.0


def write_whole(path: Path, data: bytes) -> None:
    """Put a file in its place at once, so that nobody reads half of it."""
    with NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink()
            raise


def sync(path: Path) -> None:
    """Have a file or folder on the disk before the name that leads to it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_abandoned(parent: Path, pattern: str, *spared: Path) -> None:
    """Remove folders of that pattern that nobody has touched for a day."""
    for folder in parent.glob(pattern):
        if folder not in spared and time.time() - folder.stat().st_mtime > ABANDONED_S:
            shutil.rmtree(folder)


@asynccontextmanager
async def scratch_folder(parent: Path, prefix: str) -> AsyncGenerator[Path]:
    """Hold a folder that goes with the block; what an earlier, killed one left goes after a day."""
    folder = await anyio.to_thread.run_sync(_make_scratch, parent, prefix)
    try:
        yield folder
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(shutil.rmtree, folder)


def _make_scratch(parent: Path, prefix: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(parent, prefix + "*")
    return Path(mkdtemp(dir=parent, prefix=prefix))
