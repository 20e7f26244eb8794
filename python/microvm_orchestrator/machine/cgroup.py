"""A control group for each machine: its limits on this host, and a sure way to end all of it.

Only the second version of control groups is used, below the daemon's own group, where that may be
written: as root, or where systemd delegates (`Delegate=yes`). A group that hands limits down may
have no process of its own, so a daemon that is alone in its group goes into one beside the
machines. Only systemd's own child does not: systemd would start the next daemon in a group that
takes none while machines are there, unless `DelegateSubgroup=` names the one beside. Elsewhere a
machine has no limits but those QEMU keeps itself: memory and processors of the guest. `describe`
says which.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from microvm_orchestrator.places import NAME

# Beside the guest's memory: QEMU's code, its tables for that memory, and translated guest code.
_OVERHEAD_MIB = 256
_OVERHEAD_SHARE = 8
_PERIOD_US = 100_000
# QEMU's threads for disks come and go; a fork bomb in the guest is not made of threads of the host.
_THREADS = 256
_WANTED = ("memory", "cpu", "pids")
# Where the daemon goes; `DelegateSubgroup=` of systemd puts it there from the start.
_ASIDE = "daemon"
# By which systemd tells a process that it was started by systemd itself.
_STARTED = "SYSTEMD_EXEC_PID"
# From making a group until a process is in it, on a host that is very busy.
_NEW_S = 10.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one machine may take of this host."""

    memory_mib: int
    vcpus: int


class Group:
    """The control group of one machine."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        """The folder by which the kernel is told."""
        return self._path

    def limit(self, limits: Limits) -> None:
        """Set each limit whose controller the group has."""
        bytes_ = (limits.memory_mib + _overhead_mib(limits)) << 20
        for name, value in (
            ("memory.max", str(bytes_)),
            ("cpu.max", _most_of_cpu(limits.vcpus, None)),
            ("pids.max", str(_THREADS)),
        ):
            with contextlib.suppress(FileNotFoundError):  # that controller is not ours
                _tell(self._path / name, value)

    @property
    def holds_processors(self) -> bool:
        """Whether it can have less of them."""
        return (self._path / "cpu.max").exists()

    def slow(self, vcpus: int, share: float | None) -> None:
        """Give all of it a share of one processor; without one, what its machine has usually."""
        _tell(self._path / "cpu.max", _most_of_cpu(vcpus, share))

    def slowed(self, vcpus: int) -> float | None:
        """Tell which share of one processor it has, where that is not the usual."""
        quota, _, period = (self._path / "cpu.max").read_text().strip().partition(" ")
        if f"{quota} {period}" == _most_of_cpu(vcpus, None) or quota == "max":
            return None
        return int(quota) / int(period)

    def add(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            _tell(self._path / "cgroup.procs", str(pid))

    def processes(self) -> list[int]:
        """Name what is in the group; nothing is in one that is not there."""
        try:
            return [int(pid) for pid in (self._path / "cgroup.procs").read_text().split()]
        except FileNotFoundError:
            return []

    def memory_kills(self) -> int:
        """Return how often something was killed because the group had too much memory."""
        try:
            lines = (self._path / "memory.events").read_text().splitlines()
        except FileNotFoundError:  # no limit on memory is kept here
            return 0
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def kill(self) -> None:
        """End everything in the group."""
        try:
            _tell(self._path / "cgroup.kill", "1")
        except OSError as error:
            # The group went between the opening of its file and the writing.
            if error.errno not in {errno.ENOENT, errno.ENODEV}:
                raise

    def remove(self) -> None:
        """Take the group away; while a killed process is on its way out, `Tree.sweep` does it."""
        with contextlib.suppress(FileNotFoundError):
            try:
                self._path.rmdir()
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise


class Tree:
    """The part of the hierarchy that holds our machines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def make(self, machine_id: str) -> Group:
        path = self._path / machine_id
        path.mkdir(exist_ok=True)
        return Group(path)

    def find(self, machine_id: str) -> Group:
        """Return the group of a machine, whether it is there or not."""
        return Group(self._path / machine_id)

    def sweep(self) -> None:
        """Take away every group that nothing is in, but for those that were just made.

        Another daemon's machines may be here too, and a group is there before its process is.
        """
        for path in self._path.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.is_dir() and time.time() - path.stat().st_mtime > _NEW_S:
                    Group(path).remove()

    @property
    def controllers(self) -> set[str]:
        """Which limits hold."""
        return set((self._path / "cgroup.subtree_control").read_text().split())


def open_tree(wanted: Sequence[str] = _WANTED) -> Tree | None:
    """Make a place for machines below our own group, or return None where that is not allowed."""
    own = _own()
    if own is None:
        return None
    path = own / NAME
    try:
        path.mkdir(exist_ok=True)
    except OSError:
        return None
    if not os.access(path, os.W_OK):  # a daemon of another user was here before
        return None
    if _must_stay():
        return Tree(path)
    with contextlib.suppress(OSError):
        _step_aside(own)
    for folder in (own, path):
        for controller in wanted:
            # Absent, not delegated, or held back because a process sits beside: then without it.
            with contextlib.suppress(OSError):
                _tell(folder / "cgroup.subtree_control", f"+{controller}")
    return Tree(path)


def _step_aside(own: Path) -> None:
    """Leave our group, so that it may hand its controllers down, unless others stay in it."""
    group = Group(own)
    if group.processes() == [os.getpid()]:
        aside = own / _ASIDE
        aside.mkdir(exist_ok=True)
        Group(aside).add(os.getpid())


def _must_stay() -> bool:
    """Whether systemd has started us, and starts the next one, where no controller may go down."""
    current = _current()
    started = os.environ.get(_STARTED) == str(os.getpid())
    return started and current is not None and current.name != _ASIDE


def describe() -> str:
    """Say in a sentence which limits this host enforces on machines."""
    own = _own()
    if own is None:
        return "no second version of control groups is mounted"
    if not os.access(own, os.W_OK):
        return "the daemon's control group may not be written"
    tree = own / NAME
    if not tree.is_dir():
        return "no machine has been started yet"
    if _must_stay():
        return (
            "no limits are enforced: the service's unit needs DelegateSubgroup=daemon, systemd 254"
        )
    held = sorted(Tree(tree).controllers)
    return f"limits are enforced on {', '.join(held)}" if held else "no controller is delegated"


def _most_of_cpu(vcpus: int, share: float | None) -> str:
    quota_us = (vcpus + 1) * _PERIOD_US if share is None else round(share * _PERIOD_US)
    return f"{quota_us} {_PERIOD_US}"


def _tell(file: Path, value: str) -> None:
    # Some may only be written, which root alone would not notice; nothing is to be created.
    control = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(control, value.encode())
    finally:
        os.close(control)


def _own() -> Path | None:
    """Return the group that was given to us: ours, or the one that we stand aside in."""
    found = _current()
    return found.parent if found is not None and found.name == _ASIDE else found


def _current() -> Path | None:
    """Return our own group in the second version's hierarchy."""
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    mounted = [line.split() for line in mounts.splitlines() if " - cgroup2 " in line]
    groups = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    ours = [line.removeprefix("0::") for line in groups if line.startswith("0::")]
    # One may be mounted over another.
    paths = [Path(words[4]) / own.lstrip("/") for words in mounted for own in ours]
    return next((path for path in paths if (path / "cgroup.procs").exists()), None)


def _overhead_mib(limits: Limits) -> int:
    return _OVERHEAD_MIB + limits.memory_mib // _OVERHEAD_SHARE
