"""Processes that outlive us: known for sure, and never mistaken for another."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from microvm_orchestrator import errors, proc
from microvm_orchestrator.machine import process
from microvm_orchestrator.machine.process import Resident

SOON_S = 10.0


@pytest.fixture
def sleeping() -> Iterator[Resident]:
    resident = process.look_after(proc.launch(["sleep", "60"]))
    yield resident
    if not resident.ended:
        resident.abandon()
    else:
        resident.close()


def of_a_stranger() -> process.Identity:
    """A process whose parent is not this one."""
    script = (
        "import subprocess as s; p = s.Popen(['sleep', '60'], stdin=-3, stdout=-3, stderr=-3);"
        "print(p.pid, open(f'/proc/{p.pid}/stat').read().rpartition(')')[2].split()[19])"
    )
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    pid, started = map(int, told.stdout.split())
    return process.Identity(pid, started, process.boot_id())


def test_a_launched_program_has_a_session_and_nothing_of_ours(sleeping: Resident) -> None:
    pid = sleeping.identity.pid
    assert os.getsid(pid) == pid
    deadline = time.monotonic() + SOON_S
    # What starts it opens libraries, one after the other, and it has no environment at first.
    while (fds := {path.name for path in Path(f"/proc/{pid}/fd").iterdir()}) != {"0", "1", "2"} or (
        not (environ := Path(f"/proc/{pid}/environ").read_bytes())
    ):
        assert time.monotonic() < deadline, fds
    assert b"LANG=C.UTF-8" in environ.split(b"\0")
    assert b"HOME=" not in environ


async def test_its_end_and_the_signal_are_told(sleeping: Resident) -> None:
    sleeping.signal(signal.SIGTERM)
    with anyio.fail_after(SOON_S):
        assert await sleeping.wait() == -signal.SIGTERM
    sleeping.signal(signal.SIGKILL)  # one that has ended hears nothing
    assert sleeping.cpu_s == 0


async def test_its_end_is_told_to_everybody_who_waits(sleeping: Resident) -> None:
    seen: list[int | None] = []

    async def wait() -> None:
        seen.append(await sleeping.wait())

    with anyio.fail_after(SOON_S):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            assert await sleeping.end()
    assert seen == [-signal.SIGKILL, -signal.SIGKILL]


async def test_a_process_of_an_earlier_daemon_is_found_and_its_end_known() -> None:
    identity = of_a_stranger()
    resident = process.find(identity)
    assert resident is not None
    with anyio.fail_after(SOON_S):
        assert await resident.end()
    assert resident.status in {-signal.SIGKILL, None}  # None where the kernel tells no stranger
    resident.close()
    assert process.find(identity) is None


async def test_another_process_of_the_same_number_is_not_taken_for_it(sleeping: Resident) -> None:
    assert process.find(replace(sleeping.identity, started=1)) is None
    assert process.find(replace(sleeping.identity, boot_id="another")) is None
    assert process.find(replace(sleeping.identity, pid=2**22 - 1)) is None
    found = process.find(sleeping.identity)
    assert found is not None
    found.close()


async def test_a_zombie_does_not_run(sleeping: Resident) -> None:
    sleeping.signal(signal.SIGKILL)
    handle = os.pidfd_open(sleeping.identity.pid)
    with anyio.fail_after(SOON_S):
        await anyio.wait_readable(handle)
    os.close(handle)
    assert process.find(sleeping.identity) is None
    await sleeping.wait()


async def test_a_process_is_found_by_words_in_a_row() -> None:
    ours = frozenset({os.geteuid()})
    own = proc.launch(["sleep", "60.25"])
    resident = process.look_after(own)
    with anyio.fail_after(SOON_S):
        # For a moment after its start the kernel has no words of it.
        while (found := process.find_by_words(("sleep", "60.25"), ours)) is None:
            await anyio.lowlevel.checkpoint()
    assert found == resident.identity
    assert process.find_by_words(("60.25", "sleep"), ours) is None
    assert process.find_by_words(("sleep", "60.25"), frozenset({12345})) is None
    resident.abandon()


async def test_a_limit_can_be_set_and_raised_again(sleeping: Resident) -> None:
    pid = sleeping.identity.pid
    for most in (1000, 2000):
        sleeping.limit(resource.RLIMIT_FSIZE, most)
        assert resource.prlimit(pid, resource.RLIMIT_FSIZE)[0] == most


def test_a_file_at_its_limit_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = "ulimit -f 1; head -c 100000 /dev/zero; echo status $? >&2"
    with out.open("wb") as told:
        pid = proc.launch(["/bin/sh", "-c", f"{{ {script}; }} >{tmp_path}/big"], stderr=told)
        os.waitpid(pid, 0)
    assert b"status 1" in out.read_bytes()


def test_a_program_that_is_not_there_is_told_of() -> None:
    with pytest.raises(errors.CommandFailed, match="no-such-program cannot be started"):
        proc.launch(["no-such-program"])
