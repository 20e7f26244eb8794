"""The lock of a work tree's index, held as git holds it, and known as ours after a crash.

While `index.lock` is there no git stages, commits or switches in that work tree. Ours says what it
is held for, and whoever works under it, the daemon and each git it has started, keeps the file open
and locked (`flock`). So it is known when the last of them has ended, whatever ended them, and the
lock is taken over with what it was for: the work it covered is finished or taken back before
anybody else may go on. A lock of somebody else is waited for, briefly, and never removed. Beside it
lies a folder of ours, for what has to be on the same file system as the index.

Everything here blocks, and is called as the owner of the work tree. Above stands checkout.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

_MARK = "microvm-orchestrator landing\n"
_FOLDER = "microvm-orchestrator"
# A user's git holds it for as long as it looks at files; one that runs hooks may take longer, and
# then the landing is tried again by whoever wanted it.
BUSY_S = 3.0
_LOOK_S = 0.02
# A git that moves a ref holds it for less.
_HELD_S = 0.5
# A lock of git's is an index and may be large; ours is a line.
_CAP = 4096


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a lock is held for."""

    ref: str
    old: str
    new: str


class IndexLock:
    """The lock of one index, whose folder is the git directory of a work tree."""

    def __init__(self, git_dir: Path) -> None:
        self.index = git_dir / "index"
        self.path = git_dir / "index.lock"
        self._ours = git_dir / _FOLDER
        # Of whoever has the lock.
        self.folder = self._ours / "landing"
        # Kept open by us, and by every process that works under the lock.
        self.handle = -1

    def take(self, purpose: Purpose) -> Purpose | None:
        """Take it; give what it was held for by one of ours who has ended.

        Raises: FileExistsError when somebody else holds it for too long; OSError.
        """
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                return self._try(purpose)
            # Or whoever gave it back took the folder away in which we were about to.
            except (FileExistsError, FileNotFoundError):
                if time.monotonic() > deadline:
                    raise
            time.sleep(_LOOK_S)

    def _try(self, purpose: Purpose) -> Purpose | None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # In there it goes with the folder when we are killed before it is the lock.
        handle, name = tempfile.mkstemp(dir=self.folder)
        own = Path(name)
        try:
            os.write(handle, (_MARK + json.dumps(asdict(purpose))).encode())
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left = None
            try:
                # Whole at once, and only if there is none.
                os.link(own, self.path)
            except FileExistsError:
                with self._left() as left:
                    if left is None:
                        raise
                    own.replace(self.path)
            self.handle, handle = handle, -1
            return left
        finally:
            own.unlink(missing_ok=True)
            if handle >= 0:
                os.close(handle)

    def find_left(self) -> Purpose | None:
        """Tell what one of ours, who has ended, held it for."""
        with self._left() as left:
            return left

    @contextlib.contextmanager
    def _left(self) -> Generator[Purpose | None]:
        """Tell the same, and let nobody else take it over meanwhile."""
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            yield None
            return
        try:
            yield self._read(handle)
        finally:
            os.close(handle)

    def _read(self, handle: int) -> Purpose | None:
        try:
            text = os.read(handle, _CAP).decode("ascii")
            if not text.startswith(_MARK):
                return None
            purpose = Purpose(**json.loads(text.removeprefix(_MARK)))
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it may have given it back, or another one taken it over.
            same = os.path.samestat(os.fstat(handle), self.path.stat())
        except (OSError, ValueError, TypeError):
            return None
        return purpose if same else None

    def release(self) -> None:
        """Give it back, with what lies beside it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # somebody waits for the lock there
            self._ours.rmdir()
        self.path.unlink(missing_ok=True)
        os.close(self.handle)


def clear_ref_locks(paths: Iterable[Path], new: str) -> None:
    """Remove the locks that a git of ours held on refs when it was killed.

    To be called by who has taken over from it: then it runs no more. Of another git's, one is empty
    or has another object in it, and is gone a moment later.
    """
    found: dict[Path, int] = {}
    for path in paths:
        with contextlib.suppress(OSError):
            if path.read_text(encoding="ascii", errors="replace").strip() in {"", new}:
                found[path] = path.lstat().st_ino
    if found:
        time.sleep(_HELD_S)
    for path, inode in found.items():
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_ino == inode:
                path.unlink()
