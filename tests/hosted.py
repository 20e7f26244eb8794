"""What machines are and leave on this host, looked at from outside: processes, folders, groups.

For tests with real machines behind a daemon, which outlive it: whoever started some looks here that
all of it is gone.
"""

from __future__ import annotations

from pathlib import Path

from microvm_orchestrator.machine import cgroup

# What a daemon keeps of its machines, each by its name.
_FOLDERS = ("machines", "snapshots")


def processes(state: Path) -> dict[str, int]:
    """Find the QEMU of each machine of this state directory, by the files it has open."""
    found: dict[str, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            files = [str(fd.readlink()) for fd in (folder / "fd").iterdir()]
        except OSError:
            continue  # it has just ended
        if b"qemu" in words[0] and any(str(state) in file for file in files):
            name = words[words.index(b"-name") + 1].decode()
            found[name.partition("guest=")[2].partition(",")[0]] = int(folder.name)
    return found


def left(state: Path) -> list[str]:
    """Name everything that is there of the machines and snapshots of this state directory."""
    found = [f"process {pid} of {name}" for name, pid in processes(state).items()]
    found += [str(path) for name in _FOLDERS for path in (state / name).glob("*")]
    return found


def in_groups(machine_id: str) -> list[int]:
    """Name the processes in the control group of a machine."""
    tree = cgroup.open_tree()
    return [] if tree is None else tree.find(machine_id).processes()
