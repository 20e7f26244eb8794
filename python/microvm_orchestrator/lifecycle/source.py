"""Where the commits of a run come from and go to: a registered repository, by our mirror of it.

Nothing here writes in the user's repository but `merge`, which moves one branch, forward, if it is
still where the merge began. Above are the steps of a run; below, the repos and the git room.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.git import bundle, incoming, reading, upstream
from microvm_orchestrator.git.conflicts import ConflictFile as Clashing
from microvm_orchestrator.git.land import CheckedOut, land
from microvm_orchestrator.git.merge import Conflict, How, Merged, Policy, merge
from microvm_orchestrator.git.names import Oid
from microvm_orchestrator.git.outcomes import Landed, Moved
from microvm_orchestrator.git.replay import Committer, open_workbench
from microvm_orchestrator.git.uncommitted import snapshot
from microvm_orchestrator.lifecycle import guest
from microvm_orchestrator.model.run import (
    ConflictFile,
    Merge,
    MergeOutcome,
    MergeState,
    Rest,
    Result,
)

if TYPE_CHECKING:
    from microvm_orchestrator.git.mirror import Mirror
    from microvm_orchestrator.git.outcomes import Refused
    from microvm_orchestrator.lifecycle.run import Run
    from microvm_orchestrator.machine.base import Machine as RunningMachine
    from microvm_orchestrator.model.repo import Repo
    from microvm_orchestrator.repos import Repos

_COMMITTER = Committer("microvm-orchestrator", "microvm-orchestrator@localhost")
# By this name a guest finds what it is to start from.
_REF = "refs/heads/base"
# A branch that others keep moving is tried so often; each try is a merge anew.
_TRIES = 20
_LISTED = 200
# The name of the file in a run's folder.
_PATCH = "rest.patch"


@dataclass(frozen=True, slots=True)
class Source:
    """The repository of a run, and what of it the run works on."""

    repo: Repo
    mirror: Mirror
    # Where it starts; None in an empty repository.
    base: Oid | None
    # What its commits are merged into.
    into: str

    @property
    def ref(self) -> str:
        return _REF

    @asynccontextmanager
    async def bundle(self, folder: Path) -> AsyncGenerator[Path | None]:
        """Write what the guest starts from; the file is gone afterwards."""
        if self.base is None:
            yield None
            return
        path = folder / "outgoing.bundle"
        await anyio.Path(path).unlink(missing_ok=True)
        await bundle.write(self.mirror, path, want=self.base, ref=_REF, have=())
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


class Sources:
    """The repositories that the runs of this host work on."""

    def __init__(self, repos: Repos) -> None:
        self._repos = repos

    async def open(self, run: Run) -> Source | None:
        """Find what a run works on; what it starts from is settled once and for all.

        Raises: NotFound, RepoRefused.
        """
        spec = run.spec
        if spec.repo is None:
            return None
        repo = await self._repos.get(run.record.repo_id or spec.repo, run.by)
        mirror = await self._repos.fresh(repo)
        found = await upstream.look(Path(repo.path))
        branch = spec.base or repo.defaults.branch or found.default_branch
        if branch is None:
            raise errors.RepoRefused(f"repo {repo.alias} has no branch", hint="name a base")
        into = spec.into or branch
        if run.record.repo_id is not None:
            return Source(repo, mirror, _oid(run.record.base), into)
        base = None if found.empty else await mirror.resolve(branch)
        if spec.uncommitted:
            ref = f"refs/snapshots/{_name(run)}"
            # It may have been made by a daemon that was killed before it could write so down.
            made = await mirror.find(ref)
            base = await snapshot(mirror, found, ref, expect=made) or found.head
        if base is not None:
            ref = f"refs/bases/{_name(run)}"
            await mirror.keep(ref, base, await mirror.find(ref))
        await run.learn("based", repo_id=repo.repo_id, base=base)
        return Source(repo, mirror, base, into)

    async def send(self, run: Run, source: Source, machine: RunningMachine, folder: Path) -> None:
        """Lay out the work tree in the guest."""
        async with source.bundle(folder) as path:
            shell = await machine.reached()
            form = await source.mirror.object_format()
            await guest.begin_tree(shell, path, source.ref, f"task-{run.task.task_id[-8:]}", form)

    async def collect(
        self, run: Run, source: Source, machine: RunningMachine, folder: Path
    ) -> Result:
        """Take in what the program committed, and keep what it did not.

        Raises: BundleRefused for what is not as git makes it, TooLarge, MachineFailed.
        """
        result = run.record.result or Result(success=False)
        shell = await machine.reached()
        policy = run.spec.rest or source.repo.defaults.rest
        message = f"Left uncommitted by task {run.task.task_id}"
        left = await guest.end_tree(shell, source.base, policy, message)
        if left.rest == Rest.PATCH:
            path = folder / _PATCH
            await anyio.Path(path).unlink(missing_ok=True)
            await guest.fetch_patch(shell, path)
        result = result.model_copy(update={"rest": left.rest})
        if left.tip is None:
            return result
        path = folder / "incoming.bundle"
        await anyio.Path(path).unlink(missing_ok=True)
        try:
            await guest.fetch_bundle(shell, path)
            ref = _task_ref(run)
            expect = await source.mirror.find(ref)
            taken = await incoming.take(
                source.mirror, path, ref=ref, base=source.base, expect=expect
            )
        finally:
            path.unlink(missing_ok=True)
        await run.learn("collected", tip=taken.tip)
        return await _described(source, taken.tip, result)

    async def merge(self, run: Run, source: Source | None) -> MergeOutcome:
        """Bring the commits of a run where they belong, by the repo's and the task's policy."""
        tip = _oid(run.record.tip)
        result = run.record.result
        if source is None or tip is None:
            return MergeOutcome()
        ref = _task_ref(run)
        kept = MergeOutcome(state=MergeState.PENDING, ref=ref, into=source.into)
        policy = run.spec.merge or source.repo.defaults.merge
        unmerged = kept.model_copy(update={"state": MergeState.NONE})
        if result is None or not result.success:
            return unmerged.model_copy(update={"reason": "its program did not succeed"})
        if policy is Merge.MANUAL:
            return unmerged.model_copy(update={"reason": "kept to be merged by hand"})
        async with self._repos.merging(source.repo):
            return await self._merged(run, source, tip, policy, kept)

    async def _merged(
        self, run: Run, source: Source, tip: Oid, policy: Merge, kept: MergeOutcome
    ) -> MergeOutcome:
        how = {Merge.SQUASH: Policy.SQUASH, Merge.BRANCH: Policy.BRANCH}.get(policy, Policy.AUTO)
        into = f"tasks/{run.task.task_id}" if policy is Merge.BRANCH else source.into
        checked_out = CheckedOut(source.repo.defaults.checkout)
        for _ in range(_TRIES):
            mirror = await self._repos.fresh(source.repo)
            target = await mirror.find(f"refs/upstream/heads/{into}")
            async with open_workbench(mirror.path) as bench:
                merged = await merge(
                    bench,
                    base=source.base,
                    tip=tip,
                    target=target,
                    policy=how,
                    committer=_COMMITTER,
                    title=run.task.title,
                )
            if isinstance(merged, Conflict):
                return _conflict(kept, into, target, merged)
            if merged.how is How.NONE or merged.oid == target:
                update = {"state": MergeState.MERGED, "how": "none", "into": into, "commit": target}
                return kept.model_copy(update=update)
            landed = await land(
                mirror.path,
                Path(source.repo.path),
                into,
                old=target,
                new=merged.oid,
                base=source.base,
                checked_out=checked_out,
                message=f"merge task {run.task.task_id}",
            )
            if isinstance(landed, Landed):
                return _landed(kept, into, target, merged)
            if not isinstance(landed, Moved):
                return _refused(kept, into, target, landed)
        reason = f"{into} was moved by others each time it was merged into"
        update = {"state": MergeState.REFUSED, "reason": reason, "into": into}
        return kept.model_copy(update=update)


def _landed(kept: MergeOutcome, into: str, before: Oid | None, merged: Merged) -> MergeOutcome:
    return kept.model_copy(
        update={
            "state": MergeState.MERGED,
            "how": f"{merged.how}",
            "into": into,
            "before": before,
            "commit": merged.oid,
            "commits": merged.commits,
        }
    )


def _conflict(kept: MergeOutcome, into: str, before: Oid | None, found: Conflict) -> MergeOutcome:
    files = [_clashing(file) for file in found.files]
    names = ", ".join(file.path for file in files[:10])
    return kept.model_copy(
        update={
            "state": MergeState.CONFLICT,
            "into": into,
            "before": before,
            "conflicts": files,
            "reason": f"it does not fit with what {into} has by now: {names}"[:1000],
        }
    )


def _clashing(file: Clashing) -> ConflictFile:
    hunks = [
        f"<<<<<<< the branch, line {hunk.line}\n{hunk.ours}||||||| before\n{hunk.base}=======\n"
        f"{hunk.theirs}>>>>>>> the task\n"
        for hunk in file.hunks
    ]
    return ConflictFile(path=file.path, kind=f"{file.kind}", hunks=hunks)


def _refused(kept: MergeOutcome, into: str, before: Oid | None, refused: Refused) -> MergeOutcome:
    words = refused.message + (f"; {refused.hint}" if refused.hint else "")
    update = {
        "state": MergeState.REFUSED,
        "into": into,
        "before": before,
        "reason": f"{refused.reason}: {words}"[:1000],
    }
    return kept.model_copy(update=update)


async def _described(source: Source, tip: Oid, result: Result) -> Result:
    """Add what the mirror knows of the commits that came in."""
    commits = await reading.commits(source.mirror, source.base, tip, limit=_LISTED)
    files = await reading.files(source.mirror, source.base, tip, limit=_LISTED)
    return result.model_copy(
        update={
            "commits": commits.items,
            "commit_count": commits.total,
            "files_changed": files.items,
            "file_count": files.total,
        }
    )


def _task_ref(run: Run) -> str:
    return f"refs/tasks/{run.task.task_id}"


def _name(run: Run) -> str:
    return run.record.run_id.replace(".", "-")


def _oid(text: str | None) -> Oid | None:
    return None if text is None else Oid(text)
