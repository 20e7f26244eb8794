"""How the commits of a run get into a branch: merged in our mirror, then moved in the user's own.

One run of a repository at a time. Nothing is changed in the user's repository but one branch, by a
step that is done whole or not at all, and only if it is still where the merge began. Above are the
steps of a run; below, the repos and the git room.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from microvm_orchestrator.git.land import CheckedOut, land
from microvm_orchestrator.git.merge import Conflict, How, Merged, Policy, merge
from microvm_orchestrator.git.outcomes import Landed, Moved
from microvm_orchestrator.git.replay import Committer, open_workbench
from microvm_orchestrator.lifecycle.source import oid_of, task_ref
from microvm_orchestrator.model.run import ConflictFile, Merge, MergeOutcome, MergeState

if TYPE_CHECKING:
    from microvm_orchestrator.git.conflicts import ConflictFile as Clashing
    from microvm_orchestrator.git.names import Oid
    from microvm_orchestrator.git.outcomes import Refused
    from microvm_orchestrator.lifecycle.run import Run
    from microvm_orchestrator.lifecycle.source import Source
    from microvm_orchestrator.repos import Repos

_COMMITTER = Committer("microvm-orchestrator", "microvm-orchestrator@localhost")
# A branch that others keep moving is tried so often; each try is a merge anew.
_TRIES = 20


class Merging:
    """What merges the runs of this host."""

    def __init__(self, repos: Repos) -> None:
        self._repos = repos

    async def merge(self, run: Run, source: Source | None) -> MergeOutcome:
        """Bring the commits of a run where they belong, by the repo's and the task's policy."""
        tip = oid_of(run.record.tip)
        result = run.record.result
        if source is None or tip is None:
            return MergeOutcome()
        ref = task_ref(run)
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
