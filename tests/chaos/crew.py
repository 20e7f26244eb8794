"""The programs that keep a daemon busy: several clients and one follower, each a process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

_TESTS = Path(__file__).parents[1]
# A client's last request may have to outlast a start of the daemon.
_ENDS_WITHIN_S = 120.0


@dataclass(frozen=True, slots=True)
class Program:
    """A running program of this folder, that ends when its standard input does."""

    name: str
    process: subprocess.Popen[bytes]
    errors: Path

    def until_ready(self) -> None:
        """Wait until it says so."""
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said == b"ready\n", f"{self.name} said {said!r}: {self.errors.read_text()[-2000:]}"

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def wait(self) -> None:
        status = self.process.wait(_ENDS_WITHIN_S)
        assert status == 0, f"{self.name} ended with {status}: {self.errors.read_text()[-2000:]}"

    def clear_away(self) -> None:
        self.stop()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def program(module: str, name: str, folder: Path, *arguments: object) -> Generator[Program]:
    """Run `python -m chaos.MODULE`; one that still runs at the end is killed."""
    errors = folder / f"{name}.err"
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", f"chaos.{module}", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(_TESTS)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    running = Program(name, process, errors)
    try:
        yield running
    finally:
        running.clear_away()


@dataclass(frozen=True, slots=True)
class Crew:
    """Clients with their records, and a follower with its own."""

    clients: tuple[Program, ...]
    follower: Program
    records: tuple[Path, ...]
    followed: Path

    def stop(self) -> None:
        """Let every client finish what it is at, then the follower read to the end."""
        for client in self.clients:
            client.stop()
        for client in self.clients:
            client.wait()

    def stop_follower(self) -> None:
        self.follower.stop()
        self.follower.wait()


@contextlib.contextmanager
def crew_on(socket: Path, folder: Path, seed: str, clients: int = 4) -> Generator[Crew]:
    """Keep the daemon at `socket` busy. They need not find it there yet."""
    names = [f"client-{number}" for number in range(clients)]
    records = tuple(folder / f"{name}.jsonl" for name in names)
    followed = folder / "followed.jsonl"
    with contextlib.ExitStack() as stack:

        def run(module: str, name: str, *arguments: object) -> Program:
            return stack.enter_context(program(module, name, folder, socket, *arguments))

        yield Crew(
            tuple(
                run("load", name, record, f"{seed}/{name}")
                for name, record in zip(names, records, strict=True)
            ),
            run("follow", "follower", followed),
            records,
            followed,
        )
