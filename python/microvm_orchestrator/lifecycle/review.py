"""The look that somebody takes at a run's commits before they are merged.

The run waits without a machine, and takes no place that another one could have. What was decided is
written in its record before anything follows from it, so it holds whatever becomes of the daemon.
Above are the landing of a run and the runs of this host; below, the record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm_orchestrator import errors
from microvm_orchestrator.model.run import Decision, Merge, MergeOutcome, MergeState, Result, Step
from microvm_orchestrator.model.values import moment

if TYPE_CHECKING:
    from microvm_orchestrator.lifecycle.run import Run
    from microvm_orchestrator.lifecycle.source import Source


def step_after(run: Run, source: Source | None, result: Result) -> Step:
    """Tell whether somebody is to look at what a run brought before it is merged."""
    if source is None or run.record.tip is None or not result.success:
        return Step.MERGING
    policy = run.spec.merge or source.repo.defaults.merge
    return Step.REVIEWING if policy is Merge.REVIEW else Step.MERGING


async def decided(run: Run) -> Decision:
    """Wait until somebody has said what becomes of a run's commits, for as long as it takes."""
    while run.record.decision is None:
        await run.news.wait()
    return run.record.decision


async def decide(run: Run, *, approved: bool, by: str, message: str) -> None:
    """Say what becomes of a run's commits; to say the same once more changes nothing.

    Raises: StateForbids when it does not wait for that, or something else was said before.
    """
    word = "approved" if approved else "rejected"
    known = run.record.decision
    if known is not None:
        if known.approved == approved:
            return
        said = "approved" if known.approved else "rejected"
        raise errors.StateForbids(f"{known.by} has {said} task {run.task.task_id} already")
    refuse_early(run.task.task_id, run.record.step)
    if run.scope.cancel_called:
        raise errors.StateForbids(f"task {run.task.task_id} is being ended: {run.why}")
    at = moment(await run.store.now())
    decision = Decision(approved=approved, by=by, message=message, at=at)
    told = {"by": by, "message": message[:1000]}
    await run.learn(word, told, decision=decision)


def refuse_early(task_id: str, step: Step) -> None:
    """Raises: StateForbids for a run that does not wait for somebody."""
    if step is not Step.REVIEWING:
        raise errors.StateForbids(
            f"task {task_id} is {step}, and does not wait to be reviewed",
            hint="run_get shows how it stands; only runs with `merge` review wait",
        )


def rejected(kept: MergeOutcome, decision: Decision) -> MergeOutcome:
    words = f": {decision.message}" if decision.message else ""
    reason = f"rejected by {decision.by}{words}"[:1000]
    return kept.model_copy(update={"state": MergeState.REJECTED, "reason": reason})
