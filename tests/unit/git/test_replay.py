from __future__ import annotations

import random
import subprocess
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from git_repos import ENV, Repo
from microvm_orchestrator import errors
from microvm_orchestrator.git import merge, replay
from microvm_orchestrator.git.conflicts import Clash
from microvm_orchestrator.git.merge import How, Merged, Policy
from microvm_orchestrator.git.replay import Committer, Workbench, open_workbench

US = Committer("Orchestrator", "orchestrator@example.org")


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo.make(tmp_path / "repo")


@pytest.fixture
async def bench(repo: Repo) -> AsyncGenerator[Workbench]:
    async with open_workbench(repo.path / ".git") as opened:
        yield opened


def tree(repo: Repo, files: dict[str, str | bytes]) -> str:
    """Store a tree of these files and nothing else."""
    for path in repo.path.iterdir():
        if path.name != ".git":
            subprocess.run(["rm", "-rf", path], check=True)
    repo.write(files)
    repo.git("add", "--all", "--force")
    return repo.git("write-tree")


async def test_three_trees_merge_without_a_history(repo: Repo, bench: Workbench) -> None:
    base = tree(repo, {"a": "1\n", "b": "1\n"})
    ours = tree(repo, {"a": "2\n", "b": "1\n"})
    theirs = tree(repo, {"a": "1\n", "b": "2\n", "new": "x"})
    wanted = tree(repo, {"a": "2\n", "b": "2\n", "new": "x"})
    assert await bench.merge(base, ours, theirs) == wanted


async def test_what_both_sides_did_or_only_one_needs_no_git(repo: Repo, bench: Workbench) -> None:
    base, changed = tree(repo, {"a": "1"}), tree(repo, {"a": "2"})
    assert await bench.merge(base, changed, changed) == changed
    assert await bench.merge(base, base, changed) == changed
    assert await bench.merge(base, changed, base) == changed


async def test_two_trees_with_no_base_merge_where_they_are_apart(
    repo: Repo, bench: Workbench
) -> None:
    ours, theirs = tree(repo, {"a": "1"}), tree(repo, {"b": "1"})
    assert await bench.merge(None, ours, theirs) == tree(repo, {"a": "1", "b": "1"})


async def test_a_bench_goes_on_after_a_conflict_and_after_very_many_merges(
    repo: Repo, bench: Workbench
) -> None:
    base, ours = tree(repo, {"a": "1", "b": "1"}), tree(repo, {"a": "2", "b": "1"})
    other, apart = tree(repo, {"a": "3", "b": "1"}), tree(repo, {"a": "1", "b": "3"})
    wanted = tree(repo, {"a": "2", "b": "3"})
    for _ in range(300):
        clash = await bench.merge(base, ours, other)
        assert isinstance(clash, Clash)
        assert {entry.path for entry in clash.entries} == {b"a"}
        assert await bench.merge(base, ours, apart) == wanted


async def test_a_tree_that_is_not_there_is_not_taken_for_an_empty_one(
    repo: Repo, bench: Workbench
) -> None:
    base, ours = tree(repo, {"a": "1", "b": "1"}), tree(repo, {"a": "2", "b": "1"})
    for sides in ((base, ours, "1" * 40), (base, "1" * 40, ours), ("1" * 40, base, ours)):
        with pytest.raises(errors.NotFound):
            await bench.merge(*sides)


async def test_a_git_that_ended_is_told_with_its_complaint_and_another_one_begun(
    repo: Repo, bench: Workbench
) -> None:
    base, ours = tree(repo, {"a": "1", "b": "1"}), tree(repo, {"a": "2", "b": "1"})
    damaged = repo.git("mktree", "--missing", stdin=f"040000 tree {'1' * 40}\tfolder\n".encode())
    with pytest.raises(errors.CommandFailed, match=r"(?s)ended.*1111"):
        await bench.merge(base, ours, damaged)
    theirs = tree(repo, {"a": "1", "b": "2"})
    assert await bench.merge(base, ours, theirs) == tree(repo, {"a": "2", "b": "2"})


async def test_a_commit_that_is_not_there_is_not_found(bench: Workbench, repo: Repo) -> None:
    with pytest.raises(errors.NotFound):
        await bench.commit("1" * 40)
    blob = repo.git("hash-object", "-w", "--stdin", stdin=b"no commit")
    with pytest.raises(errors.NotFound):
        await bench.commit(blob)


async def test_what_was_thrown_away_is_not_in_the_mirror(repo: Repo, bench: Workbench) -> None:
    base, ours = tree(repo, {"a": "1", "b": "1"}), tree(repo, {"a": "2", "b": "1"})
    theirs, wanted = tree(repo, {"a": "1", "b": "2"}), tree(repo, {"a": "2", "b": "2"})
    before = repo.objects()
    assert await bench.merge(base, ours, theirs) == wanted
    # The empty tree, which git knows without having it.
    assert repo.objects() - before <= 1


def random_edit(random_: random.Random, repo: Repo, number: int) -> None:
    """Change, add, rename or remove a file or two."""
    files = sorted(path.name for path in repo.path.iterdir() if path.is_file())
    for _ in range(random_.randint(1, 2)):
        name = random_.choice(files)
        path = repo.path / name
        match random_.randrange(6):
            case 0 if len(files) > 6 and path.exists():
                path.unlink()
            case 1 if path.exists():
                path.rename(repo.path / f"{name}-{number}")
            case 2:
                (repo.path / f"new{random_.randrange(8)}").write_text(f"{number}\n")
            case _ if path.exists():
                lines = path.read_text().splitlines()
                lines[random_.randrange(len(lines))] = f"changed by {number}"
                path.write_text("\n".join(lines) + "\n")
            case _:
                pass
    repo.git("add", "--all")
    repo.git("commit", "--quiet", "--allow-empty", "--message", f"change {number}")


@pytest.mark.parametrize("seed", range(8))
async def test_a_replay_comes_to_what_git_rebase_comes_to(
    repo: Repo, bench: Workbench, seed: int, whole: bool
) -> None:
    random_ = random.Random(seed)
    for turn in range(6 if whole else 2):
        start = {f"f{n}": "".join(f"{n} {line}\n" for line in range(20)) for n in range(8)}
        repo.git("checkout", "--quiet", "--orphan", f"main{turn}")
        base = repo.commit({**start}, "base")
        for number in range(random_.randint(1, 3)):
            random_edit(random_, repo, number)
        target = repo.oid()
        repo.git("checkout", "--quiet", "-b", f"task{turn}", base)
        for number in range(10, 10 + random_.randint(1, 4)):
            random_edit(random_, repo, number)
        tip = repo.oid()
        asked = subprocess.run(
            ["git", "-c", "merge.directoryRenames=conflict", "rebase", "--quiet", target],
            cwd=repo.path,
            env=ENV,
            check=False,
            capture_output=True,
        )
        stopped = ""
        if asked.returncode:
            stopped = repo.git("rev-parse", "REBASE_HEAD")
            repo.git("rebase", "--abort")
        outcome = await merge.merge(
            bench, base=base, tip=tip, target=target, policy=Policy.AUTO, committer=US
        )
        if asked.returncode:
            assert isinstance(outcome, merge.Conflict)
            assert outcome.commit == stopped
        else:
            assert isinstance(outcome, Merged)
            assert repo.git("log", "--format=%T %an %s", f"{target}..{outcome.oid}") == repo.git(
                "log", "--format=%T %an %s", f"{target}..HEAD"
            )
            assert outcome.how in {How.REBASE, How.NONE}
        repo.git("checkout", "--quiet", "--detach")


async def test_a_signature_names_us_in_one_line_whatever_we_are_called() -> None:
    assert Committer("A\nB <x>", "a@b\n>").signed(7) == b"AB x <a@b> 7 +0000"


async def test_a_commit_is_read_as_it_is_stored(repo: Repo, bench: Workbench) -> None:
    nothing = await bench.nothing()
    raw = (
        f"tree {nothing}\nauthor J\xfcrgen <j@x> 5 +0100\ncommitter C <c@x> 6 -0100\n"
        "encoding latin1\ngpgsig -----BEGIN\n of three\n lines\n\nGr\xfc\xdfe\n\nmehr\n"
    ).encode("latin1")
    oid = repo.git("hash-object", "-t", "commit", "-w", "--stdin", stdin=raw)
    commit = await bench.commit(oid)
    assert commit == replay.Commit(
        repo.oid(oid),
        nothing,
        (),
        b"J\xfcrgen <j@x> 5 +0100",
        b"C <c@x> 6 -0100",
        b"latin1",
        b"Gr\xfc\xdfe\n\nmehr\n",
    )
    assert commit.committed_at_s == 6
    assert commit.subject == "Grüße"
