"""What a merge costs above what git costs that merges the same, in the same run."""

from __future__ import annotations

import itertools
import statistics
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.figures import Stopwatch, Timed, tell
from git_repos import ENV, Repo, raw
from microvm_orchestrator.git import land, merge
from microvm_orchestrator.git.merge import How, Merged, Policy
from microvm_orchestrator.git.names import Oid
from microvm_orchestrator.git.outcomes import Landed
from microvm_orchestrator.git.replay import Committer, open_workbench

US = Committer("Orchestrator", "orchestrator@example.org")
ROUNDS = 5
FILES = 1000


@dataclass
class Work:
    """A repository of a thousand files, and runs that each changed one and added one."""

    repo: Repo
    base: Oid
    tips: list[Oid]


def make_work(path: Path, runs: int) -> Work:
    repo = Repo.make(path, bare=True)
    lines = ["commit refs/heads/main", "committer Ada <ada@example.org> 1700000000 +0000"]
    lines += ["data 4", "base"]
    for number in range(FILES):
        text = f"line of {number}\n" * 20
        lines += [f"M 100644 inline d{number % 20}/f{number}", f"data {len(text)}", text]
    for run in range(runs):
        lines += [f"commit refs/heads/t{run}"]
        lines += [f"committer Eve <eve@example.org> {1700000001 + run} +0000", "data 3", "run"]
        lines += ["from refs/heads/main"]
        text = f"run {run}\n" + f"line of {run}\n" * 19
        lines += [f"M 100644 inline d{run % 20}/f{run}", f"data {len(text)}", text]
        lines += [f"M 100644 inline new/{run}", "data 1", "x"]
    raw(path, "fast-import", "--quiet", stdin="\n".join([*lines, ""]).encode())
    return Work(repo, repo.oid("main"), [repo.oid(f"t{run}") for run in range(runs)])


async def _ours(work: Work) -> Timed:
    """Merge all, one after the other, as a queue does."""
    with Stopwatch() as watch:
        async with open_workbench(work.repo.path) as bench:
            target = work.base
            for tip in work.tips:
                merged = await merge.merge(
                    bench,
                    base=work.base,
                    tip=tip,
                    target=target,
                    policy=Policy.AUTO,
                    committer=US,
                )
                assert isinstance(merged, Merged)
                assert merged.how is (How.REBASE if target != work.base else How.FAST_FORWARD)
                target = merged.oid
    return watch.timed


def _git(at: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=at, env=ENV, check=True, capture_output=True)
    return done.stdout.decode().strip()


def _plumbing(work: Work) -> Timed:
    """Two processes a merge: the least that a program can do that keeps none."""
    at = work.repo.path
    with Stopwatch() as watch:
        target: str = work.base
        for tip in work.tips:
            tree = _git(at, "merge-tree", "--write-tree", target, tip)
            target = _git(at, "commit-tree", "-p", target, "-m", "run", tree)
    return watch.timed


@contextmanager
def _work_tree(work: Work, path: Path) -> Generator[Path]:
    _git(work.repo.path, "worktree", "add", "--quiet", "--detach", str(path), work.base)
    yield path
    _git(work.repo.path, "worktree", "remove", "--force", str(path))


def _porcelain(work: Work, path: Path) -> Timed:
    with _work_tree(work, path) as at, Stopwatch() as watch:
        for tip in work.tips:
            _git(at, "merge", "--quiet", "--no-edit", tip)
    return watch.timed


async def test_merges_a_second_against_git(tmp_path: Path, whole: bool) -> None:
    runs = 200 if whole else 5
    ours: list[Timed] = []
    plumbing: list[Timed] = []
    porcelain: list[Timed] = []
    for turn in range(ROUNDS if whole else 1):
        # Objects that are there already are not written again, so each has its own.
        for name in ("ours", "plumbing", "porcelain"):
            work = make_work(tmp_path / f"{name}{turn}", runs)
            if name == "ours":
                ours.append(await _ours(work))
            elif name == "plumbing":
                plumbing.append(_plumbing(work))
            else:
                porcelain.append(_porcelain(work, tmp_path / f"tree{turn}"))

    def per_s(timings: list[Timed]) -> float:
        return runs / statistics.median(timing.wall_s for timing in timings)

    def cpu_ms(timings: list[Timed]) -> float:
        return statistics.median(timing.cpu_s for timing in timings) / runs * 1000

    pairs = [a.wall_s / b.wall_s for a, b in zip(plumbing, ours, strict=True)]
    tell(
        f"merges of {FILES:,} files, one on the other",
        f"{per_s(ours):,.0f}/s",
        floor=f"{per_s(plumbing):,.0f}/s merge-tree and commit-tree",
        ratio=f"{statistics.median(pairs):.2f} (from {min(pairs):.2f} to {max(pairs):.2f})",
        aim="0.80 or more",
    )
    pairs = [a.wall_s / b.wall_s for a, b in zip(porcelain, ours, strict=True)]
    tell(
        "  against `git merge` in a work tree",
        f"{per_s(ours):,.0f}/s",
        floor=f"{per_s(porcelain):,.0f}/s",
        ratio=f"{statistics.median(pairs):.2f} (from {min(pairs):.2f} to {max(pairs):.2f})",
        aim="2.00 or more",
    )
    tell(
        "  CPU of a merge",
        f"{cpu_ms(ours):.2f} ms",
        floor=f"{cpu_ms(plumbing):.2f} ms, {cpu_ms(porcelain):.2f} ms in a work tree",
        ratio=f"{cpu_ms(ours) / cpu_ms(plumbing):.2f}",
    )
    assert len(ours) == len(plumbing) == len(porcelain)


async def test_landings_a_second_against_a_push(tmp_path: Path, whole: bool) -> None:
    runs = 30 if whole else 3
    ours: list[float] = []
    pushed: list[float] = []
    for turn in range(ROUNDS if whole else 1):
        work = make_work(tmp_path / f"mirror{turn}", runs)
        async with open_workbench(work.repo.path) as bench:
            chain = [work.base]
            for tip in work.tips:
                merged = await merge.merge(
                    bench,
                    base=work.base,
                    tip=tip,
                    target=chain[-1],
                    policy=Policy.SQUASH,
                    committer=US,
                )
                assert isinstance(merged, Merged)
                chain.append(merged.oid)
        users = [Repo.make(tmp_path / f"{name}{turn}", bare=True) for name in ("a", "b")]
        for user in users:
            _git(user.path, "fetch", "--quiet", str(work.repo.path), "main:main")
        steps = list(itertools.pairwise(chain))
        with Stopwatch() as watch:
            for old, new in steps:
                landed = await land.land(work.repo.path, users[0].path, "main", old=old, new=new)
                assert isinstance(landed, Landed)
        ours.append(watch.timed.wall_s / runs)
        with Stopwatch() as watch:
            for old, new in steps:
                lease = f"--force-with-lease=main:{old}"
                to = str(users[1].path)
                _git(work.repo.path, "push", "--quiet", lease, to, f"{new}:refs/heads/main")
        pushed.append(watch.timed.wall_s / runs)
    tell(
        "a landing in a bare repository",
        f"p50 {statistics.median(ours) * 1000:.1f} ms",
        floor=f"p50 {statistics.median(pushed) * 1000:.1f} ms, git push with a lease",
        ratio=f"{statistics.median(ours) / statistics.median(pushed):.2f}",
    )
    assert len(ours) == len(pushed)
