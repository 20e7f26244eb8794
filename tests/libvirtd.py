"""A real libvirtd for tests: of root, or of an ordinary user; never that of the machine.

All it has and writes lies in a folder of its own, a short one because of the addresses of sockets.
It ends with the block, and its machines with it. It can be killed and started anew in between, as
an update of the machine does; machines run on meanwhile. What is above opens connections to `uri`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Generator

KEEPER = Path(__file__).with_name("libvirtd_keeper.py")
PROGRAM = "/usr/sbin/libvirtd"
NOBODY = 65534

# Machines run as the user libvirtd has, and what they may touch is as it is: namespaces, control
# groups and labels are those of the machine that runs the tests. Without a log daemon, which would
# be another process to start.
_QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""
_LIBVIRTD_CONF = """\
unix_sock_dir = "{folder}"
auth_unix_ro = "none"
auth_unix_rw = "none"
"""


def why_not(*, session: bool = False) -> str | None:
    """Tell what is missing for one to be run here."""
    if shutil.which(PROGRAM) is None:
        return "there is no libvirtd"
    if not session and os.geteuid() != 0:
        return "a libvirtd of root's needs root"
    return None


@dataclass(slots=True)
class Libvirtd:
    """A libvirtd, and who keeps it."""

    folder: Path
    uri: str
    # Where it keeps what its machines' QEMUs say.
    logs: Path
    keeper: subprocess.Popen[str]
    pid: int = 0

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        self.pid = self._tell("start")
        assert self.pid, (self.folder / "log").read_text()

    def kill(self) -> None:
        """End it as a crash does; its machines run on."""
        self.pid = self._tell("kill")

    def restart(self) -> None:
        self.kill()
        self.start()

    def _tell(self, word: str) -> int:
        assert self.keeper.stdin
        assert self.keeper.stdout
        self.keeper.stdin.write(f"{word}\n")
        self.keeper.stdin.flush()
        return int(cast("str", self.keeper.stdout.readline()))


@contextmanager
def running_libvirtd(*, session: bool = False) -> Generator[Libvirtd]:
    """Run one for as long as the block; as nobody, if it is a session's and we are root."""
    with tempfile.TemporaryDirectory(prefix="lv-") as name:
        folder = Path(name)
        uid = NOBODY if session and os.geteuid() == 0 else os.geteuid()
        command, where, env = _session(folder) if session else _system(folder)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, uid, -1)
        words = [sys.executable, "-I", "-S", KEEPER, folder, *command]
        with subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **env},
            text=True,
        ) as keeper:
            logs = folder / ("cache/libvirt/qemu/log" if session else "var/log/libvirt/qemu")
            kept = Libvirtd(folder, where, logs, keeper)
            kept.start()
            yield kept


def _system(folder: Path) -> tuple[list[str], str, dict[str, str]]:
    own = folder / "etc/libvirt"
    own.mkdir(parents=True)
    (own / "qemu.conf").write_text(_QEMU_CONF)
    conf = own / "libvirtd.conf"
    conf.write_text(_LIBVIRTD_CONF.format(folder=folder))
    command = [PROGRAM, "--config", str(conf), "--pid-file", str(folder / "pid")]
    return command, f"qemu+unix:///system?socket={folder}/libvirt-sock", {}


def _session(folder: Path) -> tuple[list[str], str, dict[str, str]]:
    own = folder / "config/libvirt"
    own.mkdir(parents=True)
    (own / "qemu.conf").write_text('stdio_handler = "file"\n')
    run = folder / "run"
    run.mkdir(mode=0o700)
    env = {
        "HOME": str(folder),
        "XDG_RUNTIME_DIR": str(run),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "XDG_DATA_HOME": str(folder / "data"),
    }
    command = [PROGRAM, "--pid-file", str(folder / "pid")]
    return command, f"qemu+unix:///session?socket={run}/libvirt/libvirt-sock", env
