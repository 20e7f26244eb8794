from __future__ import annotations

from pathlib import Path

import pytest

from git_repos import Repo, look_of
from landing import Stage, make_stage, plant_programs
from microvm_orchestrator import errors
from microvm_orchestrator.git import checkout
from microvm_orchestrator.git.land import CheckedOut
from microvm_orchestrator.git.names import Oid
from microvm_orchestrator.git.outcomes import Landed, Moved, Reason, Refused
from microvm_orchestrator.git.place import open_place


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """One whose branch `main` is checked out nowhere."""
    made = make_stage(tmp_path)
    made.user.git("checkout", "--quiet", "-b", "mine")
    return made


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
async def test_a_branch_of_a_bare_repository_moves(tmp_path: Path, object_format: str) -> None:
    stage = make_stage(tmp_path, bare=True, object_format=object_format)
    new = stage.result()
    assert await stage.land(new) == Landed("main", new)
    assert stage.user.refs() == {"refs/heads/main": new}
    stage.user.git("fsck", "--strict", "--connectivity-only")


async def test_a_branch_that_is_checked_out_nowhere_moves_and_no_file_with_it(
    stage: Stage,
) -> None:
    new = stage.result()
    before = {k: v for k, v in look_of(stage.user.path).items() if "/.git" not in k}
    assert await stage.land(new, checked_out=CheckedOut.LEAVE) == Landed("main", new)
    after = {k: v for k, v in look_of(stage.user.path).items() if "/.git" not in k}
    assert after == before
    assert stage.user.refs() == {"refs/heads/main": new, "refs/heads/mine": stage.old}
    assert stage.user.git("reflog", "-1", "--format=%gs", "main") == "merge task t1"
    assert not (stage.user.path / ".git" / "FETCH_HEAD").exists() or (
        new not in (stage.user.path / ".git" / "FETCH_HEAD").read_text()
    )
    assert stage.user.git("status", "--porcelain") == ""


async def test_landing_what_has_landed_changes_nothing(stage: Stage) -> None:
    new = stage.result()
    await stage.land(new)
    before = look_of(stage.user.path)
    assert await stage.land(new) == Landed("main", new)
    assert look_of(stage.user.path) == before


async def test_a_branch_that_somebody_moved_stays_where_they_moved_it(stage: Stage) -> None:
    new = stage.result()
    theirs = stage.user.commit({"c": "1\n"})
    stage.user.git("branch", "--force", "main", theirs)
    before = look_of(stage.user.path)
    assert await stage.land(new) == Moved(theirs)
    assert look_of(stage.user.path) == before


async def test_a_branch_that_is_gone_is_told_so_and_not_made_again(stage: Stage) -> None:
    new = stage.result()
    stage.user.git("branch", "--delete", "--force", "main")
    assert await stage.land(new) == Moved(None)
    assert "refs/heads/main" not in stage.user.refs()


async def test_a_new_branch_is_made_unless_somebody_has_made_it(stage: Stage) -> None:
    new = stage.result()
    assert await stage.land(new, "tasks/t1", None, base=stage.old) == Landed("tasks/t1", new)
    assert stage.user.refs()["refs/heads/tasks/t1"] == new
    other = stage.result({"other": "x"})
    assert await stage.land(other, "tasks/t1", None) == Moved(new)


async def test_a_new_branch_lands_without_the_base_being_there(tmp_path: Path) -> None:
    stage = make_stage(tmp_path, bare=True)
    new = stage.result(onto=stage.result({"x": "y"}))
    known_here_only = Oid(stage.mirror.git("rev-parse", f"{new}~1"))
    landed = await stage.land(new, "tasks/t1", None, base=known_here_only)
    assert landed == Landed("tasks/t1", new)
    stage.user.git("fsck", "--strict", "--connectivity-only")


@pytest.mark.parametrize("bare", [True, False])
async def test_the_first_commit_of_an_empty_repository_lands(tmp_path: Path, bare: bool) -> None:
    stage = make_stage(tmp_path)
    new = stage.result()
    stage.user = Repo.make(tmp_path / "empty", bare=bare)
    landed = await stage.land(new, old=None)
    assert landed == Landed("main", new, None if bare else str(stage.user.path))
    assert stage.user.oid("main") == new
    if not bare:
        assert stage.user.git("status", "--porcelain") == ""
        assert (stage.user.path / "new").read_text() == "of the run\n"


async def test_a_checked_out_branch_is_left_alone_if_that_is_wanted(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    new = stage.result()
    before = look_of(stage.user.path)
    refused = await stage.land(new, checked_out=CheckedOut.LEAVE)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.CHECKED_OUT
    assert refused.hint == f"in there: git merge --ff-only {new}"
    assert look_of(stage.user.path) == before


async def test_what_is_no_fast_forward_does_not_land(stage: Stage) -> None:
    new = stage.result()
    aside = stage.result({"x": "y"})
    with pytest.raises(errors.InvalidInput, match="no fast-forward"):
        await stage.land(new, old=aside)


async def test_many_objects_arrive_as_a_pack(stage: Stage) -> None:
    new = stage.result({f"f{number}": f"{number}\n" for number in range(300)})
    packs = stage.user.path / ".git" / "objects" / "pack"
    assert not list(packs.glob("*.pack"))
    assert await stage.land(new) == Landed("main", new)
    assert len(list(packs.glob("*.pack"))) == 1
    stage.user.git("fsck", "--strict")


async def test_a_name_that_cannot_be_beside_the_others_is_refused(stage: Stage) -> None:
    new = stage.result()
    stage.user.git("branch", "tasks")
    refused = await stage.land(new, "tasks/t1", None)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.NAME_TAKEN


async def test_a_branch_that_stands_for_another_is_not_replaced(stage: Stage) -> None:
    new = stage.result()
    stage.user.git("symbolic-ref", "refs/heads/alias", "refs/heads/main")
    refused = await stage.land(new, "alias")
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.NAME_TAKEN
    assert stage.user.git("symbolic-ref", "refs/heads/alias") == "refs/heads/main"


@pytest.mark.parametrize("branch", ["../x", "-d", "a..b", "x.lock", "", "a b"])
async def test_what_is_no_name_of_a_branch_never_reaches_git(stage: Stage, branch: str) -> None:
    with pytest.raises(errors.InvalidInput):
        await stage.land(stage.old, branch)


async def test_a_branch_in_the_middle_of_a_rebase_stays(stage: Stage) -> None:
    stage.user.git("checkout", "--quiet", "main")
    old = stage.user.commit({"a": "the user's\n"})
    new = stage.result(onto=old)
    stage.user.git("checkout", "--quiet", "mine")
    stage.user.commit({"a": "other\n"})
    stage.user.git("checkout", "--quiet", "main")
    with pytest.raises(AssertionError, match="could not apply"):
        stage.user.git("rebase", "--quiet", "mine")
    before = look_of(stage.user.path)
    refused = await stage.land(new, old=old)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.IN_PROGRESS
    assert look_of(stage.user.path) == before


@pytest.mark.parametrize("checked_out", [True, False])
async def test_no_program_runs_that_the_repository_names(tmp_path: Path, checked_out: bool) -> None:
    stage = make_stage(tmp_path)
    if not checked_out:
        stage.user.git("checkout", "--quiet", "-b", "mine")
    witness = tmp_path / "ran"
    new = stage.result({"a": "2\n", ".husky/post-checkout": "#!/bin/sh\nfalse\n", "c": "3\n"})
    plant_programs(stage.user, witness)
    (stage.user.path / ".husky" / "post-checkout").unlink()
    outcome = await stage.land(new)
    assert isinstance(outcome, Landed)
    assert not witness.exists()
    # The same by the user's own git does run them, so there was something to be kept from running.
    stage.user.git("update-ref", "refs/heads/other", new)
    assert "reference-transaction" in witness.read_text()


async def test_a_work_tree_that_came_to_the_branch_as_it_moved_catches_up(stage: Stage) -> None:
    new = stage.result({"a": "2\n", "new": "x\n"})
    await stage.land(new)
    # What a `git switch` leaves that read the branch before the move and named it after.
    stage.user.git("symbolic-ref", "HEAD", "refs/heads/main")
    assert stage.user.git("status", "--porcelain") != ""
    place = await open_place(stage.user.path)
    git_dir = stage.user.path / ".git"
    job = checkout.Job(
        place, stage.user.path, git_dir, "refs/heads/main", stage.old, new, "merge task t1"
    )
    assert await checkout.catch_up(job)
    assert stage.user.git("status", "--porcelain") == ""
    assert (stage.user.path / "a").read_text() == "2\n"
    assert await checkout.catch_up(job)
    assert stage.user.git("status", "--porcelain") == ""


async def test_a_work_tree_with_changes_in_the_way_does_not_catch_up(stage: Stage) -> None:
    new = stage.result({"a": "2\n"})
    await stage.land(new)
    stage.user.git("symbolic-ref", "HEAD", "refs/heads/main")
    (stage.user.path / "a").write_text("the user's\n")
    place = await open_place(stage.user.path)
    git_dir = stage.user.path / ".git"
    job = checkout.Job(place, stage.user.path, git_dir, "refs/heads/main", stage.old, new, "x")
    assert not await checkout.catch_up(job)
    assert (stage.user.path / "a").read_text() == "the user's\n"
    assert not (git_dir / "index.lock").exists()
