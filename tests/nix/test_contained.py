"""The testScripts of the NixOS tests, on units that Nix rendered, under a systemd in namespaces.

Machines of the daemon are real ones and boot in seconds. What a host has that namespaces have not,
a kernel of its own and disks, is `test_nixos`'s: `hardening` runs there alone.
"""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from claude_image import MEMORY_MIB, VCPUS, claude_image
from judges.tools import CLAUDE
from machines import built_image
from microvm_orchestrator.host import boot_of
from microvm_orchestrator.machine.base import Boot
from microvm_orchestrator.machine.probe import measure
from networking import why_no_kernel
from nix.contained import Contained, put_guest
from nix.driver import run_script, script_of, subtests_of
from nix.evaluation import ROOT
from system.test_systemd import why_not

GUEST_MIB = 256
WATCHDOG_S = 10


@pytest.fixture(scope="module")
def tsc_khz() -> int:
    return anyio.run(measure).tsc_khz or 0


@pytest.fixture(scope="module")
def image() -> Boot:
    if why := why_not():
        pytest.skip(why)
    return anyio.run(built_image)


def words(image: Boot, tsc_khz: int) -> str:
    """Write what a guest's kernel is told under emulation."""
    return f"{image.cmdline} nokaslr tsc_early_khz={tsc_khz} tsc=reliable".strip()


def passes(name: str, machine: Contained) -> None:
    script = script_of(ROOT / f"tests/nixos/{name}.nix")
    wanted = subtests_of(script)
    assert wanted
    try:
        assert run_script(script, [machine]) == wanted
    except BaseException:
        print(machine.last_words())
        raise


@pytest.mark.parametrize(
    "name",
    [
        "service",
        *(
            pytest.param(each, marks=pytest.mark.long)
            for each in ("task", "restart", "reboot", "upgrade")
        ),
    ],
)
def test_a_script_for_nixos_passes_in_namespaces(
    tmp_path: Path, image: Boot, tsc_khz: int, name: str
) -> None:
    # It hangs on purpose in one of them; the others are not to be ended on a busy host.
    watchdog_s = WATCHDOG_S if name == "service" else None
    machine = Contained("machine", tmp_path, image, watchdog_s=watchdog_s)
    put_guest(tmp_path, image, words(image, tsc_khz), memory_mib=GUEST_MIB, vcpus=1)
    passes(name, machine)


def test_a_cluster_is_broken_in_the_kernel_and_healed_by_the_service_that_nix_rendered(
    tmp_path: Path, image: Boot, tsc_khz: int
) -> None:
    if why := why_no_kernel():
        pytest.skip(why)
    machine = Contained("machine", tmp_path, image, networks="kernel")
    put_guest(tmp_path, image, words(image, tsc_khz), memory_mib=GUEST_MIB, vcpus=1)
    passes("cluster", machine)


@pytest.mark.long
@pytest.mark.skipif(not CLAUDE.exists(), reason="Claude Code is not installed: make judges")
def test_claude_code_does_there_what_an_agent_does_on_nixos(
    tmp_path: Path, image: Boot, tsc_khz: int
) -> None:
    machine = Contained("machine", tmp_path, image)
    guest = boot_of(anyio.run(claude_image))
    assert isinstance(guest, Boot)
    put_guest(tmp_path, guest, words(guest, tsc_khz), memory_mib=MEMORY_MIB, vcpus=VCPUS)
    passes("agent", machine)
