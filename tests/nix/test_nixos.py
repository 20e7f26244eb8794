"""The testScripts of the NixOS tests, on a Debian whose units are those that Nix rendered.

Under emulation, and with `--whole` only: each takes a minute or a few where the host has little
else to do, and may fail on a busy one. `take-in-guest` registers a runner directory of the embedded
guest there, in place of the flake's, and the configuration that
`restart` switches to is one file and one unit. systemd is that of Debian's backports; where these
are not offered it knows no `DelegateSubgroup=`, so machines have no limits, and `suffering` is left
out. `agent` needs a larger machine, and is run in namespaces alone (`test_contained`); `cluster`
needs a kernel with netem to show all of it, which this one is. What only Nix can show is the
flake's own guest and its activation scripts.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import anyio
import pytest

from nix import debian
from nix.driver import Machine, run_script, script_of, subtests_of
from nix.evaluation import ROOT

pytestmark = pytest.mark.long
needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="this host has no qemu-system-x86_64"
)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> debian.Disk:
    return anyio.run(debian.build, tmp_path_factory.mktemp("debian"))


@needs_qemu
@pytest.mark.parametrize(
    "name",
    ["service", "hardening", "upgrade", "task", "restart", "reboot", "cluster", "suffering"],
)
def test_a_script_for_nixos_passes_on_a_debian_with_the_units_that_nix_rendered(
    disk: debian.Disk, tmp_path: Path, name: str
) -> None:
    if name == "suffering" and not disk.has_subgroups:
        pytest.skip(f"systemd {disk.systemd} does not let a group of the service hand limits down")
    script = script_of(ROOT / f"tests/nixos/{name}.nix")
    # It hangs on purpose in one of them.
    program = disk.program(tmp_path / "written", watchdogs=name == "service")
    passed = run_script(script, [Machine("machine", program, tmp_path)])
    assert passed == subtests_of(script)
