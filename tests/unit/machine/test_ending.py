"""What is said of a machine's end, from what was seen of it."""

from __future__ import annotations

import pytest

from microvm_orchestrator.machine.ending import Seen, conclude
from microvm_orchestrator.model.machine import MachineState

STOPPED, CRASHED = MachineState.STOPPED, MachineState.CRASHED
PANIC = "[    3.1] Kernel panic - not syncing: VFS: Unable to mount root fs\n[ 3.2] CPU: 0 PID: 1"


@pytest.mark.parametrize(
    ("seen", "state", "reason"),
    [
        (Seen(asked="as asked", status=-9), STOPPED, "as asked"),
        (Seen(status=-11), CRASHED, "its hypervisor was ended by SIGSEGV"),
        (Seen(status=-40, console=PANIC), CRASHED, "its hypervisor was ended by signal 40"),
        (
            Seen(status=-9, out_of_memory=True),
            CRASHED,
            "its hypervisor had more memory than it may and was killed",
        ),
        (Seen(shutdown="guest-shutdown", status=0), STOPPED, "the guest powered off"),
        # A guest that powers off is not judged by what stands on its console.
        (
            Seen(shutdown="guest-shutdown", status=0, console=PANIC),
            STOPPED,
            "the guest powered off",
        ),
        (
            Seen(shutdown="guest-reset", status=0, console=PANIC),
            CRASHED,
            "the guest's kernel panicked: VFS: Unable to mount root fs",
        ),
        (
            Seen(shutdown="guest-reset", status=0, console="bye"),
            STOPPED,
            "the guest rebooted, which ends a machine",
        ),
        (Seen(shutdown="guest-panic"), CRASHED, "the guest's kernel panicked: it says no more"),
        (
            Seen(shutdown="host-signal", status=0),
            CRASHED,
            "its hypervisor was ended from outside by a signal",
        ),
        (
            Seen(status=1, messages="cannot set up guest memory"),
            CRASHED,
            "its hypervisor ended with status 1: cannot set up guest memory",
        ),
        (Seen(status=0), STOPPED, "its hypervisor ended by itself"),
        (
            Seen(status=0, console=PANIC),
            CRASHED,
            "the guest's kernel panicked: VFS: Unable to mount root fs",
        ),
        (
            Seen(status=0, console=PANIC.replace("VFS", "x" * 30_000)),
            CRASHED,
            "the guest's kernel panicked: " + "x" * 300,
        ),
        (Seen(), CRASHED, "its hypervisor ended"),
    ],
)
def test_the_reason_names_what_was_seen(seen: Seen, state: MachineState, reason: str) -> None:
    assert conclude(seen) == (state, reason)
