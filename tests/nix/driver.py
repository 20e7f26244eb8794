"""Runs the testScript of a NixOS test on machines that need not be NixOS: a driver of our own.

The calls are those of NixOS's driver which our tests use, and mean the same. One kind of machine is
here: a program that takes the words of QEMU which lead to a console, and whose system has a root
shell there, as `backdoor` of NixOS has. Another is in `contained`. Above are the tests that have
such machines; nothing outlives `run_script`.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

HELLO = b"Spawning backdoor root shell..."
# A system under emulation, on a busy host.
BOOT_S = 300.0
COMMAND_S = 900
# Beyond what a command is given by `timeout` on the machine itself.
GRACE_S = 60.0
_LAST_LINES = 40


class Failed(AssertionError):
    """What a testScript asked for did not come true."""


class Driven(ABC):
    """A machine as a testScript sees it: what all have that somehow run a command as root."""

    name: str
    # Where it says what is for nobody in particular.
    console: Path
    # How soon it is asked again whether something has come true.
    ask_every_s = 1.0

    @abstractmethod
    def start(self) -> None:
        """Start it, unless it runs."""

    @abstractmethod
    def ran(self, script: str, timeout: int | None) -> tuple[int, str]:
        """Run a script of bash where it runs, and give its status and what it said on stdout."""

    @abstractmethod
    def crash(self) -> None:
        """Cut its power."""

    def execute(self, command: str, timeout: int | None = COMMAND_S) -> tuple[int, str]:
        """Run a command of the shell, and give its status and what it said on stdout."""
        self.start()
        return self.ran(f"set -euo pipefail; {command}", timeout)

    def succeed(self, *commands: str, timeout: int | None = COMMAND_S) -> str:
        """Run commands that succeed, and give all they say."""
        said = ""
        for command in commands:
            status, out = self.execute(command, timeout=timeout)
            if status:
                raise Failed(f"{self.name}: `{command}` failed with {status}: {out}")
            said += out
        return said

    def fail(self, *commands: str, timeout: int | None = COMMAND_S) -> str:
        """Run commands that fail, and give all they say."""
        said = ""
        for command in commands:
            status, out = self.execute(command, timeout=timeout)
            if not status:
                raise Failed(f"{self.name}: `{command}` succeeded: {out}")
            said += out
        return said

    def wait_until_succeeds(self, command: str, timeout: int = COMMAND_S) -> str:
        return self._retry(command, lambda status: status == 0, timeout)

    def wait_until_fails(self, command: str, timeout: int = COMMAND_S) -> str:
        return self._retry(command, lambda status: status != 0, timeout)

    def wait_for_file(self, path: str, timeout: int = COMMAND_S) -> None:
        self.wait_until_succeeds(f"test -e {path}", timeout)

    def wait_for_unit(self, unit: str, timeout: int = COMMAND_S) -> None:
        """Wait until a unit is active; raise at once when it has failed."""
        shown = f"systemctl show --value --property=ActiveState {unit}"
        self.wait_until_succeeds(f"{shown} | grep -qxE 'active|failed'", timeout)
        if self.succeed(shown).strip() != "active":
            said = self.execute(f"journalctl --no-pager --lines=40 --unit={unit}")[1]
            raise Failed(f"{self.name}: {unit} has failed:\n{said}")

    def systemctl(self, words: str) -> tuple[int, str]:
        return self.execute(f"systemctl {words}")

    def _retry(self, command: str, is_enough: Callable[[int], bool], timeout: int) -> str:
        deadline = time.monotonic() + timeout
        while True:
            status, out = self.execute(command)
            if is_enough(status):
                return out
            if time.monotonic() > deadline:
                raise Failed(f"{self.name}: `{command}` still says {status}: {out}")
            time.sleep(self.ask_every_s)  # nothing tells us when it would be of use

    def last_words(self) -> str:
        lines = self.console.read_text(errors="replace").splitlines()
        return "Its console:\n" + "\n".join(lines[-_LAST_LINES:])


class Machine(Driven):
    """One that is a QEMU."""

    def __init__(self, name: str, program: Sequence[str | Path], folder: Path) -> None:
        self.name = name
        self._program = program
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._shell: socket.socket | None = None
        self.console = folder / f"{name}.console"

    def start(self) -> None:
        if self._process:
            return
        path = self._folder / f"{self.name}.shell"
        path.unlink(missing_ok=True)
        words = [
            *("-chardev", f"socket,id=shell,path={path}"),
            *("-device", "virtio-serial", "-device", "virtconsole,chardev=shell"),
            *("-device", "virtio-rng-pci", "-serial", "stdio", "-nographic"),
        ]
        with (
            socket.socket(socket.AF_UNIX) as ear,
            self.console.open("ab") as console,
        ):
            ear.bind(str(path))
            ear.listen(1)
            ear.settimeout(BOOT_S)
            self._process = subprocess.Popen(
                [*self._program, *words],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._shell, _ = ear.accept()
        self._shell.settimeout(BOOT_S)
        said = b""
        # Whoever is heard says nothing more until asked.
        while HELLO not in said or not said.endswith(b"\n"):
            said += self._heard()

    def ran(self, script: str, timeout: int | None) -> tuple[int, str]:
        assert self._shell
        self._shell.settimeout(None if timeout is None else timeout + GRACE_S)
        limit = f"timeout {timeout} " if timeout is not None else ""
        self._say(f"{limit}bash -c {shlex.quote(script)} | (base64 -w 0; echo)")
        out = base64.b64decode(self._line()).decode(errors="replace")
        self._say("echo ${PIPESTATUS[0]}")
        return int(self._line()), out

    def shutdown(self) -> None:
        """Power it off, and wait until it has ended."""
        if self._process and self._shell:
            self._say("systemctl poweroff")
            self._process.wait(BOOT_S)
        self.crash()

    def crash(self) -> None:
        if self._process:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._shell:
            self._shell.close()
        self._process = self._shell = None

    def _say(self, line: str) -> None:
        assert self._shell
        try:
            self._shell.sendall(f"{line}\n".encode())
        except BrokenPipeError as error:
            raise Failed(f"{self.name}: it has ended. {self.last_words()}") from error

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            line += self._heard()
        return line

    def _heard(self) -> bytes:
        assert self._shell
        try:
            heard = self._shell.recv(1 << 16)
        except TimeoutError as error:
            raise Failed(f"{self.name}: no answer. {self.last_words()}") from error
        except ConnectionResetError:
            heard = b""
        if not heard:
            raise Failed(f"{self.name}: it has ended. {self.last_words()}")
        return heard


def script_of(path: Path) -> str:
    """Read the testScript out of a test's file. It takes nothing of Nix in."""
    written = re.compile(r"^  testScript = ''\n(.*?)^  '';$", re.DOTALL | re.MULTILINE)
    [script] = written.findall(path.read_text())
    assert "''" not in script, path
    assert "${" not in script, path
    lines = [line.removeprefix("    ") for line in script.splitlines()]
    return "\n".join(lines) + "\n"


def subtests_of(script: str) -> list[str]:
    """Name the subtests that a testScript has, in order."""
    return re.findall(r'(?m)^ *with subtest\("(.*)"\):$', script)


def run_script(script: str, machines: Sequence[Driven]) -> list[str]:
    """Run a testScript on machines, which end with it; name the subtests that it passed."""
    passed: list[str] = []

    @contextlib.contextmanager
    def subtest(name: str) -> Generator[None]:
        yield
        passed.append(name)

    def start_all() -> None:
        for machine in machines:
            machine.start()

    names: dict[str, object] = {re.sub(r"\W", "_", each.name): each for each in machines}
    names |= {"machines": machines, "start_all": start_all, "subtest": subtest}
    if len(machines) == 1:
        names["machine"] = machines[0]
    try:
        exec(compile(script, "testScript", "exec"), names)  # noqa: S102  # it is our own
    finally:
        for machine in machines:
            machine.crash()
    return passed
