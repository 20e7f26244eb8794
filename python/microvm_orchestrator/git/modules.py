"""Where the submodules of a bundle would be fetched from, if somebody did.

We never do, but whoever merges the result may: `.gitmodules` decides what their git then runs. What
names another host plainly, or is relative to the repository itself, may come in; a local path, a
transport helper and an option dressed as an address may not, unless they were there before. Above
stands content.py.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from microvm_orchestrator import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from microvm_orchestrator.git.held import Held
    from microvm_orchestrator.git.names import Oid

_SCHEMES = ("https://", "http://", "ssh://", "git://", "git+ssh://")
_HOST = r"(?:[\w.+~%-]+(?::[^@/\s]*)?@)?(?:[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.]+\])"
_ADDRESS = re.compile(rf"(?:{'|'.join(map(re.escape, _SCHEMES))}){_HOST}(?::\d*)?(?:/.*)?")
# user@host:path, where the path is no option either.
_SCP = re.compile(r"(?:[A-Za-z0-9_][\w.+-]*@)?[A-Za-z0-9][A-Za-z0-9._-]*:(?![:/-]|//)[^:].*")
_RELATIVE = re.compile(r"\.\.?(?:/(?!.*::).*)?")

MAX_FILES = 100
MAX_BYTES = 1 << 18


async def check(held: Held, came: Mapping[Oid, int], base: Oid | None) -> None:
    """Raises: BundleRefused when a `.gitmodules` that came names what must not be fetched from."""
    if not came:
        return
    if len(came) > MAX_FILES:
        raise errors.BundleRefused(f"it brings more than {MAX_FILES} versions of .gitmodules")
    before = await _read(held, f"{base}:.gitmodules") if base else set[tuple[str, str]]()
    for oid, size in came.items():
        if size > MAX_BYTES:
            raise errors.BundleRefused(f".gitmodules has {size} bytes and may have {MAX_BYTES}")
        for key, value in sorted(await _read(held, oid, required=True) - before):
            if key.endswith(".url") and (fault := find_fault(value)):
                raise errors.BundleRefused(
                    f".gitmodules has the url {value[:120]!a}, which {fault}"
                )
            if key.endswith(".update") and value.startswith("!"):
                raise errors.BundleRefused(".gitmodules names a command to be run")


async def _read(held: Held, blob: str, *, required: bool = False) -> set[tuple[str, str]]:
    words = ["config", "-z", "--list", f"--blob={blob}"]
    done = await held.git(*words, ok=(0,) if required else (0, 1, 128), cap=2 * MAX_BYTES)
    entries = done.stdout.decode(errors="replace").split("\0")[:-1]
    return {(key, value) for key, _, value in (entry.partition("\n") for entry in entries)}


def find_fault(url: str) -> str | None:
    """Say what keeps this from being where a submodule comes from; nothing may."""
    if not url.isprintable():
        return "has characters that cannot be printed"
    if url.startswith("-"):
        return "is an option"
    if "::" in url.partition("/")[0]:
        return "names a program to fetch with"
    if any(known.fullmatch(url) for known in (_ADDRESS, _SCP, _RELATIVE)):
        return None
    return "is not the address of another host"
