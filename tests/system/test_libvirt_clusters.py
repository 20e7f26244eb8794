"""Faults between nodes of libvirt's and of ours, with a libvirtd of somebody's and with root's.

What is done in the cluster stands in `libvirt_cluster.py`, which is run as who the daemon is.
"""

from __future__ import annotations

import os
import signal
import site
import stat
import subprocess
from pathlib import Path

import anyio
import pytest

import libvirtd
from libvirt_cluster import BOOTS, SEEN
from machines import ROOT, built_image
from microvm_orchestrator.machine.base import Boot
from system.test_image import NOBODY, find_python_of_everybody
from system.test_libvirt_ssh import foreign_in

PROGRAM = ROOT / "tests" / "libvirt_cluster.py"
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
# Networks of the kernel are where libvirtd is: in a namespace that nobody else has.
APART = ("unshare", "-n", "sh", "-c", 'ip link set lo up; exec "$@"', "sh")


@pytest.fixture(scope="module")
def image() -> Boot:
    return anyio.run(built_image)


def everybodys_python() -> str:
    if os.geteuid() != 0:
        pytest.skip("to become nobody takes root")
    if why := libvirtd.why_not(session=True):
        pytest.skip(why)
    python = find_python_of_everybody()
    if python is None:
        pytest.skip("no Python of this version that an unprivileged user may start")
    return python


def everybodys_env() -> dict[str, str]:
    path = ":".join([*site.getsitepackages(), str(ROOT / "python"), str(ROOT / "tests")])
    return {"PATH": os.environ["PATH"], "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def ran(words: tuple[str | Path, ...], stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    env = everybodys_env()
    return subprocess.run(words, input=stdin, env=env, cwd="/", capture_output=True, check=False)


def saw_all(done: subprocess.CompletedProcess[bytes]) -> None:
    assert done.returncode == 0, done.stderr.decode()
    seen = [line.rpartition(" ")[0] for line in done.stdout.decode().splitlines()]
    assert seen == SEEN, done.stderr.decode()


@pytest.mark.long
def test_without_root_nodes_of_libvirts_are_raised_broken_mended_and_put_back(image: Boot) -> None:
    words = (*AS_NOBODY, everybodys_python(), PROGRAM)
    saw_all(ran(words, BOOTS.dump_json(image)))


def test_without_root_a_libvirt_of_the_whole_host_is_refused_machines_with_our_agent(
    image: Boot,
) -> None:
    python = everybodys_python()
    with libvirtd.running_libvirtd() as daemon:
        open_to_everybody(daemon)
        words = (*AS_NOBODY, python, PROGRAM, "refused", daemon.uri)
        done = ran(words, BOOTS.dump_json(image))
    assert done.returncode == 0, done.stderr.decode()
    assert "its port belongs to the user 0, as whom libvirt at" in done.stdout.decode()
    assert "qemu:///session" in done.stdout.decode()


def open_to_everybody(daemon: libvirtd.Libvirtd) -> None:
    for folder in (daemon.folder, daemon.folder.parent):
        if not folder.stat().st_mode & stat.S_ISVTX:  # of everybody already
            folder.chmod(0o711)
    (daemon.folder / "libvirt-sock").chmod(0o777)


@pytest.mark.long
def test_without_root_a_machine_that_could_not_be_ended_does_not_end_as_asked() -> None:
    python = everybodys_python()
    with libvirtd.running_libvirtd() as daemon:
        open_to_everybody(daemon)
        image = foreign_in(daemon.folder)
        words = (*AS_NOBODY, python, PROGRAM, "beside", daemon.uri)
        pipe = subprocess.PIPE
        with subprocess.Popen(
            words, stdin=pipe, stdout=pipe, env=everybodys_env(), cwd="/"
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None

            def go_on(with_: bytes = b"") -> None:
                assert process.stdin is not None
                process.stdin.write(with_ + b"\n")
                process.stdin.flush()

            go_on(BOOTS.dump_json(image))
            pid = int(process.stdout.readline())
            daemon.kill()
            go_on()
            state, _, said = process.stdout.readline().decode().partition(" ")
            assert state == "running", said
            assert f"libvirt at {daemon.uri} does not answer" in said
            os.kill(pid, signal.SIGKILL)
            go_on()
            # It did not end because somebody had asked for that in vain.
            ended = process.stdout.readline().decode()
            assert ended.startswith("crashed "), ended
            daemon.start()
            (daemon.folder / "libvirt-sock").chmod(0o777)
            go_on()
            assert process.stdout.readline() == b"[]\n"


def test_nodes_of_libvirts_at_taps_are_broken_and_mended_by_the_kernel(
    image: Boot, whole: bool
) -> None:
    if not whole:
        pytest.skip("the same on another kind of networks, which has tests of its own")
    words = (*APART, everybodys_python(), PROGRAM, "kernel")
    saw_all(ran(words, BOOTS.dump_json(image)))
