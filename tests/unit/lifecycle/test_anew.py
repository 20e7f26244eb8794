"""Commits that are merged once more: who begins that, what the next attempt is, and is not."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from merging_runs import ALICE, Site, site_in
from microvm_orchestrator import errors
from microvm_orchestrator.lifecycle import anew
from microvm_orchestrator.model.access import Role, Scope
from microvm_orchestrator.model.records import Actor, Record
from microvm_orchestrator.model.run import IN_A_MACHINE, RUN, MergeOutcome, MergeState, Step
from microvm_orchestrator.model.task import TaskError, TaskState
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.store.base import (
    Address,
    Failed,
    Offer,
    Ref,
    Released,
    RetryTasks,
    Tell,
)
from microvm_orchestrator.store.questions import OneTask

if TYPE_CHECKING:
    from microvm_orchestrator.lifecycle.run import Run
    from microvm_orchestrator.model.run import RunRecord
    from microvm_orchestrator.model.task import Task

REFUSED = MergeOutcome(state=MergeState.REFUSED, into="main", reason="dirty")


@pytest.fixture
async def site(tmp_path: Path) -> AsyncGenerator[Site]:
    async with site_in(tmp_path) as site:
        yield site


async def refused(site: Site) -> Run:
    """Give a run that has ended, and whose merge something was in the way of."""
    run, _ = await site.run({"new": "of the run\n"})
    await run.enter(Step.OVER, merge=REFUSED)
    await end(site, run.ref)
    return run


async def end(site: Site, ref: Ref) -> None:
    error = TaskError(code="merge-refused", message="dirty")
    await site.store.settle(ref, Failed(error, retryable=False), ALICE)


async def claimed(site: Site) -> tuple[Task, Ref]:
    offer = Offer("host", frozenset({IN_A_MACHINE}), lease_s=60.0)
    [(task, lease)] = (await site.store.claim(offer, ALICE)).tasks
    return task, Ref(Address(task.task_id), lease.token, "host")


async def next_of(site: Site, task: Task) -> RunRecord | None:
    now = moment(await site.store.now())
    return await anew.continued(site.store, task, f"{task.task_id}.{task.attempt}", now)


async def begun(site: Site) -> tuple[Run, Task, Ref, RunRecord]:
    """Ask for a run to be merged once more, and give the attempt that does so."""
    run = await refused(site)
    await anew.ask(site.store, run.task.task_id, ALICE)
    task, ref = await claimed(site)
    record = await next_of(site, task)
    assert record is not None
    return run, task, ref, record


async def written(site: Site, record: RunRecord) -> None:
    kept = Record(RUN, record.run_id, record.model_dump(mode="json"))
    await site.store.save(kept, ALICE, tell=Tell("merging", {}, audited=False))


async def test_the_next_attempt_has_what_the_last_one_brought_and_only_merges(site: Site) -> None:
    run, task, _, record = await begun(site)
    assert (record.run_id, record.continues) == (f"{task.task_id}.2", run.record.run_id)
    assert (record.step, record.tip, record.machine_id) == (Step.MERGING, run.record.tip, None)


async def test_whoever_asks_second_is_refused_and_changes_nothing(site: Site) -> None:
    run = await refused(site)
    await anew.ask(site.store, run.task.task_id, ALICE)
    with pytest.raises(errors.StateForbids, match="it is ready"):
        await anew.ask(site.store, run.task.task_id, ALICE)
    assert (await site.stored(run)).again


async def test_an_attempt_that_is_lost_before_its_verdict_does_not_count(site: Site) -> None:
    run, _, ref, _ = await begun(site)
    # As when the daemon was killed between the claim and the first word.
    await site.store.settle(ref, Released("its host went silent"), ALICE)
    task, ref = await claimed(site)
    record = await next_of(site, task)
    assert record is not None
    assert (task.attempt, record.continues) == (3, run.record.run_id)
    # Or in the middle of the merge.
    await written(site, record)
    await site.store.settle(ref, Released("its host went silent"), ALICE)
    task, _ = await claimed(site)
    again = await next_of(site, task)
    assert again is not None
    assert (task.attempt, again.continues) == (4, run.record.run_id)


async def test_after_a_verdict_a_task_that_is_tried_anew_runs_its_program(site: Site) -> None:
    _, task, ref, record = await begun(site)
    await written(site, record.model_copy(update={"step": Step.OVER, "merge": REFUSED}))
    await end(site, ref)
    await site.store.amend(Address(task.task_id), RetryTasks(), ALICE)
    task, _ = await claimed(site)
    assert await next_of(site, task) is None


async def test_one_that_is_cut_off_can_be_asked_for_once_more(site: Site) -> None:
    _, task, ref, record = await begun(site)
    merge = anew.cut_off(record, "the repository is not there")
    await written(site, record.model_copy(update={"step": Step.OVER, "merge": merge}))
    await end(site, ref)
    asked = await anew.ask(site.store, task.task_id, ALICE)
    assert asked.merge.state is MergeState.FAILED
    task, _ = await claimed(site)
    again = await next_of(site, task)
    assert again is not None
    assert again.continues == record.run_id


async def test_one_that_is_cut_off_when_the_branch_has_moved_is_merged_all_the_same(
    site: Site,
) -> None:
    _, _, _, record = await begun(site)
    merged = MergeOutcome(state=MergeState.MERGED, into="main", how="fast_forward")
    record = record.model_copy(update={"merge": merged})
    assert anew.cut_off(record, "it was cancelled") == merged


async def test_where_the_task_cannot_be_tried_the_mark_goes(site: Site) -> None:
    run = await refused(site)
    bob = Actor("bob", Role.OPERATOR, "test", "run_merge", Scope(everything=False))
    with pytest.raises(errors.NotFound):
        await anew.ask(site.store, run.task.task_id, bob)
    assert not (await site.stored(run)).again
    task = await site.store.query(OneTask(run.task.task_id), ALICE)
    assert task.state is TaskState.FAILED
