"""A host in namespaces: a real systemd with the units that Nix rendered, as the driver's machine.

Nothing of the host around it is started or changed. It has that one's kernel and programs; what is
written to `/etc`, `/home`, `/srv` and `/var` is in folders of its own and stays when its power is
cut, what is in `/run`, `/tmp` and `/root` goes. The store is called `/run/store` there. Machines of
its daemon are as fast as those of any test. Above are `test_service` and `test_contained`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import groups
from machines import CACHE
from microvm_orchestrator.machine.base import Boot
from nix import units
from nix.driver import GRACE_S, Driven, Failed
from nix.evaluation import ROOT
from nix.units import SERVICE
from standin_runner import Wanted, make, qemu_command
from system.test_systemd import SYSTEMD, System, ended

STORE = "/run/store"
STORE_PATH = re.compile(r"/nix/store/e{32}-")
# Who is nobody else here: the daemon's user, a client, and somebody who is none.
USERS = {"microvm": 991, "alice": 992, "bob": 993, "ada": 989}
GROUPS = {"kvm": 990, "microvm-orchestrator": 994, "libvirtd": 995}
MEMBERS = {"microvm-orchestrator": "alice"}
MODEL_PORT = 8085
PATHS = f"{STORE}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PYTHON = f"""#!/bin/sh
export PATH={PATHS} PYTHONPATH=/run/site:/run/source LD_LIBRARY_PATH=/run/python/lib
exec /run/python/bin/python3"""
PROGRAM = (
    f"{_PYTHON} -c "
    "'import sys; from microvm_orchestrator.cli.main import main; sys.exit(main())' \"$@\"\n"
)
MODEL = f'{_PYTHON} {STORE}/model/model.py "$@"\n'
TAKE_IN = f"#!/bin/sh\nexec microvm-orchestrator image add slot {STORE}/slot/runner\n"
# As the part of the tests for NixOS has it.
MODEL_UNIT = f"""[Unit]
DefaultDependencies=no

[Service]
Type=notify
ExecStart={STORE}/bin/model {MODEL_PORT} /run/secrets/anthropic /run/model/requests
RuntimeDirectory=model
"""
# The machine has no target that others hang on: what it starts is named here.
TARGET = f"""[Unit]
DefaultDependencies=no
Wants=systemd-journald.service microvm-orchestrator.socket {SERVICE} model.service
Wants=microvm-orchestrator-repos.service
"""
# It neither reads what the kernel says nor lays a socket into the folder of devices, which is not
# of our own.
JOURNAL = "[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=\n"
MASKED = (
    "systemd-journald-audit.socket",
    "systemd-journald-dev-log.socket",
    # Whoever comes before a unit of usual dependencies, and changes what all have in common.
    "sysinit.target",
)
BOOT = f"""
set -e
mount --make-rprivate /
for folder in /run /sys/fs/cgroup; do mount -t tmpfs -o mode=755 own $folder; done
mount -t cgroup2 own /sys/fs/cgroup
mkdir /run/python /run/site /run/source /run/images /run/secrets
mount --bind "$2" /run/python
mount --bind "$3" /run/site
mount --bind "$4" /run/source
mount --bind "$5" /run/images
mount -o remount,bind,ro /run/images
cp -r "$1/store" {STORE}
for folder in etc home srv var; do mount --bind "$1/$folder" /$folder; done
mount -t tmpfs -o mode=700 own /root
mount -t tmpfs -o mode=1777 own /tmp
# As udev has it: what may be done with it is for the kernel to say.
if [ -e /dev/net/tun ]; then
    mknod -m 666 /run/tun c 10 200
    mount --bind /run/tun /dev/net/tun
fi
cd /
echo sk-ant-api03-not-a-real-key | tee /run/secrets/anthropic >/run/secrets/github
mount --make-rshared /
exec env -i container=test PATH="$PATH" {SYSTEMD} --system --unit=ours.target
"""


class Contained(Driven):
    """A host in namespaces, as a testScript sees it."""

    ask_every_s = 0.5

    def __init__(
        self,
        name: str,
        folder: Path,
        image: Boot,
        *,
        watchdog_s: int | None = None,
        networks: str = "userspace",
    ) -> None:
        """Lay it out in an empty folder. One that hangs is ended when the unit says, or sooner."""
        self.name = name
        self.console = folder / "console"
        self._folder = folder
        self.program = _lay_out(folder, image, watchdog_s, networks)
        self._running: tuple[System, ExitStack] | None = None

    @property
    def system(self) -> System:
        assert self._running
        return self._running[0]

    def start(self) -> None:
        if self._running:
            return
        unshare = ["unshare", "-fpmiuCn", "--kill-child", "--mount-proc", "sh", "-c", BOOT, "sh"]
        python = [sys.base_prefix, sysconfig.get_path("purelib"), str(ROOT / "python")]
        parts = [str(self._folder), *python, str(CACHE / "images")]
        enter = ["sh", "-c", 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"', "sh"]
        with ExitStack() as stack:
            group = stack.enter_context(groups.own_group())
            log = stack.enter_context(self.console.open("ab"))
            words = [*enter, str(group), *unshare, *parts]
            outer = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            stack.enter_context(outer)
            system = stack.enter_context(ended(outer))
            self._running = system, stack.pop_all()

    def ran(self, script: str, timeout: int | None) -> tuple[int, str]:
        inside = ["nsenter", f"--target={self.system.pid}", "--all", "--wd=/"]
        limit = [] if timeout is None else ["timeout", str(timeout)]
        shell = [*limit, "bash", "-c", script]
        with self.console.open("ab") as console:
            ran = subprocess.run(
                [*inside, "env", "-i", f"PATH={PATHS}", "HOME=/root", *shell],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=console,
                timeout=None if timeout is None else timeout + GRACE_S,
                check=False,
            )
        if ran.returncode and not Path(f"/proc/{self.system.pid}").exists():
            raise Failed(f"{self.name}: it has ended. {self.last_words()}")
        return ran.returncode, ran.stdout.decode(errors="replace")

    def crash(self) -> None:
        """Kill the first process, and so every other one at that instant."""
        if self._running:
            _, stack = self._running
            self._running = None
            stack.close()


def put(path: Path, text: str) -> None:
    """Write a program, unit or setting of the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STORE_PATH.sub(f"{STORE}/", text))
    path.chmod(0o755)


def put_guest(folder: Path, image: Boot, tsc_words: str, *, memory_mib: int, vcpus: int) -> None:
    """Lay the runner directory of a guest where `take-in-guest` finds it."""
    there = replace(
        image,
        kernel=_shown(image.kernel),
        initrd=_shown(image.initrd),
        disks=tuple(replace(disk, path=disk.path and _shown(disk.path)) for disk in image.disks),
    )
    command = qemu_command(there, tsc_words, memory_mib=memory_mib, vcpus=vcpus)
    made = folder / "made"
    make(made, Wanted(command=command))
    # What lies there names itself.
    for path in [path for path in made.rglob("*") if path.is_symlink() or path.is_file()]:
        place = folder / "store/slot" / path.relative_to(made)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            place.symlink_to(str(path.readlink()).replace(str(made), f"{STORE}/slot"))
        else:
            place.write_text(path.read_text().replace(str(made), f"{STORE}/slot"))
            shutil.copymode(path, place)


def _shown(path: Path) -> Path:
    return Path("/run/images") / path.relative_to(CACHE / "images")


def _lay_out(folder: Path, image: Boot, watchdog_s: int | None, networks: str) -> str:
    """Write the units, what they start, and who there is; return the daemon's program."""
    _put_etc(folder / "etc")
    place = folder / "etc/systemd/system"
    for name, rendered in units.units().items():
        # What usually comes first is not here.
        text = rendered.replace("[Unit]\n", "[Unit]\nDefaultDependencies=no\n")
        if watchdog_s is not None:
            text = re.sub(r"(?m)^WatchdogSec=.*", f"WatchdogSec={watchdog_s}", text)
        put(place / name, text)
    program = _put_store(folder, (place / SERVICE).read_text(), networks)
    for name in USERS:
        (folder / "home" / name).mkdir(parents=True)
    (folder / "home/ada/other").mkdir()
    for name in ("home/ada/site", "srv/git/tools.git"):
        _make_repository(folder / name)
    _put_state(folder / "var", image)
    return program


def _put_etc(etc: Path) -> None:
    subprocess.run(["cp", "--archive", "/etc", etc], check=True)
    shutil.rmtree(etc / "systemd", ignore_errors=True)
    put(etc / "systemd/journald.conf", JOURNAL)
    put(etc / "systemd/system/ours.target", TARGET)
    put(etc / "systemd/system/model.service", MODEL_UNIT)
    for name in MASKED:
        (etc / "systemd/system" / name).symlink_to("/dev/null")
    put(etc / "fstab", "")
    put(etc / "machine-id", "0123456789abcdef0123456789abcdef\n")
    put(etc / "gitconfig", "[safe]\n\tdirectory = *\n")
    home = {"microvm": "/"}
    people = {
        name: f"{name}:x:{n}:{n}::{home.get(name, f'/home/{name}')}:/bin/sh"
        for name, n in USERS.items()
    }
    own = USERS | GROUPS
    _replace_lines(etc / "passwd", people)
    _replace_lines(etc / "group", {n: f"{n}:x:{i}:{MEMBERS.get(n, '')}" for n, i in own.items()})


def _replace_lines(path: Path, lines: Mapping[str, str]) -> None:
    """Let lines stand in a file whose lines begin with a name, and no others of their names."""
    kept = [line for line in path.read_text().splitlines() if line.split(":")[0] not in lines]
    path.write_text("\n".join([*kept, *lines.values()]) + "\n")


def _put_store(folder: Path, server: str, networks: str) -> str:
    store = folder / "store"
    program, settings = units.started(server)
    text = units.settings().replace('"kernel"', f'"{networks}"')
    model = f'["egress"]\n"anthropic_url" = "http://127.0.0.1:{MODEL_PORT}"\n'
    text = text.replace('["egress"]\n', model)
    put(store / Path(settings).name, text.replace('"debug"', '"info"'))
    # What the host is switched to differs in this.
    put(store / "changed.toml", text)
    changed = folder / "etc/changed"
    put(changed / "etc/systemd/system" / SERVICE, server.replace(settings, f"{STORE}/changed.toml"))
    put(changed / "bin/switch-to-configuration", units.SWITCH)

    put(store / Path(program).relative_to(STORE), PROGRAM)
    for path in (units.RENDERED / "bin").iterdir():
        place = f"{path.name}-start/bin/{path.name}-start"
        put(store / (f"microvm-{path.name}" if "slot" in path.name else place), path.read_text())
    for tool in ("coreutils", "curl"):
        (store / tool).mkdir()
        (store / tool / "bin").symlink_to("/usr/bin")
    put(store / "bin/take-in-guest", TAKE_IN)
    put(store / "bin/model", MODEL)
    (store / "bin/microvm-orchestrator").symlink_to(program)
    for path in (ROOT / "tests/model_api.py", ROOT / "tests/nixos/parts/model.py"):
        put(store / "model" / path.name, path.read_text())
    return program


def _make_repository(path: Path) -> None:
    """Make a bare one with one commit, which is the daemon's own."""
    git = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-C", str(path)]

    def run(*words: str) -> str:
        ran = subprocess.run(
            [*git, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, text=True
        )
        return ran.stdout.strip()

    path.mkdir(parents=True)
    run("init", "--quiet", "--bare", "--initial-branch=main")
    run("update-ref", "refs/heads/main", run("commit-tree", "-m", "start", run("mktree")))
    subprocess.run(["chown", "-R", f"{USERS['microvm']}:{USERS['microvm']}", path], check=True)


def _put_state(var: Path, image: Boot) -> None:
    for name in ("cache", "lib", "log", "tmp"):
        (var / name).mkdir(parents=True)
    (var / "tmp").chmod(0o1777)
    (var / "run").symlink_to("/run")
    state = var / "lib/microvm-orchestrator"
    (state / "images/names").mkdir(parents=True)
    state.chmod(0o700)
    # The embedded guest is there already; others may be taken in.
    digest = image.kernel.parent.name
    (state / "images" / digest).symlink_to(f"/run/images/{digest}")
    (state / "images/names/embedded").symlink_to(f"../{digest}")
    for path in (state, state / "images", state / "images/names"):
        os.chown(path, USERS["microvm"], USERS["microvm"])
