"""What Git LFS would commit in place of a file, without running it.

A file that `.gitattributes` gives to the filter `lfs` is committed as a pointer: its digest and
size in three lines. That is simple enough to be made here, so no program that a repository's
configuration names has to run for it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FILTER = "lfs"
_VERSION = b"version https://git-lfs.github.com/spec/v1\n"
# Longer ones are no pointers, says the specification.
_MAX_POINTER = 1024


def pointer_of(path: Path) -> bytes:
    """Give what is committed for a file; nothing is, and a pointer stands for itself."""
    with path.open("rb") as file:
        head = file.read(_MAX_POINTER)
        if not head or (len(head) < _MAX_POINTER and head.startswith(_VERSION)):
            return head
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    return _VERSION + f"oid sha256:{digest}\nsize {size}\n".encode()
