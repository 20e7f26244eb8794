"""A hypervisor in user space that is none, whose guest has an SSH server and nothing of ours.

    foreign_sshd.py FOLDER

FOLDER is that of a `ssh_guest.Foreign`. A real sshd serves each connection to port 22 of the
guest's vsock, for as long as there is its configuration; or else the program `liar`, where there is
one. `served` has their process ids. The guest's `poweroff` ends us.
"""

# pyright: basic

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import fake_foreign

PORT = b"CONNECT 22\n"
SSHD = "/usr/sbin/sshd"
PDEATHSIG = 1


def end_with_us() -> None:
    ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL)


def main(words: list[str]) -> int:
    folder = Path(words[1])
    config = folder / "config"
    (folder / "hypervisor").write_text(str(os.getpid()))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    print("the guest has booted", flush=True)
    served: list[subprocess.Popen[bytes]] = []
    with fake_foreign.listen(Path(fake_foreign.SOCKET)) as front:
        while True:
            host, _ = front.accept()
            served = [process for process in served if process.poll() is None]
            with host:
                if fake_foreign.asked(host) != PORT or not config.exists():
                    continue
                host.sendall(b"OK 1073741824\n")
                liar = folder / "liar"
                words = [str(liar)] if liar.exists() else [SSHD, "-i", "-e", "-f", str(config)]
                served.append(
                    subprocess.Popen(
                        words,
                        stdin=host.fileno(),
                        stdout=host.fileno(),
                        preexec_fn=end_with_us,  # noqa: PLW1509 # there is one thread
                    )
                )
            with (folder / "served").open("a") as pids:
                pids.write(f"{served[-1].pid}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
