"""The daemon as somebody without any right or setting: two flags, and machines run."""

from __future__ import annotations

import os
import select
import signal
import site
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import hosted
from daemon import START_S, STOP_S, Daemon
from machines import ROOT
from microvm_orchestrator.cli.client import Client
from system.living import Stage, furnish
from system.test_image import NOBODY, find_python_of_everybody

if TYPE_CHECKING:
    from collections.abc import Generator

MAIN = "from microvm_orchestrator.cli.main import main; main()"


def of_nobody(python: str, code: str, *words: str | Path) -> list[str | Path]:
    become = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    return [*become, python, "-c", code, *words]


def environment() -> dict[str, str]:
    path = ":".join([*site.getsitepackages(), str(ROOT / "python")])
    return {"PATH": os.environ["PATH"], "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


@contextmanager
def served(python: str, state: Path) -> Generator[Stage]:
    """Run the daemon until the block ends, which it does politely."""
    path, log = state / "socket", state.parent / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear, log.open("wb") as stderr:
        ear.bind("")  # the kernel chooses a name that is no file, so that everybody may use it
        ear.settimeout(START_S)
        name: bytes = ear.getsockname()
        notify = name.replace(b"\0", b"@", 1).decode()
        flags = ("serve", "--state-dir", state, "--socket", path)
        process = subprocess.Popen(
            of_nobody(python, MAIN, *flags),
            env={**environment(), "NOTIFY_SOCKET": notify},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stderr=stderr,
        )
        try:
            ending = os.pidfd_open(process.pid)
            ready, _, _ = select.select([ear, ending], [], [], START_S)
            os.close(ending)
            assert ear in ready, log.read_text()
            yield Stage(Daemon(process, state, path, log, None), Client(path))
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOP_S) == 0, log.read_text()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            for pid in hosted.processes(state).values():
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def folder() -> Generator[Path]:
    """Make a folder that others may go into; pytest closes its own whenever one starts."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_without_root_or_a_configuration_machines_boot_are_branched_and_stop(
    folder: Path,
) -> None:
    if os.geteuid() != 0:
        pytest.skip("all other tests show it here")
    if (python := find_python_of_everybody()) is None:
        pytest.skip("no Python of this version that an unprivileged user may start")
    loads = of_nobody(python, "import microvm_orchestrator.daemon")
    if subprocess.run(
        loads, env=environment(), cwd="/", check=False, capture_output=True
    ).returncode:
        pytest.skip("this folder may be read by root only")
    state = folder / "state"
    furnish(state)
    os.chown(state, NOBODY, NOBODY)
    with served(python, state) as stage:
        stage.boot("box")
        assert stage.said("box", "echo kept >/dev/shm/note; id -u") == "0\n"
        [branch] = stage.branch("box", "branch")
        assert stage.said("branch", "cat /dev/shm/note; hostname") == "kept\nbranch\n"
        running = hosted.processes(state)
        assert branch["machine_id"] in running
        assert {Path(f"/proc/{pid}").stat().st_uid for pid in running.values()} == {NOBODY}
        assert stage.done("machine_stop", machine="box")["state"] == "stopped"
        stage.clear()
        assert '"level": "error"' not in stage.daemon.log.read_text()
    assert hosted.left(state) == []
