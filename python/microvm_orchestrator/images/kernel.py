"""A kernel and those of its modules that a guest needs, out of Debian's package.

What a module depends on is read from the module itself (`.modinfo`); nothing of the package runs.
"""

from __future__ import annotations

import lzma
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from microvm_orchestrator import errors
from microvm_orchestrator.images.tree import File, Tree

if TYPE_CHECKING:
    from collections.abc import Iterable

_IMAGE = re.compile(r"boot/vmlinuz-(?P<release>[A-Za-z0-9.+~_-]+)")
_MODULE = re.compile(r"usr/lib/modules/[^/]+/(?P<path>.*/(?P<name>[^/]+)\.ko)(?P<packed>\.xz)?")
# Ten times the largest module there is.
_MAX_MODULE = 64 << 20

_ELF64_LITTLE = b"\x7fELF\x02\x01"
_ELF_SECTIONS = struct.Struct("<40xQ10xHHH")  # of the file's head: where, size, number, names
_SECTION = struct.Struct("<II8x8xQQ")  # name, type, offset, size
_MODINFO = b".modinfo"


@dataclass(frozen=True, slots=True)
class Module:
    """A loadable part of the kernel."""

    name: str
    # Below /usr/lib/modules/<release>.
    path: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel image and all its modules, still packed."""

    release: str
    image: File
    _modules: dict[str, tuple[str, File, bool]]
    _builtin: frozenset[str]

    def modules(self, names: Iterable[str]) -> list[Module]:
        """Give these modules and all they need, in an order they can be loaded in.

        Raises: PackageRefused when the kernel has one neither built in nor as a module.
        """
        ordered: dict[str, Module] = {}
        for name in names:
            self._gather(canonical(name), ordered, ())
        return list(ordered.values())

    def _gather(self, name: str, ordered: dict[str, Module], above: tuple[str, ...]) -> None:
        if name in ordered or name in self._builtin:
            return
        if name in above or name not in self._modules:
            why = "needs itself" if name in above else "is missing"
            raise errors.PackageRefused(f"module {name} of kernel {self.release} {why}")
        path, file, packed = self._modules[name]
        data = _unpacked(name, file.read()) if packed else file.read()
        needs, wishes = read_needs(name, data)
        needs += tuple(wish for wish in wishes if wish in self._modules)
        for other in needs:
            self._gather(other, ordered, (*above, name))
        ordered[name] = Module(name, path, data)


def canonical(name: str) -> str:
    """Write a module's name as the kernel does; files and people use both characters."""
    return name.replace("-", "_")


def is_wanted(path: str) -> bool:
    """Whether a path of the package is one that `read_kernel` looks at."""
    return bool(_IMAGE.fullmatch(path) or _MODULE.fullmatch(path) or _is_builtin_list(path))


def read_kernel(tree: Tree) -> Kernel:
    """Raises: PackageRefused when there is not exactly one kernel."""
    images: list[tuple[str, File]] = []
    modules: dict[str, tuple[str, File, bool]] = {}
    builtin: set[str] = set()
    for path, node in tree:
        if not isinstance(node, File):
            continue
        if found := _IMAGE.fullmatch(path):
            images.append((found["release"], node))
        elif found := _MODULE.fullmatch(path):
            modules[canonical(found["name"])] = found["path"], node, found["packed"] is not None
        elif _is_builtin_list(path):
            lines = node.read().decode(errors="replace").split()
            builtin |= {canonical(line.rpartition("/")[2].removesuffix(".ko")) for line in lines}
    if len(images) != 1:
        raise errors.PackageRefused(f"the packages bring {len(images)} kernels")
    return Kernel(*images[0], modules, frozenset(builtin))


def _is_builtin_list(path: str) -> bool:
    return path.startswith("usr/lib/modules/") and path.endswith("/modules.builtin")


def _unpacked(name: str, packed: bytes) -> bytes:
    unpacker = lzma.LZMADecompressor()
    try:
        data = unpacker.decompress(packed, _MAX_MODULE)
    except lzma.LZMAError as error:
        raise errors.PackageRefused(f"module {name} is damaged: {error}") from error
    if not unpacker.eof:
        raise errors.PackageRefused(f"module {name} is cut off or larger than {_MAX_MODULE} bytes")
    return data


def read_needs(name: str, data: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Name the modules that one depends on, and those that it would like to be loaded before it.

    Raises: PackageRefused when it is no module.
    """
    needs: list[str] = []
    wishes: list[str] = []
    for entry in _modinfo(name, data).split(b"\0"):
        key, _, value = entry.decode(errors="replace").partition("=")
        if key == "depends":
            needs += [canonical(need) for need in value.split(",") if need]
        elif key == "softdep" and value.startswith("pre:"):
            listed = value.removeprefix("pre:").partition("post:")[0].split()
            wishes += [canonical(wish) for wish in listed]
    return tuple(needs), tuple(wishes)


def _modinfo(name: str, data: bytes) -> bytes:
    """Find the section of an ELF file that says what a module is."""
    if not data.startswith(_ELF64_LITTLE):
        raise errors.PackageRefused(f"module {name} is no 64-bit ELF file")
    try:
        for label, offset, length in _sections(data):
            if data.startswith(_MODINFO + b"\0", label):
                return data[offset : offset + length]
    except (struct.error, IndexError, OverflowError) as error:
        raise errors.PackageRefused(f"module {name} is damaged: {error}") from error
    raise errors.PackageRefused(f"module {name} does not say what it is")


def _sections(data: bytes) -> list[tuple[int, int, int]]:
    """Tell where the name of each section is, where it begins and how long it is."""
    head: tuple[int, int, int, int] = _ELF_SECTIONS.unpack_from(data)
    table, size, number, names_at = head
    heads: list[tuple[int, int, int]] = []
    for index in range(number):
        label, _, offset, length = _SECTION.unpack_from(data, table + size * index)
        heads.append((label, offset, length))
    base = heads[names_at][1]
    return [(base + label, offset, length) for label, offset, length in heads]
