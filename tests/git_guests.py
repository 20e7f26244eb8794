"""A guest with a clone of a repository, and what is seen when its commits come back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from git_repos import Repo, clone_of_bundle, look_of, mirrored, sample
from microvm_orchestrator import errors
from microvm_orchestrator.git import bundle
from microvm_orchestrator.git.held import Room
from microvm_orchestrator.git.incoming import Taken, take
from microvm_orchestrator.git.mirror import Mirror
from microvm_orchestrator.git.names import Oid

REF = "refs/tasks/t1"


@dataclass(frozen=True, slots=True)
class World:
    """A repository, its mirror and a guest that has its main branch."""

    repo: Repo
    mirror: Mirror
    guest: Repo
    base: Oid
    file: Path

    async def take(self, *, room: Room | None = None, base: Oid | None = None) -> Taken:
        base = base or self.base
        return await take(self.mirror, self.file, ref=REF, base=base, room=room)


async def world(path: Path, *, object_format: str = "sha1") -> World:
    repo = sample(path / "repo", object_format=object_format)
    repo.git("switch", "--quiet", "--create", "secret", "other")
    repo.commit({"secret": "do not tell\n", "far": {"a": "b"}.__repr__()}, "secret")
    repo.git("switch", "--quiet", "main")
    mirror = await mirrored(path / "mirror.git", repo)
    to = path / "sent"
    await bundle.write(mirror, to, want=repo.oid("main"), ref="refs/heads/task", have=[])
    guest = clone_of_bundle(path / "guest", to, object_format=object_format)
    return World(repo, mirror, guest, repo.oid("main"), path / "came")


def state_of(mirror: Mirror) -> tuple[object, ...]:
    """Tell which files a mirror has, so that nothing that stays behind goes unseen."""
    return (
        tuple(sorted(look_of(mirror.path))),
        Repo(mirror.path).objects(),
        Repo(mirror.path).refs(),
    )


async def refused(world: World, why: str, room: Room | None = None) -> None:
    """See that what came is refused for this reason, and that nothing of it is left."""
    before = state_of(world.mirror)
    with pytest.raises(errors.BundleRefused, match=why) as caught:
        await world.take(room=room)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500
    assert state_of(world.mirror) == before
