"""Artifacts as callers name and read them: files that a run leaves behind beside its commits.

A content is named by its digest. What asks for files of a guest is a pattern; whether a name fits
one is decided here and nowhere else, in steps that no name and no pattern can make many.
"""

from __future__ import annotations

import fnmatch
import re
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from microvm_orchestrator.model.values import Int, Line

# Of one run: what is asked for, what is kept of files, and what is told of those that are not.
MAX_PATTERNS = 64
MAX_ARTIFACTS = 256
MAX_LEFT_OUT = 50
# A path in a guest may be longer; a file with such a name is left out.
MAX_NAME = 1000

PREFIX = "sha256:"
DIGEST = re.compile(PREFIX + r"[0-9a-f]{64}")
# In a pattern, any number of folders.
_DEEP = "**"
_WILD = re.compile(r"[*?\[]")


class ArtifactKind(StrEnum):
    """Where an artifact comes from."""

    # A file of the guest that was asked for.
    FILE = "file"
    # What a program changed and did not commit.
    PATCH = "patch"
    # What the machine wrote to its console.
    CONSOLE = "console"


# By these names runs keep what is not a file of their guests.
OWN_NAMES = {ArtifactKind.PATCH: "rest.patch", ArtifactKind.CONSOLE: "console.log"}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Artifact(_Part):
    """A file that a run left behind."""

    name: str = Field(
        description="its path: relative to the work tree, or absolute; console.log and rest.patch "
        "are the run's own"
    )
    size: Int
    digest: str = Field(description="sha256: and 64 digits, of what it holds")
    kind: ArtifactKind = ArtifactKind.FILE
    media_type: str = "application/octet-stream"


class LeftOut(_Part):
    """What was asked for and is not there."""

    name: str = Field(description="of a file, or the pattern that asked for it")
    reason: str


def _checked(pattern: str) -> str:
    if not pattern.isprintable():
        raise ValueError("has a control character")
    if any(part in {".", ".."} for part in _parts(pattern)):
        raise ValueError("names . or .., which no path here has")
    if not _parts(pattern):
        raise ValueError("names no file")
    return pattern


Pattern = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_checked)]
Patterns = Annotated[list[Pattern], Field(max_length=MAX_PATTERNS)]
# A digest, or a task and the name of an artifact of its last run.
Reference = Annotated[Line, Field(pattern=r"^(sha256:[0-9a-f]{64}|[^/]+/.+)$")]


class Glob:
    """A pattern, and what it says of where to look.

    As in a shell with `**`. One without wildcards, or with a slash at its end, stands for all that
    a folder holds.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.absolute = pattern.startswith("/")
        parts = _parts(pattern)
        fixed = next((at for at, part in enumerate(parts) if _WILD.search(part)), len(parts))
        self._fixed = parts[:fixed]
        self._plain = fixed == len(parts)
        if self._plain or (pattern.endswith("/") and parts[-1] != _DEEP):
            parts.append(_DEEP)
        self._wanted = parts

    @property
    def folder(self) -> str:
        """What everything that fits lies below, or is."""
        return self._path(self._fixed)

    @property
    def depth(self) -> int | None:
        """How far below the folder it reaches; None for any depth."""
        return None if _DEEP in self._wanted else len(self._wanted) - len(self._fixed)

    @property
    def wide(self) -> tuple[str, str]:
        """Write two patterns for `find -path`, whose `*` passes slashes: all that fits fits one."""
        below = self._path([_widened(part) for part in self._wanted]).replace("*/", "*")
        below = re.sub(r"\*+", "*", below)
        itself = self._path([_widened(part) for part in self._fixed])
        return below, itself if self._plain else below

    def fits(self, name: str) -> bool:
        """Whether a path is asked for: absolute, or relative to the work tree."""
        if name.startswith("/") != self.absolute:
            return False
        names = _parts(name)
        return (self._plain and names == self._fixed) or _fits(names, self._wanted)

    def _path(self, parts: list[str]) -> str:
        return "/" + "/".join(parts) if self.absolute else "/".join([".", *parts])


def find_media_type(name: str) -> str:
    """Tell what a file is by the end of its name, where that is beyond doubt."""
    return _MEDIA.get(name.rpartition("/")[2].rpartition(".")[2].lower(), _OCTETS)


_OCTETS = "application/octet-stream"
_ENDINGS = {
    "text/plain": "txt log md diff patch tap",
    "text/csv": "csv",
    "text/html": "html",
    "application/json": "json",
    "application/xml": "xml",
    "application/pdf": "pdf",
    "application/zip": "zip whl",
    "application/gzip": "gz tgz",
    "application/x-tar": "tar",
    "application/x-xz": "xz",
    "application/zstd": "zst",
    "image/png": "png",
    "image/jpeg": "jpg jpeg",
    "image/gif": "gif",
    "image/svg+xml": "svg",
    "image/webp": "webp",
}
_MEDIA = {ending: kind for kind, endings in _ENDINGS.items() for ending in endings.split()}


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _widened(part: str) -> str:
    """Write one name of a pattern with no wildcard but `*`, and everything else as it is."""
    wide = ""
    at = 0
    while at < len(part):
        # The first letter of a class may be its end's.
        begin = at + 2 if part.startswith("[!", at) else at + 1
        if part[at] == "[" and (end := part.find("]", begin + 1)) > 0:
            wide += "*"
            at = end + 1
            continue
        wide += "*" if part[at] in "*?" else re.sub(r"[\[\]\\]", r"\\\g<0>", part[at])
        at += 1
    return wide


def _fits(names: list[str], wanted: list[str]) -> bool:
    """Match name by name; of each `**` only the last is ever tried again, so no name takes long."""
    here = there = 0
    resume: tuple[int, int] | None = None
    while here < len(names):
        if there < len(wanted) and wanted[there] == _DEEP:
            if there == len(wanted) - 1:
                return True
            resume = (here, there)
            there += 1
        elif there < len(wanted) and fnmatch.fnmatchcase(names[here], wanted[there]):
            here += 1
            there += 1
        elif resume is not None:
            here, there = resume[0] + 1, resume[1] + 1
            resume = (here, resume[1])
        else:
            return False
    return there == len(wanted)
