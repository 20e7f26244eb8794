from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from git_repos import ENV, Repo, look_of
from landing import Stage, make_stage, plant_programs
from microvm_orchestrator import errors
from microvm_orchestrator.git import land
from microvm_orchestrator.git.outcomes import Landed, Moved, Reason, Refused

Act = Callable[[Repo], object]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """One whose branch `main` is checked out, with a file of each kind in it."""
    made = make_stage(tmp_path)
    made.user.write({"folder/x": "x\n", "folder/y": "y\n", "gone": "gone\n", "run": "#!/bin/sh\n"})
    (made.user.path / "link").symlink_to("a")
    made.old = made.user.commit({}, "more")
    return made


def shell(repo: Repo, script: str) -> None:
    subprocess.run(["sh", "-ec", script], cwd=repo.path, env=ENV, check=True, capture_output=True)


def status(repo: Repo) -> str:
    return repo.git("status", "--porcelain")


def without_git(repo: Repo) -> dict[str, tuple[object, ...]]:
    inside = f"{repo.path}/.git"
    looks = look_of(repo.path)
    return {
        path: look
        for path, look in looks.items()
        if not path.startswith(inside) and path.rstrip("/") != str(repo.path)
    }


async def test_a_clean_work_tree_goes_forward_with_its_branch(stage: Stage) -> None:
    new = stage.change(
        "echo 2 > a; rm gone; chmod +x run; rm link; ln -s b link; echo n > folder/new;"
        " rm -r folder/x; mkdir -p deep/er; echo d > deep/er/file; mv b c"
    )
    landed = await stage.land(new)
    assert landed == Landed("main", new, str(stage.user.path))
    assert stage.user.oid() == new
    assert stage.user.git("symbolic-ref", "HEAD") == "refs/heads/main"
    assert status(stage.user) == ""
    assert (stage.user.path / "a").read_text() == "2\n"
    assert os.readlink(stage.user.path / "link") == "b"  # noqa: PTH115 - the text, as it is
    assert os.access(stage.user.path / "run", os.X_OK)
    assert sorted(path.name for path in (stage.user.path / "folder").iterdir()) == ["new", "y"]
    assert stage.user.git("reflog", "-1", "--format=%gs") == "merge task t1"
    assert stage.user.git("reflog", "-1", "--format=%gs", "main") == "merge task t1"
    assert sorted(path.name for path in (stage.user.path / ".git").glob("*.lock")) == []
    assert not (stage.user.path / ".git" / "microvm-orchestrator").exists()


async def test_a_file_that_the_result_does_not_touch_is_not_touched(stage: Stage) -> None:
    new = stage.change("echo 2 > a")
    shell(stage.user, "echo mine > b; echo staged > folder/x; git add folder/x; echo u > untracked")
    shell(stage.user, "echo later >> folder/x; rm gone; echo ita > ita; git add -N ita")
    before, said = without_git(stage.user), status(stage.user)
    assert isinstance(await stage.land(new), Landed)
    after = without_git(stage.user)
    changed = {path for path in before | after if before.get(path) != after.get(path)}
    assert changed == {str(stage.user.path / "a")}
    assert status(stage.user) == said


IN_THE_WAY: list[tuple[str, str, Reason, set[str]]] = [
    ("echo mine > a", "echo 2 > a", Reason.DIRTY, {"a"}),
    ("echo mine > a; git add a", "echo 2 > a", Reason.DIRTY, {"a"}),
    ("echo 2 > a; git add a; echo 1 > a", "echo 2 > a", Reason.DIRTY, {"a"}),
    ("rm a", "echo 2 > a", Reason.DIRTY, {"a"}),
    ("echo mine > gone", "rm gone", Reason.DIRTY, {"gone"}),
    ("chmod +x a", "echo 2 > a", Reason.DIRTY, {"a"}),
    ("rm a; ln -s b a", "echo 2 > a", Reason.DIRTY, {"a"}),
    ("rm a; mkdir a; echo mine > a/mine", "echo 2 > a", Reason.DIRTY, {"a"}),
    ("echo mine > new", "echo n > new", Reason.UNTRACKED, {"new"}),
    ("echo n > new", "echo n > new", Reason.UNTRACKED, {"new"}),
    ("echo /new > .git/info/exclude; echo i > new", "echo n > new", Reason.UNTRACKED, {"new"}),
    ("mkdir new; echo mine > new/mine", "echo n > new", Reason.UNTRACKED, {"new"}),
    ("echo mine > new", "mkdir new; echo n > new/n", Reason.UNTRACKED, {"new/n", "new"}),
    ("ln -s /nowhere new", "echo n > new", Reason.UNTRACKED, {"new"}),
    ("mkdir t; ln -s t new", "mkdir new; echo n > new/n", Reason.UNTRACKED, {"new/n", "new"}),
    ("echo mine > folder/mine", "rm -r folder; ln -s . folder", Reason.UNTRACKED, {"folder"}),
    ("mv folder t; ln -s t folder", "echo 2 > folder/x", Reason.DIRTY, {"folder/x"}),
    ("echo i > new; git add -N new", "echo n > new", Reason.DIRTY, {"new"}),
    ("echo s > new; git add new", "mkdir new; echo n > new/n", Reason.UNTRACKED, {"new/n", "new"}),
    (
        "git update-index --skip-worktree a; echo mine > a",
        "echo 2 > a",
        Reason.DIRTY,
        {"a"},
    ),
    (
        "git update-index --assume-unchanged a; echo mine > a",
        "echo 2 > a",
        Reason.DIRTY,
        {"a"},
    ),
]


@pytest.mark.parametrize(("mine", "theirs", "reason", "files"), IN_THE_WAY)
async def test_what_the_user_has_in_the_way_is_named_and_stays(
    stage: Stage, mine: str, theirs: str, reason: Reason, files: set[str]
) -> None:
    new = stage.change(theirs)
    shell(stage.user, mine)
    before, said = without_git(stage.user), status(stage.user)
    index = (stage.user.path / ".git" / "index").read_bytes()
    refused = await stage.land(new)
    assert isinstance(refused, Refused), refused
    assert refused.reason in {reason, Reason.DIRTY}
    assert set(refused.files) & files
    assert without_git(stage.user) == before
    assert (stage.user.path / ".git" / "index").read_bytes() == index
    assert status(stage.user) == said
    assert stage.user.oid("main") == stage.old
    assert not (stage.user.path / ".git" / "index.lock").exists()
    assert not (stage.user.path / ".git" / "microvm-orchestrator").exists()


async def test_a_file_that_was_only_looked_at_is_not_in_the_way(stage: Stage) -> None:
    new = stage.change("echo 2 > a")
    shell(stage.user, "touch -d 2001-02-03 a; chmod g-r a")
    assert isinstance(await stage.land(new), Landed)
    assert (stage.user.path / "a").read_text() == "2\n"


async def test_a_folder_becomes_a_link_where_nothing_of_the_users_is_in_it(stage: Stage) -> None:
    new = stage.change("rm -r folder; ln -s /etc folder")
    assert isinstance(await stage.land(new), Landed)
    assert os.readlink(stage.user.path / "folder") == "/etc"  # noqa: PTH115 - the text
    back = stage.change("rm folder; mkdir folder; echo x > folder/passwd", onto=new)
    assert isinstance(await stage.land(back, old=new), Landed)
    assert not (stage.user.path / "folder").is_symlink()
    assert status(stage.user) == ""


@pytest.mark.parametrize(
    ("begin", "reason"),
    [
        (
            """
            git checkout -q -b o; git commit -q --allow-empty -m o; git checkout -q main
            git merge -q --no-ff --no-commit o
            """,
            Reason.IN_PROGRESS,
        ),
        ("git bisect start", Reason.IN_PROGRESS),
        (
            """
            git checkout -q -b o; echo o > b; git commit -qam o; git checkout -q main
            echo m > b; git commit -qam m; git merge -q o || true; rm .git/MERGE_HEAD
            """,
            Reason.UNMERGED,
        ),
        ("git revert --no-commit HEAD", Reason.IN_PROGRESS),
    ],
)
async def test_a_user_in_the_middle_of_something_is_not_disturbed(
    stage: Stage, begin: str, reason: Reason
) -> None:
    shell(stage.user, begin)
    stage.old = stage.user.oid()
    new = stage.change("echo 2 > a")
    before, said = without_git(stage.user), status(stage.user)
    refused = await stage.land(new)
    assert isinstance(refused, Refused)
    assert refused.reason is reason
    assert without_git(stage.user) == before
    assert status(stage.user) == said


async def test_a_lock_of_somebody_else_is_waited_for_and_left(stage: Stage) -> None:
    new = stage.change("echo 2 > a")
    lock = stage.user.path / ".git" / "index.lock"
    lock.write_text("")
    refused = await stage.land(new)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.BUSY
    assert refused.hint is not None
    assert lock.exists()
    lock.unlink()
    assert isinstance(await stage.land(new), Landed)


async def test_a_file_with_a_filter_is_refused_and_the_filter_does_not_run(
    stage: Stage, tmp_path: Path
) -> None:
    witness = tmp_path / "ran"
    new = stage.change("echo '*.bin filter=evil' > .gitattributes; echo b > x.bin; echo 2 > a")
    plant_programs(stage.user, witness)
    refused = await stage.land(new)
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.files) == (Reason.FILTERED, ("x.bin",))
    rules = stage.change("echo '* filter=evil' > .gitattributes")
    refused = await stage.land(rules)
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.files) == (Reason.FILTERED, (".gitattributes",))
    only = stage.change("echo '*.bin filter=evil' > .gitattributes")
    assert isinstance(await stage.land(only), Landed)
    assert not witness.exists()


async def test_a_filter_of_the_users_own_attributes_is_refused_too(
    stage: Stage, tmp_path: Path
) -> None:
    witness = tmp_path / "ran"
    new = stage.change("echo 2 > a")
    plant_programs(stage.user, witness)
    info = stage.user.path / ".git" / "info"
    (info / "attributes").write_text("a filter=evil\n")
    refused = await stage.land(new)
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.files) == (Reason.FILTERED, ("a",))
    assert not witness.exists()


async def test_line_ends_are_written_as_the_repository_wants_them(stage: Stage) -> None:
    stage.user.git("config", "core.autocrlf", "true")
    shell(stage.user, "rm a b; git checkout -q -f -- a b")
    assert (stage.user.path / "a").read_bytes() == b"1\r\n"
    new = stage.change("echo 2 > a")
    assert isinstance(await stage.land(new), Landed)
    assert (stage.user.path / "a").read_bytes() == b"2\r\n"
    assert status(stage.user) == ""


def add_submodule(stage: Stage, tmp_path: Path) -> Repo:
    part = Repo.make(tmp_path / "part")
    part.commit({"p": "1\n"})
    stage.user.git("submodule", "--quiet", "add", part.path, "sub")
    stage.old = stage.user.commit({}, "with a submodule")
    return Repo(stage.user.path / "sub")


async def test_of_a_submodule_only_the_link_moves(stage: Stage, tmp_path: Path) -> None:
    sub = add_submodule(stage, tmp_path)
    sub.write({"p": "the user's\n", "untracked": "u\n"})
    before = look_of(sub.path)
    was = sub.oid()
    new = stage.change(f"git update-index --cacheinfo 160000,{'1' * 40},sub", add=False)
    assert isinstance(await stage.land(new), Landed)
    assert look_of(sub.path) == before
    assert stage.user.git("rev-parse", ":sub") == "1" * 40
    assert sub.oid() == was
    gone = stage.change("git rm -q --cached sub; git rm -q .gitmodules", add=False, onto=new)
    assert isinstance(await stage.land(gone, old=new), Landed)
    assert look_of(sub.path) == before


@pytest.mark.parametrize("script", ["mkdir sub; echo x > sub/p", "echo x > sub", "ln -s / sub"])
async def test_a_submodule_does_not_become_files(stage: Stage, tmp_path: Path, script: str) -> None:
    sub = add_submodule(stage, tmp_path)
    before = look_of(sub.path)
    new = stage.change(f"git rm -q --cached sub; rm -rf sub; {script}")
    refused = await stage.land(new)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.SUBMODULE
    assert look_of(sub.path) == before


async def test_what_a_sparse_checkout_leaves_out_stays_out(stage: Stage) -> None:
    stage.user.git("sparse-checkout", "set", "folder")
    assert not (stage.user.path / "deep").exists()
    new = stage.change("mkdir deep; echo 1 > deep/file; echo 2 > folder/x; echo 2 > a")
    assert isinstance(await stage.land(new), Landed)
    assert not (stage.user.path / "deep").exists()
    assert (stage.user.path / "folder" / "x").read_text() == "2\n"
    assert status(stage.user) == ""


async def test_a_split_index_and_its_other_extensions_survive(stage: Stage) -> None:
    stage.user.git("update-index", "--split-index", "--untracked-cache")
    stage.user.git("config", "core.splitIndex", "true")
    new = stage.change("echo 2 > a")
    shell(stage.user, "echo mine > b; git add b")
    assert isinstance(await stage.land(new), Landed)
    assert status(stage.user) == "M  b"
    stage.user.git("fsck", "--strict")


async def test_names_that_a_file_system_takes_for_one_are_refused(stage: Stage) -> None:
    stage.user.git("config", "core.ignoreCase", "true")
    new = stage.change("echo x > Folder; echo 2 > A")
    refused = await stage.land(new)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.COLLIDES
    assert "A" in refused.files


async def test_a_linked_work_tree_goes_forward_and_the_main_one_stays(
    stage: Stage, tmp_path: Path
) -> None:
    stage.user.git("checkout", "--quiet", "-b", "mine")
    linked = Repo(tmp_path / "linked")
    stage.user.git("worktree", "add", "--quiet", linked.path, "main")
    new = stage.change("echo 2 > a")
    before = without_git(stage.user)
    assert await stage.land(new) == Landed("main", new, str(linked.path))
    assert (linked.path / "a").read_text() == "2\n"
    assert status(linked) == ""
    assert without_git(stage.user) == before
    assert status(stage.user) == ""


async def test_a_branch_whose_work_tree_is_gone_is_refused_with_what_to_do(
    stage: Stage, tmp_path: Path
) -> None:
    stage.user.git("checkout", "--quiet", "-b", "mine")
    stage.user.git("worktree", "add", "--quiet", tmp_path / "linked", "main")
    shutil.rmtree(tmp_path / "linked")
    refused = await stage.land(stage.change("echo 2 > a"))
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.CHECKED_OUT
    assert "git worktree prune" in (refused.hint or "")


async def test_a_commit_of_the_users_comes_first(stage: Stage) -> None:
    new = stage.change("echo 2 > a")
    theirs = stage.user.commit({"b": "the user's\n"})
    before = look_of(stage.user.path)
    assert await stage.land(new) == Moved(theirs)
    assert look_of(stage.user.path) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may write as another user")
async def test_what_root_lands_belongs_to_whom_the_repository_belongs(
    stage: Stage,
) -> None:
    folders = [stage.user.path.parent, *stage.user.path.parent.parents]
    closed = [(path, path.stat().st_mode) for path in folders if not path.stat().st_mode & 0o001]
    for path, mode in closed:
        path.chmod(mode | 0o011)
    try:
        new = stage.change("echo 2 > a; mkdir -p deep; echo d > deep/file; rm gone")
        subprocess.run(["chown", "-R", "12345:54321", stage.user.path], check=True)
        assert isinstance(await stage.land(new), Landed)
        owners = {(path.lstat().st_uid, path.lstat().st_gid) for path in stage.user.path.rglob("*")}
        assert owners == {(12345, 54321)}
        assert (stage.user.path / "deep" / "file").stat().st_mode & 0o777 == 0o644
    finally:
        for path, mode in closed:
            path.chmod(mode)


async def test_recovering_where_nothing_is_left_changes_nothing(stage: Stage) -> None:
    before = look_of(stage.user.path)
    await land.recover(stage.user.path)
    assert look_of(stage.user.path) == before


async def test_a_result_that_cannot_be_written_whole_is_taken_back(stage: Stage) -> None:
    blob = stage.mirror.git("hash-object", "-w", "--stdin", stdin=b"x")
    new = stage.change(
        f"echo 2 > a; rm gone; echo n > Before; git add -A; git update-index --add"
        f" --cacheinfo 100644,{blob},folder/{'x' * 300}; chmod +x run; git update-index run",
        add=False,
    )
    shell(stage.user, "echo mine > b; echo u > untracked")
    before, said = contents(stage.user), status(stage.user)
    with pytest.raises(errors.CommandFailed, match="File name too long"):
        await stage.land(new)
    assert contents(stage.user) == before
    assert status(stage.user) == said
    assert stage.user.oid() == stage.old
    assert list((stage.user.path / ".git").glob("**/*.lock")) == []


def contents(repo: Repo) -> dict[str, object]:
    """Describe the files by what is in them, not by when they were written."""
    return {path: (look[0], look[-1]) for path, look in without_git(repo).items()}


async def test_a_repository_that_is_a_submodule_of_another_goes_forward(
    stage: Stage, tmp_path: Path
) -> None:
    outer = Repo.make(tmp_path / "outer")
    outer.git("submodule", "--quiet", "add", stage.user.path, "sub")
    stage.user = Repo(outer.path / "sub")
    new = stage.change("echo 2 > a")
    assert await stage.land(new) == Landed("main", new, str(stage.user.path))
    assert (stage.user.path / "a").read_text() == "2\n"
    assert status(stage.user) == ""


async def test_a_branch_lands_from_within_a_linked_work_tree(stage: Stage, tmp_path: Path) -> None:
    linked = Repo(tmp_path / "linked")
    stage.user.git("worktree", "add", "--quiet", "-b", "mine", linked.path)
    new, main = stage.change("echo 2 > a"), stage.user.path
    stage.user = linked
    assert await stage.land(new) == Landed("main", new, str(main))
    assert (main / "a").read_text() == "2\n"
    assert await stage.land(new, "mine") == Landed("mine", new, str(linked.path))
    assert status(linked) == status(Repo(main)) == ""
