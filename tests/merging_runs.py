"""Runs whose programs have ended, with real commits in a real mirror, ready to be merged."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import anyio.to_thread

from git_repos import ENV, raw
from git_repos import Repo as UserRepo
from microvm_orchestrator.git.names import Oid
from microvm_orchestrator.lifecycle.merging import Merging
from microvm_orchestrator.lifecycle.run import Run
from microvm_orchestrator.lifecycle.source import Source
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.records import Actor
from microvm_orchestrator.model.repo import Repo, RepoDefaults
from microvm_orchestrator.model.run import (
    IN_A_MACHINE,
    RUN,
    CheckOutcome,
    Merge,
    Result,
    RunRecord,
    RunSpec,
    Step,
)
from microvm_orchestrator.model.task import GroupedSpec
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.repos import Repos
from microvm_orchestrator.store.base import Address, Graph, Match, NewTask, Offer, Ref, Store
from microvm_orchestrator.store.questions import RecordById
from microvm_orchestrator.store.sqlite import SqliteStore

ALICE = Actor("alice", Role.ADMIN, "test", "run_start")
WORKER = "host"
_LEASE_S = 120.0


@dataclass(frozen=True)
class Site:
    """A user's repository, ours of it, and runs on it."""

    folder: Path
    store: Store
    repos: Repos
    repo: Repo
    user: UserRepo
    merging: Merging

    async def run(
        self, files: dict[str, str] | None, *, onto: str = "main", defaults: Any = None, **spec: Any
    ) -> tuple[Run, Source]:
        """Make a run that has brought a commit with these files, made on top of a branch."""
        wanted = RunSpec.model_validate(
            {"kind": "command", "argv": ["true"], "repo": self.repo.alias, **spec}
        )
        graph = Graph((NewTask(GroupedSpec(title="What it did", run=wanted), _LEASE_S),))
        await self.store.submit(graph, ALICE)
        offer = Offer(WORKER, frozenset({IN_A_MACHINE}), lease_s=_LEASE_S)
        [(task, lease)] = (await self.store.claim(offer, ALICE)).tasks
        base = self.user.oid(onto)
        record = RunRecord(
            run_id=f"{task.task_id}.{task.attempt}",
            task_id=task.task_id,
            owner="alice",
            repo_id=self.repo.repo_id,
            base=base,
            result=Result(success=True),
            started_at=moment(await self.store.now()),
        )
        ref = Ref(Address(task.task_id), lease.token, WORKER)
        run = Run(task, wanted, ref, record, 0, self.store)
        tip = None if files is None else await self.brought(run, onto, files)
        await run.enter(Step.MERGING, tip=tip)
        usual = RepoDefaults.model_validate(defaults or {})
        repo = self.repo.model_copy(update={"defaults": usual})
        return run, Source(repo, self.repos.mirror(repo), base, "main")

    async def brought(self, run: Run, onto: str, files: dict[str, str]) -> Oid:
        """Let our mirror alone have what a run has committed."""
        return await self.bring(run, self.work(onto), files)

    async def bring(self, run: Run, work: UserRepo, files: dict[str, str]) -> Oid:
        tip = work.commit(files, "Did it")
        ref = f"refs/tasks/{run.task.task_id}"
        mirror = await self.repos.fresh(self.repo)
        raw(mirror.path, "fetch", "--quiet", work.path, f"+HEAD:{ref}")
        return tip

    def work(self, onto: str) -> UserRepo:
        """Clone what the user has, as a guest has it."""
        work = UserRepo(Path(tempfile.mkdtemp(dir=self.folder)))
        work.git("clone", "--quiet", self.user.path, ".")
        work.git("checkout", "--quiet", "--detach", self.user.oid(onto))
        return work

    def ref(self, run: Run) -> str:
        """Where our mirror keeps what a run has brought."""
        mirror = UserRepo(self.repos.mirror(self.repo).path)
        return mirror.refs()[f"refs/tasks/{run.task.task_id}"]

    async def told(self, run: Run) -> list[tuple[str, dict[str, Any]]]:
        """Give the events of a run, in their order."""
        match = Match(subjects=(run.record.run_id,))
        read = await self.store.events(None, match, 1000, ALICE)
        return [(each.kind, cast("dict[str, Any]", each.body)) for each in read.events]

    async def stored(self, run: Run) -> RunRecord:
        kept = await self.store.query(RecordById(RUN, run.record.run_id), ALICE)
        assert kept is not None
        return RunRecord.model_validate(kept.body)


@dataclass
class Outside:
    """A check that runs on this host, in a folder with the files of the commit."""

    site: Site
    text: str
    # The commits that were checked.
    checked: list[Oid] = field(default_factory=list[Oid])

    async def __call__(self, commit: Oid) -> CheckOutcome:
        self.checked.append(commit)
        code = await anyio.to_thread.run_sync(self._run, commit)
        return CheckOutcome(success=code == 0, commit=commit, exit_code=code, output="said so\n")

    def _run(self, commit: Oid) -> int:
        with tempfile.TemporaryDirectory(dir=self.site.folder) as folder:
            packed = raw(self.site.repos.mirror(self.site.repo).path, "archive", commit)
            subprocess.run(["tar", "-x"], input=packed, cwd=folder, check=True)
            words = ["sh", "-c", self.text, "sh", self.site.user.path]
            return subprocess.run(words, cwd=folder, env=ENV, check=False).returncode


@asynccontextmanager
async def site_in(folder: Path) -> AsyncGenerator[Site]:
    """Register a repository whose branch `main` is checked out, and clean."""
    user = UserRepo.make(folder / "site")
    user.commit({"a": "1\n2\n3\n", "b": "1\n"}, "base")
    store = SqliteStore(folder / "store.db")
    async with store.opened():
        repos = Repos(store, folder / "repos")
        repo = await repos.add(user.path, None, RepoDefaults(merge=Merge.AUTO), ALICE)
        await repos.fresh(repo)
        yield Site(folder, store, repos, repo, user, Merging(repos))
