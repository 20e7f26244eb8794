"""The only module that starts processes.

A process leads a session, and so a group, of its own, and the group ends with its leader: when the
leader has ended, or when the block that started it is left, whatever is still in the group is
killed. The leader is reaped only afterwards, so its number cannot have become another's by then.
Only what makes a session of its own again leaves the group. What shall outlive us is launched, and
looked after by who launched it. Above stand images, machine and git;
below, the kernel's process handles. Exit statuses come from `wait`, never from a closed pipe.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors, log

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Generator, Mapping, Sequence
    from typing import IO

    Argument = str | PurePath

_ROOT = PurePath("/")
PIPE = subprocess.PIPE
DEVNULL = subprocess.DEVNULL

# From TERM to KILL: enough to remove a lock file, too short to be waited for by a person.
GRACE_S = 5.0
# The kernel ends a killed process at once, unless it sleeps in a driver that does not answer.
_KILL_S = 10.0
# What had left the group may hold a pipe open after the leader's end; its output is not waited for.
_DRAIN_S = 1.0
_CHUNK = 1 << 16
STDOUT_CAP = 1 << 20
# `PR_CAP_AMBIENT` of prctl(2), and what it is asked to do.
_AMBIENT, _RAISE, _LOWER = 47, 2, 3
_STDERR_CAP = 1 << 16
_LINES_TOLD = 12


class Reader:
    """Our end of a process's stdout or stderr."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        os.set_blocking(file.fileno(), False)

    async def read(self) -> bytes:
        """Return what there is, once there is something; nothing means the end."""
        while True:
            await anyio.wait_readable(self._file)
            with contextlib.suppress(BlockingIOError):
                return os.read(self._file.fileno(), _CHUNK)

    def close(self) -> None:
        self._file.close()


class Writer:
    """Our end of a process's stdin."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        os.set_blocking(file.fileno(), False)

    async def write(self, data: bytes) -> None:
        """Raises: BrokenPipeError when the process reads no more."""
        left = memoryview(data)
        while left:
            await anyio.wait_writable(self._file)
            with contextlib.suppress(BlockingIOError):
                left = left[os.write(self._file.fileno(), left[:_CHUNK]) :]

    def close(self) -> None:
        self._file.close()


class Process:
    """A started process and its group; it lives no longer than the block of `spawn`."""

    def __init__(self, started: subprocess.Popen[bytes]) -> None:
        self._started = started
        self._handle = os.pidfd_open(started.pid)
        self.stdin = Writer(started.stdin) if started.stdin else None
        self.stdout = Reader(started.stdout) if started.stdout else None
        self.stderr = Reader(started.stderr) if started.stderr else None

    @property
    def pid(self) -> int:
        return self._started.pid

    @property
    def status(self) -> int | None:
        """The exit status, or minus the number of the signal that ended it; None while it runs."""
        return self._started.returncode

    async def wait(self) -> int:
        """Wait for the leader, end what is left of its group, and return its status."""
        while self._started.returncode is None:
            # A file of our own for each who waits: the event loop takes only one waiter for a file.
            handle = os.dup(self._handle)
            try:
                await anyio.wait_readable(handle)
            finally:
                os.close(handle)
            self._reap()
        return self._started.returncode

    def signal(self, number: signal.Signals) -> None:
        """Send to the whole group; one that has ended hears nothing."""
        if self._started.returncode is None:
            # Not reaped, so the number is still this group's.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    async def stop(self, grace_s: float = GRACE_S) -> int | None:
        """End the group: TERM, a bounded wait, KILL. Cancelling does not cut it short.

        Returns None if even a killed process does not end; the log names it.
        """
        with anyio.CancelScope(shield=True):
            for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _KILL_S)):
                self.signal(number)
                with anyio.move_on_after(patience_s):
                    return await self.wait()
        log.get(__name__).error("process_does_not_end", pid=self.pid, argv=self._started.args)
        return None

    def _reap(self) -> None:
        if self._started.returncode is None:
            self.signal(signal.SIGKILL)
            self._started.wait()

    def close(self) -> None:
        for end in (self.stdin, self.stdout, self.stderr):
            if end is not None:
                end.close()
        os.close(self._handle)
        self._handle = -1


@asynccontextmanager
async def spawn(
    argv: Sequence[Argument],
    *,
    cwd: PurePath | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] = DEVNULL,
    stdout: int | IO[bytes] = DEVNULL,
    stderr: int | IO[bytes] = DEVNULL,
    pass_fds: Collection[int] = (),
    grace_s: float = GRACE_S,
    user: tuple[int, int] | None = None,
    umask: int = -1,
    capable: bool = False,
) -> AsyncGenerator[Process]:
    """Run a program for as long as the block; leaving the block stops what still runs.

    It runs as that user and group, if given, and in no other group; only root may give them. Only
    one that is to be `capable` is handed down the capabilities that a service manager gave us.
    Raises: CommandFailed when it cannot be started.
    """
    with contextlib.nullcontext() if capable else _handing_down_no_capability():
        process = _start(argv, cwd, env, (stdin, stdout, stderr), pass_fds, user, umask)
    try:
        yield process
    finally:
        try:
            await process.stop(grace_s)
        finally:
            process.close()


def _start(
    argv: Sequence[Argument],
    cwd: PurePath | None,
    env: Mapping[str, str] | None,
    streams: tuple[int | IO[bytes], int | IO[bytes], int | IO[bytes]],
    pass_fds: Collection[int],
    user: tuple[int, int] | None,
    umask: int,
) -> Process:
    stdin, stdout, stderr = streams
    uid, gid = user or (None, None)
    try:
        started = subprocess.Popen(
            _words(argv),
            bufsize=0,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env=env,
            pass_fds=tuple(pass_fds),
            start_new_session=True,
            user=uid,
            group=gid,
            extra_groups=None if user is None else (),
            umask=umask,
        )
        try:
            return Process(started)
        except BaseException:  # no handle to be had: without one it could not be waited for
            started.kill()
            with started:  # closes its pipes and reaps it
                raise
    except OSError as error:
        raise errors.CommandFailed(
            f"{argv[0]} cannot be started: {error.strerror} ({error.filename})", argv=_words(argv)
        ) from error


def launch(
    argv: Sequence[Argument],
    *,
    cwd: PurePath = _ROOT,
    env: Mapping[str, str] | None = None,
    stdout: int | IO[bytes] = DEVNULL,
    stderr: int | IO[bytes] = DEVNULL,
    pass_fds: Collection[int] = (),
    user: tuple[int, int] | None = None,
) -> int:
    """Start a program that outlives us, in a session of its own, and return its number.

    Of our environment it has nothing, and of our capabilities none that were handed to us; `env`
    adds to the little it is given. Whoever calls ends it, and reaps it if it ends while we live. It
    runs as that user and group, if given. A file that reaches the limit set for it is an error to
    the program and not its end, because it inherits our deafness to that signal.

    Raises: CommandFailed when it cannot be started.
    """
    uid, gid = user or (None, None)
    try:
        with _handing_down_no_capability():
            started = subprocess.Popen(
                _words(argv),
                stdin=DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd,
                env={"PATH": os.defpath, "LANG": "C.UTF-8", **(env or {})},
                pass_fds=tuple(pass_fds),
                start_new_session=True,
                restore_signals=False,
                user=uid,
                group=gid,
                extra_groups=None if user is None else (),
                umask=0o077,
            )
    except OSError as error:
        raise errors.CommandFailed(
            f"{argv[0]} cannot be started: {error.strerror} ({error.filename})", argv=_words(argv)
        ) from error
    # From here on it is known by its number; its object must neither reap it nor mind that it runs.
    started.returncode = 0
    return started.pid


@contextlib.contextmanager
def _handing_down_no_capability() -> Generator[None]:
    """Keep what a service manager gave us to hand down (`AmbientCapabilities=`) from a program.

    What we hand down is a matter of the thread, and a program is started by the one that calls.
    """
    ours = _handed_to_us()
    for number in ours:
        ctypes.CDLL(None).prctl(_AMBIENT, _LOWER, number, 0, 0)
    try:
        yield
    finally:
        for number in ours:
            ctypes.CDLL(None).prctl(_AMBIENT, _RAISE, number, 0, 0)


@functools.cache
def _handed_to_us() -> tuple[int, ...]:
    """Number the capabilities that we were started with to hand down; they do not change."""
    if sys.platform != "linux":
        return ()
    status = Path("/proc/thread-self/status").read_text(encoding="utf-8").splitlines()
    [held] = [int(line.split()[1], 16) for line in status if line.startswith("CapAmb:")]
    return tuple(number for number in range(held.bit_length()) if held >> number & 1)


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command that ran to its end left."""

    status: int
    stdout: bytes
    # The last of it; a program says at the end why it ends.
    stderr: str
    # Whether there was more of stdout than was asked for.
    truncated: bool


async def run(
    argv: Sequence[Argument],
    *,
    timeout_s: float,
    cap: int = STDOUT_CAP,
    statuses: Collection[int] = (0,),
    cwd: PurePath | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | IO[bytes] = b"",
    stdout: int | IO[bytes] = PIPE,
    pass_fds: Collection[int] = (),
    grace_s: float = GRACE_S,
    user: tuple[int, int] | None = None,
    umask: int = -1,
    capable: bool = False,
) -> Finished:
    """Run a program to its end and keep the first `cap` bytes of what it says.

    Raises: CommandFailed when it cannot be started, takes longer, or ends with another status.
    """
    given = stdin if isinstance(stdin, bytes) else b""
    source = stdin if not isinstance(stdin, bytes) else PIPE if stdin else DEVNULL
    head, tail = _Head(cap), _Tail(_STDERR_CAP)
    async with spawn(
        argv,
        cwd=cwd,
        env=env,
        stdin=source,
        stdout=stdout,
        stderr=PIPE,
        pass_fds=pass_fds,
        grace_s=grace_s,
        user=user,
        umask=umask,
        capable=capable,
    ) as process:
        with anyio.move_on_after(timeout_s):
            await _attend(process, given, head, tail)
        ended = process.status
        said = bytes(tail.kept).decode(errors="replace")
        if ended is None:
            why = f"took longer than {timeout_s:g} s and was stopped"
        elif ended not in statuses:
            why = _how_it_ended(ended)
        else:
            return Finished(ended, bytes(head.kept), said, head.truncated)
    raise errors.CommandFailed(
        f"{PurePath(argv[0]).name} {why}{_last_lines(said)}",
        argv=_words(argv),
        status=ended,
        stdout=bytes(head.kept).decode(errors="replace"),
        stderr=said,
    )


async def _attend(process: Process, given: bytes, head: _Head, tail: _Tail) -> None:
    async with anyio.create_task_group() as group:
        if process.stdin is not None:
            group.start_soon(_feed, process.stdin, given)
        if process.stdout is not None:
            group.start_soon(_collect, process.stdout, head)
        if process.stderr is not None:
            group.start_soon(_collect, process.stderr, tail)
        await process.wait()
        group.cancel_scope.deadline = anyio.current_time() + _DRAIN_S


async def _feed(stdin: Writer, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):  # it has read enough; its status says if it minds
        await stdin.write(data)
    stdin.close()


async def _collect(source: Reader, kept: _Head | _Tail) -> None:
    while chunk := await source.read():
        kept.add(chunk)


class _Head:
    """The first bytes of a stream; the rest is read and dropped, so that nobody blocks."""

    def __init__(self, cap: int) -> None:
        self._left = cap
        self.kept = bytearray()
        self.truncated = False

    def add(self, chunk: bytes) -> None:
        taken = chunk[: self._left]
        self.kept += taken
        self._left -= len(taken)
        self.truncated |= len(taken) < len(chunk)


class _Tail:
    """The last bytes of a stream."""

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self.kept = bytearray()

    def add(self, chunk: bytes) -> None:
        self.kept += chunk
        del self.kept[: -self._cap]


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        return f"was ended by signal {-status}"


def _last_lines(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()][-_LINES_TOLD:]
    return ": " + "\n".join(lines) if lines else ""


def _words(argv: Sequence[Argument]) -> tuple[str, ...]:
    return tuple(str(word) for word in argv)
