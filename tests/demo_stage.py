"""What the demos stand on: a daemon of their own, and a client of it.

Everything that speaks to the daemon here is standard library: a line of JSON out, a line in.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = Path(sys.executable).with_name("microvm-orchestrator")
# Longer than anything here takes on a busy machine; only a demo that fails waits so long.
PATIENCE_S = 30.0

META: dict[str, Any] = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


class Mcp:
    """An MCP client over the daemon's socket: since 2026-07-28 each line is a whole exchange."""

    def __init__(self, path: Path, patience_s: float = PATIENCE_S) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(patience_s)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        self._calls = 0

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        self._calls += 1
        params = {"name": tool, "arguments": arguments, "_meta": META}
        request = {"jsonrpc": "2.0", "id": self._calls, "method": "tools/call", "params": params}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(self._lines.readline())
        result = answer.get("result")
        if result is None or result["isError"]:
            raise RuntimeError(f"{tool}: {json.dumps(answer)}")
        return result["structuredContent"]

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@contextmanager
def daemon(folder: Path) -> Generator[tuple[Path, subprocess.Popen[bytes]]]:
    """Run a daemon until the block ends, and say where it listens once it is ready."""
    path, told = folder / "socket", folder / "notify"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear,
        (folder / "log").open("wb") as log,
    ):
        ear.bind(str(told))
        ear.settimeout(PATIENCE_S)
        process = subprocess.Popen(
            [PROGRAM, "serve", "--state-dir", folder / "state", "--socket", path],
            env={**os.environ, "NOTIFY_SOCKET": str(told)},
            stdin=subprocess.DEVNULL,
            stderr=log,
        )
        try:
            if b"READY=1" not in ear.recv(4096):
                raise RuntimeError((folder / "log").read_text())
            yield path, process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)
