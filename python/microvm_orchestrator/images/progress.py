"""How far a build is: said to whoever asked for it, who may show or store it."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class Stage(StrEnum):
    """The steps of a build in their order; one may be skipped."""

    INDEX = "index"
    RESOLVE = "resolve"
    DOWNLOAD = "download"
    UNPACK = "unpack"
    COMPILE = "compile"
    PACK = "pack"
    STORE = "store"


# Stage, how much of it is done, of how much (bytes for a download, things for the rest). Called on
# the event loop; it must not block.
Progress = Callable[[Stage, int, int], None]


def silent(_stage: Stage, _done: int, _total: int) -> None:
    """For who does not want to know."""
