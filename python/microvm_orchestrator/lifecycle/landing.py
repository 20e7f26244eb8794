"""The last steps of a run, when its machine is gone: a look at its commits, a check, the merge.

Each can be begun again, as what it needs is in our mirror and in the run's record. Above are the
steps of a run; below, one module for each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm_orchestrator.lifecycle import check, place, review
from microvm_orchestrator.lifecycle.merging import kept_of
from microvm_orchestrator.model.run import Step

if TYPE_CHECKING:
    from microvm_orchestrator.git.names import Oid
    from microvm_orchestrator.lifecycle.live import Ground
    from microvm_orchestrator.lifecycle.run import Run
    from microvm_orchestrator.lifecycle.source import Source
    from microvm_orchestrator.model.run import CheckOutcome, MergeOutcome, Result


async def begin(run: Run, source: Source | None, result: Result) -> None:
    """Write down that all of a run's commits are here, and what comes next."""
    await run.enter(
        review.step_after(run, source, result), result=result, merge=kept_of(run, source)
    )


async def land(run: Run, ground: Ground, source: Source | None) -> MergeOutcome:
    """Bring the commits of a run where they belong, once they may be there."""
    if run.record.step is Step.REVIEWING:
        decision = await review.decided(run)
        if not decision.approved:
            return review.rejected(kept_of(run, source), decision)
        await run.enter(Step.MERGING)
    if run.record.check_machine_id is not None:
        # Of a daemon that was killed in a check.
        await place.put_away(ground.machines, run.record.check_machine_id)
    if source is None or not check.text_of(run, source):
        return await ground.merging.merge(run, source)
    checked = source

    async def passes(commit: Oid) -> CheckOutcome:
        return await check.check(run, ground, checked, commit)

    return await ground.merging.merge(run, source, passes)
