"""Seeded runs with a real guest: what was the same goes the same way, to the last byte."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from machines import LONG_S, Rig, built_image, qemu_rig
from microvm_orchestrator import errors
from microvm_orchestrator.machine import process
from microvm_orchestrator.machine.base import Accel, Boot, Disk, Limits, Link
from microvm_orchestrator.machine.qemu.hypervisor import Qemu, open_qemu
from microvm_orchestrator.machine.seeded import Program, Ran

NOBODY = 65534
# What differs between any two machines: time, randomness, the order of things, addresses.
TELLTALES = """
date +%s.%N; head -c 16 /dev/urandom | od -x; cat /proc/sys/kernel/random/uuid; ps
cat /proc/uptime /proc/interrupts /proc/self/maps
python3 -c 'import os, time; print(os.urandom(8).hex(), time.monotonic_ns(), hash("x"))'
cd /root; git init -q x; cd x; git config user.email a@b; git config user.name n
for i in 1 2 3; do echo $i >f; git add f; git commit -qm $i; done
git rev-parse HEAD; (sleep 3; echo slept) & wait; dmesg >/dev/console; dmesg | tail -n 3 >&2
"""


@pytest.fixture(scope="module")
async def boot() -> Boot:
    return await built_image()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, boot: Boot) -> Rig:
    return qemu_rig(tmp_path_factory.mktemp("seeded"), boot)


@pytest.fixture
async def qemu(rig: Rig) -> AsyncGenerator[Qemu]:
    with anyio.fail_after(10 * LONG_S):
        async with rig.open() as qemu:
            yield qemu
            assert qemu.found() == []


def script(text: str, seed: int = 42) -> Program:
    return Program(("/bin/sh", "-c", text), seed)


@contextmanager
def killed_in_the_end(*commands: list[str]) -> Generator[None]:
    """Run programs as long as the block."""
    started = [subprocess.Popen(command) for command in commands]
    try:
        yield
    finally:
        for each in started:
            each.kill()
            each.wait()


def busy_host() -> AbstractContextManager[None]:
    """Keep the host's processors busy, so that everything takes other times than before."""
    loop = [sys.executable, "-c", "while True: pass"]
    return killed_in_the_end(*[loop] * (os.cpu_count() or 1))


def same(ran: Ran) -> Ran:
    """All that may not differ."""
    return replace(ran, host_s=0)


async def test_runs_of_one_seed_are_the_same_to_the_last_byte_also_on_a_busy_host(
    rig: Rig, qemu: Qemu, whole: bool
) -> None:
    first = await qemu.run_seeded(rig.spec(), script(TELLTALES))
    assert (first.status, first.reason) == (0, "")
    for _ in range(10 if whole else 1):
        with busy_host():
            again = await qemu.run_seeded(rig.spec(), script(TELLTALES))
        assert same(again) == same(first)
        print(f"seeded run: {first.host_s:.1f} s, on a busy host {again.host_s:.1f} s")
    assert b"slept" in first.stdout
    assert first.stdout.startswith(b"17040672")  # the first of January 2024


@pytest.mark.long
async def test_another_seed_makes_another_run(rig: Rig, qemu: Qemu) -> None:
    one, other = [
        await qemu.run_seeded(rig.spec(), script(TELLTALES, seed)) for seed in (42, 2**64 - 1)
    ]
    assert one.stdout != other.stdout
    assert one.console_sha256 != other.console_sha256
    assert one.sha256 != other.sha256


async def test_a_program_gets_its_input_its_files_and_its_time_and_its_end_is_told(
    rig: Rig, qemu: Qemu
) -> None:
    program = Program(
        ("sh", "-c", 'date +%F; cat; ls -R; sub/run "$1"; echo bad >&2; exit 7', "x", "it's here"),
        seed=1,
        stdin=b"what came in\n",
        files={"sub/run": b'#!/bin/sh\necho "$1"\n', "note": b"\0\xff"},
        began=datetime(2031, 5, 6, tzinfo=UTC),
    )
    ran = await qemu.run_seeded(rig.spec(), program)
    told = "2031-05-06\nwhat came in\n.:\nnote\nsub\n\n./sub:\nrun\nit's here\n"
    assert (ran.status, ran.stdout.decode(), ran.stderr) == (7, told, b"bad\n")


async def test_what_a_program_says_is_kept_up_to_a_cap(rig: Rig, qemu: Qemu) -> None:
    many = replace(script("head -c 5000000 /dev/zero; echo more >&2"), output_cap=1000)
    ran = await qemu.run_seeded(rig.spec(), many)
    assert (ran.stdout, ran.stderr, ran.truncated) == (bytes(1000), b"more\n", True)


@pytest.mark.long
async def test_a_guest_that_panics_does_so_the_same_way_each_time(rig: Rig, qemu: Qemu) -> None:
    panics = script("head -c 8 /dev/urandom | od -x >/dev/console; echo c >/proc/sysrq-trigger")
    first, again = [await qemu.run_seeded(rig.spec(), panics) for _ in range(2)]
    assert first.status is None
    assert first.reason == "the guest's kernel panicked: sysrq triggered crash"
    assert b"Kernel panic" in first.console
    assert same(first) == same(again)


async def test_a_program_that_does_not_end_is_ended_and_nothing_is_left(
    rig: Rig, qemu: Qemu
) -> None:
    spec = rig.spec()
    with pytest.raises(errors.MachineFailed, match="took longer than 8 s"):
        await qemu.run_seeded(spec, script("while :; do :; done"), timeout_s=8)
    assert process.find_by_words(("-name", f"guest={spec.machine_id}"), frozenset({0})) is None


async def test_what_could_not_be_the_same_every_time_is_refused(rig: Rig, qemu: Qemu) -> None:
    link = Link("52:54:00:00:07:01")
    written = Disk("scratch", read_only=False, size_mib=64)
    for spec in (
        rig.spec(vcpus=2),
        rig.spec(links=(link,)),
        rig.spec(disks=(written,)),
        rig.spec(accel=Accel.KVM),
        rig.spec(limits=Limits(pids=100)),
    ):
        with pytest.raises(errors.InvalidInput, match="cannot be seeded"):
            await qemu.run_seeded(spec, script("true"))
    for program in (
        script("true", -1),
        script("true", 2**64),
        Program((), 1),
        replace(script("true"), files={"../x": b""}),
    ):
        with pytest.raises(errors.InvalidInput):
            await qemu.run_seeded(rig.spec(), program)


async def test_a_seeded_run_needs_no_rights(rig: Rig, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can run a QEMU as somebody else")
    async with open_qemu(tmp_path, user=(NOBODY, NOBODY)) as qemu:
        ran = await qemu.run_seeded(rig.spec(), script("echo fine"))
    assert (ran.status, ran.stdout) == (0, b"fine\n")


# A daemon that runs one program.
RUN = """
import anyio, pathlib, pickle, sys
from microvm_orchestrator.machine.qemu.hypervisor import open_qemu
folder, *made = pickle.loads(bytes.fromhex(sys.argv[1]))
async def main():
    async with open_qemu(folder) as qemu:
        await qemu.run_seeded(*made)
anyio.run(main)
"""


async def test_what_a_dead_daemon_was_running_is_ended_by_the_next_one(rig: Rig) -> None:
    spec = rig.spec()
    made = pickle.dumps((rig.state_dir, spec, script("while :; do :; done"))).hex()
    record = rig.state_dir / "machines" / spec.machine_id / "process.json"
    with killed_in_the_end([sys.executable, "-c", RUN, made]), anyio.fail_after(LONG_S):
        while not record.exists():
            await anyio.lowlevel.checkpoint()
    words = ("-name", f"guest={spec.machine_id}")
    assert process.find_by_words(words, frozenset({os.geteuid()}))
    async with rig.open() as qemu:
        assert qemu.found() == []
    assert process.find_by_words(words, frozenset({os.geteuid()})) is None
