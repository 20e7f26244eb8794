"""Packages taken apart: each becomes a tar in a folder of the build, and that a tree."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import anyio.to_thread

from microvm_orchestrator import proc
from microvm_orchestrator.images.archive import read_tar
from microvm_orchestrator.images.packages import place
from microvm_orchestrator.images.progress import Progress, Stage
from microvm_orchestrator.images.tree import Tree
from microvm_orchestrator.together import together

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from microvm_orchestrator.images.packages import Package

# The largest package of Debian unpacks to a quarter of it. The kernel stops what writes more.
_MAX_BYTES = 8 << 30
_UNPACK_S = 300.0
# Unpacking keeps a core busy for each.
_AT_ONCE = 4


async def unpack(
    wanted: Sequence[tuple[Package, Callable[[str], bool]]],
    kept: Path,
    folder: Path,
    progress: Progress,
) -> list[Tree]:
    """Describe what each package holds, of what is wanted of it, in the order given.

    The trees point into files of `folder`. Raises: CommandFailed, PackageRefused.
    """
    done = 0

    async def one(package: Package, is_wanted: Callable[[str], bool]) -> Tree:
        nonlocal done
        tar = folder / f"{package.name}.tar"
        with tar.open("xb") as out:
            command = ["prlimit", f"--fsize={_MAX_BYTES}", "dpkg-deb", "--fsys-tarfile"]
            await proc.run([*command, place(kept, package)], timeout_s=_UNPACK_S, stdout=out)
        tree = await anyio.to_thread.run_sync(read_tar, tar, is_wanted)
        done += 1
        progress(Stage.UNPACK, done, len(wanted))
        return tree

    return await together([partial(one, *what) for what in wanted], at_once=_AT_ONCE)


def merged(trees: Sequence[Tree]) -> Tree:
    """Lay trees over one another.

    Raises: PackageRefused when two bring different things under one name.
    """
    whole = Tree()
    for tree in trees:
        whole.merge(tree)
    return whole
