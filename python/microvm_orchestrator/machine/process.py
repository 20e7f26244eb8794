"""A process that outlives the daemon: who it is, whether it lives, how it ended.

A number alone names another process once its own has ended, so an identity is the number, the tick
it started at, and the boot of the host. While we look after one we hold a handle of the kernel's,
which never becomes another's. Above stand the hypervisors; `proc.launch` started it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import resource
import signal
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio

from microvm_orchestrator.machine.probe import boot_id

# PIDFD_GET_INFO with PIDFD_INFO_EXIT; kernels before 6.15 refuse it.
_GET_INFO = 0xC040FF0B
_INFO_EXIT = 1 << 3
_INFO = struct.Struct("=QQ11Ii")
# Fields of /proc/PID/stat, counted from the one behind the name, which may hold anything.
_STATE, _SESSION, _USER_TICKS, _SYSTEM_TICKS, _STARTED, _EXIT_CODE = 0, 3, 11, 12, 19, 49
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_MIB = 1 << 20
# The kernel ends a killed process at once, unless it sleeps in a driver that does not answer.
_KILL_S = 10.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Which process of all that ever ran on this host."""

    pid: int
    # In ticks since the host booted.
    started: int
    boot_id: str


class Resident:
    """A process that is looked after: held by a handle until `close`."""

    def __init__(self, identity: Identity, handle: int, *, ours: bool) -> None:
        self.identity = identity
        # The exit status once it is known: minus a signal's number when one ended it.
        self.status: int | None = None
        self.ended = False
        self._handle = handle
        # Whether it is a child of this very process, which alone may reap it.
        self._ours = ours

    async def wait(self) -> int | None:
        """Wait for its end; the status is None where the kernel does not tell strangers."""
        while not self.ended:
            # A file of our own for each who waits: the event loop takes only one waiter for a file.
            handle = os.dup(self._handle)
            try:
                await anyio.wait_readable(handle)
            finally:
                os.close(handle)
            self._conclude()
        return self.status

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; one that has ended hears nothing."""
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    async def end(self) -> bool:
        """Kill it and wait, also when cancelled; False if even that does not end it."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(_KILL_S):
            self.signal(signal.SIGKILL)
            await self.wait()
        return self.ended

    def limit(self, kind: int, most: int) -> None:
        """Set a resource limit for what it does from now on; it can be raised again.

        That of another user's process stays as it was where we lack the right (CAP_SYS_RESOURCE).
        """
        if not self.ended:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                _, hard = resource.prlimit(self.identity.pid, kind)
                resource.prlimit(self.identity.pid, kind, (most, hard))

    @property
    def cpu_s(self) -> float:
        """Seconds of CPU it has used."""
        fields = _stat(self.identity.pid)
        if fields is None or self.ended:
            return 0.0
        return (int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])) / _TICKS_PER_S

    @property
    def rss_mib(self) -> float:
        try:
            pages = Path(f"/proc/{self.identity.pid}/statm").read_bytes().split()[1]
        except (FileNotFoundError, ProcessLookupError):
            return 0.0
        return int(pages) * resource.getpagesize() / _MIB

    @property
    def peak_mib(self) -> float:
        """The most memory it ever had."""
        try:
            status = Path(f"/proc/{self.identity.pid}/status").read_text(encoding="utf-8")
        except (FileNotFoundError, ProcessLookupError):
            return 0.0
        found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        return int(found[1]) / 1024 if found else 0.0

    @property
    def pss_mib(self) -> float | None:
        """Its memory, with shared pages by their share; needs the right to look into it."""
        try:
            rollup = Path(f"/proc/{self.identity.pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            return None
        found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
        return int(found[1]) / 1024 if found else None

    def abandon(self) -> None:
        """Kill a child that nothing has come of yet, reap it and let go of it."""
        self.signal(signal.SIGKILL)
        self._conclude()
        self.close()

    def close(self) -> None:
        """Look after it no more; it runs on."""
        os.close(self._handle)
        self._handle = -1

    def _conclude(self) -> None:
        if self.ended:
            return
        if self._ours:
            _, status = os.waitpid(self.identity.pid, 0)
            self.status = os.waitstatus_to_exitcode(status)
        else:
            self.status = _status_of_stranger(self.identity.pid, self._handle)
        self.ended = True


def look_after(pid: int) -> Resident:
    """Take charge of a child that was just launched."""
    fields = _stat(pid)
    if fields is None:  # not reaped by anybody but us, so it is there
        raise ProcessLookupError(pid)
    identity = Identity(pid, int(fields[_STARTED]), boot_id())
    return Resident(identity, os.pidfd_open(pid), ours=True)


def find(identity: Identity) -> Resident | None:
    """Take charge of a process that somebody else started, if it is still that one and runs."""
    if identity.boot_id != boot_id():
        return None
    try:
        handle = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    # Looked at with the handle in hand: what it names cannot change any more.
    fields = _stat(identity.pid)
    if fields is None or fields[_STATE] in "ZX" or int(fields[_STARTED]) != identity.started:
        os.close(handle)
        return None
    return Resident(identity, handle, ours=False)


def find_by_words(words: tuple[str, ...], users: frozenset[int]) -> Identity | None:
    """Find a process of one of these users with these words in a row on its command line."""
    return next(_having("cmdline", words, users), None)


def find_by_variable(name: str, value: str, users: frozenset[int]) -> Identity | None:
    """Find what was launched with a variable of this value, as one of these users."""
    for identity in every_with_variable(name, value, users):
        fields = _stat(identity.pid)
        if fields is not None and int(fields[_SESSION]) == identity.pid:
            return identity
    return None


def every_with_variable(name: str, value: str, users: frozenset[int]) -> Iterator[Identity]:
    """Find what was launched with a variable of this value, and what that has started."""
    return _having("environ", (f"{name}={value}",), users)


def _having(file: str, words: tuple[str, ...], users: frozenset[int]) -> Iterator[Identity]:
    wanted = b"\0" + b"\0".join(os.fsencode(word) for word in words) + b"\0"
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            if folder.stat().st_uid in users and wanted in b"\0" + (folder / file).read_bytes():
                fields = _stat(int(folder.name))
                if fields is not None:
                    yield Identity(int(folder.name), int(fields[_STARTED]), boot_id())
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def _status_of_stranger(pid: int, handle: int) -> int | None:
    """Ask how a process ended that another one reaps."""
    fields = _stat(pid)
    if fields is not None and fields[_STATE] == "Z":
        return os.waitstatus_to_exitcode(int(fields[_EXIT_CODE]))
    info = bytearray(_INFO.size)
    struct.pack_into("=Q", info, 0, _INFO_EXIT)
    try:
        fcntl.ioctl(handle, _GET_INFO, info)
    except OSError:
        return None
    told, *_, status = _INFO.unpack(info)
    return os.waitstatus_to_exitcode(status) if told & _INFO_EXIT else None
