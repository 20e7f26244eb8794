"""Names of refs and objects, judged by rule before git hears them.

What a client or a guest gives is never an option, never a range and never a revision expression.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NewType

from microvm_orchestrator import errors

# A whole object name in hexadecimal.
Oid = NewType("Oid", str)

_OID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_SHORT_OID = re.compile(r"[0-9a-f]{7,64}")
# Git refuses these anywhere in a ref name: control characters, and what revision expressions use.
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
# A file system holds no longer one, with room for git's ".lock".
_MAX_COMPONENT = 250
_MAX_NAME = 1000


class ObjectFormat(StrEnum):
    """By which hash a repository names its objects."""

    SHA1 = "sha1"
    SHA256 = "sha256"

    @property
    def digits(self) -> int:
        return 40 if self is ObjectFormat.SHA1 else 64

    @property
    def null(self) -> Oid:
        """What stands for no object."""
        return Oid("0" * self.digits)


def is_oid(text: str) -> bool:
    return _OID.fullmatch(text) is not None


def is_short_oid(text: str) -> bool:
    return _SHORT_OID.fullmatch(text) is not None


def as_oid(text: str) -> Oid:
    """Raises: InvalidInput when it is no whole object name."""
    if not is_oid(text):
        raise errors.InvalidInput(f"{text[:80]!a} is no object name")
    return Oid(text)


def find_fault(name: str) -> str | None:
    """Say what keeps this from being the name of a branch, a tag or a ref; nothing may."""
    if not name:
        return "is empty"
    if not _encodes(name):
        return "is no UTF-8"
    if len(name.encode()) > _MAX_NAME:
        return f"is longer than {_MAX_NAME} bytes"
    if found := _FORBIDDEN.search(name):
        return f"contains {found.group()!a}"
    if name == "@":
        return "is what git calls HEAD"
    if name.startswith(("-", "/")):
        return f"starts with {name[0]!a}"
    if name.endswith(("/", ".")):
        return f"ends with {name[-1]!a}"
    for part in name.split("/"):
        if part.startswith(".") or part.endswith(".lock"):
            return f"has a part named {part[:80]!a}"
        if len(part.encode()) > _MAX_COMPONENT:
            return f"has a part longer than {_MAX_COMPONENT} bytes"
    return None


def check(name: str) -> str:
    """Raises: InvalidInput when it cannot be the name of a branch, a tag or a ref."""
    if fault := find_fault(name):
        raise errors.InvalidInput(f"the name {name[:80]!a} {fault}")
    return name


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
