"""The history a guest is given: one commit's and no other, without what it has already.

The pack is made by git; the header in front of it by us, because `git bundle create` takes its
names from refs and a guest is to learn none but its own. Above stands whoever fills a guest; below,
mirror.py.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import anyio.to_thread

from microvm_orchestrator.git import names
from microvm_orchestrator.git.command import LONG_S, git, line
from microvm_orchestrator.git.header import MAX_PREREQUISITES, Header

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from microvm_orchestrator.git.mirror import Mirror
    from microvm_orchestrator.git.names import Oid

_WORDS = ("pack-objects", "--revs", "--thin", "--stdout", "--delta-base-offset", "--quiet")


@dataclass(frozen=True, slots=True)
class Written:
    """How much there was to send; nothing, and no file, if the receiver has it all."""

    commits: int
    size: int


async def write(mirror: Mirror, to: Path, *, want: Oid, ref: str, have: Sequence[Oid]) -> Written:
    """Write a new file with what is reachable from `want` and from nothing in `have`.

    The receiver finds it under the name `ref`. Of `have`, which is what the receiver says that it
    has, commits we do not know are passed over. On failure there is no file.

    Raises: InvalidInput for a bad name, FileExistsError, CommandFailed.
    """
    header = Header(
        await mirror.object_format(),
        tuple(await _known(mirror, have)),
        names.check(ref),
        names.as_oid(want),
    )
    tips = [f"^{oid}" for oid in header.prerequisites]
    commits = int(await line("rev-list", "--count", want, *tips, at=mirror.path, timeout_s=LONG_S))
    if commits == 0:
        return Written(0, 0)
    asked = "".join(f"{tip}\n" for tip in [want, *tips]).encode()
    file = await anyio.to_thread.run_sync(partial(to.open, "xb", buffering=0))
    try:
        with file:
            file.write(header.write())
            await git(*_WORDS, at=mirror.path, stdin=asked, stdout=file, timeout_s=LONG_S)
            return Written(commits, file.seek(0, 2))
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            to.unlink()  # noqa: ASYNC240 - nothing may come between a failure and this
        raise


async def _known(mirror: Mirror, have: Sequence[Oid]) -> list[Oid]:
    """Leave what is a commit here, each once, and not more than a header may have."""
    asked = list(dict.fromkeys(names.as_oid(oid) for oid in have))[:MAX_PREREQUISITES]
    if not asked:
        return []
    words = ["cat-file", "--batch-check=%(objecttype)"]
    done = await git(*words, at=mirror.path, stdin="".join(f"{oid}\n" for oid in asked).encode())
    kinds = done.stdout.splitlines()
    return [oid for oid, kind in zip(asked, kinds, strict=True) if kind == b"commit"]
