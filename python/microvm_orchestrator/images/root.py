"""The root of a guest: packages, less what no guest needs, and what their scripts would have made.

No script of a package runs, so what base packages do in theirs is done here: the shell's name, the
names of busybox, the bundle of certificates, users, the list of modules.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from microvm_orchestrator.images import guest_files
from microvm_orchestrator.images.bytecode import compiled_path
from microvm_orchestrator.images.tree import MERGED, Directory, File, Link, Text, Tree

if TYPE_CHECKING:
    from collections.abc import Iterable

    from microvm_orchestrator.images.kernel import Kernel

# What every guest has.
PACKAGES = ("busybox-static", "ca-certificates", "dash", "e2fsprogs", "git", "python3")

# What those ask for but do not need for what guests do with them; it stays when the user's own
# packages ask for it. Perl and its kind alone are as large as all the rest: git needs them to send
# mail, dpkg and debconf to install packages, openssl to rehash certificates.
DISPENSABLE = re.compile(
    r"perl.*|libperl.*|liberror-perl|libgdbm.*|libdb5.*|git-man|dpkg|tar|debconf|openssl"
    r"|media-types|gcc-.*-base|libtirpc.*|libnsl2|logsave|libss2"
)

# What is left out of every package.
_UNWANTED = re.compile(
    r"usr/share/(doc|man|locale|lintian|info|bash-completion|zsh|i18n|zoneinfo|pixmaps|menu|bug"
    r"|applications|doc-base|gitweb|gcc|gdb|common-licenses|initramfs-tools)(/.*)?"
    r"|usr/(include|games)(/.*)?"
    r"|usr/lib/x86_64-linux-gnu/gconv(/.*)?"
    # Servers, protocols and a shell of git that nobody in a guest speaks; two megabytes each.
    r"|usr/lib/git-core/(git-daemon|git-http-backend|git-http-fetch|git-http-push|git-imap-send"
    r"|git-shell|scalar)|usr/bin/(git-shell|scalar)"
    r"|usr/lib/python3[^/]*/(test|idlelib|lib2to3|turtledemo|tkinter|pydoc_data|ensurepip)(/.*)?"
    r"|usr/lib/python3[^/]*/config-[^/]*(/.*)?"
    r"|.*\.pyc|.*/__pycache__"
    r"|(usr/)?lib/systemd(/.*)?|usr/lib/udev(/.*)?"
)

# Where Python's own files lie, and ours for Python.
AGENT = "usr/lib/microvm-orchestrator/agent"
PYTHON_FOLDERS = ("usr/lib/python3", AGENT)

# Loaded on demand by their names.
_MODULES = ("virtio_net", "vmw_vsock_virtio_transport", "tun", "loop", "fuse")

_CERTIFICATES = "usr/share/ca-certificates/"
_BUNDLE = "etc/ssl/certs/ca-certificates.crt"
_FOLDERS = (
    *("dev", "etc", "home/agent", "mnt", "opt", "proc", "run", "srv", "sys", "usr/local/bin"),
    *("var", "workspace"),
)


def is_wanted(path: str) -> bool:
    return not _UNWANTED.fullmatch(path)


def furnish(tree: Tree, kernel: Kernel, applets: Iterable[str]) -> None:
    """Make a root of a tree of packages."""
    for name in MERGED:
        if f"usr/{name}" in tree:
            tree.put(name, Link(f"usr/{name}"))
    for name in _FOLDERS:
        if name not in tree:
            tree.put(name, Directory())
    tree.put("root", Directory(0o700))
    for name in ("tmp", "var/tmp"):
        tree.put(name, Directory(0o1777))
    tree.put("var/run", Link("/run"))
    _name_applets(tree, applets)
    _bundle_certificates(tree)
    _add_modules(tree, kernel)
    for folder, place in ((guest_files.ROOT, ""), (guest_files.AGENT, AGENT + "/")):
        for path, (data, mode) in guest_files.read_folder(folder).items():
            tree.put(place + path, File(Text(data), mode))


def start_by_bytecode(tree: Tree, tag: str) -> None:
    """Put the agent's first module where init starts it: Python compiles a script every time."""
    tree.put(f"{AGENT}/main.pyc", tree.file(compiled_path(f"{AGENT}/main.py", tag)))


def _name_applets(tree: Tree, applets: Iterable[str]) -> None:
    """Give busybox every name that no package has taken."""
    tree.put("usr/bin/sh", Link("dash"))
    for applet in sorted(applets):
        path = applet if applet.startswith("usr/") else f"usr/{applet}"
        name = path.rpartition("/")[2]
        if not any(f"usr/{folder}/{name}" in tree for folder in ("bin", "sbin")):
            tree.put(path, Link("/usr/bin/busybox"))


def _bundle_certificates(tree: Tree) -> None:
    found = [
        node.read().rstrip(b"\n") + b"\n"
        for path, node in tree
        if path.startswith(_CERTIFICATES) and path.endswith(".crt") and isinstance(node, File)
    ]
    tree.remove(_CERTIFICATES.rstrip("/"))
    tree.write(_BUNDLE, b"".join(found))
    tree.put("usr/lib/ssl/cert.pem", Link("/" + _BUNDLE))


def _add_modules(tree: Tree, kernel: Kernel) -> None:
    base = f"usr/lib/modules/{kernel.release}"
    lines: list[str] = []
    for module in kernel.modules(_MODULES):
        tree.write(f"{base}/{module.path}", module.data)
        # What modprobe loads first stands last.
        *first, _ = kernel.modules([module.name])
        lines.append(f"{module.path}: {' '.join(other.path for other in reversed(first))}\n")
    tree.write(f"{base}/modules.dep", "".join(lines))
