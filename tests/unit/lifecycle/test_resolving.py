"""Two sides that do not fit, brought together by somebody: what is taken, and what it settles."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from git_repos import ENV
from merging_runs import Outside, Site, site_in
from microvm_orchestrator.lifecycle import resolving
from microvm_orchestrator.model.run import (
    CheckOutcome,
    ConflictFile,
    MergeOutcome,
    MergeState,
    Step,
)

if TYPE_CHECKING:
    from git_repos import Repo as UserRepo
    from microvm_orchestrator.git.names import Oid
    from microvm_orchestrator.lifecycle.run import Run
    from microvm_orchestrator.lifecycle.source import Source


@pytest.fixture
async def site(tmp_path: Path) -> AsyncGenerator[Site]:
    async with site_in(tmp_path) as site:
        yield site


async def clashed(site: Site, theirs: str = "1\ntheirs\n3\n", ours: str = "1\nours\n3\n") -> Run:
    """Give a run whose commits do not fit with what the user has committed meanwhile."""
    run, source = await site.run({"a": theirs})
    site.user.commit({"a": ours}, "Ours")
    return await over(site, run, source)


async def over(site: Site, run: Run, source: Source) -> Run:
    merge = await site.merging.merge(run, source)
    assert merge.state is MergeState.CONFLICT
    await run.enter(Step.OVER, merge=merge)
    return run


async def begun(site: Site, first: Run) -> tuple[Run, Source, UserRepo]:
    """Give a run that is to resolve another one, and its work tree with the merge begun."""
    run, source = await site.run(None, resolves=first.task.task_id)
    work = site.work("main")
    branch = resolving.branch_of(first.task.task_id)
    mirror = site.repos.mirror(site.repo).path
    work.git("fetch", "--quiet", mirror, f"refs/tasks/{first.task.task_id}:refs/heads/{branch}")
    words = ["git", "merge", "--quiet", "--no-commit", "--no-ff", branch]
    # It ends with a status of its own where there is a conflict.
    subprocess.run(words, cwd=work.path, env=ENV, check=False, capture_output=True)
    return run, source, work


async def resolved(site: Site, first: Run, text: str = "1\nboth\n3\n") -> tuple[Run, Source, Oid]:
    run, source, work = await begun(site, first)
    tip = await site.bring(run, work, {"a": text})
    await run.learn("collected", tip=tip)
    return run, source, tip


async def test_a_resolution_is_merged_with_both_sides_and_settles_the_first_run(
    site: Site,
) -> None:
    first = await clashed(site)
    ours = site.user.oid("main")
    run, source, tip = await resolved(site, first)
    check = Outside(site, "grep -q both a")
    merged = await site.merging.merge(run, source, check)
    assert (merged.state, merged.commit) == (MergeState.MERGED, tip)
    assert check.checked == [tip]
    for side in (ours, first.record.tip or ""):
        site.user.git("merge-base", "--is-ancestor", side, "main")
    assert (site.user.path / "a").read_text() == "1\nboth\n3\n"
    settled = (await site.stored(first)).merge
    assert (settled.state, settled.how) == (MergeState.MERGED, "resolved")
    assert (settled.commit, settled.resolved_by) == (tip, run.task.task_id)
    assert [file.path for file in settled.conflicts] == ["a"]
    assert site.ref(first) == first.record.tip
    assert await site.repos.unmerged(site.repo) == {}


async def test_a_resolution_is_merged_once_more_where_the_branch_has_moved(site: Site) -> None:
    first = await clashed(site)
    run, source, _ = await resolved(site, first)
    site.user.commit({"other": "1\n"}, "In between")
    merged = await site.merging.merge(run, source)
    assert (merged.state, merged.how) == (MergeState.MERGED, "merge")
    site.user.git("merge-base", "--is-ancestor", first.record.tip or "", "main")
    assert (site.user.path / "other").exists()
    assert (await site.stored(first)).merge.how == "resolved"


async def test_a_resolution_that_does_not_pass_leaves_both_as_they_are(site: Site) -> None:
    first = await clashed(site)
    refs = site.user.refs()
    run, source, tip = await resolved(site, first)
    merged = await site.merging.merge(run, source, Outside(site, "false"))
    assert merged.state is MergeState.CHECK_FAILED
    assert site.user.refs() == refs
    assert (await site.stored(first)).merge.state is MergeState.CONFLICT
    assert [site.ref(run), site.ref(first)] == [tip, first.record.tip]


async def test_a_resolution_of_a_resolution_settles_both_runs(site: Site) -> None:
    first = await clashed(site)
    second, source, _ = await resolved(site, first)
    site.user.commit({"a": "1\nlater\n3\n"}, "Later")
    await over(site, second, source)
    third, source, tip = await resolved(site, second, "1\nall\n3\n")
    assert (await site.merging.merge(third, source)).state is MergeState.MERGED
    for run in (first, second):
        settled = (await site.stored(run)).merge
        assert (settled.state, settled.resolved_by) == (MergeState.MERGED, third.task.task_id)
    assert site.user.oid("main") == tip


async def test_a_resolution_leaves_a_run_alone_that_merges_the_same_meanwhile(site: Site) -> None:
    first = await clashed(site)
    run, source, _ = await resolved(site, first)
    await first.enter(Step.MERGING, merge=MergeOutcome(into="main"))
    before = first.version
    assert (await site.merging.merge(run, source)).state is MergeState.MERGED
    # Whoever has it goes on writing in its record.
    assert (await site.stored(first)).step is Step.MERGING
    await first.enter(Step.OVER)
    assert first.version == before + 1


async def test_a_result_without_the_other_side_in_its_history_is_not_taken(site: Site) -> None:
    first = await clashed(site)
    refs = site.user.refs()
    run, source = await site.run({"a": "1\nboth\n3\n"}, resolves=first.task.task_id)
    merged = await site.merging.merge(run, source)
    assert merged.state is MergeState.REFUSED
    assert "are not in the history" in (merged.reason or "")
    assert site.user.refs() == refs
    assert (await site.stored(first)).merge.state is MergeState.CONFLICT


async def test_a_result_with_marks_of_the_conflict_is_not_taken(site: Site) -> None:
    first = await clashed(site)
    refs = site.user.refs()
    run, source, work = await begun(site, first)
    tip = await site.bring(run, work, {"other": "1\n"})
    await run.learn("collected", tip=tip)
    assert f">>>>>>> task/{first.task.task_id}" in work.git("show", f"{tip}:a")
    merged = await site.merging.merge(run, source)
    assert merged.state is MergeState.REFUSED
    assert merged.reason == "marks of the conflict are left in a"
    assert site.user.refs() == refs


async def test_a_text_that_speaks_of_marks_of_conflicts_is_taken(site: Site) -> None:
    first = await clashed(site)
    mark = f"see >>>>>>> task/{first.task.task_id}\n<<<<<<< HEAD\n=======\n>>>>>>> other\n"
    run, source, _ = await resolved(site, first, mark)
    assert (await site.merging.merge(run, source)).state is MergeState.MERGED


async def test_runs_of_another_repository_are_never_settled(site: Site) -> None:
    first = await clashed(site)
    await first.learn("moved", repo_id="r_another")
    run, source, _ = await resolved(site, first)
    assert (await site.merging.merge(run, source)).state is MergeState.REFUSED
    assert (await site.stored(first)).merge.state is MergeState.CONFLICT


async def test_an_agent_is_told_files_hunks_the_check_and_what_the_caller_adds(site: Site) -> None:
    first = await clashed(site)
    told = resolving.prompt_for(first.task, first.record, "make test", "Keep the new names")
    for words in ("- a (content)", "ours", "theirs", "make test", "`main`", "Keep the new names"):
        assert words in told
    assert resolving.branch_of(first.task.task_id) in told
    hunk = ["the branch, line 2", "ours", "||||||| before", "2", "=======", "theirs"]
    assert "\n".join([f"<<<<<<< {hunk[0]}", *hunk[1:], ">>>>>>> the task"]) in told


async def test_what_an_agent_is_told_is_bounded_whatever_the_files_are(site: Site) -> None:
    first = await clashed(site)
    files = [
        ConflictFile(path="p" * 4000, kind="content", hunks=["x" * 4000] * 16) for _ in range(200)
    ]
    check = CheckOutcome(success=False, commit="0" * 40, exit_code=1, output="o" * 16_384)
    merge = MergeOutcome(state=MergeState.CONFLICT, into="main", conflicts=files, check=check)
    record = first.record.model_copy(update={"merge": merge})
    told = resolving.prompt_for(first.task, record, "c" * 262_144, "")
    assert len(told) < 150_000
    assert "and 150 more" in told
