"""The units that Nix rendered, under a real systemd: who gets in, and what is kept out.

Everything happens in namespaces, as `contained` says. What the same units do through restarts and
runs is in `test_contained`.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass

import anyio
import pytest

from machines import built_image
from nix.contained import GROUPS, SERVICE, STORE, USERS, Contained, put
from system.test_systemd import System, why_not

SLOT = "microvm-slot@web.service"
SOCKET = "/run/microvm-orchestrator/socket"
# It tells what it is and sees, and ends well when it is asked to.
RUNNER = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
trap 'echo powered off >>told; exit 0' USR1
{ id -un; grep CapBnd /proc/self/status; ls /var/lib; } >told
ls /run/microvm-orchestrator /run/credentials >>told 2>&1 || true
for place in /proc/[0-9]*/root/var/lib/microvm-orchestrator; do
    [ ! -e "$place" ] || echo "it can see: $place" >>told
done
echo $$ >pid
while :; do sleep 0.1; done
"""
SHUTDOWN = '#!/bin/sh\nread -r pid <pid\n{ /bin/sleep 1; kill -USR1 "$pid"; } &\n'
# As whoever installs a slot does.
SLOT_FOLDER = f"""
mkdir -p /var/lib/microvm-slots/web /etc/microvm-slots
ln -s {STORE}/runner /etc/microvm-slots/web
chown microvm:kvm /var/lib/microvm-slots/web
chmod 700 /var/lib/microvm-slots/web
"""


@dataclass(frozen=True, slots=True)
class Host:
    """A systemd with the units, and the command line in it."""

    system: System
    program: str

    def ask(self, *words: str) -> str:
        return self.system.run(self.program, *words)

    def systemctl(self, *words: str) -> str:
        return self.system.run("systemctl", *words).strip()

    def opens(self, user: str, *also: str) -> bool:
        """Tell whether a user with further groups gets into the socket."""
        known = USERS | GROUPS
        number, others = str(known[user]), ",".join(str(known[name]) for name in also)
        sets = ["--groups", others] if also else ["--clear-groups"]
        drop = ["setpriv", "--reuid", number, "--regid", number, *sets]
        ran = self.system.run("sh", "-c", f"{' '.join([*drop, 'test', '-w', SOCKET])}; echo $?")
        return ran.strip() == "0"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Generator[Host]:
    if why := why_not():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("host")
    machine = Contained("host", folder, anyio.run(built_image))
    put(folder / "store/runner/bin/microvm-run", RUNNER)
    put(folder / "store/runner/bin/microvm-shutdown", SHUTDOWN)
    try:
        machine.start()
        machine.succeed(SLOT_FOLDER.strip())
        found = Host(machine.system, machine.program)
        found.systemctl("start", SERVICE)
        yield found
    finally:
        machine.crash()


def test_members_of_the_clients_group_get_in_and_nobody_else(host: Host) -> None:
    shown = host.system.run("stat", "--format=%U:%G:%a", SOCKET).strip()
    assert shown == "microvm:microvm-orchestrator:660"
    assert host.opens("alice", "microvm-orchestrator")
    assert not host.opens("alice")
    assert not host.opens("bob", "kvm", "libvirtd")


def test_the_daemon_has_the_keys_that_were_handed_over(host: Host) -> None:
    lines = [line.split() for line in host.ask("credential", "list").splitlines()[1:]]
    assert [(line[0], line[1], line[-1]) for line in lines] == [
        ("anthropic-api-key", "anthropic-api-key", "systemd"),
        ("github", "secret", "systemd"),
    ]


def test_the_daemon_is_its_user_and_sees_of_homes_what_was_named(host: Host) -> None:
    pid = host.systemctl("show", "--value", "--property=MainPID", SERVICE)
    inside = ["nsenter", "--target", pid, "--mount", "ls"]
    assert host.system.run("stat", "--format=%U", f"/proc/{pid}").strip() == "microvm"
    assert host.system.run(*inside, "/home/ada").split() == ["site"]
    # CAP_NET_ADMIN is the twelfth.
    bounds = host.system.run("grep", "CapBnd", f"/proc/{pid}/status").split()[1]
    assert int(bounds, 16) == 1 << 12


def test_clients_wait_through_a_restart_and_meet_a_new_daemon(host: Host) -> None:
    before = host.systemctl("show", "--value", "--property=MainPID", SERVICE)
    host.systemctl("restart", "--no-block", SERVICE)
    assert "admin" in host.ask("whoami")
    host.system.until("active", "systemctl", "is-active", SERVICE)
    assert host.systemctl("show", "--value", "--property=MainPID", SERVICE) != before


def test_one_that_was_stopped_is_started_by_its_next_client(host: Host) -> None:
    host.system.run("sh", "-c", f"systemctl stop {SERVICE} 2>/dev/null")
    assert "admin" in host.ask("whoami")


def test_a_machine_of_a_daemon_without_root_outlives_it_and_ends(host: Host) -> None:
    host.ask("machine", "define", "box", "--memory-mib", "192")
    host.ask("machine", "start", "box")
    boot_id = ("machine", "exec", "-n", "box", "--", "cat", "/proc/sys/kernel/random/boot_id")
    first = host.ask(*boot_id)
    [qemu] = host.system.run("pgrep", "--full", "--euid", "microvm", "^qemu-system").split()
    host.systemctl("restart", SERVICE)
    assert host.ask(*boot_id) == first
    assert "/microvm-orchestrator/m_" in host.system.group_of(qemu)
    # The daemon is given one capability, and does not hand it down.
    status = host.system.run("cat", f"/proc/{qemu}/status").splitlines()
    held = dict(line.split(":\t") for line in status if line.startswith("Cap"))
    assert held["CapEff"] == held["CapPrm"] == held["CapAmb"] == "0" * 16
    host.ask("machine", "kill", "box")
    assert "stopped" in host.ask("machine", "get", "box")
    assert host.system.run("sh", "-c", "pgrep --full ^qemu-system || true") == ""


def test_a_slot_has_no_capability_and_sees_nothing_of_the_daemon(host: Host) -> None:
    folder = "/var/lib/microvm-slots/web"
    # A process that runs as another slot does.
    other = ("--unit=other", "--property=DefaultDependencies=no", "--uid=microvm", "--gid=kvm")
    host.system.run("systemd-run", *other, "sleep", "infinity")
    host.systemctl("start", SLOT)
    host.system.until("pid", "ls", folder)
    told = host.system.run("cat", f"{folder}/told").splitlines()
    assert told[:3] == ["microvm", "CapBnd:\t0000000000000000", "microvm-slots"]
    assert sorted(line.partition(": ")[2] for line in told[3:]) == [
        "cannot open directory '/run/credentials': Permission denied",
        "cannot open directory '/run/microvm-orchestrator': Permission denied",
    ]
    group = host.systemctl("show", "--value", "--property=ControlGroup", SLOT)
    assert group == f"/microvm.slice/microvm-slots.slice/{SLOT}"
    host.systemctl("stop", "other.service")
    # It is asked to power off, and waited for.
    host.systemctl("stop", SLOT)
    assert host.system.run("tail", "-n1", f"{folder}/told").strip() == "powered off"
    assert host.systemctl("show", "--value", "--property=Result", SLOT) == "success"


def test_a_backup_and_figures_are_made_under_their_own_units(host: Host) -> None:
    host.systemctl("start", "microvm-orchestrator-backup.service")
    [copy] = host.system.run("ls", "/var/lib/microvm-orchestrator/backups").split()
    assert re.fullmatch(r"store-\d{8}T\d{6}Z\.sqlite", copy)
    host.systemctl("start", "microvm-orchestrator-metrics.service")
    place = "/var/lib/private/microvm-orchestrator-metrics/microvm-orchestrator.prom"
    assert "microvm_orchestrator_build_info" in host.system.run("cat", place)


def test_a_daemon_that_was_stopped_with_its_socket_is_started_by_no_clock(host: Host) -> None:
    socket = "microvm-orchestrator.socket"
    host.system.run("sh", "-c", f"systemctl stop {socket} {SERVICE} 2>/dev/null")
    for name in ("metrics", "backup"):
        asked = f"systemctl start microvm-orchestrator-{name}.service 2>&1 || true"
        assert "dependency" in host.system.run("sh", "-c", asked)
    assert host.systemctl("show", "--value", "--property=ActiveState", SERVICE) == "inactive"
    host.systemctl("start", socket)
