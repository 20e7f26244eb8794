"""How a tree is installed in a guest: the script for each mode, and what came of it.

The script works on a copy where it could change the tree, keeps what it says in a file of the guest
beside the tree, and writes down what is installed only when all went well. Above are the artifacts
of clusters; below, the way into the guest.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from microvm_orchestrator import errors
from microvm_orchestrator.clusters.guest_trees import script, tail
from microvm_orchestrator.clusters.inside import INSTALLED
from microvm_orchestrator.machine.shell import Shell
from microvm_orchestrator.model.artifact_tree import (
    ArtifactTree,
    InstallMode,
    TreeFile,
    is_module,
)

_TAIL = 4096
_MODULE = re.compile(r"([A-Za-z0-9_-]{1,60})\.ko(?:\.xz|\.gz|\.zst)?")
_MAX_WORDS = 100_000
_MAX_INSTALLED = 1000

# $1 is the tree, $2 the name it is known by.
_FRAME = """cd "$1" || exit 1
log=$1.log
installed={installed}
rm -f "$installed" || exit 1
(
set -e
{body}
) >"$log" 2>&1
code=$?
if [ $code = 0 ]; then
    mkdir -p "${{installed%/*}}" && echo "$2" >"$installed.part" && sync \\
        && mv "$installed.part" "$installed" || code=1
fi
tail -c {tail} "$log"
exit $code
"""
_MODPROBE = """kernel={release}
[ -n "$kernel" ] || kernel=$(uname -r)
to=/lib/modules/$kernel/extra
mkdir -p "$to"
rm -rf "$to/.vmcluster.part"
mkdir "$to/.vmcluster.part"
cp {modules} "$to/.vmcluster.part/"
if [ -e "$to/vmcluster" ]; then rm -rf "$to/.vmcluster.old"; mv "$to/vmcluster" "$to/.vmcluster.old"; fi
mv "$to/.vmcluster.part" "$to/vmcluster"
rm -rf "$to/.vmcluster.old"
if command -v depmod >/dev/null; then depmod -a "$kernel"; else echo "this guest has no depmod"; fi
{load}
"""  # noqa: E501  # a line of a script
_LOAD = """[ "$kernel" = "$(uname -r)" ] || {{ echo "the kernel is $(uname -r), not $kernel"; exit 1; }}
cd "$to/vmcluster"
loaded() {{
    for module in {names}; do
        if grep -q "^$(echo "$module" | tr - _) " /proc/modules; then echo "$module"; fi
    done
}}
# In whatever order they need each other.
left=$(loaded)
while [ -n "$left" ]; do
    for module in $left; do rmmod "$module" 2>/dev/null || :; done
    now=$(loaded)
    if [ "$now" = "$left" ]; then rmmod $now; exit 1; fi
    left=$now
done
left=" {names}"
while [ -n "$left" ]; do
    after=
    for module in $left; do
        modprobe "$module" 2>/dev/null || insmod "./$module.ko" || after="$after $module"
    done
    [ "$after" != "$left" ] || exit 1
    left=$after
done
"""  # noqa: E501  # a line of a script
_COPY = """work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -R . "$work/tree"
cd "$work/tree"
make install
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """How an installation ended."""

    exit_code: int | None
    timed_out: bool
    output: str


def script_of(
    tree: ArtifactTree, files: Sequence[TreeFile], mode: InstallMode, *, load: bool
) -> str:
    """Write the script that installs a tree.

    Raises: InvalidInput when the tree has nothing for this mode.
    """
    if load and mode is not InstallMode.MODPROBE_PATH:
        raise errors.InvalidInput(f"load: is for {InstallMode.MODPROBE_PATH} only")
    match mode:
        case InstallMode.MODPROBE_PATH:
            body = _modprobe(tree, files, load=load)
        case InstallMode.MAKE_INSTALL:
            if not {"Makefile", "makefile", "GNUmakefile"} & {each.path for each in files}:
                raise _nothing(tree, "Makefile")
            body = _COPY
        case InstallMode.RPM:
            body = f"rpm -U --replacepkgs --oldpackage {_some(tree, files, '.rpm')}"
        case InstallMode.DEB:
            body = f"DEBIAN_FRONTEND=noninteractive dpkg -i {_some(tree, files, '.deb')}"
    return _FRAME.format(installed=INSTALLED, body=body, tail=_TAIL)


def _modprobe(tree: ArtifactTree, files: Sequence[TreeFile], *, load: bool) -> str:
    names: list[str] = []
    for path in (each.path for each in files if is_module(each.path)):
        match = _MODULE.fullmatch(path.rpartition("/")[2])
        if match is None or match[1] in names:
            raise errors.InvalidInput(f"{path} is no name of a module, or there are two of it")
        names.append(match[1])
    modules = _some(tree, files, *_MODULE_ENDS)
    loading = _LOAD.format(names=" ".join(names)) if load else ":"
    return _MODPROBE.format(
        release=shlex.quote(tree.kernel_version or ""), modules=modules, load=loading
    )


_MODULE_ENDS = (".ko", ".ko.xz", ".ko.gz", ".ko.zst")


def _some(tree: ArtifactTree, files: Sequence[TreeFile], *ends: str) -> str:
    found = [f"./{each.path}" for each in files if each.path.endswith(ends)]
    words = " ".join(map(shlex.quote, found))
    if not found or len(words) > _MAX_WORDS:
        raise _nothing(tree, ends[0]) if not found else errors.TooLarge("it has too many of them")
    return words


def _nothing(tree: ArtifactTree, what: str) -> errors.InvalidInput:
    return errors.InvalidInput(
        f"artifact {tree.artifact_id} has no {what}", hint="another mode may fit it"
    )


async def run(shell: Shell, text: str, path: str, timeout_s: float) -> Ran:
    """Install what lies at a path. Raises: as `Shell.exec`."""
    name = path.rpartition("/")[2]
    ran = await script(shell, text, path, name, cap=_TAIL * 2, timeout_s=timeout_s)
    output = ran.stdout + ran.stderr
    if ran.exit.timed_out:
        said = await script(shell, f'tail -c {_TAIL} "$1.log"', path, cap=_TAIL)
        output = said.stdout
    return Ran(ran.exit.code, ran.exit.timed_out, _lines(output))


async def modules_in(shell: Shell) -> list[str]:
    """Name the modules that lie where they were installed, for whatever kernel."""
    found = await script(shell, _FOUND, cap=_TAIL * 32)
    return [tail(line) for line in found.stdout.splitlines()[:_MAX_INSTALLED]]


_FOUND = "find /lib/modules/*/extra/vmcluster/ -type f 2>/dev/null; :"


def _lines(said: bytes) -> str:
    """Let nothing through but what is printed, and ends of lines."""
    text = said[-_TAIL:].decode(errors="replace")
    return "".join(sign if sign.isprintable() or sign in "\n\t" else " " for sign in text)
