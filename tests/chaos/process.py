"""A daemon as a process: started until it says that it is ready, and done all kinds of harm to."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microvm_orchestrator import places

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

READY_WITHIN_S = 60.0
ENDS_WITHIN_S = 30.0
_LOG_SHOWN = 3000

# As a user starts it; the empty file keeps the machine's own settings out.
_SERVE = (Path(sys.executable).with_name(places.NAME), "serve", "--config", "/dev/null")


class DidNotStart(Exception):
    """The daemon ended before it was ready."""

    def __init__(self, status: int, log: str) -> None:
        super().__init__(f"ended with status {status}:\n{log[-_LOG_SHOWN:]}")
        self.status = status
        self.log = log

    @property
    def code(self) -> str:
        """The kind of error it said last."""
        lines = [line for line in self.log.splitlines() if line.startswith("{")]
        told: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return str(told.get("code"))


@dataclass
class Daemon:
    """One state directory and socket, and the process that serves them, one after another."""

    state_dir: Path
    socket: Path
    log: Path
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    _process: subprocess.Popen[bytes] | None = None
    _notified: socket.socket | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def store(self) -> Path:
        return self.state_dir / "store.db"

    def spawn(self) -> None:
        """Start it, and do not wait."""
        assert self._process is None, "it runs already"
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind("")  # the kernel chooses an abstract name, so no file is left
        name: bytes = self._notified.getsockname()
        env = {
            **{key: value for key, value in os.environ.items() if places.PREFIX not in key},
            "NOTIFY_SOCKET": name.replace(b"\0", b"@", 1).decode(),
            **self.env,
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*_SERVE, "--state-dir", self.state_dir, "--socket", self.socket],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def start(self) -> float:
        """Start it, wait until it is ready, and tell how long that took.

        Raises: DidNotStart.
        """
        began = time.monotonic()
        before = self.log.stat().st_size if self.log.exists() else 0
        self.spawn()
        assert self._notified is not None
        handle = os.pidfd_open(self.pid)
        try:
            ready, _, _ = select.select([self._notified, handle], [], [], READY_WITHIN_S)
        finally:
            os.close(handle)
        if self._notified in ready:
            assert self._notified.recv(100) == b"READY=1"
            return time.monotonic() - began
        assert ready, f"not ready within {READY_WITHIN_S:.0f} s: {self.tail()}"
        status = self._reap()
        raise DidNotStart(status, self.log.read_text()[before:])

    def kill(self) -> None:
        """As the kernel does when memory is short: no warning, no clean-up."""
        os.kill(self.pid, signal.SIGKILL)
        self._reap()

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def end(self) -> int:
        """Ask it politely to end; its exit status."""
        os.kill(self.pid, signal.SIGTERM)
        return self._reap()

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-_LOG_SHOWN:] if self.log.exists() else ""

    @contextlib.contextmanager
    def cleared_away(self) -> Generator[None]:
        """Let no process outlive the block, whatever state it is in."""
        try:
            yield
        finally:
            if self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
                self._reap()

    def _reap(self) -> int:
        assert self._process is not None
        process, self._process = self._process, None
        if self._notified is not None:
            self._notified.close()
            self._notified = None
        try:
            return process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


@contextlib.contextmanager
def daemon_in(
    folder: Path, *, state_dir: Path | None = None, env: Mapping[str, str] | None = None
) -> Generator[Daemon]:
    """Hold a daemon that is not started yet; whatever state it is in at the end, it is ended."""
    state_dir = state_dir or folder / "state"
    daemon = Daemon(state_dir, folder / "socket", folder / "daemon.log", env or {})
    with daemon.cleared_away():
        yield daemon
