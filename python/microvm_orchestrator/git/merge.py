"""What a run brought, put together with where the branch is now; in the mirror, moving no ref.

`base` is the commit the run began from, `tip` what it brought, `target` where the branch stands.

    auto     base and target lie in the history of tip: the branch may go to tip as it is
             the commits of base..tip are replayed on target (`replay.py` says how)
             there are merges among them: one merge commit of target and tip, since to replay only
             their other commits would lose how the run resolved what it merged
             ... and base is no longer in the history of target: one commit, as for squash, for a
             merge would bring back the commits that somebody took out of the branch
    squash   one commit of all, with their author and the message of a single one, or with the
             subjects of all and whoever else wrote one of them as co-author
    branch   tip as it is, for a branch of the run's own

A run whose tip the branch has already, or that changes nothing the branch has not, merges to
nothing: `none`, at target. The history of a target that was rewritten is respected: only what the
run itself brought is put on it, and nothing that was taken out comes back by a fast-forward.

The outcome depends on nothing but what is given, down to the object name: commits that we make are
dated as the run's last commit, so a merge that is repeated after a crash is the same merge. Whoever
lands it moves the branch only if it is still at `target`, and else merges again.
Above stands who queues merges; below, replay.py and conflicts.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from microvm_orchestrator import errors
from microvm_orchestrator.git import command, conflicts, replay
from microvm_orchestrator.git.conflicts import Clash, ConflictFile
from microvm_orchestrator.git.names import Oid, as_oid
from microvm_orchestrator.git.replay import Commit, Committer, Workbench

# More than a run writes; a history of that length is squashed or kept as a branch of its own.
MOST_COMMITS = 5000
# Commits that are read one by one before a git is started to list them; and, of those that a bench
# knows already, looked at.
_NEAR = 16
_KNOWN = 2000
# Of a squash: enough to see what it is of.
_SUBJECTS_TOLD = 100
_AUTHORS_TOLD = 20
_SUBJECT_LENGTH = 200


class Policy(StrEnum):
    """How a result gets into its branch."""

    AUTO = "auto"
    SQUASH = "squash"
    BRANCH = "branch"


class How(StrEnum):
    """How it got there."""

    NONE = "none"
    FAST_FORWARD = "fast_forward"
    REBASE = "rebase"
    MERGE = "merge"
    SQUASH = "squash"


@dataclass(frozen=True, slots=True)
class Merged:
    """Where the branch may go, and how many commits that adds to it."""

    oid: Oid
    how: How
    commits: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """What does not fit: the first commit of the run that does not, or all of it at once."""

    files: tuple[ConflictFile, ...]
    files_left_out: int
    commit: Oid | None = None
    subject: str = ""


@dataclass(frozen=True, slots=True)
class _Range:
    """The commits of tip that neither base nor target has, the oldest first."""

    oids: tuple[Oid, ...]
    # Those of the first.
    parents: tuple[Oid, ...]
    straight: bool
    too_many: bool


async def merge(
    bench: Workbench,
    *,
    base: Oid | None,
    tip: Oid,
    target: Oid | None,
    policy: Policy,
    committer: Committer,
    title: str = "",
) -> Merged | Conflict:
    """Put what a run brought on a branch.

    `base` is None for a run in an empty repository, `target` for a branch that does not exist: that
    one begins at base. `title` is the first line of a squash of several commits.

    Raises: NotFound when the mirror lacks one of them, TooLarge for more than `MOST_COMMITS`
    commits to be replayed, CommandFailed when git cannot merge them at all.
    """
    for oid in (base, tip, target):
        if oid is not None:
            as_oid(oid)
    if policy is Policy.BRANCH:
        return Merged(tip, How.FAST_FORWARD, await _count(bench, tip, [base]))
    job = _Job(bench, base, tip, target or base, committer, title)
    if policy is Policy.SQUASH:
        return await job.squash(await job.own_commits())
    return await job.auto()


@dataclass(frozen=True, slots=True)
class _Job:
    bench: Workbench
    base: Oid | None
    tip: Oid
    target: Oid | None
    committer: Committer
    title: str

    async def own_commits(self) -> _Range:
        return await self._near() or await self._far()

    async def _near(self) -> _Range | None:
        """Find them without a process of its own, where both sides are close to base."""
        if self.base is None or self.target is None:
            return None
        own: list[Commit] = []
        at = self.tip
        while at != self.base:
            commit = await self.bench.commit(at)
            if len(commit.parents) != 1 or len(own) == _NEAR:
                return None
            own.append(commit)
            at = commit.parents[0]
        known = await self._since_base()
        if known is None:
            return None
        own.reverse()
        begin = sum(commit.oid in known for commit in own)
        oids = tuple(commit.oid for commit in own[begin:])
        parents = own[begin].parents if oids else ()
        return _Range(oids, parents, straight=True, too_many=False)

    async def _since_base(self) -> set[Oid] | None:
        """Give the history of target down to base; None when there is more than a little."""
        seen: set[Oid] = set()
        ahead = [self.target] if self.target else []
        new = 0
        while ahead:
            oid = ahead.pop()
            if oid in seen or oid == self.base:
                continue
            seen.add(oid)
            new += not self.bench.knows(oid)
            if new > _NEAR or len(seen) > _KNOWN:
                return None
            commit = await self.bench.commit(oid)
            if not commit.parents:
                return None
            ahead += commit.parents
        return seen

    async def _far(self) -> _Range:
        others = [f"^{oid}" for oid in {self.base, self.target} if oid]
        words = ["--topo-order", "--reverse", "--parents", f"--max-count={MOST_COMMITS + 1}"]
        done = await command.git(
            "rev-list", *words, self.tip, *sorted(others), at=self.bench.at, cap=1 << 26
        )
        rows = [line.split() for line in done.stdout.decode().splitlines()]
        return _Range(
            tuple(Oid(row[0]) for row in rows),
            tuple(Oid(oid) for oid in rows[0][1:]) if rows else (),
            straight=all(len(row) <= 2 for row in rows),
            too_many=len(rows) > MOST_COMMITS,
        )

    async def auto(self) -> Merged | Conflict:
        own = await self.own_commits()
        if self.target is None:
            return Merged(self.tip, How.FAST_FORWARD, await _count(self.bench, self.tip, []))
        if not own.oids:
            return Merged(self.target, How.NONE, 0)
        if await self._goes_forward(own):
            count = await _count(self.bench, self.tip, [self.target]) if own.too_many else None
            return Merged(self.tip, How.FAST_FORWARD, count or len(own.oids))
        if not own.straight:
            if await self._contains(self.target, self.base):
                return await self.join(own)
            return await self.squash(own)
        return await self.rebase(own)

    async def _goes_forward(self, own: _Range) -> bool:
        if own.straight and not own.too_many and own.parents != (self.target,):
            return False
        straight = own.straight and not own.too_many
        if not straight and not await self._contains(self.tip, self.target):
            return False
        return self.base == self.target or await self._contains(self.target, self.base)

    async def _contains(self, oid: Oid | None, older: Oid | None) -> bool:
        """Tell whether a commit has another one in its history; all have nothing."""
        if older is None or oid == older:
            return True
        if oid is None:
            return False
        words = ["merge-base", "--is-ancestor", older, oid]
        done = await command.git(*words, at=self.bench.at, ok=(0, 1), timeout_s=command.LONG_S)
        return done.status == 0

    async def rebase(self, own: _Range) -> Merged | Conflict:
        if own.too_many:
            raise errors.TooLarge(
                f"the run brought more than {MOST_COMMITS} commits, which are too many to replay",
                hint="merge it by the policy squash, or keep it as a branch",
            )
        target = await self._target()
        signature = await self._signature()
        done = await replay.replay(self.bench, self._each(own), target, lambda _: signature)
        if done.clash and done.stopped_at:
            return await self._told(done.clash, done.stopped_at)
        return Merged(done.tip, How.REBASE if done.made else How.NONE, done.made)

    async def join(self, own: _Range) -> Merged | Conflict:
        """Make one merge commit; the history of the run stays as it is."""
        target, tip = await self._target(), await self.bench.commit(self.tip)
        tree = await self._merge_trees(target, tip)
        if isinstance(tree, Clash):
            return await self._told(tree, None)
        signature = await self._signature()
        message = f"{_line(self.title) or 'Merge what a run brought'}\n".encode()
        parents = [target.oid, tip.oid]
        oid = await self.bench.write(replay.written(tree, parents, signature, signature, message))
        return Merged(oid, How.MERGE, len(own.oids) + 1)

    async def squash(self, own: _Range) -> Merged | Conflict:
        """Make one commit of all."""
        if not own.oids:
            return Merged(self.target or self.tip, How.NONE, 0)
        if own.oids == (self.tip,) and own.parents == ((self.target,) if self.target else ()):
            return Merged(self.tip, How.FAST_FORWARD, 1)
        tip = await self.bench.commit(self.tip)
        target = await self._target() if self.target else None
        tree = await self._merge_trees(target, tip) if target else tip.tree
        if isinstance(tree, Clash):
            return await self._told(tree, None)
        if target and tree == target.tree:
            return Merged(target.oid, How.NONE, 0)
        author, message, encoding = await self._message(own, tip)
        signature = await self._signature()
        parents = [target.oid] if target else []
        oid = await self.bench.write(
            replay.written(tree, parents, author, signature, message, encoding)
        )
        return Merged(oid, How.SQUASH, 1)

    async def _target(self) -> Commit:
        if self.target is None:
            raise errors.NotFound("there is no commit to merge into")
        return await self.bench.commit(self.target)

    async def _merge_trees(self, target: Commit, tip: Commit) -> str | Clash:
        base = (await self.bench.commit(self.base)).tree if self.base else None
        return await self.bench.merge(base, target.tree, tip.tree)

    async def _each(self, own: _Range) -> AsyncIterator[Commit]:
        for oid in own.oids:
            yield await self.bench.commit(oid)

    async def _signature(self) -> bytes:
        tip = await self.bench.commit(self.tip)
        return self.committer.signed(tip.committed_at_s)

    async def _message(self, own: _Range, tip: Commit) -> tuple[bytes, bytes, bytes | None]:
        """Compose author, message and encoding of a squash."""
        if own.oids == (self.tip,):
            return tip.author, tip.message, tip.encoding
        told = [await self.bench.commit(oid) for oid in own.oids[:_SUBJECTS_TOLD]]
        subjects = [_line(commit.subject) or "(no message)" for commit in told]
        lines = [_line(self.title) or subjects[-1], "", *(f"* {line}" for line in subjects)]
        if left := len(own.oids) - len(told):
            lines.append(f"* and {'more than ' * own.too_many}{left} more")
        names = dict.fromkeys(_name(commit.author) for commit in told)
        names.pop(_name(tip.author), None)
        if names:
            others = [name.decode(errors="replace") for name in list(names)[:_AUTHORS_TOLD]]
            lines += ["", *(f"Co-authored-by: {name}" for name in others)]
        return tip.author, ("\n".join(lines) + "\n").encode(), None

    async def _told(self, clash: Clash, stopped_at: Commit | None) -> Conflict:
        return await explain(self.bench, clash, stopped_at)


def _line(text: str) -> str:
    """Make one line of it, without what moves a terminal's cursor."""
    clean = "".join(char if char.isprintable() else " " for char in text)
    return clean.strip()[:_SUBJECT_LENGTH]


def _name(signature: bytes) -> bytes:
    """Take the time off."""
    return signature[: signature.rfind(b">") + 1]


async def explain(bench: Workbench, clash: Clash, stopped_at: Commit | None) -> Conflict:
    """List the files of a conflict with the text in conflict, as far as anybody will read."""
    files = conflicts.of(clash)
    told = list(files.items())[: conflicts.FILES_TOLD]
    read = [(file, await _marked(bench, clash, path, file)) for path, file in told]
    return Conflict(
        tuple(conflicts.with_hunks(clash, read)),
        len(files) - len(told),
        stopped_at.oid if stopped_at else None,
        _line(stopped_at.subject) if stopped_at else "",
    )


async def _marked(bench: Workbench, clash: Clash, path: bytes, file: ConflictFile) -> bytes | None:
    if file.kind not in {conflicts.Kind.CONTENT, conflicts.Kind.ADD_ADD, conflicts.Kind.RENAME}:
        return None
    return await bench.find_blob(clash.tree, path, conflicts.BLOB_CAP)


async def _count(bench: Workbench, tip: Oid, without: Sequence[Oid | None]) -> int:
    words = ["rev-list", "--count", tip, *(f"^{oid}" for oid in without if oid)]
    return int(await command.line(*words, at=bench.at, timeout_s=command.LONG_S))
