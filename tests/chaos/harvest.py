"""Results of many runs that have all come in and wait to be merged.

What a daemon finds that died at that moment: tasks that it holds, a record of each run whose next
step is to merge, a registered repository, and a mirror that has taken in the bundle of each guest.
The next daemon takes all of them up at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from git_repos import Repo, clone_of_bundle, raw
from microvm_orchestrator import places
from microvm_orchestrator.git import bundle
from microvm_orchestrator.git.incoming import take
from microvm_orchestrator.lifecycle.run import Run
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.records import Actor
from microvm_orchestrator.model.repo import RepoDefaults
from microvm_orchestrator.model.run import (
    IN_A_MACHINE,
    MergeOutcome,
    Result,
    RunRecord,
    RunSpec,
    Step,
)
from microvm_orchestrator.model.task import GroupedSpec
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.repos import Repos
from microvm_orchestrator.runs import WORKER
from microvm_orchestrator.store.base import Address, Graph, NewTask, Offer, Ref
from microvm_orchestrator.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from microvm_orchestrator.git.mirror import Mirror
    from microvm_orchestrator.git.names import Oid
    from microvm_orchestrator.model.repo import Repo as Registered
    from microvm_orchestrator.store.base import Store

_USER = Actor("uid:0", Role.ADMIN, "test", "run_start")
_HOST = Actor(WORKER, Role.ADMIN, "run", "run")
ALIAS = "site"
# Whoever holds a lease is a daemon that is away for a moment.
_LEASE_S = 600.0
_TOGETHER = 8
# By this branch a guest finds what it starts from.
_BASE = "refs/heads/task"


@dataclass(frozen=True, slots=True)
class Brought:
    """What one run brings: a commit of this title, with these files."""

    title: str
    files: dict[str, str]


async def bring(state: Path, user: Repo, results: Sequence[Brought]) -> dict[str, Brought]:
    """Let the results come in to a state directory that no daemon uses yet, by their tasks."""
    await anyio.Path(state).mkdir(mode=0o700, parents=True, exist_ok=True)
    store = SqliteStore(state / places.STORE_FILE)
    async with store.opened():
        repos = Repos(store, state / places.REPOS)
        await repos.reconcile()
        repo = await repos.add(user.path, ALIAS, RepoDefaults(), _USER)
        mirror = await repos.fresh(repo)
        spec = {"kind": "script", "script": "true", "repo": ALIAS}
        graph = Graph(
            tuple(
                NewTask(GroupedSpec(title=each.title, run=RunSpec.model_validate(spec)), _LEASE_S)
                for each in results
            )
        )
        submitted = await store.submit(graph, _USER)
        by_task = {task.task_id: each for task, each in zip(submitted.tasks, results, strict=True)}
        base = user.oid("main")
        tips = await _come_in(state / "guest", mirror, base, by_task)
        await _hold(store, repo, base, tips)
    return by_task


async def _come_in(
    folder: Path, mirror: Mirror, base: Oid, results: dict[str, Brought]
) -> dict[str, Oid]:
    """Commit in a guest's clone, and take in a bundle of each commit."""
    await anyio.Path(folder).mkdir()
    await bundle.write(mirror, folder / "sent", want=base, ref=_BASE, have=())
    guest = clone_of_bundle(folder / "repo", folder / "sent")
    raw(guest.path, "fast-import", "--quiet", stdin=_commits(base, results))
    tips: dict[str, Oid] = {}
    together = anyio.CapacityLimiter(_TOGETHER)

    async def one(task_id: str) -> None:
        async with together:
            file = guest.bundle(folder / task_id, f"{base}..{task_id}")
            taken = await take(mirror, file, ref=f"refs/tasks/{task_id}", base=base)
            tips[task_id] = taken.tip
            file.unlink()

    async with anyio.create_task_group() as group:
        for task_id in results:
            group.start_soon(one, task_id)
    return tips


def _commits(base: Oid, results: dict[str, Brought]) -> bytes:
    lines: list[str] = []
    for number, (task_id, each) in enumerate(results.items()):
        lines += [
            f"commit refs/heads/{task_id}",
            f"committer Agent <agent@machine.invalid> {1_700_000_000 + number} +0000",
            f"data {len(each.title.encode())}",
            each.title,
            f"from {base}",
        ]
        for path, text in each.files.items():
            lines += [f"M 100644 inline {path}", f"data {len(text.encode())}", text]
    return "\n".join([*lines, ""]).encode()


async def _hold(store: Store, repo: Registered, base: Oid, tips: dict[str, Oid]) -> None:
    """Claim the tasks as the host does, and write down how far their runs have come."""
    offer = Offer(WORKER, frozenset({IN_A_MACHINE}), count=len(tips), lease_s=_LEASE_S)
    claimed = await store.claim(offer, _HOST)
    assert len(claimed.tasks) == len(tips), claimed.verdict
    for task, lease in claimed.tasks:
        assert task.run is not None
        record = RunRecord(
            run_id=f"{task.task_id}.{task.attempt}",
            task_id=task.task_id,
            owner=task.owner,
            repo_id=repo.repo_id,
            base=base,
            tip=tips[task.task_id],
            result=Result(success=True),
            merge=MergeOutcome(into="main"),
            started_at=moment(await store.now()),
        )
        ref = Ref(Address(task.task_id), lease.token, WORKER)
        await Run(task, task.run, ref, record, 0, store).enter(Step.MERGING)
