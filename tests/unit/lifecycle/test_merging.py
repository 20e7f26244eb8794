"""What becomes of a run's commits: checked before a branch moves, kept where it does not."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import pytest

from git_repos import Repo as UserRepo
from git_repos import look_of
from merging_runs import Outside, Site, site_in
from microvm_orchestrator import errors
from microvm_orchestrator.git.names import Oid
from microvm_orchestrator.model.run import CheckOutcome, MergeOutcome, MergeState
from microvm_orchestrator.runs import outcome_of
from microvm_orchestrator.store.base import Failed

PATIENCE_S = 60

# What somebody else does while a check runs: a commit on the branch, beside what the run changed.
SOMEBODY_COMMITS = """\
cd "$1" && echo "$$" >>other && git add other && git commit -q -m 'In between'
"""


@pytest.fixture
async def site(tmp_path: Path) -> AsyncGenerator[Site]:
    async with site_in(tmp_path) as site:
        yield site


async def test_what_passes_its_check_is_what_the_branch_moves_to(site: Site) -> None:
    run, source = await site.run({"new": "of the run\n"})
    check = Outside(site, "grep -q run new")
    merged = await site.merging.merge(run, source, check)
    assert (merged.state, merged.how) == (MergeState.MERGED, "fast_forward")
    assert merged.check is not None
    assert [merged.check.commit, merged.commit] == [site.user.oid("main")] * 2 == check.checked * 2
    assert (site.user.path / "new").read_text() == "of the run\n"


async def test_the_check_is_of_both_sides_together_where_the_branch_has_moved(site: Site) -> None:
    run, source = await site.run({"new": "of the run\n"})
    site.user.commit({"other": "of the user\n"})
    check = Outside(site, "test -e new && test -e other")
    merged = await site.merging.merge(run, source, check)
    assert (merged.state, merged.how) == (MergeState.MERGED, "rebase")
    assert check.checked == [site.user.oid("main")]
    assert merged.check is not None
    assert merged.check.success


@pytest.mark.parametrize("moved", [False, True])
async def test_what_does_not_pass_moves_nothing_and_is_kept(site: Site, moved: bool) -> None:
    run, source = await site.run({"new": "of the run\n"})
    if moved:
        site.user.commit({"other": "of the user\n"})
    before, refs = look_of(site.user.path), site.user.refs()
    merged = await site.merging.merge(run, source, Outside(site, "exit 3"))
    assert merged.state is MergeState.CHECK_FAILED
    assert merged.check is not None
    assert (merged.check.exit_code, merged.check.output) == (3, "said so\n")
    assert merged.reason == "what was merged does not pass the check: status 3"
    assert site.user.refs() == refs
    # The objects that a landing would need are not sent before it has passed.
    assert look_of(site.user.path) == before
    assert site.ref(run) == run.record.tip
    outcome = outcome_of(run.record.model_copy(update={"merge": merged}))
    assert isinstance(outcome, Failed)
    assert (outcome.error.code, outcome.retryable) == ("check-failed", False)


async def test_a_branch_that_moves_during_the_check_is_merged_into_and_checked_again(
    site: Site,
) -> None:
    run, source = await site.run({"new": "of the run\n"})
    check = Outside(site, f'[ -e "$1/other" ] || ( {SOMEBODY_COMMITS} )')
    merged = await site.merging.merge(run, source, check)
    assert merged.state is MergeState.MERGED
    assert [oid == site.user.oid("main") for oid in check.checked] == [False, True]
    assert site.user.git("log", "--format=%s", "main").splitlines() == [
        *("Did it", "In between", "base")
    ]


async def test_a_branch_that_moves_during_every_check_is_given_up_on(site: Site) -> None:
    run, source = await site.run({"new": "of the run\n"})
    check = Outside(site, SOMEBODY_COMMITS)
    merged = await site.merging.merge(run, source, check)
    assert merged.state is MergeState.REFUSED
    assert "was moved by others" in (merged.reason or "")
    assert len(set(check.checked)) == len(check.checked) == 5
    assert "Did it" not in site.user.git("log", "--format=%s", "main")
    assert site.ref(run) == run.record.tip


async def test_a_check_that_could_not_be_done_moves_nothing_and_says_so(site: Site) -> None:
    run, source = await site.run({"new": "of the run\n"})
    before = site.user.refs()

    async def lost(_commit: Oid) -> CheckOutcome:
        raise errors.MachineLost("its machine is gone")

    merged = await site.merging.merge(run, source, lost)
    assert merged.state is MergeState.FAILED
    assert merged.reason == "the check could not be done: its machine is gone"
    assert site.user.refs() == before
    outcome = outcome_of(run.record.model_copy(update={"merge": merged}))
    assert isinstance(outcome, Failed)
    assert outcome.error.code == "merge-failed"


async def test_what_has_passed_is_not_checked_again_by_the_next_daemon(site: Site) -> None:
    run, source = await site.run({"new": "of the run\n"})
    tip = Oid(run.record.tip or "")
    checked = CheckOutcome(success=True, commit=tip, exit_code=0)
    # As it stands when a daemon is killed between the check and the landing.
    await run.learn("checked", merge=MergeOutcome(state=MergeState.PENDING, check=checked))
    again = Outside(site, "false")
    merged = await site.merging.merge(run, source, again)
    assert (merged.state, merged.check, again.checked) == (MergeState.MERGED, checked, [])
    # What the branch would be now is something else.
    other, source = await site.run({"other": "1\n"}, onto="main~1")
    await other.learn("checked", merge=MergeOutcome(state=MergeState.PENDING, check=checked))
    assert (await site.merging.merge(other, source, again)).state is MergeState.CHECK_FAILED


async def test_a_run_that_is_cancelled_during_its_check_moves_nothing(site: Site) -> None:
    run, source = await site.run({"new": "of the run\n"})
    before = site.user.refs()
    checking = anyio.Event()

    async def slow(_commit: Oid) -> CheckOutcome:
        checking.set()
        await anyio.sleep_forever()
        raise AssertionError("a sleep that goes on for ever has ended")

    async def merge() -> None:
        with run.scope:
            await site.merging.merge(run, source, slow)

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(merge)
            await checking.wait()
            run.end_soon("its task is cancelled")
    assert run.scope.cancelled_caught
    assert site.user.refs() == before
    # The next one finds the way free.
    other, source = await site.run({"other": "1\n"})
    assert (await site.merging.merge(other, source)).state is MergeState.MERGED


async def test_a_branch_that_is_being_moved_is_written_down_though_the_run_is_ended(
    site: Site,
) -> None:
    run, source = await site.run({"new": "of the run\n"})
    tip = run.record.tip or ""
    sent = site.user.path / ".git" / "objects" / tip[:2] / tip[2:]
    # A git of the user's is at work, for which a landing waits.
    lock = site.user.path / ".git" / "index.lock"
    lock.touch()

    async def merge() -> None:
        with run.scope:
            await site.merging.merge(run, source)

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(merge)
            while not sent.exists():  # noqa: ASYNC110 - nobody tells of a file
                await anyio.sleep(0.005)
            run.end_soon("its task is cancelled")
            lock.unlink()
    assert site.user.oid("main") == tip
    assert (await site.stored(run)).merge.state is MergeState.MERGED


@pytest.mark.parametrize("policy", ["branch", "manual"])
async def test_what_is_merged_into_no_branch_of_the_users_is_not_checked(
    site: Site, policy: str
) -> None:
    run, source = await site.run({"new": "of the run\n"}, merge=policy)
    check = Outside(site, "false")
    merged = await site.merging.merge(run, source, check)
    assert check.checked == []
    assert merged.state is (MergeState.MERGED if policy == "branch" else MergeState.NONE)


async def test_checks_of_one_repository_come_one_after_the_other(site: Site) -> None:
    runs = [await site.run({name: "1\n"}) for name in "xyz"]
    at_once = [0, 0]

    async def counted(commit: Oid) -> CheckOutcome:
        at_once[0] += 1
        at_once[1] = max(at_once)
        await anyio.lowlevel.checkpoint()
        outcome = await Outside(site, "true")(commit)
        at_once[0] -= 1
        return outcome

    merged: list[MergeOutcome] = []

    async def merge(number: int) -> None:
        run, source = runs[number]
        merged.append(await site.merging.merge(run, source, counted))

    async with anyio.create_task_group() as tasks:
        for number in range(len(runs)):
            tasks.start_soon(merge, number)
    assert [each.state for each in merged] == [MergeState.MERGED] * 3
    assert at_once == [0, 1]
    assert all((site.user.path / name).exists() for name in "xyz")


async def test_the_journal_tells_how_a_check_went(site: Site) -> None:
    run, source = await site.run({"new": "of the run\n"})
    await site.merging.merge(run, source, Outside(site, "true"))
    told = await site.told(run)
    [checked] = [body for kind, body in told if kind == "run.checked"]
    assert (checked["commit"], checked["success"]) == (run.record.tip, True)
    assert told[-1][0] == "run.merged"


async def test_a_detached_user_keeps_what_they_look_at(site: Site) -> None:
    site.user.git("checkout", "--quiet", "--detach")
    run, source = await site.run({"new": "of the run\n"})
    merged = await site.merging.merge(run, source, Outside(site, "true"))
    assert merged.state is MergeState.MERGED
    assert UserRepo(site.user.path).oid("main") == run.record.tip
    assert not (site.user.path / "new").exists()
