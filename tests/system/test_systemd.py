"""The daemon as a service of a real systemd, in namespaces of its own: machines outlive it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

import groups
from machines import CACHE, LONG_S, ROOT, built_image

GUIDE = ROOT / "docs" / "how-to" / "run-as-a-service.md"
SYSTEMD = Path("/usr/lib/systemd/systemd")
PROGRAM = Path(sys.executable).with_name("microvm-orchestrator")
UNIT = "microvm-orchestrator.service"
# Nothing of this host is started: the only unit that is wanted is ours. The group that this begins
# in becomes the root of all groups that it sees. What a unit with the usual dependencies brings
# along is not let in: it changes what all have in common, and clears /tmp.
BOOT = f"""
set -e
mount --make-rprivate /
for folder in /run /var/lib /sys/fs/cgroup; do mount -t tmpfs -o mode=755 own $folder; done
mount -t cgroup2 own /sys/fs/cgroup
mkdir -p /run/systemd/system /var/lib/microvm-orchestrator
chmod 700 /var/lib/microvm-orchestrator
ln -s "$1" /var/lib/microvm-orchestrator/images
cp "$2" /run/systemd/system/{UNIT}
printf '[Unit]\\nDefaultDependencies=no\\n' >/run/systemd/system/ours.target
ln -s /dev/null /run/systemd/system/sysinit.target
exec env -i container=test PATH="$PATH" {SYSTEMD} --system --unit=ours.target \
    --default-standard-output=null --default-standard-error=null
"""


def why_not() -> str:
    """Say why there can be no systemd here; empty when there can."""
    if os.geteuid():
        return "only root makes the namespaces for a systemd"
    if (root := groups.root()) is None or not os.access(root, os.W_OK):
        return "no second version of control groups is mounted for us to write"
    if not SYSTEMD.exists() or shutil.which("systemctl") is None:
        return "this host has no systemd"
    words = ["unshare", "-fpmiuCn", "--mount-proc", "true"]
    tried = subprocess.run(words, check=False, capture_output=True)
    return "" if tried.returncode == 0 else "no namespaces can be made here"


@dataclass(frozen=True, slots=True)
class System:
    """A systemd, and everything as its processes see it."""

    pid: int

    def run(self, *words: str | Path) -> str:
        inside = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--cgroup"]
        ran = subprocess.run(
            [*inside, *words], capture_output=True, text=True, timeout=LONG_S, check=False
        )
        assert ran.returncode == 0, (words, ran.stdout, ran.stderr)
        return ran.stdout

    def ask(self, *words: str) -> Any:
        return json.loads(self.run(PROGRAM, *words, "--json"))

    def service(self, verb: str) -> None:
        self.run("systemctl", verb, UNIT)

    def shown(self, name: str) -> str:
        return self.run("systemctl", "show", "--value", f"--property={name}", UNIT).strip()

    def group_of(self, pid: str) -> str:
        return self.run("cat", f"/proc/{pid}/cgroup").strip().splitlines()[-1]

    def until(self, said: str, *words: str) -> None:
        deadline = time.monotonic() + LONG_S
        while said not in self.run("sh", "-c", " ".join(words) + " || true"):
            assert time.monotonic() < deadline, words
            time.sleep(0.1)  # systemd tells nobody outside of it


def parts_of_the_guide() -> list[str]:
    """Read what it lets somebody write: the service, its socket, and what shuts it in."""
    return re.findall(r"```ini\n(.*?)```", GUIDE.read_text(), re.DOTALL)


@contextmanager
def booted(folder: Path) -> Generator[System]:
    """Run a systemd with our service until the block ends; all it has started ends with it."""
    anyio.run(built_image)
    unit, _, _ = parts_of_the_guide()
    assert "/usr/local/bin/microvm-orchestrator" in unit
    own = unit.replace("/usr/local/bin/microvm-orchestrator", str(PROGRAM))
    (folder / UNIT).write_text(own.replace("[Unit]\n", "[Unit]\nDefaultDependencies=no\n"))
    unshare = ["unshare", "-fpmiuC", "--kill-child", "--mount-proc", "sh", "-c", BOOT, "sh"]
    words = [*unshare, str(CACHE / "images"), str(folder / UNIT)]
    with groups.own_group() as group, (folder / "log").open("wb") as log:
        enter = ["sh", "-c", 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"', "sh", str(group)]
        with (
            subprocess.Popen([*enter, *words], stdout=log, stderr=log, stdin=log) as outer,
            ended(outer) as system,
        ):
            yield system


@contextmanager
def ended(outer: subprocess.Popen[bytes]) -> Generator[System]:
    """Find the systemd that is being started; end it with the block."""
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    try:
        deadline = time.monotonic() + LONG_S
        while not (pids := children.read_text().split()):
            assert time.monotonic() < deadline, "nothing was started"
        system = System(int(pids[0]))
        system.until("ours.target", "systemctl list-units --state=active --plain 2>/dev/null")
        yield system
    finally:
        for pid in children.read_text().split():
            os.kill(int(pid), signal.SIGKILL)


def test_machines_outlive_a_service_that_is_restarted_and_one_that_crashes(tmp_path: Path) -> None:
    if why := why_not():
        pytest.skip(why)
    with booted(tmp_path) as system:
        system.service("start")
        system.ask("machine", "define", "box", "--memory-mib", "192")
        system.ask("machine", "start", "box")
        boot_id = ("machine", "exec", "-n", "box", "--", "cat", "/proc/sys/kernel/random/boot_id")
        first = system.run(PROGRAM, *boot_id)
        [qemu] = system.run("pgrep", "-f", "^qemu-system").split()
        daemon = system.shown("MainPID")
        # A systemd before 254 has it in the service's own group, where it stays.
        group = f"0::/system.slice/{UNIT}"
        assert system.group_of(daemon) in {group, f"{group}/daemon"}
        machine = system.ask("machine", "get", "box")["machine_id"]
        place = f"0::/system.slice/{UNIT}/microvm-orchestrator/{machine}"
        assert system.group_of(qemu) == place

        system.service("reload")
        assert system.shown("MainPID") == daemon
        system.service("restart")
        assert system.shown("MainPID") != daemon
        assert system.run(PROGRAM, *boot_id) == first

        daemon = system.shown("MainPID")
        system.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", UNIT)
        system.until(
            "active",
            f"test $(systemctl show --value -p MainPID {UNIT}) != {daemon}"
            f" && systemctl is-active {UNIT}",
        )
        assert system.run(PROGRAM, *boot_id) == first
        assert system.run("pgrep", "-f", "^qemu-system").split() == [qemu]
        assert system.group_of(qemu) == place

        system.ask("machine", "stop", "box")
        system.service("stop")
        assert system.shown("ActiveState") == "inactive"
        left = system.run("sh", "-c", "pgrep -f ^qemu-system || true").split()
        assert left == []

        # Whoever kills the service as a whole kills its machines.
        system.service("start")
        system.ask("machine", "start", "box")
        system.run("systemctl", "kill", "--signal=TERM", UNIT)
        system.until("none", "pgrep -f ^qemu-system || echo none")


needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="this host has no systemd-analyze"
)


@needs_systemd_analyze
def test_systemd_finds_nothing_wrong_with_the_units_of_the_guide(tmp_path: Path) -> None:
    service, socket, inside = parts_of_the_guide()
    units = tmp_path / "etc/systemd/system"
    (units / f"{UNIT}.d").mkdir(parents=True)
    shutil.copytree("/usr/lib/systemd/system", tmp_path / "usr/lib/systemd/system", symlinks=True)
    for program in ("usr/local/bin/microvm-orchestrator", "bin/kill"):
        (tmp_path / program).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / program).touch(mode=0o755)
    (units / UNIT).write_text(service)
    (units / "microvm-orchestrator.socket").write_text(socket)
    (units / f"{UNIT}.d/user.conf").write_text(inside)
    words = ["systemd-analyze", "verify", f"--root={tmp_path}", UNIT, "microvm-orchestrator.socket"]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (ran.returncode, groups.without_new_keys(ran.stderr)) == (0, "")


@needs_systemd_analyze
def test_who_shuts_it_in_by_the_guide_has_it_as_the_module_for_nixos_has_it(
    tmp_path: Path,
) -> None:
    service, _, inside = parts_of_the_guide()
    (tmp_path / UNIT).write_text(service + inside)
    words = ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager"]
    ran = subprocess.run([*words, tmp_path / UNIT], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    rendered = ROOT / f"tests/nix/rendered/{UNIT}"
    of_nix = {line for line in rendered.read_text().splitlines() if _shuts_in(line)}
    assert of_nix - set(inside.splitlines()) == set()


def _shuts_in(line: str) -> bool:
    """Tell what is the same for every host that has no network of the kernel."""
    prefixes = ("Lock", "NoNew", "Private", "Protect", "Remove", "RestrictN", "RestrictR")
    return line.startswith((*prefixes, "RestrictS", "SystemCall", "UMask")) and (
        not line.startswith("ProtectHome")
    )
