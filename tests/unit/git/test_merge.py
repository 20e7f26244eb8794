from __future__ import annotations

import subprocess
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from git_repos import ENV, Repo, raw
from microvm_orchestrator import errors
from microvm_orchestrator.git import merge as merging
from microvm_orchestrator.git.conflicts import Kind
from microvm_orchestrator.git.merge import Conflict, How, Merged, Policy
from microvm_orchestrator.git.names import Oid
from microvm_orchestrator.git.replay import Committer, Workbench, open_workbench

US = Committer("Orchestrator", "orchestrator@example.org")
Files = Mapping[str, str | bytes]
LINES = "".join(f"line {number}\n" for number in range(30))


@dataclass
class Stage:
    """A branch `main`, a branch `task` of a run, and a bench in the mirror that has both."""

    user: Repo
    mirror: Repo
    bench: Workbench
    base: Oid

    def on_main(self, files: Files, message: str = "by the user") -> Oid:
        self.user.git("checkout", "--quiet", "main")
        return self.user.commit(files, message)

    def on_task(self, files: Files, message: str = "by the run") -> Oid:
        if "refs/heads/task" not in self.user.refs():
            self.user.git("branch", "task", self.base)
        self.user.git("checkout", "--quiet", "task")
        return self.user.commit(files, message)

    async def merge(
        self,
        policy: Policy = Policy.AUTO,
        *,
        base: Oid | None = None,
        target: Oid | None = None,
        title: str = "",
        bench: Workbench | None = None,
    ) -> Merged | Conflict:
        refs = self.user.refs()
        self.mirror.git("fetch", "--quiet", self.user.path, "+refs/heads/*:refs/heads/*")
        return await merging.merge(
            bench or self.bench,
            base=base or self.base,
            tip=Oid(refs["refs/heads/task"]),
            target=target or Oid(refs["refs/heads/main"]),
            policy=policy,
            committer=US,
            title=title,
        )

    def files(self, oid: str) -> dict[str, str]:
        names = self.mirror.git("ls-tree", "-r", "--name-only", oid).splitlines()
        return {name: self.mirror.git("show", f"{oid}:{name}") for name in names}

    def log(self, what: str, form: str) -> list[str]:
        return self.mirror.git("log", "--reverse", f"--format={form}", what).splitlines()


@pytest.fixture(params=["sha1"])
async def stage(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncGenerator[Stage]:
    user = Repo.make(tmp_path / "user", object_format=request.param)
    base = user.commit({"a": LINES, "b": "1\n"}, "base")
    mirror = Repo.make(tmp_path / "mirror", bare=True, object_format=request.param)
    async with open_workbench(mirror.path) as bench:
        yield Stage(user, mirror, bench, base)


async def test_a_branch_that_stayed_goes_forward_to_what_was_brought(stage: Stage) -> None:
    stage.on_task({"b": "2\n"})
    tip = stage.on_task({"b": "3\n"})
    assert await stage.merge() == Merged(tip, How.FAST_FORWARD, 2)


async def test_a_branch_that_moved_gets_the_commits_on_top_as_their_authors_wrote_them(
    stage: Stage,
) -> None:
    target = stage.on_main({"c": "of the user\n"})
    stage.on_task({"b": "2\n"}, "one\n\nwith a body")
    env = {"GIT_AUTHOR_NAME": "Eve", "GIT_AUTHOR_EMAIL": "eve@x", "GIT_AUTHOR_DATE": "@7 +0300"}
    stage.user.write({"d": "3\n"})
    stage.user.git("add", "d")
    words = ["commit-tree", "-p", "HEAD", "-m", "two", stage.user.git("write-tree")]
    tip = raw(stage.user.path, *words, env=ENV | env).decode().strip()
    stage.user.git("reset", "--quiet", "--hard", tip)
    merged = await stage.merge()
    assert isinstance(merged, Merged)
    assert (merged.how, merged.commits) == (How.REBASE, 2)
    assert stage.files(merged.oid) == {
        "a": LINES.strip(),
        "b": "2",
        "c": "of the user",
        "d": "3",
    }
    assert stage.log(f"{target}..{merged.oid}", "%an %ae %ad %cn %ce") == [
        "Ada ada@example.org Mon May 6 07:08:09 2024 +0000 Orchestrator orchestrator@example.org",
        "Eve eve@x Thu Jan 1 03:00:07 1970 +0300 Orchestrator orchestrator@example.org",
    ]
    assert stage.mirror.git("log", "-1", "--format=%B", f"{merged.oid}~1") == "one\n\nwith a body"
    assert stage.mirror.git("rev-parse", f"{merged.oid}~2") == target


@pytest.mark.parametrize("policy", Policy)
async def test_a_merge_done_twice_is_one_merge(stage: Stage, policy: Policy) -> None:
    stage.on_main({"c": "1\n"})
    stage.on_task({"b": "2\n"})
    stage.on_task({"d": "2\n"})
    once = await stage.merge(policy)
    async with open_workbench(stage.mirror.path) as other:
        assert await stage.merge(policy, bench=other) == once


async def test_a_merge_on_top_of_its_own_result_adds_nothing(stage: Stage) -> None:
    stage.on_main({"c": "1\n"})
    stage.on_task({"b": "2\n"})
    once = await stage.merge()
    assert isinstance(once, Merged)
    assert await stage.merge(target=once.oid) == Merged(once.oid, How.NONE, 0)
    assert await stage.merge(Policy.SQUASH, target=once.oid) == Merged(once.oid, How.NONE, 0)


async def test_lines_that_both_changed_are_named_with_what_each_made_of_them(
    stage: Stage,
) -> None:
    stage.on_main({"a": LINES.replace("line 7\n", "the user's seven\n")})
    stage.on_task({"b": "fine\n"}, "fits")
    tip = stage.on_task({"a": LINES.replace("line 7\n", "the run's seven\n")}, "does not fit")
    conflict = await stage.merge()
    assert isinstance(conflict, Conflict)
    assert (conflict.commit, conflict.subject) == (tip, "does not fit")
    (file,) = conflict.files
    assert (file.path, file.kind) == ("a", Kind.CONTENT)
    (hunk,) = file.hunks
    assert (hunk.line, hunk.ours, hunk.base, hunk.theirs) == (
        8,
        "the user's seven",
        "line 7",
        "the run's seven",
    )


async def test_lines_of_one_file_that_are_far_apart_both_stay(stage: Stage) -> None:
    stage.on_main({"a": LINES.replace("line 7\n", "seven\n")})
    stage.on_task({"a": LINES.replace("line 20\n", "twenty\n")})
    merged = await stage.merge()
    assert isinstance(merged, Merged)
    both = LINES.replace("line 7\n", "seven\n").replace("line 20\n", "twenty\n").strip()
    assert stage.files(merged.oid)["a"] == both


@pytest.mark.parametrize(
    ("ours", "theirs", "path", "kind"),
    [
        ("echo x > new", "echo y > new", "new", Kind.ADD_ADD),
        ("git rm -q b", "echo 2 > b", "b", Kind.MODIFY_DELETE),
        ("echo 2 > b", "git rm -q b", "b", Kind.MODIFY_DELETE),
        ("git mv a x", "git mv a y", "a", Kind.RENAME),
        ("git mv a x", "git rm -q a", "x", Kind.RENAME),
        ("printf 'x\\0y' > b", "printf 'x\\0z' > b", "b", Kind.BINARY),
        ("git rm -q b && ln -s x b", "git rm -q b && ln -s y b", "b", Kind.TYPE),
        ("git rm -q b && mkdir b && touch b/c", "echo 2 > b", "b", Kind.MODIFY_DELETE),
        (
            f"git update-index --add --cacheinfo 160000,{'1' * 40},sub",
            f"git update-index --add --cacheinfo 160000,{'2' * 40},sub",
            "sub",
            Kind.SUBMODULE,
        ),
    ],
)
async def test_a_conflict_is_told_by_its_kind(
    stage: Stage, ours: str, theirs: str, path: str, kind: Kind
) -> None:
    stage.user.git("branch", "task", stage.base)
    for branch, script in (("main", ours), ("task", theirs)):
        stage.user.git("checkout", "--quiet", branch)
        subprocess.run(["sh", "-ec", script], cwd=stage.user.path, check=True)
        if "update-index" not in script:
            stage.user.git("add", "--all")
        stage.user.git("commit", "--quiet", "--message", script)
    conflict = await stage.merge()
    assert isinstance(conflict, Conflict)
    kinds = {file.path: file.kind for file in conflict.files}
    told = [name for name in kinds if name.partition("~")[0] == path]
    assert [kinds[name] for name in told] == [kind]
    assert all(file.explanation for file in conflict.files)


async def test_what_the_branch_has_already_is_not_done_again(stage: Stage) -> None:
    stage.on_main({"c": "1\n"})
    target = stage.on_main({"b": "2\n"})
    stage.on_task({"b": "2\n"}, "the same")
    assert await stage.merge() == Merged(target, How.NONE, 0)
    stage.on_task({"d": "2\n"}, "and more")
    merged = await stage.merge()
    assert isinstance(merged, Merged)
    assert stage.log(f"{target}..{merged.oid}", "%s") == ["and more"]
    assert merged.commits == 1


async def test_a_commit_that_was_empty_from_the_start_is_kept(stage: Stage) -> None:
    target = stage.on_main({"c": "1\n"})
    stage.on_task({}, "says something")
    merged = await stage.merge()
    assert isinstance(merged, Merged)
    assert stage.log(f"{target}..{merged.oid}", "%s") == ["says something"]


async def test_a_run_that_brought_nothing_merges_to_nothing(stage: Stage) -> None:
    stage.user.git("branch", "task", stage.base)
    assert await stage.merge() == Merged(stage.base, How.NONE, 0)
    target = stage.on_main({"c": "1\n"})
    for policy in (Policy.AUTO, Policy.SQUASH):
        assert await stage.merge(policy) == Merged(target, How.NONE, 0)


async def test_what_was_merged_and_taken_back_by_the_user_does_not_return(stage: Stage) -> None:
    tip = stage.on_task({"b": "2\n"})
    stage.user.git("checkout", "--quiet", "main")
    stage.user.git("merge", "--quiet", "--ff-only", tip)
    stage.user.git("revert", "--no-edit", tip)
    target = stage.user.oid()
    assert await stage.merge() == Merged(target, How.NONE, 0)


async def test_merges_of_a_run_stay_and_their_resolutions_with_them(stage: Stage) -> None:
    target = stage.on_main({"c": "1\n"})
    stage.on_task({"b": "one side\n"})
    stage.user.git("checkout", "--quiet", "-b", "side", stage.base)
    stage.user.commit({"b": "other side\n"})
    stage.user.git("checkout", "--quiet", "task")
    stage.user.git("merge", "--quiet", "--strategy=ours", "side")
    tip = stage.on_task({"b": "both sides\n"})
    merged = await stage.merge(title="Merge a run")
    assert isinstance(merged, Merged)
    assert (merged.how, merged.commits) == (How.MERGE, 5)
    assert (
        stage.mirror.git("log", "-1", "--format=%P|%s", merged.oid) == f"{target} {tip}|Merge a run"
    )
    assert stage.files(merged.oid) == {"a": LINES.strip(), "b": "both sides", "c": "1"}


async def test_a_commit_that_was_taken_out_of_the_branch_does_not_come_back(stage: Stage) -> None:
    began = stage.on_main({"secret": "x\n"})
    stage.user.git("branch", "task", began)
    stage.on_task({"b": "2\n"})
    stage.user.git("branch", "--force", "main", stage.base)
    merged = await stage.merge(base=began)
    assert isinstance(merged, Merged)
    assert merged.how is How.REBASE
    assert set(stage.files(merged.oid)) == {"a", "b"}
    assert stage.mirror.git("rev-parse", f"{merged.oid}~1") == stage.base


async def test_nor_does_it_by_way_of_a_merge_in_the_run(stage: Stage) -> None:
    began = stage.on_main({"secret": "x\n"})
    stage.user.git("branch", "task", began)
    stage.on_task({"b": "2\n"})
    stage.user.git("checkout", "--quiet", "-b", "side", began)
    stage.user.commit({"d": "1\n"})
    stage.user.git("checkout", "--quiet", "task")
    stage.user.git("merge", "--quiet", "--no-edit", "side")
    stage.user.git("branch", "--force", "main", stage.base)
    merged = await stage.merge(base=began)
    assert isinstance(merged, Merged)
    assert merged.how is How.SQUASH
    assert set(stage.files(merged.oid)) == {"a", "b", "d"}
    assert began not in stage.mirror.git("rev-list", merged.oid)


async def test_a_squash_is_one_commit_that_names_all_of_them_and_their_authors(
    stage: Stage,
) -> None:
    target = stage.on_main({"c": "1\n"})
    stage.on_task({"b": "2\n"}, "one\n\nbody")
    stage.user.write({"b": "3\n"})
    stage.user.git("commit", "--quiet", "--all", "--message=two", "--author=Eve <eve@x>")
    stage.on_task({"d": "4\n"}, "three")
    merged = await stage.merge(Policy.SQUASH, title="All of\nit")
    assert isinstance(merged, Merged)
    assert (merged.how, merged.commits) == (How.SQUASH, 1)
    assert stage.mirror.git("log", "-1", "--format=%P|%an|%cn%n%B", merged.oid) == (
        f"{target}|Ada|Orchestrator\nAll of it\n\n* one\n* two\n* three\n\n"
        "Co-authored-by: Eve <eve@x>"
    )
    assert stage.files(merged.oid) == {"a": LINES.strip(), "b": "3", "c": "1", "d": "4"}


async def test_a_squash_of_one_commit_keeps_its_message_and_author(stage: Stage) -> None:
    tip = stage.on_task({"b": "2\n"}, "one\n\nbody")
    assert await stage.merge(Policy.SQUASH) == Merged(tip, How.FAST_FORWARD, 1)
    target = stage.on_main({"c": "1\n"})
    merged = await stage.merge(Policy.SQUASH)
    assert isinstance(merged, Merged)
    assert stage.mirror.git("log", "-1", "--format=%P|%an|%B", merged.oid) == (
        f"{target}|Ada|one\n\nbody"
    )


async def test_a_squash_fits_where_only_a_commit_in_between_does_not(stage: Stage) -> None:
    stage.on_main({"b": "the user's\n"})
    stage.on_task({"b": "for a moment\n"})
    stage.on_task({"b": "1\n", "d": "kept\n"})
    assert isinstance(await stage.merge(), Conflict)
    merged = await stage.merge(Policy.SQUASH)
    assert isinstance(merged, Merged)
    assert stage.files(merged.oid)["b"] == "the user's"


async def test_the_policy_branch_takes_what_was_brought_as_it_is(stage: Stage) -> None:
    stage.on_main({"b": "the user's\n"})
    tip = stage.on_task({"b": "the run's\n"})
    assert await stage.merge(Policy.BRANCH) == Merged(tip, How.FAST_FORWARD, 1)


@pytest.mark.parametrize("stage", ["sha256"], indirect=True)
async def test_a_repository_with_long_object_names_merges_as_well(stage: Stage) -> None:
    stage.on_main({"c": "1\n"})
    stage.on_task({"b": "2\n"})
    merged = await stage.merge()
    assert isinstance(merged, Merged)
    assert len(merged.oid) == 64
    assert stage.files(merged.oid) == {"a": LINES.strip(), "b": "2", "c": "1"}


async def test_a_run_in_an_empty_repository_begins_the_branch(stage: Stage) -> None:
    tip = stage.on_task({"b": "2\n"})
    stage.mirror.git("fetch", "--quiet", stage.user.path, "+refs/heads/*:refs/heads/*")
    merged = await merging.merge(
        stage.bench, base=None, tip=tip, target=None, policy=Policy.AUTO, committer=US
    )
    assert merged == Merged(tip, How.FAST_FORWARD, 2)
    squashed = await merging.merge(
        stage.bench, base=None, tip=tip, target=None, policy=Policy.SQUASH, committer=US
    )
    assert isinstance(squashed, Merged)
    assert stage.mirror.git("log", "--format=%P|%T", squashed.oid) == (
        f"|{stage.mirror.git('rev-parse', f'{tip}^{{tree}}')}"
    )


async def test_two_beginnings_of_an_empty_repository_are_put_together(stage: Stage) -> None:
    stage.user.git("checkout", "--quiet", "--orphan", "task")
    stage.user.git("rm", "-q", "-r", "--force", ".")
    tip = stage.user.commit({"c": "1\n"}, "another beginning")
    stage.mirror.git("fetch", "--quiet", stage.user.path, "+refs/heads/*:refs/heads/*")
    merged = await merging.merge(
        stage.bench, base=None, tip=tip, target=stage.base, policy=Policy.AUTO, committer=US
    )
    assert isinstance(merged, Merged)
    assert stage.files(merged.oid) == {"a": LINES.strip(), "b": "1", "c": "1"}
    assert stage.mirror.git("rev-parse", f"{merged.oid}~1") == stage.base


async def test_a_branch_that_is_gone_begins_again_where_the_run_began(stage: Stage) -> None:
    stage.on_task({"b": "2\n"})
    tip = stage.on_task({"b": "3\n"})
    stage.mirror.git("fetch", "--quiet", stage.user.path, "+refs/heads/*:refs/heads/*")
    merged = await merging.merge(
        stage.bench, base=stage.base, tip=tip, target=None, policy=Policy.AUTO, committer=US
    )
    assert merged == Merged(tip, How.FAST_FORWARD, 2)


async def test_attributes_and_drivers_of_the_content_run_nothing_and_decide_nothing(
    stage: Stage, tmp_path: Path
) -> None:
    witness = tmp_path / "ran"
    for key in ("merge.evil.driver", "filter.evil.smudge", "filter.evil.clean"):
        stage.mirror.git("config", key, f"touch {witness}; true")
    rules = "* merge=evil filter=evil\n"
    stage.on_main({".gitattributes": rules, "a": LINES.replace("line 7\n", "7\n")})
    stage.on_task({".gitattributes": rules, "a": LINES.replace("line 7\n", "VII\n")})
    conflict = await stage.merge()
    assert isinstance(conflict, Conflict)
    assert [file.path for file in conflict.files] == ["a"]
    assert not witness.exists()


async def test_message_and_author_are_kept_to_the_byte_and_a_signature_is_not(
    stage: Stage,
) -> None:
    stage.on_task({"b": "2\n"})
    made = raw(stage.user.path, "cat-file", "commit", "HEAD")
    head, _, _ = made.partition(b"\n\n")
    head = head.replace(b"Ada", b"J\xfcrgen", 1) + b"\nencoding latin1\ngpgsig -----BEGIN\n of it"
    oid = raw(
        stage.user.path,
        *["hash-object", "-t", "commit", "-w", "--stdin"],
        stdin=head + b"\n\nGr\xfc\xdfe\n\n\n trailing \n\n",
    )
    stage.user.git("reset", "--quiet", "--hard", oid.decode().strip())
    stage.on_main({"c": "1\n"})
    merged = await stage.merge()
    assert isinstance(merged, Merged)
    written = raw(stage.mirror.path, "cat-file", "commit", merged.oid)
    assert written.endswith(b"\nencoding latin1\n\nGr\xfc\xdfe\n\n\n trailing \n\n")
    assert b"\nauthor J\xfcrgen <ada@example.org>" in written
    assert b"gpgsig" not in written


async def test_names_and_text_of_a_guest_are_shown_and_bounded(stage: Stage) -> None:
    names = [f"{number:03}-{'x' * 50}" for number in range(210)]
    huge = "".join(f"{number}\n" for number in range(9000))
    both = {**dict.fromkeys(names, "{}\n"), "\x1b[31m\udcff": "{}\n", "z-large": "{}\n" + huge}

    def files(text: str) -> dict[str, str | bytes]:
        return {name: content.replace("{}", text) for name, content in both.items()}

    stage.on_main(files("ours"))
    stage.on_task(files("theirs"))
    conflict = await stage.merge()
    assert isinstance(conflict, Conflict)
    assert (len(conflict.files), conflict.files_left_out) == (200, 12)
    assert conflict.files[0].path == "\x1b[31m\\xff" or "\\xff" not in conflict.files[0].path
    assert sum(len(hunk.theirs) for file in conflict.files for hunk in file.hunks) < 200_000


async def test_lines_that_look_like_marks_of_conflict_are_lines(stage: Stage) -> None:
    text = "<<<<<<< mine\nx\n=======\ny\n>>>>>>> yours\n"
    stage.on_main({"a": text + "1\n"})
    stage.on_task({"a": text + "2\n"})
    conflict = await stage.merge()
    assert isinstance(conflict, Conflict)
    (hunk,) = conflict.files[0].hunks
    assert (hunk.ours[-1], hunk.theirs[-1]) == ("1", "2")


async def test_a_history_too_long_to_replay_is_refused_and_can_be_squashed(stage: Stage) -> None:
    lines: list[str] = []
    for number in range(merging.MOST_COMMITS + 1):
        text = f"commit {number}"
        lines += ["commit refs/heads/task", f"committer E <e@x> {number} +0000"]
        lines += [f"data {len(text)}", text, *([f"from {stage.base}"] if not number else [])]
        lines += [f"M 100644 inline f{number}", "data 1", "x"]
    raw(stage.user.path, "fast-import", "--quiet", stdin="\n".join([*lines, ""]).encode())
    stage.on_main({"c": "1\n"})
    with pytest.raises(errors.TooLarge, match="5000"):
        await stage.merge()
    merged = await stage.merge(Policy.SQUASH)
    assert isinstance(merged, Merged)
    assert merged.how is How.SQUASH
    names = stage.mirror.git("ls-tree", "--name-only", merged.oid).splitlines()
    assert len(names) == 3 + merging.MOST_COMMITS + 1


async def test_what_is_no_object_name_never_reaches_git(stage: Stage) -> None:
    with pytest.raises(errors.InvalidInput):
        await merging.merge(
            stage.bench,
            base=stage.base,
            tip=Oid("--output=x"),
            target=stage.base,
            policy=Policy.AUTO,
            committer=US,
        )
