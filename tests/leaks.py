"""What a test left behind: processes, threads, open files, temporary files.

`Before` is taken when a test starts; `find` tells what is there now and was not then. Things of
wider fixtures exist already when it is taken and so do not count. Processes are given a moment to
end, by waiting for it, and are killed once they were reported, so that one leak fails one test.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

# A child that was told to stop, or a worker thread whose loop has ended, is on its way out; on a
# busy host it still waits for its disk.
GRACE_S = 10.0
PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of what our children leave, so that a daemonised process is seen too."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Before:
    """What there was when the test began."""

    children: frozenset[int]
    threads: frozenset[threading.Thread]
    files: frozenset[tuple[int, str]]
    scratch: Path
    temporary: frozenset[Path]

    @classmethod
    def take(cls, scratch: Path) -> Before:
        return cls(
            children=frozenset(_children()),
            threads=frozenset(threading.enumerate()),
            files=frozenset(_files()),
            scratch=scratch,
            temporary=frozenset(scratch.iterdir()),
        )

    def find(self, grace_s: float = GRACE_S) -> list[str]:
        """Name everything that is new, one line each."""
        deadline = time.monotonic() + grace_s
        found = [*self._find_children(deadline), *self._find_threads(deadline)]
        if _files() - self.files:
            # One nobody refers to is closed with a warning, which fails the test. To look for it
            # after every test would take longer than most tests.
            gc.collect()
        found += [
            f"open file {fd}: {_describe(fd, target)}"
            for fd, target in sorted(_files() - self.files)
        ]
        new = sorted(set(self.scratch.iterdir()) - self.temporary)
        found += [f"temporary file {path}" for path in new]
        return found

    def _find_children(self, deadline: float) -> list[str]:
        found: list[str] = []
        for pid in sorted(_children() - self.children):
            command = _command(pid)
            if not _ends(pid, deadline):
                found.append(f"process {pid}: {command}")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                _ends(pid, time.monotonic() + GRACE_S)
            with contextlib.suppress(ChildProcessError):  # its owner has reaped it
                os.waitpid(pid, os.WNOHANG)
        return found

    def _find_threads(self, deadline: float) -> list[str]:
        new = set(threading.enumerate()) - self.threads
        # A look at all objects takes a moment, and there is seldom a reason for it.
        if any(thread.name.startswith("asyncio_") for thread in new):
            new -= _of_open_loops()
        for thread in new:
            if not _is_idle_worker(thread):
                thread.join(max(0.0, deadline - time.monotonic()))
        left = (thread for thread in new if thread.is_alive())
        return [_doing(thread) for thread in left if not _is_idle_worker(thread)]


def _is_idle_worker(thread: threading.Thread) -> bool:
    """Tell whether AnyIO keeps a thread in which no call is.

    It lets it go with the task that was the uppermost when it made it. At the end of a test that is
    now and then one that the next test has too.
    """
    waiting = getattr(thread, "queue", None)
    return isinstance(waiting, Queue) and waiting.unfinished_tasks == 0


def _doing(thread: threading.Thread) -> str:
    """Name a thread, and what it waits for: an idle worker and one in a call are told apart."""
    # There is no public way to ask.
    frames = sys._current_frames()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - as above
    frame = frames.get(thread.ident or 0)
    stack = traceback.extract_stack(frame)[-3:]
    return f"thread {thread.name} in " + " < ".join(each.name for each in reversed(stack))


def _children() -> set[int]:
    found: set[int] = set()
    for listing in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError):  # that thread has just ended
            found.update(int(pid) for pid in listing.read_text().split())
    return found


def _of_open_loops() -> set[threading.Thread]:
    """Return the threads that loops look up names in; they end with their loop.

    A fixture of the session keeps one loop for all tests. One that a test has left open has files.
    """
    found: set[threading.Thread] = set()
    for loop in gc.get_objects():
        # Not `isinstance`, which asks objects that stand for others what they are.
        if issubclass(type(loop), asyncio.BaseEventLoop) and not loop.is_closed():
            executor = getattr(loop, "_default_executor", None)
            found.update(getattr(executor, "_threads", ()))
    return found


def _ends(pid: int, deadline: float) -> bool:
    """Tell whether a process ends by then; a zombie has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        left = max(0.0, deadline - time.monotonic())
        return bool(select.select([handle], [], [], left)[0])
    finally:
        os.close(handle)


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "(gone)"
    return b" ".join(words).decode(errors="replace").strip() or "(ended)"


def _files() -> set[tuple[int, str]]:
    found: set[tuple[int, str]] = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one this listing used
            found.add((int(entry.name), str(entry.readlink())))
    return found


def _describe(fd: int, target: str) -> str:
    if not target.startswith("socket:"):
        return target
    with socket.socket(fileno=os.dup(fd)) as copy:
        try:
            return f"{target} {copy.family.name} {copy.getsockname()!r}"
        except OSError:
            return f"{target} {copy.family.name}"
