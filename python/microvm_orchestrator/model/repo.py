"""Registered repositories as callers know them, and what their runs have where nothing is said."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from microvm_orchestrator.model.run import Branch, Devshell, DriverName, Merge, Rest
from microvm_orchestrator.model.values import Line, Moment, Name, Text

# The kind of record they are stored as.
REPO = "repo"


MemoryMib = Annotated[int, Field(strict=True, ge=64, le=1 << 20)]
Vcpus = Annotated[int, Field(strict=True, ge=1, le=256)]
DiskMib = Annotated[int, Field(strict=True, ge=16, le=1 << 24)]
TimeoutS = Annotated[float, Field(strict=True, gt=0, le=2_592_000)]
Checkout = Literal["update", "leave"]
HostRules = Annotated[list[Line], Field(max_length=256)]
HostPath = Annotated[str, Field(min_length=1, max_length=4096)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RepoDefaults(_Part):
    """What a run on a repository has where its task says nothing; None: as this host has it."""

    branch: Branch | None = Field(
        default=None, description="where runs start; by default what the repository's HEAD names"
    )
    image: Line | None = Field(default=None, description="name or digest of the guest image")
    memory_mib: MemoryMib | None = None
    vcpus: Vcpus | None = None
    disk_mib: DiskMib | None = None
    timeout_s: TimeoutS | None = None
    driver: DriverName | None = None
    model: Line | None = None
    merge: Merge = Merge.AUTO
    check: Text | None = Field(
        default=None,
        description="a shell text that what was merged must pass before the branch moves, run in a "
        "machine of its own; none: nothing is checked",
    )
    checkout: Checkout = Field(
        default="update",
        description="whether a branch that is checked out is moved, where that is a clean "
        "fast-forward of the work tree too; leave: such a merge is refused",
    )
    devshell: Devshell = Devshell.AUTO
    rest: Rest = Rest.PATCH
    egress: HostRules = Field(
        default=[],
        description="hosts that every run on it may reach, as host, host:port or *.domain",
    )


class RepoChanges(RepoDefaults):
    """What to change of a repository: only what is set, also to nothing."""

    alias: Name | None = None
    path: HostPath | None = Field(
        default=None, description="where it is now, if it has moved: an absolute path"
    )


class Repo(_Part):
    """A repository that runs may be started on."""

    repo_id: str
    alias: str = Field(description="the only name by which clients speak of it")
    path: str
    owner: str
    object_format: Literal["sha1", "sha256"]
    defaults: RepoDefaults = RepoDefaults()
    added_at: Moment = Field(description="when it was added, or added again, last")
