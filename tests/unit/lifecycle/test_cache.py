"""Histories as disks: who shares one, what is in it, when it is made anew and when it goes."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from git_repos import Repo, look_of, mirrored, raw
from guests import on_socketpair
from machines import Rig, fake_rig, removed_in_the_end
from microvm_orchestrator.git.mirror import Mirror
from microvm_orchestrator.git.names import Oid
from microvm_orchestrator.lifecycle import guest
from microvm_orchestrator.lifecycle.cache import Histories, held_by, path_of
from microvm_orchestrator.machine.base import Accel
from microvm_orchestrator.machines import Machines, Wish
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.records import Actor
from microvm_orchestrator.slots import Capacity, Slots
from microvm_orchestrator.store.sqlite import SqliteStore

ALICE = Actor(name="alice", role=Role.OPERATOR, via="test", action="run")
# Longer than it takes on a busy machine.
PATIENCE_S = 120
LEAST = 1 << 20


@dataclass(frozen=True)
class House:
    """A repository with two megabytes of history, its mirror, and machines to have it."""

    repo: Repo
    mirror: Mirror
    machines: Machines
    histories: Histories

    @property
    def disks(self) -> list[str]:
        return sorted(path.stem for path in (self.mirror.path / "histories").glob("*"))

    async def lent(self, base: Oid) -> str | None:
        async with self.histories.lend(self.mirror, base) as name:
            return name

    async def grown(self, size: int, seed: int, branch: str = "main") -> Oid:
        """Commit something that does not compress, and fetch it."""
        self.repo.git("checkout", "--quiet", branch)
        oid = self.repo.commit({f"file{seed}": random.Random(seed).randbytes(size)})
        await self.mirror.refresh(self.repo.path)
        return oid


@asynccontextmanager
async def opened(rig: Rig, folder: Path) -> AsyncGenerator[House]:
    repo = Repo.make(folder / "repo")
    repo.commit({"README": "one\n"})
    repo.git("branch", "small")
    repo.commit({"large": random.Random(1).randbytes(2 * LEAST)})
    repos = folder / "repos"
    repos.mkdir()
    mirror = await mirrored(repos / "r_1.git", repo)
    store = SqliteStore(folder / "store.db")
    async with AsyncExitStack() as life:
        await life.enter_async_context(store.opened())
        qemu = await life.enter_async_context(rig.open())
        await life.enter_async_context(removed_in_the_end(qemu))
        slots = Slots(Capacity(4, 1024, 8))
        machines = Machines(
            store, qemu, slots, lambda _: rig.boot, history_of=lambda name: path_of(repos, name)
        )
        await life.enter_async_context(machines.running())
        yield House(repo, mirror, machines, Histories(machines, qemu, LEAST))


@pytest.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House]:
    with anyio.fail_after(PATIENCE_S):
        async with opened(fake_rig(tmp_path), tmp_path) as house:
            yield house


async def test_a_small_history_has_no_disk_though_others_of_its_repository_are_large(
    house: House,
) -> None:
    assert await house.lent(house.repo.oid("small")) is None
    assert house.disks == []


async def test_runs_share_a_disk_until_there_is_much_that_it_has_not(house: House) -> None:
    first = house.repo.oid()
    assert await house.lent(first) == f"r_1.git/{first}"
    before = look_of(house.mirror.path / "histories")
    second = await house.grown(1000, 2)
    assert await house.lent(second) == f"r_1.git/{first}"
    after = look_of(house.mirror.path / "histories")
    [content] = [about[3] for name, about in before.items() if name.endswith("squashfs")]
    assert [about[3] for name, about in after.items() if name.endswith("squashfs")] == [content]
    third = await house.grown(2 * LEAST, 3)
    assert await house.lent(third) == f"r_1.git/{third}"
    assert await house.lent(first) == f"r_1.git/{first}"
    assert house.disks == sorted([first, third])


async def test_who_is_given_a_disk_may_see_all_that_is_in_it(house: House) -> None:
    old = house.repo.oid()
    house.repo.git("branch", "apart")
    new = await house.grown(1000, 2)
    assert await house.lent(new) == f"r_1.git/{new}"
    # Behind what the disk has, and beside it.
    beside = await house.grown(1000, 3, "apart")
    for base in (old, beside):
        name = await house.lent(base)
        assert name is not None
        commit = name.partition("/")[2]
        house.repo.git("merge-base", "--is-ancestor", commit, base)


async def test_what_is_uncommitted_is_in_no_disk_however_much_it_is(house: House) -> None:
    ours = Repo(house.mirror.path)
    for number, size in enumerate((10, 2 * LEAST)):
        content = random.Random(size).randbytes(size)
        blob = raw(ours.path, "hash-object", "-w", "--stdin", stdin=content).decode().strip()
        tree = ours.git("mktree", stdin=f"100644 blob {blob}\tnew\n".encode())
        words = ["commit-tree", tree, "-p", house.repo.oid(), "-m", "uncommitted"]
        snapshot = Oid(ours.git(*words))
        await house.mirror.keep(f"refs/snapshots/t-{number}", snapshot, None)
        assert await house.lent(snapshot) == f"r_1.git/{house.repo.oid()}"
        assert house.disks == [house.repo.oid()]


async def test_many_who_come_at_once_have_one_disk_made(house: House) -> None:
    names: list[str | None] = []

    async def ask() -> None:
        names.append(await house.lent(house.repo.oid()))

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(ask)
    assert names == [f"r_1.git/{house.repo.oid()}"] * 4
    assert len(house.disks) == 1


async def test_a_machine_reads_the_disk_that_it_was_defined_with(house: House) -> None:
    async with house.histories.lend(house.mirror, house.repo.oid()) as name:
        wish = Wish("none", 64, 1, Accel.TCG, history=name)
        machine = await house.machines.define(wish, ALICE)
    running = house.machines.live(await house.machines.start(machine.machine_id, ALICE))
    assert held_by(running) == house.repo.oid()
    [disk] = running.spec.disks
    assert disk.read_only
    assert disk.path == path_of(house.mirror.path.parent, name or "")


async def test_a_guest_that_was_not_given_its_disk_is_known_by_that() -> None:
    with anyio.fail_after(PATIENCE_S):
        async with on_socketpair() as (shell, _):
            assert not await guest.has_history(shell, "1" * 40)


async def test_only_what_nobody_has_goes_for_new_disks(house: House) -> None:
    first = house.repo.oid()
    name = await house.lent(first)
    await house.machines.define(Wish("none", 64, 1, Accel.TCG, history=name), ALICE)
    second = await house.grown(2 * LEAST, 2)
    async with house.histories.lend(house.mirror, second):
        tips = [await house.grown(2 * LEAST, seed) for seed in (3, 4, 5)]
        for tip in tips:
            await house.lent(tip)
        assert house.disks == sorted([first, second, *tips[1:]])
    last = await house.grown(2 * LEAST, 6)
    await house.lent(last)
    assert house.disks == sorted([first, tips[-1], last])


async def test_where_no_disk_can_be_written_a_run_goes_without(house: House) -> None:
    (house.mirror.path / "histories").write_text("in the way")
    before = look_of(house.mirror.path)
    assert await house.lent(house.repo.oid()) is None
    assert sorted(look_of(house.mirror.path)) == sorted(before)
