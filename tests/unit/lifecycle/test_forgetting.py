"""What goes with a task and what stays: records, files, refs, and commits that nobody merged."""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from git_repos import Repo as UserRepo
from git_repos import raw, sample
from microvm_orchestrator.git.mirror import Mirror
from microvm_orchestrator.git.names import Oid
from microvm_orchestrator.lifecycle.forgetting import Forgetting
from microvm_orchestrator.model.records import SYSTEM, Record
from microvm_orchestrator.model.repo import Repo, RepoDefaults
from microvm_orchestrator.model.run import RUN, MergeOutcome, MergeState, RunRecord, Step
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.repos import Repos
from microvm_orchestrator.store.base import Address, CancelTasks, DeleteTask, Keep, Store
from microvm_orchestrator.store.questions import RecordById
from microvm_orchestrator.store.sqlite import SqliteStore
from storing import ALICE, submit, task

# Longer than it takes on a busy machine.
PATIENCE_S = 120
GONE = "t_01k00000000000000000000000"


@dataclass(frozen=True)
class House:
    """What a daemon has of runs that are over, and a user's repository."""

    user: UserRepo
    repo: Repo
    mirror: Mirror
    store: Store
    repos: Repos
    forgetting: Forgetting
    runs: Path
    under_way: set[str] = field(default_factory=set[str])

    async def ran(
        self, task_id: str, merge: MergeState = MergeState.NONE, *, snapshot: bool = False
    ) -> Oid:
        """Let a task have had a run, and our mirror its commit."""
        head = self.user.oid("main")
        tree = self.user.git("rev-parse", "main^{tree}")
        words = ["commit-tree", tree, "-p", head, "-m", f"by {task_id}"]
        tip = Oid(raw(self.mirror.path, *words).decode().strip())
        await self.mirror.keep(f"refs/tasks/{task_id}", tip, None)
        await self.mirror.keep(f"refs/bases/{task_id}-1", head, None)
        if snapshot:
            await self.mirror.keep(f"refs/snapshots/{task_id}-1", head, None)
        record = RunRecord(
            run_id=f"{task_id}.1",
            task_id=task_id,
            owner="alice",
            step=Step.OVER,
            repo_id=self.repo.repo_id,
            base=head,
            tip=tip,
            merge=MergeOutcome(state=merge),
            started_at=moment(0),
        )
        body = record.model_dump(mode="json")
        await self.store.save(Record(RUN, record.run_id, body), SYSTEM)
        (self.runs / record.run_id).mkdir()
        (self.runs / record.run_id / "output").write_text("said")
        return tip

    async def left(self, task_id: str) -> set[str]:
        """Name what is still there of a task's run."""
        found = {ref.split("/")[1] for ref in await self.mirror.refs() if task_id in ref}
        if await self.store.query(RecordById(RUN, f"{task_id}.1"), SYSTEM) is not None:
            found.add("record")
        if (self.runs / f"{task_id}.1").exists():
            found.add("files")
        return found

    async def until(self, task_id: str, left: set[str]) -> None:
        with anyio.fail_after(PATIENCE_S):
            async with self.store.hints() as changes:
                while await self.left(task_id) != left:
                    await anext(changes)


@asynccontextmanager
async def daemon(folder: Path) -> AsyncGenerator[House]:
    store = SqliteStore(folder / "store.db")
    user = UserRepo(folder / "site")
    under_way: set[str] = set()

    async def forget_files(run_id: str) -> None:
        await anyio.to_thread.run_sync(shutil.rmtree, folder / "runs" / run_id)

    async with store.opened():
        repos = Repos(store, folder / "repos")
        await repos.reconcile()
        repo = await repos.add(user.path, None, RepoDefaults(), ALICE)
        mirror = await repos.fresh(repo)
        forgetting = Forgetting(store, repos, under_way.__contains__, forget_files)
        yield House(user, repo, mirror, store, repos, forgetting, folder / "runs", under_way)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House]:
    sample(tmp_path / "site")
    (tmp_path / "runs").mkdir()
    async with daemon(tmp_path) as house:
        yield house


WHOLE = {"tasks", "bases", "record", "files"}


async def test_what_was_merged_goes_whole_also_when_it_was_merged_as_other_commits(
    house: House,
) -> None:
    await house.ran(GONE, MergeState.MERGED, snapshot=True)
    assert await house.left(GONE) == WHOLE | {"snapshots"}
    assert await house.forgetting.unmerged([GONE]) == []
    await house.forgetting.forget([GONE])
    assert await house.left(GONE) == set()
    await house.forgetting.forget([GONE])


async def test_commits_that_were_not_merged_stay_when_all_else_goes(house: House) -> None:
    tip = await house.ran(GONE)
    [unmerged] = await house.forgetting.unmerged([GONE, "t_another"])
    assert str(unmerged) == f"1 commit at refs/tasks/{GONE} of repo site"
    await house.forgetting.forget([GONE])
    assert await house.left(GONE) == {"tasks"}
    assert await house.mirror.find(f"refs/tasks/{GONE}") == tip


async def test_commits_go_too_when_it_was_said_that_they_may(house: House) -> None:
    await house.ran(GONE)
    with house.forgetting.losing([GONE]):
        pass
    await house.forgetting.forget([GONE])
    assert await house.left(GONE) == set()


async def test_a_deletion_that_fails_lets_nothing_be_lost(house: House) -> None:
    await house.ran(GONE)
    with pytest.raises(RuntimeError), house.forgetting.losing([GONE]):
        raise RuntimeError
    await house.forgetting.forget([GONE])
    assert await house.left(GONE) == {"tasks"}


async def test_what_the_user_merged_by_hand_is_not_held_any_longer(house: House) -> None:
    tip = await house.ran(GONE)
    raw(house.user.path, "fetch", "--quiet", house.mirror.path, tip)
    house.user.git("merge", "--quiet", "--ff-only", tip)
    assert await house.forgetting.unmerged([GONE]) == []
    await house.forgetting.forget([GONE])
    assert await house.left(GONE) == set()


async def test_a_run_that_is_about_to_end_goes_when_it_has(house: House) -> None:
    await house.ran(GONE, MergeState.MERGED)
    house.under_way.add(GONE)
    async with house.forgetting.running():
        await house.forgetting.forget([GONE])
        assert await house.left(GONE) == WHOLE
        house.under_way.clear()
        await house.forgetting.forget([])
        await house.until(GONE, set())


async def test_runs_go_when_their_tasks_are_deleted_or_too_old(house: House) -> None:
    done = await submit(house.store, task("deleted"), task("stays"), task("old"))
    deleted, stays, old = (each.task_id for each in done.tasks)
    for task_id in (deleted, stays, old):
        await house.ran(task_id, MergeState.MERGED)
    async with house.forgetting.running():
        await house.store.amend(Address(deleted), DeleteTask(), ALICE)
        await house.until(deleted, set())
        assert await house.left(stays) == WHOLE
        await house.store.amend(Address(old), CancelTasks(), ALICE)
        await house.store.sweep(Keep(task_count=0))
        await house.until(old, set())
        assert await house.left(stays) == WHOLE


async def test_what_went_while_no_daemon_ran_is_found_at_the_start(tmp_path: Path) -> None:
    sample(tmp_path / "site")
    (tmp_path / "runs").mkdir()
    kept = "t_01k00000000000000000000001"
    async with daemon(tmp_path) as house:
        [known] = (await submit(house.store, task("known"))).tasks
        for task_id in (GONE, known.task_id):
            await house.ran(task_id, MergeState.MERGED)
        tip = await house.ran(kept)
        async with house.forgetting.running():
            await house.until(GONE, set())
            await house.until(kept, {"tasks"})
            assert await house.left(known.task_id) == WHOLE
        raw(house.user.path, "fetch", "--quiet", house.mirror.path, tip)
        house.user.git("merge", "--quiet", "--ff-only", tip)
    async with daemon(tmp_path) as house, house.forgetting.running():
        with anyio.fail_after(PATIENCE_S):
            while await house.left(kept):
                await anyio.lowlevel.checkpoint()
        assert await house.left(known.task_id) == WHOLE


async def test_a_mirror_is_tidied_at_the_start_and_not_beside_a_merge(house: House) -> None:
    lines = [f"commit refs/tasks/{GONE}", "committer Eve <eve@example.org> 1700000000 +0000"]
    lines += ["data 4", "many"]
    for number in range(2100):
        lines += [f"M 100644 inline {number}", f"data {len(f'{number}')}", f"{number}"]
    words = ["-c", "fastimport.unpackLimit=10000", "fast-import", "--quiet"]
    raw(house.mirror.path, *words, stdin="\n".join([*lines, ""]).encode())
    assert await house.mirror.is_untidy()
    merging = house.repos.merging(house.repo)
    async with house.forgetting.running():
        with anyio.fail_after(PATIENCE_S):
            async with merging:
                while not merging.statistics().tasks_waiting:
                    await anyio.lowlevel.checkpoint()
                assert await house.mirror.is_untidy()
            async with merging:  # behind the one that waited
                pass
    assert not await house.mirror.is_untidy()
    raw(house.mirror.path, "fsck", "--full")
    assert f"refs/tasks/{GONE}" in await house.mirror.refs()
