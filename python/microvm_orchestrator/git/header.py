"""The text in front of a bundle's pack: written by us, and read from whoever sends it.

    # v3 git bundle
    @object-format=sha256
    -<oid> <subject>             what the receiver must have
    <oid> <ref>                  what it gets
                                 an empty line, and the pack

The format is gitformat-bundle(5). Only what `git bundle create` writes for one branch is taken:
one ref, few prerequisites, no capability but the object format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microvm_orchestrator import errors
from microvm_orchestrator.git import names
from microvm_orchestrator.git.names import ObjectFormat, Oid

if TYPE_CHECKING:
    from typing import IO

_V2 = b"# v2 git bundle\n"
_V3 = b"# v3 git bundle\n"
# Room for the subjects of that many prerequisites, which can be long.
MAX_BYTES = 1 << 16
MAX_PREREQUISITES = 100


@dataclass(frozen=True, slots=True)
class Header:
    """What a bundle says that it holds."""

    object_format: ObjectFormat
    prerequisites: tuple[Oid, ...]
    ref: str
    tip: Oid

    def write(self) -> bytes:
        """Write it as git does: the older version wherever that can say it."""
        lines = [f"-{oid} " for oid in self.prerequisites] + [f"{self.tip} {self.ref}", "", ""]
        if self.object_format is ObjectFormat.SHA1:
            return _V2 + "\n".join(lines).encode()
        return _V3 + "\n".join([f"@object-format={self.object_format}", *lines]).encode()


def read(file: IO[bytes]) -> Header:
    """Read the header and leave the file where the pack begins.

    Raises: BundleRefused.
    """
    lines = _Lines(file)
    version = lines.next()
    if version not in {_V2, _V3}:
        raise errors.BundleRefused("it does not begin as a git bundle does")
    object_format = ObjectFormat.SHA1
    prerequisites: list[Oid] = []
    refs: list[tuple[Oid, str]] = []
    while (line := lines.next()) != b"\n":
        if line.startswith(b"@"):
            if version == _V2 or prerequisites or refs:
                raise errors.BundleRefused("a capability is not where one can be")
            object_format = _capability(line)
        elif line.startswith(b"-"):
            if refs or len(prerequisites) == MAX_PREREQUISITES:
                raise errors.BundleRefused(
                    "a prerequisite comes behind a ref"
                    if refs
                    else f"it has more than {MAX_PREREQUISITES} prerequisites"
                )
            prerequisites.append(_oid(line[1:], object_format))
        elif refs:
            raise errors.BundleRefused("it brings more than one ref")
        else:
            refs.append((_oid(line, object_format), _ref(line[object_format.digits :])))
    if not refs:
        raise errors.BundleRefused("it brings no ref")
    [(tip, ref)] = refs
    return Header(object_format, tuple(dict.fromkeys(prerequisites)), ref, tip)


class _Lines:
    """The lines of a header, as long as they are one's."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left = MAX_BYTES

    def next(self) -> bytes:
        line = self._file.readline(self._left)
        self._left -= len(line)
        if line.endswith(b"\n"):
            return line
        if self._left:
            raise errors.BundleRefused("it ends within its header")
        raise errors.BundleRefused(f"its header is longer than {MAX_BYTES} bytes")


def _capability(line: bytes) -> ObjectFormat:
    for known in ObjectFormat:
        if line == b"@object-format=%s\n" % known.encode():
            return known
    raise errors.BundleRefused(f"it needs {line[:80].strip()!r}, which is not understood")


def _oid(line: bytes, object_format: ObjectFormat) -> Oid:
    text = line[: object_format.digits].decode("ascii", "replace")
    if not (len(text) == object_format.digits and names.is_oid(text)):
        raise errors.BundleRefused(f"{line[:80].strip()!r} names no {object_format} object")
    if line[object_format.digits : object_format.digits + 1] not in {b" ", b"\n"}:
        raise errors.BundleRefused(f"{line[:80].strip()!r} names no {object_format} object")
    return Oid(text)


def _ref(rest: bytes) -> str:
    try:
        name = rest.removeprefix(b" ").removesuffix(b"\n").decode()
    except UnicodeDecodeError:
        raise errors.BundleRefused("the name of its ref is no UTF-8") from None
    if fault := names.find_fault(name):
        raise errors.BundleRefused(f"the name of its ref, {name[:80]!a}, {fault}")
    return name
