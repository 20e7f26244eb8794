"""Why a machine ended: one pure function over what was seen of its end.

A hypervisor that exits with status 0 says little: a guest that powers off, one that reboots and one
that panics all look like that. The events before the end, the console and who asked tell them
apart. A guest can lie on its console, and so only about itself.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from microvm_orchestrator.model.machine import MachineState

_PANIC = "Kernel panic - not syncing"
_MAX_LINE = 300


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of an end."""

    # What we were asked to do about the machine, if anything: "stopped", "killed".
    asked: str | None = None
    # Why the machine shut down, in the words of QEMU's SHUTDOWN event; `guest-ended` is said by who
    # does not tell a guest that powered off from one that rebooted.
    shutdown: str | None = None
    # The hypervisor's exit status; minus a signal's number; None where nobody knows.
    status: int | None = None
    console: str = ""
    # The last lines of the hypervisor's own messages.
    messages: str = ""
    # Whether the host's kernel killed it for the memory it had.
    out_of_memory: bool = False


def conclude(seen: Seen) -> tuple[MachineState, str]:
    """Return the machine's last state and the reason, for a person."""
    if seen.asked is not None:
        return MachineState.STOPPED, seen.asked
    if seen.out_of_memory and seen.status in {None, -signal.SIGKILL}:
        return MachineState.CRASHED, "its hypervisor had more memory than it may and was killed"
    if seen.status is not None and seen.status < 0:
        return MachineState.CRASHED, f"its hypervisor was ended by {_name(-seen.status)}"
    if panic := _panic(seen):
        return MachineState.CRASHED, f"the guest's kernel panicked: {panic}"
    match seen.shutdown:
        case "guest-shutdown":
            return MachineState.STOPPED, "the guest powered off"
        case "guest-reset":
            return MachineState.STOPPED, "the guest rebooted, which ends a machine"
        case "guest-ended":
            return MachineState.STOPPED, "the guest powered off, or rebooted, which ends a machine"
        case "host-signal":
            return MachineState.CRASHED, "its hypervisor was ended from outside by a signal"
        case "host-qmp-quit":
            return MachineState.STOPPED, "its hypervisor was told to quit"
        case _ if seen.status == 0:  # one that tells us nothing else
            return MachineState.STOPPED, "its hypervisor ended by itself"
        case _:
            pass
    how = "ended" if seen.status is None else f"ended with status {seen.status}"
    said = f": {seen.messages}" if seen.messages else ""
    return MachineState.CRASHED, f"its hypervisor {how}{said}"


def _panic(seen: Seen) -> str | None:
    if seen.shutdown == "guest-panic":
        return _line(seen.console) or "it says no more"
    return _line(seen.console) if seen.shutdown != "guest-shutdown" else None


def _line(console: str) -> str | None:
    for line in reversed(console.splitlines()):
        if (at := line.find(_PANIC)) >= 0:
            # Anybody in the guest can write such a line, as long as the console.
            return line[at + len(_PANIC) :].lstrip(": ")[:_MAX_LINE] or None
    return None


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"
