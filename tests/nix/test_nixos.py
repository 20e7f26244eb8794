"""The testScripts of the NixOS tests, on a Debian whose units are those that Nix rendered.

Under emulation, and with `--whole` only: making the disk and starting a machine takes minutes. Run
are those that need no machine of the daemon's: one inside of an emulated one was not ready within
the two minutes that the daemon grants. `task`, `restart` and `reboot` are run by Nix alone, with
the guest of the flake. Tasks that are merged, and machines that outlive a restart under a systemd,
are shown without such a Debian by tests/system/test_runs.py and tests/nix/test_service.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import anyio
import pytest

from nix import debian
from nix.driver import Machine, run_script, script_of
from nix.evaluation import ROOT

pytestmark = pytest.mark.long
needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="this host has no qemu-system-x86_64"
)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> debian.Disk:
    return anyio.run(debian.build, tmp_path_factory.mktemp("debian"))


@needs_qemu
@pytest.mark.parametrize(("name", "subtests"), [("service", 7), ("hardening", 4), ("upgrade", 3)])
def test_a_script_for_nixos_passes_on_a_debian_with_the_units_that_nix_rendered(
    disk: debian.Disk, tmp_path: Path, name: str, subtests: int
) -> None:
    script = script_of(ROOT / f"tests/nixos/{name}.nix")
    passed = run_script(script, [Machine("machine", disk.program(), tmp_path)])
    assert len(passed) == subtests
