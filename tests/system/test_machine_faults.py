"""What machines suffer by faults, as their guests see it, and nothing once it is healed."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

import hosted
from microvm_orchestrator import errors
from microvm_orchestrator.machine import cgroup
from system.living import Stage, furnish, staged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20
# Reads past what the guest has in its memory.
READ = "dd if=/dev/vdb of=/dev/null bs=64k count={count} iflag=direct 2>&1"
WRITE = "dd if=/dev/zero of=/var/file bs=64k count=1 oflag=direct conv=notrunc 2>&1"
MORE = "dd if=/dev/zero of=/var/more bs=64k count=32"
AVAILABLE = "sed -n 's/^MemAvailable: *\\([0-9]*\\) kB$/\\1/p' /proc/meminfo"
FREE = "echo $(($(stat -f -c '%a * %S' /root)))"


class Kept:
    """A daemon with one machine that has a disk, and the same daemon started anew."""

    def __init__(self, state: Path) -> None:
        furnish(state)
        self._state = state
        self.lasts = True
        self._life = ExitStack()
        self.stage = self._life.enter_context(staged(state))

    def restart(self) -> Stage:
        self.stage.daemon.kill()
        self._life.close()
        self.stage = self._life.enter_context(staged(self._state))
        return self.stage

    def end(self) -> None:
        self.lasts = False
        self.stage.clear()
        self._life.close()
        assert hosted.left(self._state) == []


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    kept = Kept(tmp_path_factory.mktemp("suffering") / "state")
    kept.stage.boot("box", disk_mib=64)
    yield kept
    if kept.lasts:
        kept.end()


@pytest.fixture
def stage(kept: Kept) -> Stage:
    return kept.stage


def inject(stage: Stage, kind: str, **what: Any) -> str:
    fault = stage.ask("fault_inject", kind=kind, machine="box", **what)
    assert fault["state"] == "active"
    return str(fault["fault_id"])


def heal(stage: Stage, fault_id: str) -> None:
    assert stage.ask("fault_heal", fault_id=fault_id)["state"] == "healed"


def skew_s(stage: Stage) -> float:
    """Tell by how much the guest's clock is ahead, to a second."""
    before = time.time()
    return int(stage.said("box", "date +%s")) - (before + time.time()) / 2


def test_a_clock_is_ahead_or_behind_until_it_is_healed(stage: Stage) -> None:
    ahead = inject(stage, "clock_skew", skew_s=3600)
    assert abs(skew_s(stage) - 3600) < 5
    behind = inject(stage, "clock_skew", skew_s=-60.5)
    assert abs(skew_s(stage) - 3539.5) < 5
    heal(stage, ahead)
    assert abs(skew_s(stage) + 60.5) < 5
    heal(stage, behind)
    assert abs(skew_s(stage)) < 5


def test_a_paused_machine_goes_on_with_the_right_time(stage: Stage) -> None:
    fault = inject(stage, "pause")
    assert stage.state("box") == ("paused", "a fault lets it stand still")
    assert stage.refusal("machine_exec", machine="box", script="true") == "state-forbids"
    assert stage.refusal("machine_resume", machine="box") == "state-forbids"
    heal(stage, fault)
    assert stage.state("box") == ("running", "")
    assert abs(skew_s(stage)) < 5


def test_memory_is_held_by_somebody_else(stage: Stage) -> None:
    before = int(stage.said("box", AVAILABLE))
    one = inject(stage, "memory", memory_mib=24)
    two = inject(stage, "memory", memory_mib=8)
    held = int(stage.said("box", AVAILABLE))
    # It would be saved with it.
    assert stage.refusal("snapshot_create", machine="box", wait_s=60.0) == "state-forbids"
    assert before - held > 24 << 10
    heal(stage, one)
    heal(stage, two)
    assert int(stage.said("box", AVAILABLE)) - held > 24 << 10
    with pytest.raises(errors.InvalidInput, match="can be taken"):
        inject(stage, "memory", memory_mib=4096)


def test_a_full_disk_takes_nothing_more(stage: Stage) -> None:
    before = int(stage.said("box", FREE))
    fault = inject(stage, "disk_full", path="/root")
    ran = stage.ask("machine_exec", machine="box", script=MORE)
    assert ran["exit_code"] != 0
    assert "No space left on device" in ran["stderr"]
    stage.said("box", "rm -f /var/more")
    heal(stage, fault)
    assert abs(int(stage.said("box", FREE)) - before) < MIB
    with pytest.raises(errors.FaultNotOffered, match="in its memory"):
        inject(stage, "disk_full", path="/run")


def test_a_slow_disk_passes_as_little_as_was_said(stage: Stage) -> None:
    fault = inject(stage, "disk_slow", disk_bytes_s=MIB)
    begun = time.monotonic()
    stage.said("box", READ.format(count=64))
    # A bucket of a tenth of a second is full at first.
    assert time.monotonic() - begun > 3
    tighter = inject(stage, "disk_slow", disk_operations_s=10)
    begun = time.monotonic()
    stage.said("box", READ.format(count=32))
    assert time.monotonic() - begun > 2
    heal(stage, fault)
    heal(stage, tighter)
    assert stage.ask("fault_list", machine="box")["items"] == []


def test_a_disk_that_fails_is_seen_by_the_guest_and_is_whole_again(stage: Stage) -> None:
    stage.said("box", WRITE)
    fault = inject(stage, "disk_error", fails="reads")
    ran = stage.ask("machine_exec", machine="box", script=READ.format(count=1))
    assert ran["exit_code"] != 0
    assert "Input/output error" in ran["stdout"]
    stage.said("box", WRITE)
    # What is saved meanwhile goes on below what fails.
    saved = stage.done("snapshot_create", machine="box")["snapshot_id"]
    ran = stage.ask("machine_exec", machine="box", script=READ.format(count=1))
    assert ran["exit_code"] != 0
    heal(stage, fault)
    stage.said("box", READ.format(count=1))
    stage.ask("snapshot_delete", snapshot_id=saved)


def test_what_a_machine_cannot_suffer_here_is_refused_before_it_is_promised(stage: Stage) -> None:
    if "cpu" in cgroup.describe():
        heal(stage, inject(stage, "slow_cpu", cpu_share=0.2))
    else:
        with pytest.raises(errors.FaultNotOffered, match="control group"):
            inject(stage, "slow_cpu", cpu_share=0.2)
    assert stage.ask("fault_list", machine="box")["items"] == []


def test_faults_hold_over_a_restart_of_the_daemon_and_of_the_machine(
    kept: Kept, *, whole: bool
) -> None:
    if not whole:
        pytest.skip("the ledger is tested for it on its own")
    faults = [
        inject(kept.stage, "clock_skew", skew_s=900),
        inject(kept.stage, "disk_error", fails="reads"),
        inject(kept.stage, "memory", memory_mib=16),
    ]
    stage = kept.restart()
    assert abs(skew_s(stage) - 900) < 5
    stage.done("machine_stop", machine="box")
    stage.done("machine_start", machine="box")
    assert abs(skew_s(stage) - 900) < 5
    ran = stage.ask("machine_exec", machine="box", script=READ.format(count=1))
    assert ran["exit_code"] != 0
    assert stage.said("box", "tail -n 1 /run/microvm-fault-memory") == "16\n"
    for fault in faults:
        heal(stage, fault)
    assert abs(skew_s(stage)) < 5
    stage.said("box", READ.format(count=1))
    assert stage.said("box", "ls /run | grep -c microvm-fault || true") == "0\n"
    # A daemon that a test has started does not outlive it.
    kept.end()
