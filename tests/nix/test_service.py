"""The units that Nix rendered, under a real systemd: who gets in, and what is kept out.

Everything happens in namespaces: nothing of this host is started or changed. The store is called
`/run/store` there, and has the programs that the units name.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

import groups
from machines import CACHE, built_image
from nix.evaluation import ROOT
from system.test_systemd import SYSTEMD, System, ended, why_not

RENDERED = ROOT / "tests/nix/rendered"
SERVICE = "microvm-orchestrator.service"
SLOT = "microvm-slot@web.service"
SOCKET = "/run/microvm-orchestrator/socket"
STORE_PATH = re.compile(r"/nix/store/e{32}-")
# Users that are nobody else's here: the daemon's, a client, and somebody who is none.
USERS = {"microvm": 991, "alice": 992, "bob": 993}
GROUPS = {"kvm": 990, "microvm": 991, "microvm-orchestrator": 994, "libvirtd": 995}
PROGRAM = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONPATH=/run/site:/run/source
export LD_LIBRARY_PATH=/run/python/lib
exec /run/python/bin/python3 -c \
    'import sys; from microvm_orchestrator.cli.main import main; sys.exit(main())' "$@"
"""
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
BOOT = f"""
set -e
mount --make-rprivate /
for folder in /run /var/lib /home /sys/fs/cgroup; do mount -t tmpfs -o mode=755 own $folder; done
mount -t cgroup2 own /sys/fs/cgroup
mkdir /run/python /run/site /run/source /run/images /run/secrets
mount --bind "$2" /run/python
mount --bind "$3" /run/site
mount --bind "$4" /run/source
mount --bind "$5" /run/images
mount -o remount,bind,ro /run/images
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/group" /etc/group
cp -r "$1/store" /run/store
mkdir -p /run/systemd/system /home/ada/site /home/ada/other
cp "$1"/units/* /run/systemd/system
echo sk-ant-api03-not-a-real-key | tee /run/secrets/anthropic >/run/secrets/github
mkdir -m 700 /var/lib/microvm-orchestrator
ln -s /run/images /var/lib/microvm-orchestrator/images
chown microvm:microvm /var/lib/microvm-orchestrator
mkdir -p /var/lib/microvm-slots/web /run/store/slots
ln -s /run/store/runner /run/store/slots/web
chown microvm:kvm /var/lib/microvm-slots/web
chmod 700 /var/lib/microvm-slots/web
mount --make-rshared /
exec env -i container=test PATH="$PATH" {SYSTEMD} --system --unit=ours.target \
    --default-standard-output=null --default-standard-error=null
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
        number, others = str(USERS[user]), ",".join(str(GROUPS[name]) for name in also)
        sets = ["--groups", others] if also else ["--clear-groups"]
        drop = ["setpriv", "--reuid", number, "--regid", number, *sets]
        ran = self.system.run("sh", "-c", f"{' '.join([*drop, 'test', '-w', SOCKET])}; echo $?")
        return ran.strip() == "0"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = text.replace("/etc/microvm-slots/", "/run/store/slots/")
    path.write_text(STORE_PATH.sub("/run/store/", text))
    path.chmod(0o755)


def lay_out(folder: Path) -> str:
    """Write the units, the programs that they start, and who there is; return the program."""
    write(folder / "units/ours.target", "[Unit]\nDefaultDependencies=no\n")
    for path in RENDERED.iterdir():
        if path.suffix in {".service", ".socket", ".slice"}:
            # What usually comes first is not here.
            text = path.read_text().replace("[Unit]\n", "[Unit]\nDefaultDependencies=no\n")
            said = f"[Service]\nStandardError=append:{folder}/{path.name}.log\n"
            write(folder / "units" / path.name, text.replace("[Service]\n", said))
    store = folder / "store"
    server = (folder / "units" / SERVICE).read_text()
    [(program, settings)] = re.findall(r'ExecStart="(\S+)" "serve" "--config" "(\S+)"', server)
    # No machine is to start by itself, and bridges are for other tests.
    text = (RENDERED / "config.toml").read_text().replace('"embedded" = 2', "")
    write(store / Path(settings).name, text.replace('"kernel"', '"userspace"'))
    write(store / Path(program).relative_to("/run/store"), PROGRAM)
    write(store / "runner/bin/microvm-run", RUNNER)
    write(store / "runner/bin/microvm-shutdown", SHUTDOWN)
    for path in (RENDERED / "bin").iterdir():
        place = f"{path.name}-start/bin/{path.name}-start"
        write(store / (f"microvm-{path.name}" if "slot" in path.name else place), path.read_text())
    for tool in ("coreutils", "curl"):
        (store / tool).mkdir()
        (store / tool / "bin").symlink_to("/usr/bin")
    people = "".join(f"{name}:x:{n}:{n}::/:/bin/sh\n" for name, n in USERS.items())
    write(folder / "passwd", Path("/etc/passwd").read_text() + people)
    known = Path("/etc/group").read_text().splitlines(keepends=True)
    kept = [line for line in known if line.split(":")[0] not in GROUPS]
    write(folder / "group", "".join([*kept, *(f"{name}:x:{n}:\n" for name, n in GROUPS.items())]))
    return program


@contextmanager
def booted(folder: Path) -> Generator[Host]:
    anyio.run(built_image)
    program = lay_out(folder)
    unshare = ["unshare", "-fpmiuCn", "--kill-child", "--mount-proc", "sh", "-c", BOOT, "sh"]
    python = [sys.base_prefix, sysconfig.get_path("purelib"), str(ROOT / "python")]
    parts = [str(folder), *python, str(CACHE / "images")]
    with groups.own_group() as group, (folder / "log").open("wb") as log:
        enter = ["sh", "-c", 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"', "sh", str(group)]
        words = [*enter, *unshare, *parts]
        with (
            subprocess.Popen(words, stdout=log, stderr=log, stdin=log) as outer,
            ended(outer) as system,
        ):
            yield Host(system, program)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Generator[Host]:
    if why := why_not():
        pytest.skip(why)
    with booted(tmp_path_factory.mktemp("host")) as found:
        found.systemctl("start", SERVICE)
        yield found


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
    another = ("--unit=other", "--uid=microvm", "--gid=kvm", "sleep", "infinity")
    host.system.run("systemd-run", *another)
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
