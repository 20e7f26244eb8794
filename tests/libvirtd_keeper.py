"""Keeps a libvirtd for tests: a program of its own, told what to do by lines on its stdin.

    start   start libvirtd; says its process on stdout once it is ready, or 0 when it has ended
    kill    end libvirtd at once, and say 0; its machines run on
    (end)   end libvirtd and everything it has started

It is the parent of what libvirtd leaves, and reaps it at once: libvirtd waits for a machine's end
until its process is gone, which takes seconds with an init that reaps when it finds the time. As
root it and libvirtd see folders of their own where libvirtd has its files, in a mount namespace; of
another user's folder it becomes that user. Nothing here knows the project.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import threading
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNS = 0x20000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
# Where a libvirtd of root has its files, whatever it is told.
_PLACES = (
    *("/etc/libvirt", "/run/libvirt", "/var/lib/libvirt"),
    *("/var/cache/libvirt", "/var/log/libvirt"),
)
_USER = "libvirt-qemu"
_READY_S = 30.0
_END_S = 10.0

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    folder, *command = sys.argv[1:]
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if (owner := Path(folder).stat().st_uid) != os.geteuid():
        os.setgroups([])
        os.setresuid(owner, owner, owner)
    elif owner == 0:
        _move_away(Path(folder))
    threading.Thread(target=_reap, daemon=True).start()
    running = 0
    for line in sys.stdin:
        match line.strip():
            case "start":
                running = _start(command, Path(folder))
                print(running, flush=True)  # that is how it answers
            case "kill":
                _kill(running)
                print(0, flush=True)  # likewise
            case other:
                sys.exit(f"no such thing to do: {other}")
    while children := _children():
        for pid in children:
            _kill(pid)


def _start(command: list[str], folder: Path) -> int:
    """Start it and wait for its word that it is ready, as systemd does."""
    there = folder / "ready"
    there.unlink(missing_ok=True)
    with (
        (folder / "log").open("ab") as log,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready,
    ):
        ready.bind(str(there))
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        actions = [(os.POSIX_SPAWN_DUP2, null, 0)]
        actions += [(os.POSIX_SPAWN_DUP2, log.fileno(), number) for number in (1, 2)]
        env = {**os.environ, "NOTIFY_SOCKET": str(there)}
        pid = os.posix_spawnp(command[0], command, env, file_actions=actions)
        os.close(null)
        handle = os.pidfd_open(pid)
        try:
            while handle not in (found := select.select([ready, handle], [], [], _READY_S)[0]):
                if not found or b"READY=1" in ready.recv(4096):
                    return pid
        finally:
            os.close(handle)
    return 0


def _reap() -> None:
    """Take every child as it ends. While there is none, nobody tells of the next one."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            threading.Event().wait(0.01)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        select.select([handle], [], [], _END_S)
        os.close(handle)


def _children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def _move_away(folder: Path) -> None:
    """Have folders of our own at the places that libvirtd knows."""
    _check(_libc.unshare(CLONE_NEWNS))
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    for place in map(Path, _PLACES):
        own = folder / place.relative_to("/")
        own.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            _mirror(place.parent)
            place.mkdir()
        _mount(str(own), str(place), "", MS_BIND)
    # It looks for the user that a distribution's package makes before it reads that it is another.
    users = {
        "passwd": f"{_USER}:x:0:0::/:/bin/false\n",
        "group": f"{_USER}:x:0:\nkvm:x:0:\n",
    }
    for name, lines in users.items():
        own, place = folder / name, Path("/etc") / name
        own.write_text(place.read_text() + lines)
        _mount(str(own), str(place), "", MS_BIND)


def _mirror(path: Path) -> None:
    """Let a folder be one of ours with all that is in it, so that more can be put there."""
    old = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _mount("none", str(path), "tmpfs", 0)
    for entry in os.scandir(old):
        here, there = path / entry.name, f"/proc/self/fd/{old}/{entry.name}"
        if entry.is_symlink():
            here.symlink_to(Path(there).readlink())
            continue
        if entry.is_dir():
            here.mkdir()
        else:
            here.touch()
        _mount(there, str(here), "", MS_BIND | MS_REC)
    os.close(old)


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    _check(_libc.mount(source.encode(), target.encode(), kind.encode() or None, flags, None))


def _check(status: int) -> None:
    if status:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main()
