"""Disks of our own to be cut off, filled and made read-only: images on loop devices, small tmpfs.

Needs root; the fixture `disks` says so where a test is not run. Whatever happens, nothing stays
mounted, and a loop device goes with its mount.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


def run(*words: object) -> str:
    """Run a command that must succeed."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr.strip()}"
    return done.stdout


def why_none(folder: Path) -> str | None:
    """Say why there can be no disks of our own here, or None."""
    if os.geteuid() != 0:
        return "needs root, to mount disks of its own"
    if missing := [name for name in ("mount", "mkfs.ext4", "losetup") if not shutil.which(name)]:
        return f"needs {' and '.join(missing)}"
    image = folder / "probe"
    try:
        make_ext4(image, 4)
        with mounted(image, folder / "probed", "-o", "loop"):
            pass
    except AssertionError as error:
        return f"cannot mount an image here: {error}"
    finally:
        image.unlink(missing_ok=True)
    return None


def make_ext4(image: Path, size_mib: int) -> None:
    with image.open("wb") as file:
        file.truncate(size_mib * 1_048_576)
    run("mkfs.ext4", "-q", "-F", image)


@contextlib.contextmanager
def mounted(source: object, at: Path, *options: str) -> Generator[Path]:
    """Mount until the block ends; nobody may have a file open there then."""
    at.mkdir(exist_ok=True)
    run("mount", *options, source, at)
    try:
        yield at
    finally:
        try:
            run("umount", at)
        except AssertionError:
            # Busy is a bug of the test; the machine shall not keep the mount for it.
            run("umount", "--lazy", at)
            raise


@contextlib.contextmanager
def small_tmpfs(at: Path, size_mib: int) -> Generator[Path]:
    with mounted("tmpfs", at, "-t", "tmpfs", "-o", f"size={size_mib}m"):
        yield at


@contextlib.contextmanager
def read_only(folder: Path) -> Generator[None]:
    """Let nobody, not even root, write there."""
    if os.geteuid() != 0:
        mode = folder.stat().st_mode
        folder.chmod(0o500)
        try:
            yield
        finally:
            folder.chmod(mode)
        return
    with mounted(folder, folder, "--bind"):
        run("mount", "-o", "remount,ro,bind", folder)
        yield


def fill(folder: Path, *, leave_kib: int = 0) -> Path:
    """Fill the disk under a folder with one file; remove it to have the space back."""
    file = folder / "filler"
    end, chunk = 0, shutil.disk_usage(folder).free - leave_kib * 1024
    with file.open("wb") as filler:
        # The daemon takes from the same disk meanwhile, so what was free may not be so any more.
        while chunk >= 4096:
            try:
                os.posix_fallocate(filler.fileno(), end, chunk)
                if leave_kib:
                    break
                end += chunk
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                chunk //= 2
    return file
