"""Trees of files that were registered to be brought to machines: named by what they hold.

The name is the digest of the lines `path:sha256`, one for each file in its order, as vmcluster-mcp
makes it: the same files under the same paths are the same tree, wherever they came from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from microvm_orchestrator.model.artifact import PREFIX, LeftOut
from microvm_orchestrator.model.values import Int, Json, Moment

# The kind of record they are stored as.
ARTIFACT_TREE = "artifact_tree"
MAX_FILES = 100_000
# What a record tells by name; the rest are counted.
MAX_TOLD = 1000

# With what precedes the digits, or without.
TreeRef = Annotated[str, Field(pattern=r"^(sha256:)?[0-9a-f]{64}$")]
Release = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+~-]{0,127}$")]


class BuildType(StrEnum):
    """What a tree is of use for."""

    # Modules, to be copied.
    RAW_TREE = "raw_tree"
    # It has a Makefile with `install`.
    MAKE_INSTALL = "make_install"
    # It has packages.
    RPM = "rpm"
    DEB = "deb"


class InstallMode(StrEnum):
    """How a tree is installed in a node."""

    # Its modules where modprobe finds them.
    MODPROBE_PATH = "modprobe_path"
    MAKE_INSTALL = "make_install"
    RPM = "rpm"
    DEB = "deb"


USUAL_MODE = {
    BuildType.RAW_TREE: InstallMode.MODPROBE_PATH,
    BuildType.MAKE_INSTALL: InstallMode.MAKE_INSTALL,
    BuildType.RPM: InstallMode.RPM,
    BuildType.DEB: InstallMode.DEB,
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TreeFile(_Part):
    """A file of a tree."""

    path: str
    size: Int
    digest: str
    executable: bool = False


class ArtifactTree(_Part):
    """A tree of files that is kept by this host."""

    artifact_id: str = Field(description="sha256: and 64 digits, of its paths and what they hold")
    owner: str
    source_path: str = Field(description="the folder of this host that it was read from")
    build_type: BuildType
    kernel_version: str | None = Field(description="that its modules are for; null: not known")
    modules: list[str] = Field(description="paths of its kernel modules, the first 1000")
    userspace_bins: list[str] = Field(description="paths of its programs, the first 1000")
    test_framework_path: str | None = None
    git_sha: str | None = Field(description="of HEAD where it was read; null: in no work tree")
    git_branch: str | None
    files: Int
    size: Int = Field(description="of its files together")
    left_out: list[LeftOut] = Field(description="what is no file, nor a link to one of the tree")
    metadata: Json = None
    listing: str = Field(description="the digest of the list of its files")
    registered_at: Moment


class ArtifactDiff(_Part):
    """What two trees have that is not the same."""

    artifact_id_a: str
    artifact_id_b: str
    changed_modules: list[str] = Field(description="kernel modules: changed, added or gone")
    changed_bins: list[str] = Field(description="programs: changed, added or gone")
    added: list[str] = Field(description="paths that only the second has")
    removed: list[str] = Field(description="paths that only the first has")
    changed: list[str] = Field(description="paths that hold something else")
    truncated: bool = Field(description="more differ than is told; each list has its first 1000")
    git_log: list[str] | None = Field(
        description="commits of the second that the first has not, newest first; null where the "
        "repository is not there any more, or they come from none"
    )


FILES = TypeAdapter(list[TreeFile])


def tree_digest(files: Iterable[TreeFile]) -> str:
    """Give the name of a tree."""
    ordered = sorted(files, key=lambda each: _place(each.path))
    lines = [f"{each.path}:{each.digest.removeprefix(PREFIX)}" for each in ordered]
    return PREFIX + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _place(path: str) -> list[tuple[bool, str]]:
    """Tell where a file stands: behind its folder's own come those of the folders in it."""
    *folders, name = path.split("/")
    return [*((True, folder) for folder in folders), (False, name)]


def is_module(path: str) -> bool:
    return path.endswith((".ko", ".ko.xz", ".ko.gz", ".ko.zst"))


def referred(reference: str) -> str:
    """Give a tree's whole name."""
    return PREFIX + reference.removeprefix(PREFIX)
