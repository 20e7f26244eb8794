"""Registered repositories: aliases, kinds, moves, what is kept of them, and who sees which."""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import TaskStatus
from pydantic import JsonValue

from git_repos import Repo as UserRepo
from git_repos import look_of, raw, sample
from microvm_orchestrator import errors
from microvm_orchestrator.git.mirror import Mirror
from microvm_orchestrator.git.names import Oid
from microvm_orchestrator.git.upstream import Kind
from microvm_orchestrator.model.access import Role, Scope
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.model.repo import Repo, RepoChanges, RepoDefaults
from microvm_orchestrator.model.run import RUN, Merge, MergeOutcome, MergeState, RunRecord, Step
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.repos import Repos
from microvm_orchestrator.store.base import Match, Store
from microvm_orchestrator.store.sqlite import SqliteStore

ALICE = Actor("alice", Role.ADMIN, "test", "repo_add")
BOB = Actor("bob", Role.ADMIN, "test", "repo_add", Scope(everything=False))
NOTHING = RepoDefaults()
PATIENCE_S = 30
TASK = "t_01k00000000000000000000000"
REF = f"refs/tasks/{TASK}"


@dataclass(frozen=True)
class House:
    """What a daemon has of repositories."""

    store: Store
    repos: Repos
    folder: Path

    async def add(
        self, path: Path, alias: str | None = None, by: Actor = ALICE, **defaults: Any
    ) -> Repo:
        return await self.repos.add(path, alias, RepoDefaults.model_validate(defaults), by)

    async def aliases(self, by: Actor = ALICE) -> list[str]:
        return [repo.alias for repo in await self.repos.visible(by)]

    async def brought(self, repo: Repo, user: UserRepo) -> Oid:
        """Let our mirror alone have a commit of a task; what the user has is as it was."""
        mirror = await self.repos.fresh(repo)
        tree = user.git("rev-parse", "HEAD^{tree}")
        words = ["commit-tree", tree, "-p", user.oid(), "-m", "brought"]
        oid = Oid(raw(mirror.path, *words).decode().strip())
        await mirror.keep(REF, oid, None)
        return oid

    async def run(self, repo: Repo, tip: Oid | None, step: Step, merge: MergeState) -> None:
        """Write a run down as it is when it has come so far."""
        record = RunRecord(
            run_id=f"{TASK}.1",
            task_id=TASK,
            owner="alice",
            step=step,
            repo_id=repo.repo_id,
            tip=tip,
            merge=MergeOutcome(state=merge),
            started_at=moment(0),
        )
        body = record.model_dump(mode="json")
        await self.store.save(Record(RUN, record.run_id, body), SYSTEM)


@asynccontextmanager
async def daemon(state: Path) -> AsyncGenerator[House]:
    store = SqliteStore(state / "store.db")
    async with store.opened():
        house = House(store, Repos(store, state / "repos"), state / "repos")
        await house.repos.reconcile()
        yield house


@pytest.fixture
async def house(tmp_path: Path) -> AsyncGenerator[House]:
    state = tmp_path / "state"
    state.mkdir()
    async with daemon(state) as house:
        yield house


@pytest.fixture
def user(tmp_path: Path) -> UserRepo:
    return sample(tmp_path / "site")


# Aliases


async def test_without_an_alias_a_repository_has_the_name_of_its_folder(
    house: House, user: UserRepo
) -> None:
    repo = await house.add(user.path)
    assert (repo.alias, repo.path, repo.owner) == ("site", str(user.path), "alice")
    assert await house.repos.get("site", ALICE) == repo
    assert await house.repos.get(repo.repo_id, ALICE) == repo
    read = await house.store.events(None, Match(kinds=("repo.*",)), 10, ALICE)
    body: JsonValue = {"alias": "site", "path": str(user.path)}
    assert [(each.kind, each.body) for each in read.events] == [("repo.added", body)]


@pytest.mark.parametrize(
    ("folder", "alias"),
    [
        ("my site (old)", "my-site-old"),
        ("tools.git", "tools"),
        (".dotfiles", "dotfiles"),
        ("übung", "bung"),
        ("日本", "repo"),
        ("x" * 100, "x" * 64),
        ("a.b_c-d", "a.b_c-d"),
    ],
)
async def test_a_folder_whose_name_is_no_alias_gives_one_that_is_like_it(
    house: House, tmp_path: Path, folder: str, alias: str
) -> None:
    assert (await house.add(UserRepo.make(tmp_path / folder).path)).alias == alias


async def test_folders_of_one_name_are_numbered(house: House, tmp_path: Path) -> None:
    for parent in ("a", "b", "c"):
        await house.add(UserRepo.make(tmp_path / parent / "site").path)
    long = [UserRepo.make(tmp_path / parent / ("x" * 64)).path for parent in ("a", "b")]
    assert [(await house.add(path)).alias for path in long] == ["x" * 64, "x" * 62 + "-2"]
    assert (await house.aliases())[:3] == ["site", "site-2", "site-3"]


async def test_an_alias_that_was_asked_for_is_given_once(house: House, tmp_path: Path) -> None:
    one, two = (UserRepo.make(tmp_path / name).path for name in ("one", "two"))
    await house.add(one, "main")
    with pytest.raises(errors.AlreadyExists, match="main"):
        await house.add(two, "main")
    assert await house.aliases() == ["main"]
    assert (await house.add(two)).alias == "two"
    with pytest.raises(errors.AlreadyExists):
        await house.add(two, "main")
    with pytest.raises(errors.AlreadyExists):
        await house.repos.update("two", RepoChanges(alias="main"), ALICE)


async def test_the_same_path_again_changes_only_what_is_given(
    house: House, user: UserRepo, tmp_path: Path
) -> None:
    first = await house.add(user.path, image="node", merge="squash")
    link = tmp_path / "link"
    link.symlink_to(user.path)
    again = await house.add(link, timeout_s=60.0)
    assert again.repo_id == first.repo_id
    assert (again.alias, again.path) == ("site", str(user.path))
    assert again.added_at > first.added_at
    told = again.defaults
    assert (told.image, told.merge, told.timeout_s) == ("node", Merge.SQUASH, 60.0)
    renamed = await house.add(user.path, "web", image=None)
    assert (renamed.alias, renamed.defaults.image) == ("web", None)
    assert renamed.defaults.merge is Merge.SQUASH
    assert await house.repos.visible(ALICE) == [renamed]


async def test_nothing_is_known_by_another_word(house: House, user: UserRepo) -> None:
    await house.add(user.path)
    for reference in ("SITE", "sit", str(user.path), ".", ""):
        with pytest.raises(errors.NotFound):
            await house.repos.get(reference, ALICE)


async def test_many_who_add_at_once_get_one_alias_each(house: House, tmp_path: Path) -> None:
    paths = [UserRepo.make(tmp_path / str(number) / "site").path for number in range(4)]
    async with anyio.create_task_group() as tasks:
        for path in [*paths, *paths]:
            tasks.start_soon(house.add, path)
    repos = await house.repos.visible(ALICE)
    assert sorted(repo.path for repo in repos) == sorted(map(str, paths))
    assert {repo.alias for repo in repos} == {"site", "site-2", "site-3", "site-4"}


# Defaults


@pytest.mark.parametrize("wrong", [{"branch": "a..b"}, {"egress": ["http://x/"]}])
async def test_a_default_that_can_never_work_is_refused(
    house: House, user: UserRepo, wrong: dict[str, Any]
) -> None:
    with pytest.raises(errors.InvalidInput):
        await house.add(user.path, **wrong)
    await house.add(user.path)
    with pytest.raises(errors.InvalidInput):
        await house.repos.update("site", RepoChanges.model_validate(wrong), ALICE)
    assert (await house.repos.get("site", ALICE)).defaults == NOTHING


async def test_an_update_changes_what_it_names_also_to_nothing(
    house: House, user: UserRepo
) -> None:
    await house.add(user.path, image="node", branch="other", egress=["example.org"])
    changes = RepoChanges(image=None, vcpus=2, alias="web")
    repo = await house.repos.update("site", changes, ALICE)
    expected = RepoDefaults(branch="other", egress=["example.org"], vcpus=2)
    assert (repo.alias, repo.defaults) == ("web", expected)
    assert await house.repos.get("web", ALICE) == repo
    assert await house.repos.update("web", RepoChanges(), ALICE) == repo
    read = await house.store.events(None, Match(kinds=("repo.*",)), 10, ALICE)
    assert [each.kind for each in read.events] == ["repo.added", "repo.updated"]


# Kinds of repositories


async def test_every_kind_that_we_can_work_with_has_a_mirror(house: House, tmp_path: Path) -> None:
    main = sample(tmp_path / "main")
    main.git("worktree", "add", "--quiet", tmp_path / "linked", "other")
    raw(tmp_path, "clone", "--quiet", "--bare", main.path, tmp_path / "bare.git")
    wide = sample(tmp_path / "wide", object_format="sha256")
    empty = UserRepo.make(tmp_path / "empty")
    heads = {"main": main.oid(), "linked": main.oid("other"), "bare": main.oid()}
    for name, head in {**heads, "wide": wide.oid(), "empty": None}.items():
        repo = await house.add(tmp_path / ("bare.git" if name == "bare" else name))
        mirror = await house.repos.fresh(repo)
        assert repo.alias == name
        assert repo.object_format == ("sha256" if name == "wide" else "sha1")
        assert await mirror.find("refs/upstream/HEAD") == head
        assert mirror.path == house.folder / f"{repo.repo_id}.git"
    kinds = [(await house.repos.look(repo)).kind for repo in await house.repos.visible(ALICE)]
    assert kinds == [Kind.MAIN, Kind.LINKED, Kind.BARE, Kind.MAIN, Kind.MAIN]
    assert empty.refs() == {}


async def test_what_we_cannot_work_with_is_not_registered(house: House, user: UserRepo) -> None:
    shallow = user.path.parent / "shallow"
    raw(user.path, "clone", "--quiet", "--depth=1", f"file://{user.path}", shallow)
    plain = user.path.parent / "plain"
    plain.mkdir()
    relative = Path("site")
    for path in (shallow, plain, user.path / "src", user.path / ".git", relative, plain / "no"):
        with pytest.raises(errors.RepoRefused):
            await house.add(path)
    assert await house.aliases() == []


# Mirrors


async def test_a_repository_has_one_mirror_and_one_queue_for_merges(
    house: House, user: UserRepo
) -> None:
    first = await house.add(user.path)
    again = await house.add(user.path, "web")
    assert house.repos.mirror(first) is house.repos.mirror(again)
    assert house.repos.merging(first) is house.repos.merging(again)
    other = await house.add(sample(user.path.parent / "other").path)
    assert house.repos.mirror(other) is not house.repos.mirror(first)
    assert house.repos.merging(other) is not house.repos.merging(first)


async def test_a_fresh_mirror_has_what_the_user_has_and_changes_nothing_of_it(
    house: House, user: UserRepo
) -> None:
    repo = await house.add(user.path)
    assert await (await house.repos.fresh(repo)).resolve("main") == user.oid()
    new = user.commit({"new": "new\n"})
    before = look_of(user.path)
    mirrors: list[Mirror] = []

    async def refresh() -> None:
        mirrors.append(await house.repos.fresh(repo))

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(refresh)
    assert [await mirror.resolve("main") for mirror in mirrors] == [new] * 5
    assert look_of(user.path) == before


async def test_a_repository_that_was_moved_is_named_until_its_new_path_is_said(
    house: House, user: UserRepo, tmp_path: Path
) -> None:
    repo = await house.add(user.path)
    tip = await house.brought(repo, user)
    moved = user.path.rename(tmp_path / "elsewhere")
    for attempt in (house.repos.fresh, house.repos.look):
        with pytest.raises(
            errors.RepoRefused, match=r"repo site: .* no folder any more"
        ) as refused:
            await attempt(repo)
        assert "repo_update" in (refused.value.hint or "")
    user.path.mkdir()
    with pytest.raises(errors.RepoRefused, match="repo site: there is no repository"):
        await house.repos.fresh(repo)
    with pytest.raises(errors.RepoRefused):
        await house.repos.update("site", RepoChanges(path=str(user.path)), ALICE)
    found = await house.repos.update("site", RepoChanges(path=str(moved)), ALICE)
    assert (found.repo_id, found.alias, found.path) == (repo.repo_id, "site", str(moved))
    # Whoever has it from before is given what is at the new path.
    assert await (await house.repos.fresh(repo)).find(REF) == tip


async def test_a_path_has_one_registration(house: House, user: UserRepo, tmp_path: Path) -> None:
    await house.add(user.path)
    other = await house.add(sample(tmp_path / "other").path)
    with pytest.raises(errors.AlreadyExists):
        await house.repos.update("other", RepoChanges(path=str(user.path)), ALICE)
    same = await house.repos.update("other", RepoChanges(path=other.path), ALICE)
    assert same == other


async def test_a_repository_that_names_its_objects_otherwise_now_is_refused(
    house: House, user: UserRepo
) -> None:
    repo = await house.add(user.path)
    tip = await house.brought(repo, user)
    shutil.rmtree(user.path)
    sample(user.path, object_format="sha256")
    with pytest.raises(errors.RepoRefused, match=r"site.*sha256"):
        await house.repos.fresh(repo)
    with pytest.raises(errors.Conflict, match=r"site.*sha256"):
        await house.add(user.path)
    with pytest.raises(errors.Conflict, match=r"site.*sha256"):
        await house.repos.update("site", RepoChanges(path=str(user.path)), ALICE)
    assert await house.repos.mirror(repo).find(REF) == tip


# Removal


async def test_removing_takes_our_mirror_and_leaves_the_users_repository(
    house: House, user: UserRepo
) -> None:
    repo = await house.add(user.path)
    await house.repos.fresh(repo)
    before = look_of(user.path)
    assert await house.repos.remove("site", ALICE) == repo
    assert (await house.aliases(), list(house.folder.iterdir())) == ([], [])
    assert look_of(user.path) == before
    for reference in ("site", repo.repo_id):
        with pytest.raises(errors.NotFound):
            await house.repos.remove(reference, ALICE)
    with pytest.raises(errors.NotFound, match="was removed"):
        await house.repos.fresh(repo)
    assert list(house.folder.iterdir()) == []
    assert (await house.add(user.path)).repo_id != repo.repo_id


async def test_one_that_was_never_fetched_can_be_removed(house: House, user: UserRepo) -> None:
    repo = await house.add(user.path)
    assert await house.repos.unmerged(repo) == {}
    await house.repos.remove("site", ALICE)
    assert await house.aliases() == []


async def test_what_was_not_merged_keeps_a_repository_until_it_may_be_lost(
    house: House, user: UserRepo
) -> None:
    repo = await house.add(user.path)
    tip = await house.brought(repo, user)
    with pytest.raises(errors.StateForbids, match=REF):
        await house.repos.remove("site", ALICE)
    assert await house.repos.unmerged(repo) == {REF: tip}
    # Also when the user's repository cannot be asked any more.
    user.path.rename(user.path.parent / "away")
    with pytest.raises(errors.StateForbids, match=REF):
        await house.repos.remove("site", ALICE)
    await house.repos.remove("site", ALICE, drop_unmerged=True)
    assert (await house.aliases(), list(house.folder.iterdir())) == ([], [])


async def test_many_that_were_not_merged_are_counted(house: House, user: UserRepo) -> None:
    repo = await house.add(user.path)
    tip = await house.brought(repo, user)
    mirror = house.repos.mirror(repo)
    for number in range(20):
        await mirror.keep(f"refs/tasks/more{number:02}", tip, None)
    with pytest.raises(errors.StateForbids, match="more09 and 11 more"):
        await house.repos.remove("site", ALICE)


async def test_what_the_user_merged_by_hand_is_lost_by_no_removal(
    house: House, user: UserRepo
) -> None:
    repo = await house.add(user.path)
    tip = await house.brought(repo, user)
    mirror = house.repos.mirror(repo)
    older = Oid(user.git("rev-parse", "main~1"))
    await mirror.keep("refs/tasks/older", older, None)
    assert await house.repos.unmerged(repo) == {REF: tip}
    user.git("fetch", "--quiet", mirror.path, REF)
    user.git("merge", "--quiet", "--no-ff", "--no-edit", "FETCH_HEAD")
    await house.repos.remove("site", ALICE)
    assert await house.aliases() == []


async def test_every_tip_that_upstream_has_not_is_told_and_nothing_between(
    house: House, user: UserRepo
) -> None:
    repo = await house.add(user.path)
    first = await house.brought(repo, user)
    mirror = house.repos.mirror(repo)
    tree = user.git("rev-parse", "HEAD^{tree}")

    def commit(*parents: str) -> Oid:
        words = [word for parent in parents for word in ("-p", parent)]
        return Oid(raw(mirror.path, "commit-tree", tree, *words, "-m", "x").decode().strip())

    second = commit(first)
    third = commit(commit(second))
    orphan = commit()
    merged = commit(third, user.oid("other"))
    made = {"second": second, "third": third, "orphan": orphan, "merged": merged}
    for name, oid in made.items():
        await mirror.keep(f"refs/tasks/{name}", oid, None)
    await mirror.keep("refs/tasks/known", user.oid("other"), None)
    expected = {f"refs/tasks/{name}": oid for name, oid in made.items()}
    assert await house.repos.unmerged(repo) == {REF: first, **expected}


@pytest.mark.parametrize("state", list(MergeState))
async def test_what_was_merged_as_other_commits_is_known_by_its_run(
    house: House, user: UserRepo, state: MergeState
) -> None:
    repo = await house.add(user.path)
    tip = await house.brought(repo, user)
    await house.run(repo, tip, Step.OVER, state)
    kept = {} if state is MergeState.MERGED else {REF: tip}
    assert await house.repos.unmerged(repo) == kept
    await house.run(repo, user.oid(), Step.OVER, state)
    assert await house.repos.unmerged(repo) == {REF: tip}


async def test_a_repository_is_not_removed_while_a_run_works_on_it(
    house: House, user: UserRepo
) -> None:
    repo = await house.add(user.path)
    await house.run(repo, None, Step.PERFORMING, MergeState.NONE)
    with pytest.raises(errors.StateForbids, match=TASK):
        await house.repos.remove("site", ALICE, drop_unmerged=True)
    await house.run(repo, None, Step.OVER, MergeState.NONE)
    refused = anyio.Event()

    async def merge(*, task_status: TaskStatus[None]) -> None:
        async with house.repos.merging(repo):
            task_status.started()
            await refused.wait()

    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as tasks:
            await tasks.start(merge)
            with pytest.raises(errors.StateForbids, match="merged into"):
                await house.repos.remove("site", ALICE, drop_unmerged=True)
            refused.set()
    await house.repos.remove("site", ALICE)


# Sight


async def test_nobody_learns_of_repositories_that_they_do_not_see(
    house: House, user: UserRepo, tmp_path: Path
) -> None:
    await house.add(user.path)
    own = await house.add(sample(tmp_path / "b" / "site").path, by=BOB)
    assert (own.alias, await house.aliases(BOB)) == ("site-2", ["site-2"])
    with pytest.raises(errors.NotFound):
        await house.repos.get("site", BOB)
    with pytest.raises(errors.NotFound):
        await house.repos.update("site", RepoChanges(image="x"), BOB)
    with pytest.raises(errors.NotFound):
        await house.repos.remove("site", BOB)
    with pytest.raises(errors.AlreadyExists, match="somebody else"):
        await house.add(user.path, by=BOB)
    read = await house.store.events(None, Match(kinds=("repo.*",)), 10, BOB)
    assert [each.subject for each in read.events] == [own.repo_id]
    assert await house.aliases() == ["site", "site-2"]


# Restarts


async def test_a_restart_keeps_what_is_registered_and_sweeps_what_was_begun(
    tmp_path: Path, user: UserRepo
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    async with daemon(state) as house:
        repo = await house.add(user.path, image="node")
        tip = await house.brought(repo, user)
        mirror = house.repos.mirror(repo).path
    (mirror / "incoming-x").mkdir()
    (mirror / "refs" / "tasks" / "x.lock").touch()
    (house.folder / ".r_1.git-abc").mkdir()
    (house.folder / ".removed-r_2.git").mkdir()
    (house.folder / "r_4.git").mkdir()
    async with daemon(state) as house:
        assert await house.repos.visible(ALICE) == [repo]
        assert not (mirror / "incoming-x").exists()
        assert not (mirror / "refs" / "tasks" / "x.lock").exists()
        assert sorted(path.name for path in house.folder.iterdir()) == [mirror.name, "r_4.git"]
        assert await (await house.repos.fresh(repo)).find(REF) == tip


async def test_a_removal_that_was_cut_off_before_it_was_written_down_is_undone(
    tmp_path: Path, user: UserRepo
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    async with daemon(state) as house:
        repo = await house.add(user.path)
        tip = await house.brought(repo, user)
        mirror = house.repos.mirror(repo).path
    mirror.rename(mirror.with_name(f".removed-{mirror.name}"))
    async with daemon(state) as house:
        assert await house.repos.unmerged(repo) == {REF: tip}
