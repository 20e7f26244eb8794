"""A foreign image for tests: a runner directory whose guest is a real sshd as this user.

Its commands see this host, so its `poweroff` is one that ends the stand-in for a hypervisor, and
nothing else.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sshd import Sshd, set_up_sshd
from standin_runner import Wanted, foreign_command, make

_PROGRAM = Path(__file__).with_name("foreign_sshd.py")
# Ends whoever runs the guest.
_POWEROFF = '#!/bin/sh\nexec kill -TERM "$(cat {folder}/hypervisor)"\n'


@dataclass(frozen=True, slots=True)
class Foreign:
    """A guest with an SSH server, and the runner directory that starts it."""

    server: Sshd
    runner: Path

    @property
    def folder(self) -> Path:
        return self.server.folder

    def authorize(self, line: str) -> None:
        """Let in who has the key of this line, and nobody else."""
        (self.folder / "authorized").write_text(f"{line}\n")

    def kill_server(self) -> None:
        """End the server's processes, one for each connection."""
        served = self.folder / "served"
        for pid in served.read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        served.unlink()

    def take_away_server(self) -> None:
        (self.folder / "config").rename(self.folder / "no-config")
        self.kill_server()

    def put_back_server(self) -> None:
        (self.folder / "no-config").rename(self.folder / "config")

    def change_host_key(self, private: bytes) -> None:
        """Answer with another host key, whoever comes next."""
        (self.folder / "keys" / "host").write_bytes(private)

    def lie(self, script: str) -> None:
        """Let a script answer in the server's place."""
        liar = self.folder / "liar"
        liar.write_text(f"#!/bin/sh\n{script}\n")
        liar.chmod(0o755)


def make_foreign(folder: Path) -> Foreign:
    folder.mkdir()
    programs = folder / "programs"
    programs.mkdir()
    server = set_up_sshd(folder / "sshd", env=f"PATH={programs}:{os.environ['PATH']}")
    poweroff = programs / "poweroff"
    poweroff.write_text(_POWEROFF.format(folder=server.folder))
    poweroff.chmod(0o755)
    command = foreign_command(str(server.folder), program=_PROGRAM)
    return Foreign(server, make(folder / "made", Wanted("cloud-hypervisor", command)))
