"""An end of a link in a process of its own: frame_peer.py ROLE LISTENER TO BY COUNT SIZE

Frames are written one by one, as QEMU writes them, a window at a time. The other end answers each
window, so nothing is lost where little may wait. `send` and `take` are for throughput, `ask` and
`echo` for round trips, `flood` never stops. Whoever measures prints the seconds that it took.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from typing import IO

WINDOW = 128
AHEAD = 2


def main(role: str, listener: str, to: str, by: str, count: str, size: str) -> None:
    connection, _ = socket.socket(fileno=int(listener)).accept()
    reader = connection.makefile("rb")
    frame = bytes.fromhex(to + by) + b"\x88\xb5" + bytes(int(size) - 14)
    wire = len(frame).to_bytes(4) + frame
    sys.stdin.readline()
    began = time.perf_counter()
    match role:
        case "send":
            send(connection, reader, wire, int(count) // WINDOW)
        case "take":
            take(connection, reader, wire[:18].ljust(64, b"\0"), int(count) // WINDOW)
        case "ask":
            for _ in range(int(count)):
                connection.sendall(wire)
                reader.read(len(wire))
        case "echo":
            while reader.read(len(wire)):
                connection.sendall(wire)
        case _:
            with contextlib.suppress(ConnectionError):  # whoever measures has seen enough
                while True:
                    connection.sendall(wire * WINDOW)
    print(time.perf_counter() - began, flush=True)


def send(connection: socket.socket, reader: IO[bytes], wire: bytes, windows: int) -> None:
    for window in range(windows + AHEAD):
        if window >= AHEAD:
            read_frame(reader)
        if window < windows:
            for _ in range(WINDOW):
                connection.sendall(wire)


def take(connection: socket.socket, reader: IO[bytes], answer: bytes, windows: int) -> None:
    for _ in range(windows):
        for _ in range(WINDOW):
            read_frame(reader)
        connection.sendall((60).to_bytes(4) + answer[4:])


def read_frame(reader: IO[bytes]) -> None:
    reader.read(int.from_bytes(reader.read(4)))


if __name__ == "__main__":
    main(*sys.argv[1:])
