"""Artifacts that are trees: registered from a folder of this host, listed, compared, removed.

Above are the front ends; below, the trees of this host.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, JsonValue

from microvm_orchestrator.artifact_trees import Wanted
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.artifact_tree import (
    ARTIFACT_TREE,
    ArtifactDiff,
    ArtifactTree,
    BuildType,
    Release,
    TreeFile,
    TreeRef,
)
from microvm_orchestrator.model.operation import Operation
from microvm_orchestrator.model.records import Record
from microvm_orchestrator.model.repo import HostPath
from microvm_orchestrator.model.values import Int, Json, Line
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.operations import USUAL_WAIT_S, WaitS, long_call
from microvm_orchestrator.service.page import ListRequest, PageOf
from microvm_orchestrator.service.records import page_of
from microvm_orchestrator.service.service import Service, actor

if TYPE_CHECKING:
    from microvm_orchestrator.operations import Report

_USUAL_FILES = 200
_MOST_FILES = 2000


class RegisterArtifact(Request):
    """A tree to register."""

    path: HostPath = Field(description="a folder of this host: an absolute path")
    build_type: BuildType = Field(
        default=BuildType.RAW_TREE, description="how it is installed where nothing is said"
    )
    kernel_version: Release | None = Field(
        default=None,
        description="the release that its modules are for; by default what its "
        "include/generated/utsrelease.h says",
    )
    test_framework_path: Line | None = Field(
        default=None, description="where its tests are; kept as it is"
    )
    metadata: Json = Field(default=None, description="of your own, kept as it is")
    wait_s: WaitS = USUAL_WAIT_S


class NamedTree(Request):
    """An artifact."""

    artifact_id: TreeRef = Field(description="its digest, with sha256: before it or without")


class ShowTree(NamedTree):
    """An artifact, and which of its files to list."""

    offset: Annotated[int, Field(strict=True, ge=0, le=1 << 31)] = 0
    limit: Annotated[int, Field(strict=True, ge=0, le=_MOST_FILES)] = _USUAL_FILES


class CompareTrees(NamedTree):
    """Two artifacts."""

    other: TreeRef = Field(description="the one that it is compared with")


class ArtifactTreeInfo(Answer):
    """An artifact and some of its files."""

    artifact: ArtifactTree
    files: list[TreeFile]
    offset: Int
    next: Int | None = Field(description="where its list goes on; null at its end")


class ArtifactRemoved(Answer):
    """The artifact that is gone."""

    artifact_id: str


@declare("artifact_register", "POST /v1/artifacts", role=Role.ADMIN, idempotent=True, waits=True)
async def artifact_register(
    service: Service, caller: Caller, request: RegisterArtifact
) -> Operation:
    """Take a folder of this host in as an artifact, to be brought to nodes of clusters.

    Its name is the digest of its paths and of what its files hold, so the same tree has the same
    name. All of it is kept, and what becomes of the folder is of no matter. Folders named .git and
    __pycache__ are left out; a link counts as the file it leads to, where that is in the tree. The
    operation's result is the artifact.
    """
    by = actor(caller, "artifact_register")
    wanted = Wanted(
        folder=Path(request.path),
        build_type=request.build_type,
        kernel_version=request.kernel_version,
        test_framework_path=request.test_framework_path,
        metadata=request.metadata,
    )

    async def work(report: Report) -> JsonValue:
        await report(None, "reads the folder")
        tree = await service.host.trees.register(wanted, by)
        return tree.model_dump(mode="json")

    target = request.path[:200]
    return await long_call(service, caller, "artifact_register", target, request.wait_s, work)


@declare("artifact_trees", "GET /v1/artifacts", role=Role.VIEWER, effect=Effect.READ)
async def artifact_trees(
    service: Service, caller: Caller, request: ListRequest
) -> PageOf[ArtifactTree]:
    """List the artifacts that were registered: yours, or all if you see everything."""
    by = actor(caller, "artifact_trees")

    async def shown(record: Record) -> ArtifactTree | None:
        tree = ArtifactTree.model_validate(record.body)
        return tree if by.sees_of(tree.owner) else None

    items, cursor = await page_of(service.store, ARTIFACT_TREE, request, by, shown)
    return PageOf[ArtifactTree](items=items, next_cursor=cursor)


@declare("artifact_show", "GET /v1/artifacts/{artifact_id}", role=Role.VIEWER, effect=Effect.READ)
async def artifact_show(service: Service, caller: Caller, request: ShowTree) -> ArtifactTreeInfo:
    """Look at an artifact that was registered, and at its files."""
    trees = service.host.trees
    tree = await trees.get(request.artifact_id, actor(caller, "artifact_show"))
    files = await trees.files(tree)
    end = request.offset + request.limit
    return ArtifactTreeInfo(
        artifact=tree,
        files=files[request.offset : end],
        offset=request.offset,
        next=end if end < len(files) else None,
    )


@declare(
    "artifact_diff", "GET /v1/artifacts/{artifact_id}/diff", role=Role.VIEWER, effect=Effect.READ
)
async def artifact_diff(service: Service, caller: Caller, request: CompareTrees) -> ArtifactDiff:
    """Compare two artifacts as they were registered: modules, programs, files and commits."""
    by = actor(caller, "artifact_diff")
    return await service.host.trees.diff(request.artifact_id, request.other, by)


@declare(
    "artifact_remove", "DELETE /v1/artifacts/{artifact_id}", role=Role.ADMIN, effect=Effect.DESTROY
)
async def artifact_remove(service: Service, caller: Caller, request: NamedTree) -> ArtifactRemoved:
    """Forget an artifact that was registered; what nodes have of it they keep."""
    by = actor(caller, "artifact_remove")
    gone = await service.host.trees.remove(request.artifact_id, by)
    return ArtifactRemoved(artifact_id=gone.artifact_id)


CALLS: tuple[Call, ...] = (
    artifact_register,
    artifact_trees,
    artifact_show,
    artifact_diff,
    artifact_remove,
)
