"""The floor for the channel: the same bytes over a bare socket, by a process that does no more.

Takes orders over the socket it inherits: `e` and a byte to say again, `t` and a size to write into
the file, `g` to give the file back.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

CHUNK = 1 << 16


def main(fd: int, path: str) -> None:
    with socket.socket(fileno=fd) as peer:
        while order := peer.recv(9, socket.MSG_WAITALL):
            size = int.from_bytes(order[1:], "big")
            if order[:1] == b"e":
                peer.sendall(order)
            elif order[:1] == b"t":
                take(peer, path, size)
                peer.sendall(order)
            else:
                with Path(path).open("rb", buffering=0) as file:
                    while data := file.read(CHUNK):
                        peer.sendall(data)


def take(peer: socket.socket, path: str, size: int) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    while size:
        data = peer.recv(min(size, CHUNK))
        os.write(file, data)
        size -= len(data)
    os.close(file)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
