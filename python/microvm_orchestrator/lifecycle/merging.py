"""How the commits of a run get into a branch: merged in our mirror, then moved in the user's own.

One run of a repository at a time. Nothing is changed in the user's repository but one branch, by a
step that is done whole or not at all, and only if it is still where the merge began. Above are the
steps of a run; below, the repos and the git room.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.git.land import CheckedOut, land
from microvm_orchestrator.git.merge import Conflict, How, Merged, Policy, merge
from microvm_orchestrator.git.names import Oid
from microvm_orchestrator.git.outcomes import Landed, Moved, Reason, Refused
from microvm_orchestrator.git.replay import Committer, open_workbench
from microvm_orchestrator.lifecycle import resolving
from microvm_orchestrator.lifecycle.source import oid_of, task_ref
from microvm_orchestrator.model.run import (
    CheckOutcome,
    ConflictFile,
    Merge,
    MergeOutcome,
    MergeState,
)

if TYPE_CHECKING:
    from microvm_orchestrator.git.conflicts import ConflictFile as Clashing
    from microvm_orchestrator.git.mirror import Mirror
    from microvm_orchestrator.lifecycle.run import Run, Work
    from microvm_orchestrator.lifecycle.source import Source
    from microvm_orchestrator.repos import Repos

_COMMITTER = Committer("microvm-orchestrator", "microvm-orchestrator@localhost")
# A branch that others keep moving is tried so often; each try is a merge anew.
_TRIES = 20
# Each of these is a machine as well.
_CHECKED_TRIES = 5
# A commit or a status of the user's holds the index for a moment; one that was killed, for ever.
_BUSY_S = 30.0
_BUSY_AGAIN_S = 0.1


# How a commit that is to be a branch's next passes the check of a run.
Check = Callable[[Oid], Awaitable[CheckOutcome]]


class Merging:
    """What merges the runs of this host."""

    def __init__(self, repos: Repos) -> None:
        self._repos = repos

    async def merge(
        self, run: Run, source: Source | None, check: Check | None = None
    ) -> MergeOutcome:
        """Bring the commits of a run where they belong, by the repo's and the task's policy.

        What moves the branch has passed the check.
        """
        tip = oid_of(run.record.tip)
        result = run.record.result
        kept = kept_of(run, source)
        if source is None or tip is None:
            return kept
        policy = run.spec.merge or source.repo.defaults.merge
        unmerged = kept.model_copy(update={"state": MergeState.NONE})
        if result is None or not result.success:
            return unmerged.model_copy(update={"reason": "its program did not succeed"})
        if policy is Merge.MANUAL:
            return unmerged.model_copy(update={"reason": "kept to be merged by hand"})
        if policy is Merge.BRANCH:
            check = None
        if run.spec.resolves is not None:
            why = await resolving.shortfall(run, source, tip)
            if why is not None:
                return kept.model_copy(update={"state": MergeState.REFUSED, "reason": why})
        outcome = await self.bring(run, source, tip, policy, kept, check)
        if run.spec.resolves is not None and outcome.state is MergeState.MERGED:
            # What is true of the branch is told of the other runs too.
            with anyio.CancelScope(shield=True):
                await resolving.settle(run, source, tip, outcome)
        return outcome

    async def bring(
        self,
        work: Work,
        source: Source,
        tip: Oid,
        policy: Merge,
        kept: MergeOutcome,
        check: Check | None = None,
    ) -> MergeOutcome:
        """Put commits on their own branch, or into the one that they are for, in their turn."""
        async with self._repos.merging(source.repo):
            return await self._merged(work, source, tip, policy, kept, check)

    async def _merged(
        self,
        work: Work,
        source: Source,
        tip: Oid,
        policy: Merge,
        kept: MergeOutcome,
        check: Check | None,
    ) -> MergeOutcome:
        how = {Merge.SQUASH: Policy.SQUASH, Merge.BRANCH: Policy.BRANCH}.get(policy, Policy.AUTO)
        into = work.branch if policy is Merge.BRANCH else source.into
        for _ in range(_TRIES if check is None else _CHECKED_TRIES):
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
                    title=work.title,
                )
            if isinstance(merged, Conflict):
                return _conflict(kept, into, target, merged)
            if merged.how is How.NONE or merged.oid == target:
                update = {"state": MergeState.MERGED, "how": "none", "into": into, "commit": target}
                return kept.model_copy(update=update)
            if check is not None:
                kept = await _checked(work, kept, merged.oid, check)
                if kept.state is not MergeState.PENDING:
                    return kept.model_copy(update={"into": into, "before": target})
            outcome = await self._land(work, source, mirror, kept, _Wish(into, target, merged))
            if outcome is not None:
                return outcome
        reason = f"{into} was moved by others each time it was merged into"
        update = {"state": MergeState.REFUSED, "reason": reason, "into": into}
        return kept.model_copy(update=update)

    async def _land(
        self, work: Work, source: Source, mirror: Mirror, kept: MergeOutcome, wish: _Wish
    ) -> MergeOutcome | None:
        """Move the branch; None when somebody else has moved it meanwhile."""
        patience = anyio.current_time() + _BUSY_S
        moved: MergeOutcome | Refused | None = None
        while True:
            # A branch that has moved is written down as such, whoever ends the run meanwhile.
            with anyio.CancelScope(shield=True):
                moved = await self._move(work, source, mirror, kept, wish)
            if not isinstance(moved, Refused):
                return moved
            if moved.reason is not Reason.BUSY or anyio.current_time() >= patience:
                return _refused(kept, wish.into, wish.target, moved)
            await anyio.sleep(_BUSY_AGAIN_S)

    async def _move(
        self, work: Work, source: Source, mirror: Mirror, kept: MergeOutcome, wish: _Wish
    ) -> MergeOutcome | Refused | None:
        landed = await land(
            mirror.path,
            Path(source.repo.path),
            wish.into,
            old=wish.target,
            new=wish.merged.oid,
            base=source.base,
            checked_out=CheckedOut(source.repo.defaults.checkout),
            message=f"merge {work.called}",
        )
        match landed:
            case Landed():
                outcome = _landed(kept, wish.into, wish.target, wish.merged)
                await work.learn("merged", merge=outcome)
                return outcome
            case Moved():
                return None
            case refused:
                return refused


@dataclass(frozen=True, slots=True)
class _Wish:
    """A branch, where it is, and what it is to become."""

    into: str
    target: Oid | None
    merged: Merged


def kept_of(run: Run, source: Source | None) -> MergeOutcome:
    """Tell where the commits of a run are that is not merged yet."""
    if source is None or run.record.tip is None:
        return MergeOutcome()
    return MergeOutcome(
        state=MergeState.PENDING,
        ref=task_ref(run),
        into=source.into,
        check=run.record.merge.check,
    )


async def _checked(work: Work, kept: MergeOutcome, commit: Oid, check: Check) -> MergeOutcome:
    """Check a commit, if it was not by now; the outcome is pending when it passes."""
    known = kept.check
    if known is None or known.commit != commit or not known.success:
        try:
            known = await check(commit)
        except (errors.VersionMoved, errors.LeaseLost):
            raise  # this run is another daemon's by now
        except errors.OrchestratorError as error:
            reason = f"the check could not be done: {error.message}"[:1000]
            return kept.model_copy(update={"state": MergeState.FAILED, "reason": reason})
        kept = kept.model_copy(update={"check": known})
        if not known.success:
            reason = f"what was merged does not pass the check: {_end_of(known)}"
            update = {"state": MergeState.CHECK_FAILED, "reason": reason}
            kept = kept.model_copy(update=update)
        told = {"commit": f"{commit}", "success": known.success}
        await work.learn("checked", told, merge=kept, check_machine_id=None)
    return kept


def _end_of(check: CheckOutcome) -> str:
    if check.timed_out:
        return "its time was up"
    if check.signal is not None:
        return f"signal {check.signal}"
    return f"status {check.exit_code}"


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
        f"<<<<<<< the branch, line {hunk.line}\n{_lines(hunk.ours)}||||||| before\n"
        f"{_lines(hunk.base)}=======\n{_lines(hunk.theirs)}>>>>>>> the task\n"
        for hunk in file.hunks
    ]
    return ConflictFile(path=file.path, kind=f"{file.kind}", hunks=hunks)


def _lines(text: str) -> str:
    """End the last line as well."""
    return f"{text}\n" if text and not text.endswith("\n") else text


def _refused(kept: MergeOutcome, into: str, before: Oid | None, refused: Refused) -> MergeOutcome:
    words = refused.message + (f"; {refused.hint}" if refused.hint else "")
    update = {
        "state": MergeState.REFUSED,
        "into": into,
        "before": before,
        "reason": f"{refused.reason}: {words}"[:1000],
    }
    return kept.model_copy(update=update)
