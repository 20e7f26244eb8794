"""What stands on the disk for one machine: what it is, which process, and the files beside it.

Written before the fact it tells of, so that a daemon which dies at any moment leaves enough to find
the machine by. Each file is replaced as a whole. Above stand the machine and its adoption.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from microvm_orchestrator.machine.base import Accel, MachineSpec
from microvm_orchestrator.machine.process import Identity


@dataclass(frozen=True, slots=True)
class Made:
    """How a machine was made."""

    spec: MachineSpec
    accel: Accel
    # Where in the console its time begins; before that is what an earlier start of it wrote.
    console_from: int = 0
    # Whether the guest has said that it is ready; a machine that had not is not worth adopting.
    ready: bool = False


_MADE = TypeAdapter(Made)
_IDENTITY = TypeAdapter(Identity)


class Record:
    """The folder of one machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.console = folder / "console"
        self.messages = folder / "messages"
        self.monitor = folder / "qmp"
        self.agent = folder / "ctl"
        self.terminal = folder / "tty"
        # Where a runner's script makes the files it names without a folder: volumes and sockets.
        self.run = folder / "run"
        self._made = folder / "machine.json"
        self._process = folder / "process.json"
        self._paused = folder / "paused"
        self._unclaimed = folder / "unclaimed"

    @property
    def machine_id(self) -> str:
        return self.folder.name

    def create(self) -> None:
        """Make the folder; that of a machine which has ended is used again."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, made: Made) -> None:
        _replace(self._made, _MADE.dump_json(made))

    def read(self) -> Made | None:
        """Return how the machine was made; None when that was never written, or is damaged."""
        try:
            return _MADE.validate_json(self._made.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def write_process(self, identity: Identity) -> None:
        _replace(self._process, _IDENTITY.dump_json(identity))

    def read_process(self) -> Identity | None:
        try:
            return _IDENTITY.validate_json(self._process.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    @property
    def paused(self) -> bool:
        """Whether somebody wants it to stand still; a machine does so for other reasons too."""
        return self._paused.exists()

    @paused.setter
    def paused(self, paused: bool) -> None:
        _mark(self._paused, here=paused)

    @property
    def unclaimed(self) -> bool:
        """Whether it belongs to nobody yet, and so is not worth keeping."""
        return self._unclaimed.exists()

    @unclaimed.setter
    def unclaimed(self, unclaimed: bool) -> None:
        _mark(self._unclaimed, here=unclaimed)

    def link(self, number: int) -> Path:
        """Name the socket of a network interface."""
        return self.folder / f"net{number}"

    def clear(self) -> None:
        """Take away what only a running machine needs; record, console and disks stay."""
        for path in (self.monitor, self.agent, self.terminal, self._process, self._paused):
            path.unlink(missing_ok=True)
        for path in self.folder.glob("net*"):
            path.unlink()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def disk_mib(self) -> float:
        blocks = 0
        for path in self.folder.rglob("*"):
            with suppress(FileNotFoundError):  # the machine has just ended
                blocks += path.stat().st_blocks
        return blocks * 512 / (1 << 20)


def _mark(path: Path, *, here: bool) -> None:
    if here:
        path.touch()
    else:
        path.unlink(missing_ok=True)


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(content)
    fresh.replace(path)
