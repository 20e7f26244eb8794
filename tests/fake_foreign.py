"""A hypervisor in user space that is none: what a runner's script becomes for want of a real one.

    fake_foreign.py --cmdline KERNEL-WORDS ...

It does what we use of such a hypervisor: its output is the guest's console, in its folder is the
socket by which ports of the guest's vsock are reached, and it ends when the guest does. Its guest
is that of the fake QEMU.
"""

# pyright: basic

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import fake_qemu

SOCKET = "notify.vsock"
PORT = b"CONNECT 1024\n"
CHUNK = 1 << 16


def main(words: list[str]) -> int:
    kernel = words[words.index("--cmdline") + 1]
    agent = Path("agent")
    guest = fake_qemu.Guest(kernel, listen(agent).detach(), 1)
    Path(SOCKET).unlink(missing_ok=True)
    guest.boot()
    with listen(Path(SOCKET)) as front:
        while True:
            ready, _, _ = select.select([front, guest.handle], [], [])
            if guest.handle in ready:
                os.waitpid(guest.pid, 0)
                return 0  # whatever has become of the guest
            host, _ = front.accept()
            threading.Thread(target=_serve, args=(host, agent), daemon=True).start()


def listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def asked(host: socket.socket) -> bytes:
    """Read which port is wanted; what comes behind it is for who listens there."""
    line = b""
    while not line.endswith(b"\n") and (byte := host.recv(1)):
        line += byte
    return line


def _serve(host: socket.socket, agent: Path) -> None:
    guest = socket.socket(socket.AF_UNIX)
    try:
        if asked(host) != PORT:
            raise ConnectionRefusedError
        guest.connect(str(agent))
    except OSError:  # nobody listens at that port
        host.close()
        return
    host.sendall(b"OK 1073741824\n")
    threading.Thread(target=_pass_on, args=(guest, host), daemon=True).start()
    _pass_on(host, guest)


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(CHUNK):
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
