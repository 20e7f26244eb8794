"""Guests and hypervisors that go wrong, as somebody who asks the daemon sees it.

The right state, the right event, a reason that says what it was; nobody else is harmed, the daemon
stays small and goes on answering. `test_trouble.py` shows the same of one machine without a daemon.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import hosted
from machines import LONG_S
from microvm_orchestrator import errors
from system.harm import EAT, PANIC, STARVE, flood_console
from system.living import Stage, furnish, living, staged, template_in

MIB = 1 << 20
# What the daemon may take beside what it had when it had booted and saved one machine.
GROWTH_KIB = 64 << 10
# Of a console: what is kept, and what is let go of next. While it is flooded more is there, because
# it is looked at every second: as much as a QEMU may write while nobody looks.
KEPT_BYTES, MOST_BYTES = 3 * MIB, 66 * MIB
# How a call fails whose guest never answers: nobody knows, or it was certainly not begun.
NO_ANSWER = {"unknown-outcome", "machine-unreachable"}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with living(tmp_path_factory.mktemp("trouble") / "state") as stage:
        yield stage


@pytest.fixture(scope="module")
def template(stage: Stage) -> Iterator[str]:
    snapshot = template_in(stage)
    small = stage.daemon.resident_kib
    yield snapshot
    assert stage.daemon.resident_kib < small + GROWTH_KIB


@pytest.fixture
def box(stage: Stage, template: str) -> Iterator[str]:
    """Give the id of a machine that runs, beside another one that shall not take harm."""
    box, other = stage.branch(template, "box", count=2)
    yield box["machine_id"]
    assert stage.said(other["machine_id"], "hostname") == "box-2\n"
    for machine in (box, other):
        stage.drop(machine["machine_id"])


def crash(stage: Stage, machine: str) -> dict[str, str]:
    """Wait for a machine's crash, and give the event of it; all it had is gone from the host."""
    told = stage.hear("machine.crashed", machine)
    assert stage.state(machine) == ("crashed", told["reason"])
    assert machine not in hosted.processes(stage.daemon.state_dir)
    assert hosted.in_groups(machine) == []
    slots = stage.ask("slot_list")["items"]
    assert machine not in [item["machine_id"] for item in slots]
    assert stage.refusal("machine_exec", machine=machine, argv=["true"]) == "state-forbids"
    return told


def test_a_guest_whose_kernel_panics_is_a_crash_that_says_so(stage: Stage, box: str) -> None:
    mark = stage.ask("kernel_log_mark", machine=box)["mark"]
    stage.said(box, 'for level in 11 12 14; do echo "<$level>says $level" >/dev/kmsg; done')
    asked: dict[str, Any] = {"machine": box, "since": f"microvm-mark {mark}"}
    log = stage.ask("kernel_log_collect", level="warn+", **asked)
    assert [line["text"] for line in log["lines"]] == ["says 11", "says 12"]
    assert (log["source"], log["since"], log["error_count"]) == ("ring", "mark", 1)
    assert not log["panic_detected"]
    with pytest.raises(errors.UnknownOutcome):
        stage.ask("machine_exec", machine=box, script=PANIC, exec_id="panic", wait_s=LONG_S)
    reason = "the guest's kernel panicked: sysrq triggered crash"
    assert crash(stage, box) == {"was": "running", "reason": reason}
    assert stage.told("panic") == ["exec.started", "exec.lost"]
    console = stage.ask("machine_console", machine=box)
    assert "Kernel panic - not syncing: sysrq triggered crash" in console["text"]
    assert console["ended"]
    log = stage.ask("kernel_log_collect", **asked)
    assert (log["source"], log["panic_detected"], log["oops_detected"]) == ("console", True, False)
    shown = stage.cli("kernel-log", "collect", box, "--since", mark, "--level", "err+")
    assert shown.returncode == 0, shown
    assert b"sysrq triggered crash" in shown.stdout


def test_a_guest_without_memory_ends_a_program_tells_it_and_goes_on(stage: Stage, box: str) -> None:
    # The agent is kept in memory a moment after its start, so that what follows stays short.
    locked = "until grep -q 'VmLck:.*[1-9]' /proc/1/status; do sleep 0.1; done"
    assert stage.said(box, f"{locked}; {EAT}; echo $?").split()[-1] == "137"
    assert stage.hear("machine.oom", box)["kills"] >= 1
    log = stage.ask("kernel_log_collect", machine=box, limit=1)
    assert [report["trouble"] for report in log["reports"]] == ["oom"]
    assert (len(log["lines"]), log["cut"], log["panic_detected"]) == (1, True, False)
    assert stage.state(box) == ("running", "")
    assert stage.said(box, "hostname") == "box-1\n"


def test_a_guest_whose_disk_is_full_tells_it_and_goes_on(stage: Stage, box: str) -> None:
    assert "No space left" in stage.said(box, "cat /dev/zero 2>&1 >/var/big || true")
    assert stage.hear("machine.disk_full", box)["available_kib"] < 1024
    assert stage.said(box, "rm /var/big; echo room again") == "room again\n"
    assert stage.state(box) == ("running", "")


def test_a_hypervisor_that_is_killed_is_a_crash_with_the_signal(stage: Stage, box: str) -> None:
    stage.ask("machine_exec", machine=box, argv=["sleep", "1000"], exec_id="cut", wait_s=0)
    os.kill(hosted.processes(stage.daemon.state_dir)[box], signal.SIGKILL)
    told = crash(stage, box)
    assert told == {"was": "running", "reason": "its hypervisor was ended by SIGKILL"}
    stage.hear("exec.lost", "cut")
    # Nobody is there to say that all is well.
    assert stage.refusal("kernel_log_collect", machine=box) == "state-forbids"
    assert stage.refusal("kernel_log_mark", machine=box) == "state-forbids"


def test_a_machine_that_ended_while_no_daemon_ran_is_lost_and_its_place_is_free(
    tmp_path: Path,
) -> None:
    state = tmp_path / "state"
    furnish(state)
    with staged(state) as stage:
        machine = stage.boot("box")["machine_id"]
        stage.daemon.kill()
    os.kill(hosted.processes(state)[machine], signal.SIGKILL)
    with staged(state) as stage:
        told = stage.hear("machine.lost", machine)
        assert stage.state("box") == ("lost", told["reason"])
        assert told["was"] == "running"
        assert "its process is gone" in told["reason"]
        assert stage.ask("slot_list")["items"] == []
        # It can be started again; what it had written is gone.
        assert stage.done("machine_start", machine="box")["state"] == "running"
        stage.clear()
        steps = ("defined", "booting", "running", "lost", "booting", "running", "stopped")
        assert stage.told(machine) == [f"machine.{step}" for step in (*steps, "deleted")]
    assert hosted.left(state) == []


@pytest.mark.long
def test_a_flooded_console_takes_little_and_the_daemon_answers_meanwhile(
    stage: Stage, box: str, whole: bool
) -> None:
    flood = (1000 if whole else 8) * MIB
    console = stage.daemon.state_dir / "machines" / box / "console"
    small = stage.daemon.resident_kib
    deadline = time.monotonic() + flood / MIB * 10 + LONG_S
    asked = {"script": flood_console(flood), "exec_id": "flood", "timeout_s": 36_000.0}
    flooding = stage.ask("machine_exec", machine=box, wait_s=0, **asked)
    while flooding["state"] == "running":
        assert time.monotonic() < deadline
        assert len(stage.ask("machine_console", machine=box)["text"]) <= 65_536
        assert stage.state(box) == ("running", "")
        assert stage.said("box-2", "echo fine") == "fine\n"
        assert console.stat().st_blocks * 512 <= MOST_BYTES
        assert stage.daemon.resident_kib < small + GROWTH_KIB
        flooding = stage.ask("exec_wait", exec_id="flood", timeout_s=1.0)
    assert flooding["exit_code"] == 0
    assert console.stat().st_size >= flood
    while console.stat().st_blocks * 512 > KEPT_BYTES:
        assert time.monotonic() < deadline
        stage.ask("machine_usage", machine=box)
    read = stage.ask("machine_console", machine=box, offset=0, limit=1000)
    assert read["offset"] > flood // 2
    assert set(read["text"]) == {"x"}
    assert stage.said(box, "hostname") == "box-1\n"


@pytest.mark.long
def test_a_guest_that_never_answers_is_asked_in_vain_and_ended_by_force(
    stage: Stage, box: str, whole: bool
) -> None:
    starve = ["python3", "-c", STARVE]
    stage.ask("machine_exec", machine=box, argv=starve, exec_id="starve", wait_s=0)
    deadline = time.monotonic() + LONG_S
    while stage.ask("machine_usage", machine=box)["guest"] is not None:
        assert time.monotonic() < deadline
    in_vain: dict[str, dict[str, Any]] = {"file_get": {"path": "/etc/hostname"}}
    if whole:  # which takes half a minute longer
        in_vain["machine_exec"] = {"argv": ["true"], "timeout_s": 1.0, "wait_s": LONG_S}
    with ThreadPoolExecutor() as pool:
        asked = [
            pool.submit(stage.refusal, call, machine=box, **given)
            for call, given in in_vain.items()
        ]
        assert stage.state(box) == ("running", "")
        assert not stage.ask("machine_console", machine=box)["ended"]
        for refusal in asked:
            assert refusal.result(LONG_S) in NO_ANSWER
    assert stage.ask("machine_pause", machine=box)["state"] == "paused"
    assert stage.ask("machine_resume", machine=box)["state"] == "running"
    stopped = stage.done("machine_stop", machine=box, grace_s=1.0)
    reason = "it had not powered off within 1 s and was ended by force"
    assert (stopped["state"], stopped["reason"]) == ("stopped", reason)
    assert stage.hear("machine.stopped", box) == {"was": "running", "reason": reason}
    stage.hear("exec.lost", "starve")
