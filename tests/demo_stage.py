"""What the demos stand on: a daemon of their own, a client of it, and a look at what is left.

Everything that speaks to the daemon here is standard library: a line of JSON out, a line in. Images
and what they are made of are kept in `.cache` of the repository; all else ends with the demo, and
no setting of the user's is read or written.
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

from microvm_orchestrator.places import PREFIX

PROGRAM = Path(sys.executable).with_name("microvm-orchestrator")
CACHE = Path(__file__).parents[1] / ".cache"
# Longer than anything here takes on a busy machine; only a demo that fails waits so long.
PATIENCE_S = 30.0
# A build fetches 60 MB, and 100 MB with an agent; machines under emulation on a busy host boot in
# ten seconds.
LONG_S = 600.0

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

    def call(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        self._calls += 1
        params = {"name": tool, "arguments": arguments, "_meta": META}
        request = {"jsonrpc": "2.0", "id": self._calls, "method": "tools/call", "params": params}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(self._lines.readline())
        result = answer.get("result")
        if result is None or result["isError"]:
            raise RuntimeError(f"{tool}: {json.dumps(answer)}")
        return result["structuredContent"]

    def finish(self, tool: str, /, **arguments: Any) -> Any:
        """See a long call through, and give its result."""
        operation = self.call(tool, **arguments, wait_s=LONG_S)
        if operation["state"] != "succeeded":
            raise RuntimeError(f"{tool}: {operation['state']}: {operation['error']}")
        return operation["result"]

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@contextmanager
def daemon(folder: Path, settings: str = "") -> Generator[tuple[Path, subprocess.Popen[bytes]]]:
    """Run a daemon until the block ends, and say where it listens once it is ready.

    `settings` are all it is told, as its file has them.
    """
    path, told, file = folder / "socket", folder / "notify", folder / "config.toml"
    file.write_text(settings)
    words = ["--config", file, "--state-dir", folder / "state", "--socket", path]
    env = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear,
        (folder / "log").open("wb") as log,
    ):
        ear.bind(str(told))
        ear.settimeout(PATIENCE_S)
        process = subprocess.Popen(
            [PROGRAM, "serve", *words],
            env={**env, "NOTIFY_SOCKET": str(told)},
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


def share_images(state: Path) -> None:
    """Make a state directory whose images are kept from one demo to the next."""
    state.mkdir(mode=0o700)
    for part, kept in (("images", "images"), ("image-cache", "build")):
        (CACHE / kept).mkdir(parents=True, exist_ok=True)
        (state / part).symlink_to(CACHE / kept)


def end_machines(mcp: Mcp) -> None:
    """End and forget the machines, which would go on without the daemon."""
    for machine in mcp.call("machine_list")["items"]:
        if machine["state"] in {"running", "paused"}:
            mcp.call("machine_kill", machine=machine["machine_id"])
        mcp.call("machine_delete", machine=machine["machine_id"])


def left_behind(state: Path) -> list[str]:
    """Name the processes that still have a file of this state directory on their command line."""
    found: list[str] = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                words = (folder / "cmdline").read_bytes()
            except OSError:
                continue  # it has just ended
            if os.fsencode(state) in words:
                found.append(f"{folder.name} {words[:80]!r} was left behind")
    return found
