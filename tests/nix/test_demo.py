"""What `nix run .#demo` runs, on a runner directory whose guest no Nix has built."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from demo_stage import left_behind
from machines import LONG_S, built_image, qemu_rig
from microvm_orchestrator.machine.probe import probe
from nix.evaluation import ROOT
from standin_runner import Wanted, kernel_words, make, qemu_command

DEMO = ROOT / "python/nix/demo.sh"
# As writeShellApplication has it.
STRICT = ("-o", "errexit", "-o", "nounset", "-o", "pipefail")


@pytest.fixture
async def runner(tmp_path: Path) -> Path:
    boot = await built_image()
    spec = qemu_rig(tmp_path, boot).spec()
    words = kernel_words(spec, (await probe(tmp_path)).tsc_khz or 0)
    command = qemu_command(boot, words, memory_mib=spec.memory_mib, vcpus=spec.vcpus)
    return make(tmp_path / "made", Wanted(command=command))


async def demo(runner: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def run() -> subprocess.CompletedProcess[str]:
        folder.mkdir()
        bash = ["bash", *STRICT, "-c", f"runner={runner}\n{DEMO.read_text()}"]
        return subprocess.run(
            bash,
            env={**os.environ, "TMPDIR": str(folder), "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=LONG_S,
        )

    return await anyio.to_thread.run_sync(run)


async def test_the_demo_runs_commands_in_a_machine_and_leaves_nothing(
    runner: Path, tmp_path: Path
) -> None:
    ran = await demo(runner, tmp_path / "t")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    after = ran.stdout.split("$ microvm-orchestrator machine exec demo -n -- uname -a\n")[1]
    assert after.startswith("Linux ")
    assert list((tmp_path / "t").iterdir()) == []
    assert left_behind(tmp_path / "t") == []


async def test_a_demo_that_fails_tells_why_and_leaves_nothing(tmp_path: Path) -> None:
    ran = await demo(tmp_path / "no-runner", tmp_path / "t")
    assert ran.returncode != 0
    assert "no-runner" in ran.stderr
    assert list((tmp_path / "t").iterdir()) == []
    assert left_behind(tmp_path / "t") == []
