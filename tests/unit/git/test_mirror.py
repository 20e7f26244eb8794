from __future__ import annotations

from functools import partial
from pathlib import Path

import anyio
import pytest

from git_repos import Repo, extend, long_history, look_of, mirrored, raw, sample
from microvm_orchestrator import errors
from microvm_orchestrator.git.mirror import Mirror
from microvm_orchestrator.git.names import ObjectFormat, Oid

SOON_S = 30.0


def newest_pack(mirror: Mirror) -> int:
    """Count the objects of the pack that came last."""
    packs = sorted(
        mirror.path.glob("objects/pack/*.pack"), key=lambda path: path.stat().st_mtime_ns
    )
    return int.from_bytes(packs[-1].read_bytes()[8:12])


async def test_a_mirror_has_the_branches_the_tags_and_the_head(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    assert await mirror.refs() == {
        "refs/upstream/HEAD": repo.oid(),
        "refs/upstream/heads/main": repo.oid("main"),
        "refs/upstream/heads/other": repo.oid("other"),
        "refs/upstream/tags/v1": repo.oid("v1"),
    }
    assert not (mirror.path / "hooks").exists()


async def test_a_mirror_is_made_once(tmp_path: Path) -> None:
    mirror = await mirrored(tmp_path / "mirror.git", sample(tmp_path / "repo"))
    before = look_of(mirror.path)
    await mirror.make(ObjectFormat.SHA1)
    assert look_of(mirror.path) == before
    with pytest.raises(errors.Conflict, match="by sha1, the repository by sha256"):
        await mirror.make(ObjectFormat.SHA256)


async def test_a_refresh_brings_what_is_new_and_only_that(tmp_path: Path) -> None:
    repo = long_history(tmp_path / "repo.git", 3000)
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    whole = newest_pack(mirror)
    assert whole == repo.objects()
    assert whole > 9000
    extend(repo, 3000, 5)
    await mirror.refresh(repo.path)
    # Each of five commits has a commit, two trees and a file of its own, and what came as a
    # difference to an object that was there has that beside it.
    assert 5 * 4 <= newest_pack(mirror) <= 2 * 5 * 4
    assert await mirror.resolve("main") == repo.oid("main")
    before = look_of(mirror.path / "objects")
    await mirror.refresh(repo.path)
    assert look_of(mirror.path / "objects") == before


async def test_what_upstream_no_longer_has_is_forgotten_and_what_it_moved_is_moved(
    tmp_path: Path,
) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    repo.git("branch", "--delete", "--force", "other")
    repo.git("branch", "other/deeper")
    repo.git("tag", "--delete", "v1")
    repo.git("reset", "--quiet", "--hard", "HEAD~1")
    await mirror.refresh(repo.path)
    assert await mirror.refs() == {
        "refs/upstream/HEAD": repo.oid(),
        "refs/upstream/heads/main": repo.oid(),
        "refs/upstream/heads/other/deeper": repo.oid("other/deeper"),
    }


async def test_a_refresh_changes_nothing_upstream_and_runs_nothing_of_it(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    marker = tmp_path / "it ran"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch '{marker}'\nexec \"$@\"\n")
    program.chmod(0o755)
    for key in ("core.fsmonitor", "uploadpack.packObjectsHook", "core.alternateRefsCommand"):
        repo.git("config", key, program)
    hooks = repo.path / ".git/hooks"
    hooks.mkdir(exist_ok=True)
    for hook in ("reference-transaction", "post-update", "pre-auto-gc"):
        (hooks / hook).symlink_to(program)
    before = look_of(repo.path)
    await mirrored(tmp_path / "mirror.git", repo)
    assert look_of(repo.path) == before
    assert not marker.exists()


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
async def test_each_object_format_is_mirrored(tmp_path: Path, object_format: str) -> None:
    repo = sample(tmp_path / "repo", object_format=object_format)
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    assert await mirror.resolve("main") == repo.oid()
    assert await mirror.object_format() == object_format


async def test_an_empty_repository_is_mirrored_and_grows(tmp_path: Path) -> None:
    repo = Repo.make(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    assert await mirror.refs() == {}
    with pytest.raises(errors.NotFound):
        await mirror.resolve("HEAD")
    repo.commit({"a": "a"})
    await mirror.refresh(repo.path)
    assert await mirror.resolve("HEAD") == repo.oid()


async def test_a_head_on_no_branch_is_mirrored_until_it_is_gone(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    repo.git("checkout", "--quiet", "--detach")
    alone = repo.commit({"a": "alone"})
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    assert await mirror.resolve("HEAD") == alone
    repo.git("switch", "--quiet", "--orphan", "fresh")
    await mirror.refresh(repo.path)
    with pytest.raises(errors.NotFound):
        await mirror.resolve("HEAD")


async def test_linked_work_trees_and_bare_repositories_are_mirrored(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    repo.git("worktree", "add", "--quiet", tmp_path / "linked", "other")
    raw(tmp_path, "clone", "--quiet", "--bare", repo.path, "bare.git")
    linked = await mirrored(tmp_path / "linked.git", Repo(tmp_path / "linked"))
    assert await linked.resolve("HEAD") == repo.oid("other")
    bare = await mirrored(tmp_path / "of bare.git", Repo(tmp_path / "bare.git"))
    assert await bare.resolve("HEAD") == repo.oid("main")


async def test_a_shallow_clone_is_refused_with_what_to_do(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    raw(tmp_path, "clone", "--quiet", "--depth=1", f"file://{repo.path}", "shallow")
    with pytest.raises(errors.RepoRefused, match="shallow clone") as caught:
        await mirrored(tmp_path / "mirror.git", Repo(tmp_path / "shallow"))
    assert "unshallow" in (caught.value.hint or "")
    assert await Mirror(tmp_path / "mirror.git").refs() == {}


async def test_commits_are_found_by_every_name_a_client_may_use(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    first, second = repo.oid("other"), repo.oid("main")
    await mirror.keep("refs/tasks/t1", first, None)
    for name in ("main", "refs/heads/main", "HEAD", second, second[:8]):
        assert await mirror.resolve(name) == second
    for name in ("v1", "refs/tags/v1", "other", "refs/tasks/t1"):
        assert await mirror.resolve(name) == first


async def test_a_branch_goes_before_a_tag_and_both_before_an_object(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    first, second = repo.oid("other"), repo.oid("main")
    repo.git("tag", "twice", "other")
    repo.git("branch", "twice", "main")
    repo.git("tag", second[:8], "other")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    assert await mirror.resolve("twice") == second
    assert await mirror.resolve("refs/tags/twice") == first
    assert await mirror.resolve(second[:8]) == first


@pytest.mark.parametrize(
    "name",
    [
        "",
        "--upload-pack=touch it",
        "-main",
        "main..other",
        "main other",
        "main\0",
        "main\n",
        "main~1",
        "main^",
        "main^{tree}",
        "main:README",
        ":/first",
        "@",
        "@{-1}",
        "main@{1}",
        "ma?n",
        "ma*",
        "[m]ain",
        "/main",
        "main/",
        "refs/heads//main",
        ".main",
        "a/.main",
        "main.lock",
        "main.",
        "ma\\in",
        "\udcff",
        "x" * 2000,
    ],
)
async def test_what_is_no_name_is_refused_before_git_sees_it(tmp_path: Path, name: str) -> None:
    # There is no mirror, so a git that was asked would fail otherwise.
    with pytest.raises(errors.InvalidInput):
        await Mirror(tmp_path).resolve(name)


@pytest.mark.parametrize("name", ["nowhere", "refs/upstream/HEAD", "blob", "refs/x", "0" * 40])
async def test_what_names_no_commit_is_not_found(tmp_path: Path, name: str) -> None:
    repo = sample(tmp_path / "repo")
    repo.git("tag", "blob", "HEAD:README")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    with pytest.raises(errors.NotFound):
        await mirror.resolve(name)
    with pytest.raises(errors.NotFound):
        await mirror.resolve(repo.oid("HEAD:README"))


async def test_a_ref_moves_only_from_where_it_is_expected(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    first, second = repo.oid("other"), repo.oid("main")
    await mirror.keep("refs/tasks/t1", first, None)
    await mirror.keep("refs/tasks/t1", first, None)  # as after a restart that forgot
    with pytest.raises(errors.VersionMoved, match=first):
        await mirror.keep("refs/tasks/t1", second, None)
    await mirror.keep("refs/tasks/t1", second, first)
    with pytest.raises(errors.VersionMoved, match=second):
        await mirror.drop("refs/tasks/t1", first)
    await mirror.drop("refs/tasks/t1", second)
    await mirror.drop("refs/tasks/t1", second)
    with pytest.raises(errors.VersionMoved, match="nothing"):
        await mirror.keep("refs/tasks/t1", first, second)
    assert await mirror.find("refs/tasks/t1") is None


async def test_a_ref_cannot_stand_at_what_is_not_there(tmp_path: Path) -> None:
    mirror = await mirrored(tmp_path / "mirror.git", sample(tmp_path / "repo"))
    with pytest.raises(errors.CommandFailed, match="nonexistent object"):
        await mirror.keep("refs/tasks/t1", Oid("1" * 40), None)


@pytest.mark.parametrize(
    "ref", ["refs/heads/main", "refs/upstream/heads/main", "refs/tasks/", "refs/tasks/a/b", "HEAD"]
)
async def test_only_refs_of_ours_are_moved(tmp_path: Path, ref: str) -> None:
    mirror = Mirror(tmp_path)
    with pytest.raises(errors.InvalidInput):
        await mirror.drop(ref, Oid("1" * 40))


async def test_of_many_who_want_a_ref_one_gets_it_and_the_others_are_told(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    tips = [repo.commit({"a": str(number)}) for number in range(12)]
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    won: list[Oid] = []
    lost: list[Oid] = []

    async def want(oid: Oid) -> None:
        try:
            await mirror.keep("refs/tasks/t1", oid, None)
            won.append(oid)
        except errors.VersionMoved:
            lost.append(oid)

    with anyio.fail_after(SOON_S):
        async with anyio.create_task_group() as group:
            for tip in tips:
                group.start_soon(want, tip)
    assert (len(won), len(lost)) == (1, 11)
    assert [await mirror.find("refs/tasks/t1")] == won


async def test_refreshes_and_moves_of_refs_at_once_all_succeed(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    tips = [repo.commit({"a": str(number)}) for number in range(6)]
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    with anyio.fail_after(SOON_S):
        async with anyio.create_task_group() as group:
            for number, tip in enumerate(tips):
                group.start_soon(mirror.refresh, repo.path)
                group.start_soon(partial(mirror.keep, f"refs/tasks/t{number}", tip, None))
            group.start_soon(mirror.tidy)
    assert list((await mirror.refs("refs/tasks/")).values()) == tips


async def test_tidying_keeps_all_that_has_a_ref(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    for number in range(5):
        repo.commit({"a": str(number)})
        await mirror.refresh(repo.path)
    tip = repo.oid()
    await mirror.keep("refs/tasks/t1", tip, None)
    repo.git("reset", "--quiet", "--hard", "other")
    await mirror.refresh(repo.path)
    assert len(list(mirror.path.glob("objects/pack/*.pack"))) == 6
    await mirror.tidy()
    assert len(list(mirror.path.glob("objects/pack/*.pack"))) == 1
    assert await mirror.has(tip)
    raw(mirror.path, "fsck", "--full", "--strict")


async def test_what_a_killed_git_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    repo = sample(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    await mirror.keep("refs/tasks/t1", repo.oid(), None)
    before = look_of(mirror.path / "objects"), await mirror.refs()
    (mirror.path / "refs/tasks/t1.lock").touch()
    (mirror.path / "packed-refs.lock").touch()
    (mirror.path / "objects/pack/tmp_pack_abc").touch()
    (mirror.path / "incoming-abc/objects/pack").mkdir(parents=True)
    (tmp_path / ".mirror.git-abc/objects").mkdir(parents=True)
    with pytest.raises(errors.CommandFailed, match="Unable to create"):
        await mirror.drop("refs/tasks/t1", repo.oid())
    await mirror.recover()
    names = {Path(path).name for path in look_of(tmp_path) if repo.path not in Path(path).parents}
    assert not [name for name in names if name.endswith(".lock") or "abc" in name]
    seen = look_of(mirror.path / "objects")
    assert set(seen) == set(before[0])
    assert await mirror.refs() == before[1]
    await mirror.drop("refs/tasks/t1", repo.oid())
