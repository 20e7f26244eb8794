"""Where the commits of a run come from, and how they come back: by our mirror of a repository.

Those of an agent go the same way, as often as it brings some. Nothing here writes in the user's
repository; what is merged into it is for `merging.py`. Above are the steps of a run, and agents;
below, the repos and the git room.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.git import bundle, incoming, reading, upstream
from microvm_orchestrator.git.names import Oid
from microvm_orchestrator.git.uncommitted import snapshot
from microvm_orchestrator.lifecycle import guest
from microvm_orchestrator.lifecycle.cache import Histories, held_by
from microvm_orchestrator.model.run import MergeOutcome, Rest, Result

if TYPE_CHECKING:
    from microvm_orchestrator.git.mirror import Mirror
    from microvm_orchestrator.lifecycle.run import Run
    from microvm_orchestrator.machine.base import Machine as RunningMachine
    from microvm_orchestrator.machine.shell import Shell
    from microvm_orchestrator.model.records import Actor
    from microvm_orchestrator.model.repo import Repo
    from microvm_orchestrator.model.run import RunSpec
    from microvm_orchestrator.repos import Repos

# By this name a guest finds what it is to start from.
_REF = "refs/heads/base"
_LISTED = 200
# The name of the file in a run's folder.
_PATCH = "rest.patch"


@dataclass(frozen=True, slots=True)
class Source:
    """The repository of a run, and what of it the run works on."""

    repo: Repo
    mirror: Mirror
    # Where it starts; None in an empty repository.
    base: Oid | None
    # What its commits are merged into.
    into: str

    @property
    def ref(self) -> str:
        return _REF

    @asynccontextmanager
    async def bundle(self, folder: Path, have: Sequence[Oid] = ()) -> AsyncGenerator[Path | None]:
        """Write what the guest starts from, without what it has; the file is gone afterwards.

        None where there is nothing to send.
        """
        if self.base is None:
            yield None
            return
        path = folder / "outgoing.bundle"
        await anyio.Path(path).unlink(missing_ok=True)
        try:
            written = await bundle.write(self.mirror, path, want=self.base, ref=_REF, have=have)
            yield path if written.commits else None
        finally:
            path.unlink(missing_ok=True)


class Sources:
    """The repositories that the runs of this host work on."""

    def __init__(self, repos: Repos, histories: Histories) -> None:
        self._repos = repos
        self._histories = histories

    async def open(self, run: Run) -> Source | None:
        """Find what a run works on; what it starts from is settled once and for all.

        Raises: NotFound, RepoRefused.
        """
        spec, record = run.spec, run.record
        if spec.repo is None:
            return None
        if record.repo_id is not None and record.merge.into is not None:
            # The user's repository may stand at another branch by now.
            source = await self.known(record.repo_id, run.by, record.base, record.merge.into)
            await self._repos.fresh(source.repo)
            return source
        source = await self.find(spec, record.repo_id or spec.repo, run.by, _name(run))
        merge = MergeOutcome(into=source.into)
        await run.learn("based", repo_id=source.repo.repo_id, base=source.base, merge=merge)
        return source

    async def known(self, repo_id: str, by: Actor, base: str | None, into: str) -> Source:
        """Give what was found before, as our mirror has it. Raises: NotFound."""
        repo = await self._repos.get(repo_id, by)
        return Source(repo, self._repos.mirror(repo), oid_of(base), into)

    async def find(self, spec: RunSpec, reference: str, by: Actor, name: str) -> Source:
        """Find where work in a repository starts; our mirror keeps that by a name.

        Raises: NotFound, RepoRefused.
        """
        repo = await self._repos.get(reference, by)
        mirror = await self._repos.fresh(repo)
        found = await upstream.look(Path(repo.path))
        branch = spec.base or repo.defaults.branch or found.default_branch
        if branch is None:
            raise errors.RepoRefused(f"repo {repo.alias} has no branch", hint="name a base")
        into = spec.into or branch
        base = None if found.empty else await mirror.resolve(branch)
        if spec.uncommitted:
            ref = f"refs/snapshots/{name}"
            # It may have been made by a daemon that was killed before it could write so down.
            made = await mirror.find(ref)
            base = await snapshot(mirror, found, ref, expect=made) or found.head
        if base is not None:
            ref = base_ref(name)
            await mirror.keep(ref, base, await mirror.find(ref))
        return Source(repo, mirror, base, into)

    @asynccontextmanager
    async def history(self, source: Source | None) -> AsyncGenerator[str | None]:
        """Name the disk that a machine for a run is to have, until it is defined."""
        if source is None or source.base is None:
            yield None
            return
        async with self._histories.lend(source.mirror, source.base) as name:
            yield name

    async def send(
        self, source: Source, machine: RunningMachine, folder: Path, branch: str
    ) -> None:
        """Lay out the work tree in the guest, on a branch that is called so there."""
        shell = await machine.reached()
        has = held_by(machine)
        if has is not None and not await guest.has_history(shell, has):
            has = None
        async with source.bundle(folder, () if has is None else (has,)) as path:
            tree = guest.Tree(
                commit=source.base,
                bundle=path,
                ref=source.ref,
                branch=branch,
                object_format=await source.mirror.object_format(),
                with_history=has is not None,
            )
            await guest.begin_tree(shell, tree)

    async def collect(
        self, run: Run, source: Source, machine: RunningMachine, folder: Path
    ) -> Result:
        """Take in what the program committed, and keep what it did not.

        Raises: BundleRefused for what is not as git makes it, TooLarge, MachineFailed.
        """
        result = run.record.result or Result(success=False)
        shell = await machine.reached()
        policy = run.spec.rest or source.repo.defaults.rest
        message = f"Left uncommitted by task {run.task.task_id}"
        left = await self.take(source, shell, folder, task_ref(run), policy, message)
        if left.tip is not None:
            told = await described(source.mirror, source.base, Oid(left.tip))
            result = result.model_copy(update=told)
            # What was committed is kept, whatever becomes of the rest.
            await run.learn("collected", tip=left.tip, result=result)
        if left.rest == Rest.PATCH:
            path = folder / _PATCH
            await anyio.Path(path).unlink(missing_ok=True)
            await guest.fetch_patch(shell, path)
        return result.model_copy(update={"rest": left.rest})

    async def take(
        self,
        source: Source,
        shell: Shell,
        folder: Path,
        ref: str,
        rest: Rest | Literal["beside"],
        message: str,
    ) -> guest.Left:
        """Let a ref of our mirror stand at what the guest has committed, where that is new.

        Raises: BundleRefused for what is not as git makes it, TooLarge, MachineFailed.
        """
        left = await guest.end_tree(shell, source.base, rest, message)
        if left.tip is None:
            return left
        path = folder / "incoming.bundle"
        await anyio.Path(path).unlink(missing_ok=True)
        try:
            await guest.fetch_bundle(shell, path)
            expect = await source.mirror.find(ref)
            taken = await incoming.take(
                source.mirror, path, ref=ref, base=source.base, expect=expect
            )
        finally:
            path.unlink(missing_ok=True)
        # What the guest said is a claim.
        return replace(left, tip=taken.tip)


async def described(mirror: Mirror, base: Oid | None, tip: Oid) -> dict[str, Any]:
    """Tell what the mirror knows of the commits that came in, as a result has it."""
    commits = await reading.commits(mirror, base, tip, limit=_LISTED)
    files = await reading.files(mirror, base, tip, limit=_LISTED)
    return {
        "commits": commits.items,
        "commit_count": commits.total,
        "files_changed": files.items,
        "file_count": files.total,
    }


def base_ref(name: str) -> str:
    """Where our mirror keeps what somebody starts from."""
    return f"refs/bases/{name}"


def task_ref(run: Run) -> str:
    return f"refs/tasks/{run.task.task_id}"


def _name(run: Run) -> str:
    return run.record.run_id.replace(".", "-")


def oid_of(text: str | None) -> Oid | None:
    return None if text is None else Oid(text)
