"""Repositories that runs work on: registered by path once, and spoken of by alias ever after.

Only who may do everything names a path of this host. Above are the front ends; below, the
repositories of this host.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from microvm_orchestrator import errors
from microvm_orchestrator.git.upstream import Kind, Upstream
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.records import Record
from microvm_orchestrator.model.repo import (
    REPO,
    Checkout,
    DiskMib,
    HostPath,
    HostRules,
    MemoryMib,
    Repo,
    RepoChanges,
    RepoDefaults,
    TimeoutS,
    Vcpus,
)
from microvm_orchestrator.model.run import Branch, Devshell, DriverName, Merge, Rest
from microvm_orchestrator.model.values import Flag, Line, Name, Text
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.page import ListRequest, PageOf
from microvm_orchestrator.service.records import page_of
from microvm_orchestrator.service.service import Service, actor

# Enough to see what is kept; the number of all is told beside them.
_TOLD = 200

Setting = Literal[
    "branch",
    "image",
    "memory_mib",
    "vcpus",
    "disk_mib",
    "timeout_s",
    "driver",
    "model",
    "merge",
    "check",
    "checkout",
    "devshell",
    "rest",
    "egress",
]


class RepoSettings(Request):
    """What a run on a repository has where its task says nothing; what is null is left as it is."""

    branch: Branch | None = Field(
        default=None, description="where runs start; else what the repository's HEAD names"
    )
    image: Line | None = Field(default=None, description="name or digest of the guest image")
    memory_mib: MemoryMib | None = None
    vcpus: Vcpus | None = None
    disk_mib: DiskMib | None = None
    timeout_s: TimeoutS | None = Field(default=None, description="how long a program may take")
    driver: DriverName | None = Field(default=None, description="which agent; else claude")
    model: Line | None = Field(default=None, description="of the agent, as the agent names it")
    merge: Merge | None = Field(
        default=None,
        description="what becomes of commits. auto: fast-forward, else rebase, else a conflict "
        "that is kept; squash: all as one; branch: only tasks/<task_id>; review: as auto, once "
        "run_approve says so; manual: kept as refs/tasks/<task_id>. Else auto",
    )
    check: Text | None = Field(
        default=None,
        description="a shell text that what was merged must pass in a machine of its own, before "
        "the branch moves; else nothing is checked",
    )
    checkout: Checkout | None = Field(
        default=None,
        description="update: a branch that is checked out is moved, with its work tree, where "
        "nothing of yours is in the way; leave: such a merge is refused. Else update",
    )
    devshell: Devshell | None = Field(
        default=None,
        description="whether programs run in the development shell of the flake; else auto",
    )
    rest: Rest | None = Field(
        default=None, description="what becomes of changes without a commit; else a patch"
    )
    egress: HostRules | None = Field(
        default=None,
        description="hosts that every run on it may reach, as host, host:port or *.domain",
    )


class AddRepo(RepoSettings):
    """A repository to register."""

    path: HostPath = Field(description="the top of the repository on this host: an absolute path")
    alias: Name | None = Field(
        default=None,
        description="what it is called; by default its folder's name, with a number if need be",
    )


class UpdateRepo(RepoSettings):
    """What to change of a repository."""

    repo: Annotated[str, Field(min_length=1, max_length=100)] = Field(description="alias or id")
    alias: Name | None = Field(default=None, description="what it is called from now on")
    path: HostPath | None = Field(default=None, description="where it is now, if it has moved")
    unset: Annotated[list[Setting], Field(max_length=100)] = Field(
        default=[], description="defaults to be again as for a repository that was just added"
    )


class NamedRepo(Request):
    """A repository."""

    repo: Annotated[str, Field(min_length=1, max_length=100)] = Field(description="alias or id")


class RemoveRepo(NamedRepo):
    """A repository to forget."""

    drop_unmerged: Flag = Field(
        default=False, description="also when commits of tasks are lost that were not merged"
    )


class RepoCheckout(Answer):
    """A work tree of a repository."""

    path: str
    branch: str | None = Field(description="null: detached")
    commit: str | None
    under_way: str | None = Field(description="rebase, merge and the like")


class RepoFacts(Answer):
    """A user's repository as it is now."""

    kind: Kind = Field(
        description="linked: a further work tree of a repository that lies elsewhere"
    )
    branch: str | None = Field(description="what HEAD names; null: detached")
    default_branch: str | None = Field(description="where runs start that name nothing")
    head: str | None = Field(description="null: there is no commit yet")
    empty: bool
    dirty: bool = Field(description="the work tree has changes that were not committed")
    submodules: bool
    lfs: bool
    checkouts: list[RepoCheckout]


class UnmergedRef(Answer):
    """Commits of a task that were not merged, and are kept by this host."""

    ref: str
    commit: str


class RepoInfo(Answer):
    """A repository, how it is now, and what is kept of it."""

    repo: Repo
    facts: RepoFacts | None
    problem: str | None = Field(description="why there are no facts, and no run can start")
    unmerged: list[UnmergedRef] = Field(
        description="commits of tasks that this host alone has; the first 200"
    )
    unmerged_count: int


class RepoList(PageOf[Repo]):
    """Repositories, oldest first."""


class RepoRemoved(Answer):
    """The repository that is forgotten."""

    repo_id: str
    alias: str


@declare("repo_add", "POST /v1/repos", role=Role.ADMIN, idempotent=True)
async def repo_add(service: Service, caller: Caller, request: AddRepo) -> Repo:
    """Register a git repository of this host, so that runs may be started on it by its alias.

    It may be bare, a linked work tree or empty; a shallow or partial clone is refused. Nothing in
    it is changed. One that is registered keeps its alias and defaults but for those given now.
    """
    defaults = RepoDefaults.model_validate(_given(request))
    by = actor(caller, "repo_add")
    return await service.host.repos.add(Path(request.path), request.alias, defaults, by)


@declare("repo_update", "PATCH /v1/repos/{repo}", role=Role.ADMIN, idempotent=True)
async def repo_update(service: Service, caller: Caller, request: UpdateRepo) -> Repo:
    """Change a repository's alias or defaults, or say where it is after it was moved.

    What is not given stays as it is, and `unset` lists what is to be as if it was never given.
    """
    usual = RepoDefaults()
    changes = {name: getattr(usual, name) for name in request.unset} | _given(request)
    changes |= {"alias": request.alias, "path": request.path}
    by = actor(caller, "repo_update")
    wanted = RepoChanges.model_validate(changes)
    return await service.host.repos.update(request.repo, wanted, by)


@declare("repo_get", "GET /v1/repos/{repo}", role=Role.VIEWER, effect=Effect.READ)
async def repo_get(service: Service, caller: Caller, request: NamedRepo) -> RepoInfo:
    """Look at a repository: its defaults, how it is now, and what was not merged into it."""
    repos = service.host.repos
    repo = await repos.get(request.repo, actor(caller, "repo_get"))
    facts, problem = None, None
    try:
        facts = _facts(await repos.look(repo))
    except errors.OrchestratorError as error:
        problem = error.message
    refs = sorted((await repos.unmerged(repo)).items())
    return RepoInfo(
        repo=repo,
        facts=facts,
        problem=problem,
        unmerged=[UnmergedRef(ref=ref, commit=oid) for ref, oid in refs[:_TOLD]],
        unmerged_count=len(refs),
    )


@declare("repo_list", "GET /v1/repos", role=Role.VIEWER, effect=Effect.READ)
async def repo_list(service: Service, caller: Caller, request: ListRequest) -> RepoList:
    """List repositories, oldest first: yours, or all if you see everything."""
    by = actor(caller, "repo_list")

    async def shown(record: Record) -> Repo | None:
        repo = Repo.model_validate(record.body)
        return repo if by.sees_of(repo.owner) else None

    items, cursor = await page_of(service.store, REPO, request, by, shown)
    return RepoList(items=items, next_cursor=cursor)


@declare("repo_remove", "DELETE /v1/repos/{repo}", role=Role.ADMIN, effect=Effect.DESTROY)
async def repo_remove(service: Service, caller: Caller, request: RemoveRepo) -> RepoRemoved:
    """Forget a repository; the repository itself is not touched.

    Refused while a run works on it, or while this host alone has commits of its tasks that were
    not merged: the refusal names them, and `drop_unmerged` loses them.
    """
    by = actor(caller, "repo_remove")
    removed = await service.host.repos.remove(request.repo, by, drop_unmerged=request.drop_unmerged)
    return RepoRemoved(repo_id=removed.repo_id, alias=removed.alias)


def _given(request: RepoSettings) -> dict[str, object]:
    return request.model_dump(include=set(RepoSettings.model_fields), exclude_none=True)


def _facts(found: Upstream) -> RepoFacts:
    return RepoFacts(
        kind=found.kind,
        branch=found.branch,
        default_branch=found.default_branch,
        head=found.head,
        empty=found.empty,
        dirty=found.dirty,
        submodules=found.submodules,
        lfs=found.lfs,
        checkouts=[
            RepoCheckout(
                path=str(each.path),
                branch=each.branch,
                commit=each.commit,
                under_way=each.under_way,
            )
            for each in found.checkouts
        ],
    )


CALLS: tuple[Call, ...] = (repo_add, repo_update, repo_get, repo_list, repo_remove)
