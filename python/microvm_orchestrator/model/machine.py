"""Machines as callers know them: the states one passes through."""

from __future__ import annotations

from enum import StrEnum


class MachineState(StrEnum):
    """Where a machine stands."""

    DEFINED = "defined"
    BOOTING = "booting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    CRASHED = "crashed"
    LOST = "lost"

    @property
    def ended(self) -> bool:
        return self in ENDED


# Nothing runs any more; the states of a machine that may be defined anew or removed.
ENDED = frozenset({MachineState.STOPPED, MachineState.CRASHED, MachineState.LOST})
