"""The repositories that runs of this host may be started on, by alias; and a mirror of each.

A repository is written down by the path it had when it was looked at, and clients speak of it by
its alias ever after. What is the user's is only read here; what runs bring is in our mirror, and a
repository is not forgotten while the mirror alone has some of it. Above stand the lifecycle of runs
and the front ends; below, the git room and the store.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import anyio
import anyio.to_thread
from pydantic import JsonValue

from microvm_orchestrator import errors, log
from microvm_orchestrator.egress.policy import parse_rule
from microvm_orchestrator.git import land, names, upstream
from microvm_orchestrator.git.command import git, line
from microvm_orchestrator.git.mirror import Mirror
from microvm_orchestrator.git.names import ObjectFormat, Oid
from microvm_orchestrator.git.upstream import Upstream
from microvm_orchestrator.model.agent import AGENT, Agent
from microvm_orchestrator.model.names import NAME, new_id
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.model.repo import REPO, Repo, RepoChanges, RepoDefaults
from microvm_orchestrator.model.run import RUN, MergeState, RunRecord, Step
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.store.base import Store, Tell
from microvm_orchestrator.store.every import every_record
from microvm_orchestrator.store.questions import RecordById

_TASKS = "refs/tasks/"
_AGENTS = "refs/agents/"
# Where our mirrors keep what others have committed.
_BROUGHT = (_TASKS, _AGENTS)
_MAX_ALIAS = 64
_NOT_IN_ALIAS = re.compile(r"[^A-Za-z0-9._-]+")
# In front of the name of a mirror that is being removed.
_REMOVED = ".removed-"
# Enough of them to see what is meant.
_TOLD = 10
_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What there is once for a repository, as long as the daemon lives."""

    mirror: Mirror
    refreshing: anyio.Lock = field(default_factory=anyio.Lock)
    merging: anyio.Lock = field(default_factory=anyio.Lock)


class Repos:
    """The repositories of one daemon, with their mirrors below a folder."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._kept: dict[str, _Kept] = {}
        # Held from looking which aliases are free until one is written down.
        self._writing = anyio.Lock()

    # What is known

    async def visible(self, by: Actor) -> list[Repo]:
        """The repositories that somebody may know of, oldest first."""
        records = await every_record(self._store, REPO, by)
        repos = [Repo.model_validate(record.body) for record in records]
        return [each for each in repos if by.sees_of(each.owner)]

    async def get(self, reference: str, by: Actor) -> Repo:
        """Find a repository by its id or alias. Raises: NotFound, also for what `by` cannot see."""
        visible = await self.visible(by)
        for repo in visible:
            if repo.repo_id == reference:
                return repo
        for repo in visible:
            if repo.alias == reference:
                return repo
        raise errors.NotFound(f"no repo {reference[:100]}", hint="repo_list shows the repos")

    async def look(self, repo: Repo) -> Upstream:
        """Look at the user's repository as it is now.

        Raises: RepoRefused when it has gone from its path, or is not what was registered.
        """
        await _check(repo)
        return await upstream.look(Path(repo.path))

    async def unmerged(self, repo: Repo) -> dict[str, Oid]:
        """List what tasks and agents committed that is in our mirror alone, by what keeps it."""
        mirror = self.mirror(repo)
        known = await mirror.refs() if await _is_dir(mirror.path) else {}
        tips = {ref: oid for ref, oid in known.items() if ref.startswith(_BROUGHT)}
        if not tips:
            return {}
        # Of what upstream has not, only the commits that such a ref names: histories are long.
        decorated = [f"--decorate-refs={each}" for each in _BROUGHT]
        ranges = [*(f"--glob={each}" for each in _BROUGHT), "--not", "--glob=refs/upstream/"]
        words = ["--format=%H", "--simplify-by-decoration", *decorated, *ranges]
        done = await git("log", *words, at=mirror.path, cap=1 << 28)
        missing = set(done.stdout.decode().split())
        return {
            ref: oid
            for ref, oid in tips.items()
            if oid in missing and not await self._was_merged(ref, oid)
        }

    async def _was_merged(self, ref: str, oid: Oid) -> bool:
        """Whether its changes were merged as other commits than these."""
        if ref.startswith(_AGENTS):
            record = await self._store.query(RecordById(AGENT, ref.removeprefix(_AGENTS)), SYSTEM)
            work = None if record is None else _agent_of(record).work
            return work is not None and work.merged == oid
        prefix = f"{ref.removeprefix(_TASKS)}."
        records = await every_record(self._store, RUN, SYSTEM, prefix)
        runs = [RunRecord.model_validate(record.body) for record in records]
        return any(run.tip == oid and run.merge.state is MergeState.MERGED for run in runs)

    # Verbs

    async def add(self, path: Path, alias: str | None, defaults: RepoDefaults, by: Actor) -> Repo:
        """Register the repository at a path; without an alias it gets its folder's name.

        One that is registered keeps what is not said anew: its alias, and each default that was
        not set. Raises: RepoRefused, AlreadyExists, InvalidInput, Conflict when another kind of
        repository was registered at that path.
        """
        _check_defaults(defaults)
        found = await upstream.look(path)
        async with self._writing:
            repos = await self.visible(SYSTEM)
            known = next((each for each in repos if each.path == str(found.path)), None)
            if known is not None:
                return await self._add_again(known, found, alias, defaults, by)
            taken = {each.alias for each in repos}
            if alias is None:
                alias = _free(_alias_of(found.path), taken)
            elif alias in taken:
                raise _taken(alias)
            repo = Repo(
                repo_id=new_id("r"),
                alias=alias,
                path=str(found.path),
                owner=by.name,
                object_format=_format_of(found),
                defaults=defaults,
                added_at=moment(await self._store.now()),
            )
            return await self._save(repo, by, Tell("added", _told(repo)), new=True)

    async def _add_again(
        self, known: Repo, found: Upstream, alias: str | None, defaults: RepoDefaults, by: Actor
    ) -> Repo:
        if not by.sees_of(known.owner):
            raise errors.AlreadyExists(f"{known.path} is registered by somebody else")
        if _format_of(found) != known.object_format:
            raise _other_format(known, found)
        if alias not in {None, known.alias}:
            await self._refuse_taken(alias)
        changes = {
            "alias": alias or known.alias,
            "defaults": _merged(known.defaults, defaults),
            "added_at": moment(await self._store.now()),
        }
        repo = known.model_copy(update=changes)
        return await self._save(repo, by, Tell("added", _told(repo)))

    async def update(self, reference: str, changes: RepoChanges, by: Actor) -> Repo:
        """Change what was set in `changes`: defaults, the alias, or the path after a move.

        Raises: NotFound, AlreadyExists, RepoRefused, InvalidInput, Conflict.
        """
        _check_defaults(changes)
        found = None if changes.path is None else await upstream.look(Path(changes.path))
        async with self._writing:
            repo = await self.get(reference, by)
            path = repo.path
            if found is not None:
                path = str(found.path)
                await self._refuse_registered(path, repo)
                if _format_of(found) != repo.object_format:
                    raise _other_format(repo, found)
            if changes.alias not in {None, repo.alias}:
                await self._refuse_taken(changes.alias)
            changed = repo.model_copy(
                update={
                    "alias": changes.alias or repo.alias,
                    "path": path,
                    "defaults": _merged(repo.defaults, changes),
                }
            )
            return repo if changed == repo else await self._save(changed, by)

    async def remove(self, reference: str, by: Actor, *, drop_unmerged: bool = False) -> Repo:
        """Forget a repository and remove our mirror of it; the user's own is not touched.

        Raises: NotFound; StateForbids while a run works on it, or when commits of tasks would be
        lost that were not merged, unless they may.
        """
        repo = await self.get(reference, by)
        kept = self._of(repo)
        async with kept.refreshing, self._writing:
            repo = await self.get(repo.repo_id, by)
            try:
                kept.merging.acquire_nowait()
            except anyio.WouldBlock:
                raise errors.StateForbids(f"something is merged into repo {repo.alias}") from None
            try:
                await self._refuse_loss(repo, kept.mirror, drop_unmerged=drop_unmerged)
                # Once begun it is done, whoever leaves meanwhile.
                with anyio.CancelScope(shield=True):
                    await self._remove(repo, by)
            finally:
                kept.merging.release()
        return repo

    async def _remove(self, repo: Repo, by: Actor) -> None:
        gone = self._folder / f"{_REMOVED}{repo.repo_id}.git"
        mirror = self.mirror(repo).path
        with contextlib.suppress(FileNotFoundError):
            await anyio.Path(mirror).rename(gone)
        try:
            await self._store.erase(REPO, repo.repo_id, by)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                await anyio.Path(gone).rename(mirror)
            raise
        del self._kept[repo.repo_id]
        await anyio.to_thread.run_sync(shutil.rmtree, gone, True)  # noqa: FBT003 - run_sync passes positions only

    async def _refuse_loss(self, repo: Repo, mirror: Mirror, *, drop_unmerged: bool) -> None:
        """Raises: StateForbids."""
        records = await every_record(self._store, RUN, SYSTEM)
        runs = [RunRecord.model_validate(record.body) for record in records]
        tasks = [r.task_id for r in runs if r.repo_id == repo.repo_id and r.step is not Step.OVER]
        if tasks:
            raise errors.StateForbids(
                f"runs work on repo {repo.alias}: {_listed(tasks)}",
                hint="wait for their tasks, or cancel them",
            )
        stored = await every_record(self._store, AGENT, SYSTEM)
        living = [a for a in map(_agent_of, stored) if a.work and not a.over]
        names = [a.name for a in living if a.work and a.work.repo_id == repo.repo_id]
        if names:
            raise errors.StateForbids(
                f"agents work on repo {repo.alias}: {_listed(names)}", hint="end them first"
            )
        if drop_unmerged:
            return
        # The user may have merged some by hand; where nothing can be read, nothing was.
        with contextlib.suppress(errors.OrchestratorError):
            await self._refresh(repo, mirror)
        if refs := await self.unmerged(repo):
            raise errors.StateForbids(
                f"repo {repo.alias} holds what was not merged: {_listed(sorted(refs))}",
                hint="merge it, or say `drop_unmerged` to lose it",
            )

    # Mirrors

    def mirror(self, repo: Repo) -> Mirror:
        """Our copy of a repository: one object as long as the daemon lives."""
        return self._of(repo).mirror

    def merging(self, repo: Repo) -> anyio.Lock:
        """What is held while something is merged into a repository."""
        return self._of(repo).merging

    async def fresh(self, repo: Repo) -> Mirror:
        """Bring our copy up to what the user's repository has now.

        Raises: NotFound when it was removed meanwhile; RepoRefused when it has gone from its path,
        or is not what was registered.
        """
        kept = self._of(repo)
        async with kept.refreshing:
            record = await self._store.query(RecordById(REPO, repo.repo_id), SYSTEM)
            if record is None:
                raise errors.NotFound(f"repo {repo.alias} was removed")
            await self._refresh(Repo.model_validate(record.body), kept.mirror)
        return kept.mirror

    async def _refresh(self, repo: Repo, mirror: Mirror) -> None:
        await _check(repo)
        await mirror.make(ObjectFormat(repo.object_format))
        await mirror.refresh(Path(repo.path))

    def _of(self, repo: Repo) -> _Kept:
        if repo.repo_id not in self._kept:
            self._kept[repo.repo_id] = _Kept(Mirror(self._folder / f"{repo.repo_id}.git"))
        return self._kept[repo.repo_id]

    async def reconcile(self) -> None:
        """Put away what an earlier daemon was in the middle of; before anything else is done here.

        A mirror that nobody knows is left where it is: it may be all that is left of some work.
        """
        repos = {f"{repo.repo_id}.git": repo for repo in await self.visible(SYSTEM)}
        await anyio.to_thread.run_sync(_put_away, self._folder, set(repos))
        for name, repo in repos.items():
            if await _is_dir(self._folder / name):
                await self.mirror(repo).recover()
            # One that has gone from its path, or cannot be read now, has no lock of ours to find.
            with contextlib.suppress(errors.OrchestratorError):
                await land.recover(Path(repo.path))

    # The records

    async def _save(
        self, repo: Repo, by: Actor, tell: Tell | None = None, *, new: bool = False
    ) -> Repo:
        record = Record(REPO, repo.repo_id, repo.model_dump(mode="json"))
        # What is being written down is so, whoever leaves meanwhile.
        with anyio.CancelScope(shield=True):
            await self._store.save(
                record, by, expect=0 if new else None, tell=tell or Tell("updated", _told(repo))
            )
        # As whoever reads it later finds it: moments are written in milliseconds.
        return Repo.model_validate(record.body)

    async def _refuse_taken(self, alias: str | None) -> None:
        if alias in {each.alias for each in await self.visible(SYSTEM)}:
            raise _taken(alias)

    async def _refuse_registered(self, path: str, own: Repo) -> None:
        for each in await self.visible(SYSTEM):
            if each.path == path and each.repo_id != own.repo_id:
                raise errors.AlreadyExists(f"{path} is registered already")


def _agent_of(record: Record) -> Agent:
    return Agent.model_validate(record.body)


def _told(repo: Repo) -> dict[str, JsonValue]:
    return {"alias": repo.alias, "path": repo.path}


def _taken(alias: str | None) -> errors.AlreadyExists:
    return errors.AlreadyExists(f"the alias {alias} is taken")


def _alias_of(path: Path) -> str:
    name = _NOT_IN_ALIAS.sub("-", path.name.removesuffix(".git")).lstrip("._-").rstrip("-")
    return name[:_MAX_ALIAS] if NAME.fullmatch(name[:_MAX_ALIAS]) else "repo"


def _free(alias: str, taken: Iterable[str]) -> str:
    """Find the first of name, name-2, name-3 and so on that is free."""
    used = set(taken)
    number, found = 1, alias
    while found in used:
        number += 1
        suffix = f"-{number}"
        found = alias[: _MAX_ALIAS - len(suffix)] + suffix
    return found


def _format_of(found: Upstream) -> Literal["sha1", "sha256"]:
    return "sha256" if found.object_format is ObjectFormat.SHA256 else "sha1"


def _other_format(repo: Repo, found: Upstream) -> errors.Conflict:
    return errors.Conflict(
        f"repo {repo.alias} was registered with {repo.object_format} objects, "
        f"and the repository in {found.path} has {found.object_format} ones",
        hint="remove it first, then add it again",
    )


def _check_defaults(defaults: RepoDefaults) -> None:
    """Raises: InvalidInput for a branch or a rule that can never work."""
    if defaults.branch is not None:
        names.check(defaults.branch)
    for rule in defaults.egress:
        parse_rule(rule)


def _merged(old: RepoDefaults, new: RepoDefaults) -> RepoDefaults:
    """Take over what was set, also to nothing."""
    given = new.model_fields_set & RepoDefaults.model_fields.keys()
    return old.model_copy(update={name: getattr(new, name) for name in given})


async def _check(repo: Repo) -> None:
    """Raises: RepoRefused when another thing is at its path than was registered."""
    path = Path(repo.path)
    if not await _is_dir(path):
        raise _moved(repo, f"{path} is no folder any more")
    try:
        found = await line("rev-parse", "--show-object-format", at=path)
    except errors.CommandFailed as error:
        if error.status is None:
            raise  # not started, or a disk that hangs
        raise _moved(repo, f"there is no repository in {path} any more") from error
    if found != repo.object_format:
        raise errors.RepoRefused(
            f"repo {repo.alias}: {path} has {found} objects now, and had {repo.object_format} ones",
            hint="remove it, then add it again",
        )


def _moved(repo: Repo, why: str) -> errors.RepoRefused:
    return errors.RepoRefused(
        f"repo {repo.alias}: {why}", hint="repo_update with `path` says where it is now"
    )


async def _is_dir(path: Path) -> bool:
    return await anyio.Path(path).is_dir()


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(names[:_TOLD]) + more


def _put_away(folder: Path, known: set[str]) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        name = path.name.removeprefix(_REMOVED)
        if path.name.startswith(_REMOVED) and name in known and not (folder / name).exists():
            path.rename(folder / name)  # it was not forgotten after all
        elif path.name.startswith("."):
            shutil.rmtree(path, ignore_errors=True)
        elif path.name not in known:
            _log.warning("unknown_mirror", path=str(path))
