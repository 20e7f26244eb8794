"""Runs that wait until somebody has looked at what they brought."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from merging_runs import Site, site_in
from microvm_orchestrator import errors
from microvm_orchestrator.lifecycle import review
from microvm_orchestrator.lifecycle.merging import kept_of
from microvm_orchestrator.lifecycle.run import Run
from microvm_orchestrator.model.run import Decision, Merge, MergeState, Result, Step
from microvm_orchestrator.runs import outcome_of
from microvm_orchestrator.store.base import Failed

PATIENCE_S = 60


@pytest.fixture
async def site(tmp_path: Path) -> AsyncGenerator[Site]:
    async with site_in(tmp_path) as site:
        yield site


async def waiting(site: Site) -> Run:
    run, source = await site.run({"new": "1\n"}, merge="review")
    await run.enter(Step.REVIEWING, merge=kept_of(run, source))
    return run


@pytest.mark.parametrize(
    ("task", "usual", "files", "success", "step"),
    [
        ("review", "auto", True, True, Step.REVIEWING),
        (None, "review", True, True, Step.REVIEWING),
        ("auto", "review", True, True, Step.MERGING),
        ("review", "auto", False, True, Step.MERGING),
        ("review", "auto", True, False, Step.MERGING),
    ],
)
async def test_a_run_waits_for_a_look_where_it_is_to_and_there_is_something_to_see(
    site: Site, task: str | None, usual: str, files: bool, success: bool, step: Step
) -> None:
    brought = {"new": "1\n"} if files else None
    run, source = await site.run(brought, merge=task, defaults={"merge": usual})
    assert review.step_after(run, source, Result(success=success)) is step


async def test_a_run_goes_on_when_it_is_decided_and_not_before(site: Site) -> None:
    run = await waiting(site)
    heard: list[Decision] = []

    async def wait() -> None:
        heard.append(await review.decided(run))

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await run.learn("looked_at")
            await anyio.lowlevel.checkpoint()
            assert heard == []
            await review.decide(run, approved=True, by="bob", message="fine")
    assert [(each.approved, each.by, each.message) for each in heard] == [(True, "bob", "fine")]


async def test_what_was_decided_is_in_the_record_and_the_journal(site: Site) -> None:
    run = await waiting(site)
    await review.decide(run, approved=False, by="bob", message="no")
    stored = await site.stored(run)
    assert stored.decision is not None
    assert (stored.decision.approved, stored.decision.message) == (False, "no")
    assert stored.step is Step.REVIEWING
    told = [(kind, body.get("by")) for kind, body in await site.told(run)]
    assert told[-2:] == [("run.reviewing", None), ("run.rejected", "bob")]


async def test_the_next_daemon_goes_on_with_what_was_decided(site: Site) -> None:
    run = await waiting(site)
    await review.decide(run, approved=True, by="bob", message="")
    again = Run(run.task, run.spec, run.ref, await site.stored(run), run.version, site.store)
    with anyio.fail_after(PATIENCE_S):
        assert (await review.decided(again)).approved


async def test_to_say_the_same_again_changes_nothing_and_something_else_is_refused(
    site: Site,
) -> None:
    run = await waiting(site)
    await review.decide(run, approved=True, by="bob", message="first")
    version = run.version
    await review.decide(run, approved=True, by="eve", message="second")
    assert run.version == version
    with pytest.raises(errors.StateForbids) as refused:
        await review.decide(run, approved=False, by="eve", message="no")
    assert "bob has approved" in refused.value.message
    assert run.record.decision is not None
    assert run.record.decision.message == "first"


@pytest.mark.parametrize("step", [Step.PERFORMING, Step.COLLECTING, Step.MERGING, Step.OVER])
async def test_a_run_that_does_not_wait_cannot_be_decided(site: Site, step: Step) -> None:
    run, _ = await site.run({"new": "1\n"}, merge="review")
    await run.enter(step)
    with pytest.raises(errors.StateForbids) as refused:
        await review.decide(run, approved=True, by="bob", message="")
    assert f"is {step}" in refused.value.message


async def test_a_run_that_is_being_ended_cannot_be_approved(site: Site) -> None:
    run = await waiting(site)
    run.end_soon("its task is cancelled")
    with pytest.raises(errors.StateForbids):
        await review.decide(run, approved=True, by="bob", message="")
    assert (await site.stored(run)).decision is None


async def test_what_is_rejected_is_kept_and_fails_its_task_with_the_words(site: Site) -> None:
    run = await waiting(site)
    await review.decide(run, approved=False, by="bob", message="the second test is wrong")
    decision = run.record.decision
    assert decision is not None
    merge = review.rejected(run.record.merge, decision)
    assert merge.state is MergeState.REJECTED
    assert site.ref(run) == run.record.tip
    outcome = outcome_of(run.record.model_copy(update={"merge": merge}))
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "merge-rejected"
    assert outcome.error.message == "rejected by bob: the second test is wrong"
    assert not outcome.retryable


async def test_what_is_approved_is_merged_as_by_auto(site: Site) -> None:
    run, source = await site.run({"new": "1\n"}, merge=Merge.REVIEW)
    site.user.commit({"other": "1\n"})
    merged = await site.merging.merge(run, source)
    assert (merged.state, merged.how) == (MergeState.MERGED, "rebase")
