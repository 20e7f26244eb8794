"""A real daemon as a process of its own, for tests that must see it from outside.

`running_daemon` starts it, waits for its READY=1 as systemd would, and ends it with the block. The
tests talk to its socket; what it said on stderr lies beside its state.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from microvm_orchestrator import places

if TYPE_CHECKING:
    from collections.abc import Generator

# Generous: they only decide how long a broken test takes to say so.
START_S = 60.0
STOP_S = 15.0

COMMAND = Path(sys.executable).with_name(places.NAME)
# Of the end of a log; what explains a failure stands there.
_SHOWN = 6000

# Those whose blocks have not ended well until now.
_open: list[Path] = []


@dataclass(frozen=True, slots=True)
class Daemon:
    """A running daemon."""

    process: subprocess.Popen[bytes]
    state_dir: Path
    socket: Path
    log: Path
    # Where it listens on the network, if the settings say that it does.
    tcp: str | None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def resident_kib(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    def kill(self) -> None:
        """End it without a word, and wait until it is gone."""
        self.process.kill()
        self.process.wait(STOP_S)


@contextmanager
def running_daemon(
    state_dir: Path, *, socket_path: Path | None = None, **settings: dict[str, Any]
) -> Generator[Daemon]:
    """Run a daemon on `state_dir` until the block ends.

    `settings` are tables of its file: `access={"default_role": "viewer"}`. A daemon that the block
    has ended itself is left alone; one that does not stop politely fails the test.
    """
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = socket_path or state_dir / "socket"
    file = state_dir / "config.toml"
    file.write_text("".join(_toml(name, table) for name, table in settings.items()))
    log = state_dir / "daemon.log"
    _open.append(state_dir)
    told: list[object] = ["--config", file, "--state-dir", state_dir, "--socket", path]
    process = _started([COMMAND, "serve", *told], log, state_dir)
    try:
        yield Daemon(process, state_dir, path, log, _network_address(process.pid))
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_S)
        _open.remove(state_dir)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(STOP_S)


def last_words() -> Generator[tuple[str, str]]:
    """Give the end of each log that may explain why a test has failed, with its name."""
    for folder in _open:
        for log in [folder / "daemon.log", *sorted(folder.glob("machines/*/console"))]:
            with contextlib.suppress(FileNotFoundError):  # its machine is gone
                yield str(log), log.read_text(errors="replace")[-_SHOWN:]


def _started(command: list[Any], log: Path, state_dir: Path) -> subprocess.Popen[bytes]:
    told = state_dir / "notify"
    told.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear, log.open("ab") as stderr:
        ear.bind(str(told))
        ear.settimeout(START_S)
        env = {k: v for k, v in os.environ.items() if not k.startswith(places.PREFIX)}
        process = subprocess.Popen(
            command,
            env={**env, "NOTIFY_SOCKET": str(told)},
            stdin=subprocess.DEVNULL,
            stderr=stderr,
        )
        try:
            _hear_ready(ear, process, log)
        except BaseException:
            process.kill()
            process.wait()
            raise
    return process


def _hear_ready(ear: socket.socket, process: subprocess.Popen[bytes], log: Path) -> None:
    ending = os.pidfd_open(process.pid)
    try:
        ready, _, _ = select.select([ear, ending], [], [], START_S)
    finally:
        os.close(ending)
    if ear not in ready or b"READY=1" not in ear.recv(4096):
        raise AssertionError(f"the daemon did not start:\n{log.read_text()}")


def _network_address(pid: int) -> str | None:
    """Look up where a process listens; the port was the kernel's choice."""
    own: set[str] = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            own.add(str(entry.readlink()))
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_, inode = line.split()[:10]
        if state == "0A" and f"socket:[{inode}]" in own:
            return f"127.0.0.1:{int(local.partition(':')[2], 16)}"
    return None


def _toml(name: str, table: dict[str, Any]) -> str:
    # What JSON writes of strings, numbers, flags and lists of them is TOML too.
    lines = [f"{key} = {_inline(value)}\n" for key, value in table.items()]
    return f"[{name}]\n{''.join(lines)}"


def _inline(value: object) -> str:
    if isinstance(value, dict):
        pairs = cast("dict[object, object]", value).items()
        return "{" + ", ".join(f"{json.dumps(str(k))} = {_inline(v)}" for k, v in pairs) + "}"
    return json.dumps(value)
