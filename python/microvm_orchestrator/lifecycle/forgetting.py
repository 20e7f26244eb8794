"""What is kept of runs goes with their tasks: records, files, and refs in our mirrors.

A task is deleted by somebody or dropped when it is old enough; either is told in the journal, and
what was missed while no daemon ran is found at the start. Commits of a task that nobody merged are
kept by their ref whatever becomes of the task, unless who deletes it says that they may be lost.
Mirrors are tidied here as well: after something of them was forgotten, and at the start. Above are
the host and the service; below, the repos and the store.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors, log
from microvm_orchestrator.git.command import LONG_S, line
from microvm_orchestrator.model.artifact import ArtifactKind
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.model.run import RUN, RunRecord
from microvm_orchestrator.store.base import Match, Store
from microvm_orchestrator.store.every import every_record
from microvm_orchestrator.store.questions import OneTask

if TYPE_CHECKING:
    from pathlib import Path

    from microvm_orchestrator.git.mirror import Mirror
    from microvm_orchestrator.model.repo import Repo
    from microvm_orchestrator.repos import Repos

_GONE = ("task.deleted", "task.dropped")
# What could not be forgotten yet, as a run was still about to end, is tried again.
_AGAIN_S = 30.0
# A mirror that takes longer to tidy is left as it is until the next start.
_TIDY_S = 120.0
_TASKS = "refs/tasks/"
# By the id of a run, with a dash for its dot.
_RUN_PLACES = ("refs/bases/", "refs/snapshots/")
_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Unmerged:
    """A ref that holds commits which are nowhere else."""

    repo: Repo
    ref: str
    commits: int

    def __str__(self) -> str:
        counted = "1 commit" if self.commits == 1 else f"{self.commits} commits"
        return f"{counted} at {self.ref} of repo {self.repo.alias}"


class Forgetting:
    """What forgets the runs of one daemon."""

    def __init__(
        self,
        store: Store,
        repos: Repos,
        under_way: Callable[[str], bool],
        forget_files: Callable[[str], Awaitable[None]],
    ) -> None:
        """`under_way` tells of a task; `forget_files` removes what lies here of a run."""
        self._store = store
        self._repos = repos
        self._under_way = under_way
        self._forget_files = forget_files
        # Tasks that are gone, and of which something is still here.
        self._gone: set[str] = set()
        # Those whose commits may be lost.
        self._losing: set[str] = set()
        # Whose mirrors something was forgotten of.
        self._touched: dict[str, Repo] = {}
        self._news = anyio.Event()
        # One task at a time, whoever asks.
        self._turn = anyio.Lock()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Forget in the background until the block ends. The runs are taken up already."""
        cursor = await self._store.cursor()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._listen, cursor)
            tasks.start_soon(self._work)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    # What would be lost

    async def unmerged(self, task_ids: Collection[str]) -> list[Unmerged]:
        """List the commits of tasks that are in our mirrors alone."""
        found: list[Unmerged] = []
        runs = [run for task_id in task_ids for run in await self._runs(task_id)]
        refs = {_task_ref(run.task_id) for run in runs}
        repo_ids = {run.repo_id for run in runs if run.repo_id is not None}
        for repo in await self._repos.visible(SYSTEM) if repo_ids else ():
            mirror = self._repos.mirror(repo)
            if repo.repo_id not in repo_ids or not await _is_dir(mirror.path):
                continue
            # The user may have merged some by hand; where nothing can be read, nothing was.
            with contextlib.suppress(errors.OrchestratorError):
                await self._repos.fresh(repo)
            unmerged = await self._repos.unmerged(repo)
            for ref in sorted(refs & set(unmerged)):
                words = ["rev-list", "--count", unmerged[ref], "--not", "--glob=refs/upstream/"]
                commits = int(await line(*words, at=mirror.path, timeout_s=LONG_S))
                found.append(Unmerged(repo, ref, commits))
        return found

    async def patches(self, task_ids: Collection[str]) -> list[str]:
        """Name what programs of tasks changed and did not commit, where it is kept as a patch."""
        runs = [run for task_id in task_ids for run in await self._runs(task_id)]
        return [
            f"what run {run.run_id} did not commit, which is its rest.patch"
            for run in runs
            if run.continues is None
            and any(each.kind is ArtifactKind.PATCH for each in run.artifacts)
        ]

    async def artifacts(self, task_ids: Collection[str]) -> int:
        """Count what the runs of tasks have left behind."""
        runs = [run for task_id in task_ids for run in await self._runs(task_id)]
        return sum(len(run.artifacts) for run in runs)

    async def _runs(self, task_id: str) -> list[RunRecord]:
        stored = await every_record(self._store, RUN, SYSTEM, f"{task_id}.")
        return [RunRecord.model_validate(record.body) for record in stored]

    # What goes

    @contextmanager
    def losing(self, task_ids: Collection[str]) -> Generator[None]:
        """Let commits of these tasks be lost with them: the block deletes the tasks, or fails."""
        self._losing.update(task_ids)
        try:
            yield
        except BaseException:
            self._losing.difference_update(task_ids)
            raise

    async def forget(self, task_ids: Collection[str]) -> None:
        """Forget the runs of tasks that are gone; one that is about to end goes when it has."""
        self._gone.update(task_ids)
        for task_id in task_ids:
            await self._forget(task_id)
        self._news.set()

    async def _forget(self, task_id: str) -> None:
        if self._under_way(task_id):
            return
        async with self._turn:
            runs = await self._runs(task_id)
            await self._release(task_id, runs)
            for run in runs:
                await self._forget_files(run.run_id)
                # Last: by it the next start finds what was not finished.
                await self._store.erase(RUN, run.run_id, SYSTEM)
            self._gone.discard(task_id)
            self._losing.discard(task_id)

    async def _release(self, task_id: str, runs: list[RunRecord]) -> None:
        """Let go of what refs of ours hold for a task, but of nothing that was not merged."""
        for repo_id in {run.repo_id for run in runs if run.repo_id is not None}:
            with contextlib.suppress(errors.NotFound):
                repo = await self._repos.get(repo_id, SYSTEM)
                mirror = self._repos.mirror(repo)
                if not await _is_dir(mirror.path):
                    continue
                refs = [ref for run in runs for ref in _run_refs(run.run_id)]
                # Asked while there are records: they tell what was merged as other commits.
                if task_id in self._losing or not await self._has_unmerged(repo, task_id):
                    refs.append(_task_ref(task_id))
                await _drop(mirror, refs)
                self._touched[repo_id] = repo

    async def _has_unmerged(self, repo: Repo, task_id: str) -> bool:
        ref = _task_ref(task_id)
        if ref not in await self._repos.unmerged(repo):
            return False
        # Unless somebody has merged it by hand since.
        with contextlib.suppress(errors.OrchestratorError):
            await self._repos.fresh(repo)
        return ref in await self._repos.unmerged(repo)

    # By itself

    async def _listen(self, cursor: str) -> None:
        async with self._store.hints() as changes:
            async for _ in changes:
                with contextlib.suppress(errors.Unavailable):
                    cursor = await self._hear(cursor)

    async def _hear(self, cursor: str) -> str:
        while True:
            try:
                read = await self._store.events(cursor, Match(kinds=_GONE), 1000, SYSTEM)
            except errors.NotFound:
                return await self._store.cursor()  # what was missed is found at the next start
            if read.events:
                self._gone.update(event.subject for event in read.events)
                self._news.set()
            cursor = read.cursor
            if not read.more:
                return cursor

    async def _work(self) -> None:
        with contextlib.suppress(errors.OrchestratorError):
            await self._catch_up()
        while True:
            await self._forget_what_is_gone()
            await self._tidy_what_was_touched()
            with anyio.move_on_after(_AGAIN_S if self._gone else None):
                await self._news.wait()
            self._news = anyio.Event()

    async def _forget_what_is_gone(self) -> None:
        for task_id in sorted(self._gone):
            try:
                await self._forget(task_id)
            except errors.OrchestratorError as error:
                _log.warning("run_not_forgotten", task=task_id, reason=error.message)

    async def _tidy_what_was_touched(self) -> None:
        touched, self._touched = self._touched, {}
        for repo in touched.values():
            try:
                await self._tidy(repo)
            except errors.OrchestratorError as error:
                _log.warning("mirror_not_tidied", repo=repo.alias, reason=error.message)

    async def _catch_up(self) -> None:
        """Find what is left of tasks that went while no daemon ran."""
        stored = await every_record(self._store, RUN, SYSTEM)
        for task_id in sorted({record.id.rpartition(".")[0] for record in stored}):
            if await self._is_gone(task_id):
                self._gone.add(task_id)
        await self._forget_what_is_gone()
        for repo in await self._repos.visible(SYSTEM):
            self._touched[repo.repo_id] = repo
            with contextlib.suppress(errors.OrchestratorError):
                await self._sweep(repo)

    async def _sweep(self, repo: Repo) -> None:
        """Drop refs of tasks that went before their commits were merged, and now are."""
        mirror = self._repos.mirror(repo)
        if not await _is_dir(mirror.path):
            return
        unmerged = await self._repos.unmerged(repo)
        refs = await mirror.refs()
        own = {ref: task_id for ref in refs if (task_id := _task_of(ref)) and ref not in unmerged}
        left = [ref for ref, task_id in own.items() if await self._is_gone(task_id)]
        await _drop(mirror, left)

    async def _is_gone(self, task_id: str) -> bool:
        try:
            await self._store.query(OneTask(task_id), SYSTEM)
        except errors.NotFound:
            return True
        return False

    async def _tidy(self, repo: Repo) -> None:
        """Pack what has gathered in a mirror, not beside a merge, and not for long."""
        mirror = self._repos.mirror(repo)
        if not await _is_dir(mirror.path) or not await mirror.is_untidy():
            return
        async with self._repos.merging(repo):
            with anyio.move_on_after(_TIDY_S) as scope:
                await mirror.tidy()
        if scope.cancelled_caught:
            _log.warning("mirror_not_tidied", repo=repo.alias, reason="it took too long")


def _task_ref(task_id: str) -> str:
    return f"{_TASKS}{task_id}"


def _task_of(ref: str) -> str | None:
    """Tell whose a ref is; None of none."""
    if ref.startswith(_TASKS):
        return ref.removeprefix(_TASKS)
    if ref.startswith(_RUN_PLACES):
        return ref.rpartition("/")[2].rpartition("-")[0]
    return None


def _run_refs(run_id: str) -> list[str]:
    return [f"{place}{run_id.replace('.', '-')}" for place in _RUN_PLACES]


async def _drop(mirror: Mirror, refs: Collection[str]) -> None:
    known = await mirror.refs()
    for ref in refs:
        if ref in known:
            # One that has moved meanwhile holds something new.
            with contextlib.suppress(errors.VersionMoved):
                await mirror.drop(ref, known[ref])


async def _is_dir(path: Path) -> bool:
    return await anyio.Path(path).is_dir()
