"""Whether a bundle's history is whole, and made of what the guest sent or was given.

A mirror holds more than a guest was given: other branches, other tasks. Whoever knows an object's
name could put that name in a tree, or a difference to it in a pack, and be sent its content with
the next clone. So what a tip needs is in the pack or in the history of the commits the guest was
given, and so is what git took from the mirror to complete the pack. Nothing else is in the pack.
Above stands incoming.py; below, held.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from microvm_orchestrator import errors
from microvm_orchestrator.git.held import Held, listed
from microvm_orchestrator.git.names import Oid

if TYPE_CHECKING:
    from microvm_orchestrator.git.header import Header

_LIST = ("rev-list", "--objects", "--no-object-names", "--stdin")


async def check_header(held: Held, claimed: Header) -> None:
    """Raises: BundleRefused when it is for another repository, or builds on what was not given."""
    object_format = await held.mirror.object_format()
    if claimed.object_format is not object_format:
        raise errors.BundleRefused(
            f"it names objects by {claimed.object_format}, the repository by {object_format}"
        )
    if not claimed.prerequisites:
        return
    # Asked before anything of the bundle is in sight.
    asked = listed(claimed.prerequisites)
    done = await held.git("cat-file", "--batch-check=%(objecttype)", stdin=asked)
    for oid, kind in zip(claimed.prerequisites, done.stdout.splitlines(), strict=True):
        if kind != b"commit":
            raise errors.BundleRefused(f"it builds on {oid}, which is no commit here")
    if not held.roots or await _beyond(held, claimed.prerequisites):
        raise errors.BundleRefused("it builds on a commit that its guest was not given")


async def _beyond(held: Held, tips: tuple[Oid, ...]) -> bool:
    """Tell whether anything in the history of these is not in that of the roots."""
    asked = listed(tips) + _without(held.roots)
    done = await held.git("rev-list", "--max-count=1", "--stdin", stdin=asked)
    return bool(done.stdout)


async def check(held: Held, claimed: Header) -> None:
    """Raises: BundleRefused when something is missing, or comes from where it must not."""
    needed = await _needed(held, claimed)
    came = set(held.came)
    doubtful = needed ^ came | set(held.added)
    if not doubtful:
        return
    # Nearly always in the trees of the commits themselves; else somewhere in their history.
    for words in ((*_LIST, "--no-walk"), _LIST):
        await _strike_out(held, words, doubtful)
        if not doubtful:
            return
    oid = min(doubtful)
    raise errors.BundleRefused(
        f"it brings {oid}, which its tip does not need"
        if oid in came and oid not in needed
        else f"it uses {oid}, which it neither brings nor was given"
    )


async def _needed(held: Held, claimed: Header) -> set[Oid]:
    """List what the tip needs and the prerequisites do not have; git fails if any is missing."""
    kind = (await held.git("cat-file", "-t", claimed.tip)).stdout.decode().strip()
    if kind != "commit":
        raise errors.BundleRefused(f"its tip is a {kind} and no commit")
    size = (await held.mirror.object_format()).digits + 1
    asked = listed([claimed.tip]) + _without(claimed.prerequisites)
    done = await held.git(*_LIST, stdin=asked, cap=2 * held.room.objects * size)
    if done.truncated:
        raise errors.BundleRefused(f"its tip needs more than {2 * held.room.objects} objects")
    return {Oid(line) for line in done.stdout.decode().split()}


async def _strike_out(held: Held, words: tuple[str, ...], doubtful: set[Oid]) -> None:
    """Take out of the doubtful what is in the history of the roots."""
    if not held.roots:
        return
    path = held.folder.folder / "reachable"
    file = await anyio.to_thread.run_sync(path.open, "wb")
    with file:
        # In the mirror, not in the quarantine: what came vouches for nothing.
        await held.git(*words, stdin=listed(held.roots), stdout=file)

    def strike_out() -> None:
        with path.open() as lines:
            for line in lines:
                doubtful.discard(Oid(line.rstrip("\n")))
                if not doubtful:
                    return

    await anyio.to_thread.run_sync(strike_out)


def _without(oids: tuple[Oid, ...]) -> bytes:
    return "".join(f"^{oid}\n" for oid in oids).encode()
