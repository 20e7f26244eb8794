from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

import git_repos
from git_guests import REF, World, refused, state_of, world
from git_repos import (
    Made,
    Repo,
    blob,
    clone_of_bundle,
    commit,
    copy,
    difference,
    entry,
    long_history,
    mirrored,
    number,
    pack,
    raw,
    tree,
)
from microvm_orchestrator import errors
from microvm_orchestrator.git import bundle
from microvm_orchestrator.git.incoming import Taken, take
from microvm_orchestrator.git.names import Oid

SOON_S = 60.0


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
async def test_the_commits_of_a_guest_come_in_and_the_ref_stands_at_the_last(
    tmp_path: Path, object_format: str
) -> None:
    found = await world(tmp_path, object_format=object_format)
    found.guest.commit({"README": "three\n", "new/deep/file": "new\n"})
    tip = found.guest.commit({"README": "four\n"})
    found.guest.bundle(found.file, f"{found.base}..task")
    came = found.file.read_bytes()
    assert await found.take() == Taken(tip, 2, base_is_ancestor=True, merge_base=found.base)
    assert await found.mirror.find(REF) == tip
    raw(found.mirror.path, "fsck", "--strict", "--connectivity-only")
    # The file is the caller's, and what git needed meanwhile is gone.
    assert found.file.read_bytes() == came
    assert not list(found.mirror.path.glob("incoming-*"))
    # As after a restart that forgot: the same again changes nothing.
    again = await take(found.mirror, found.file, ref=REF, base=found.base, expect=tip)
    assert again.tip == tip


async def test_a_history_that_was_written_anew_comes_in_and_is_told_as_such(tmp_path: Path) -> None:
    found = await world(tmp_path)
    found.guest.git("reset", "--quiet", "--hard", "HEAD~1")
    tip = found.guest.commit({"README": "instead\n"})
    found.guest.bundle(found.file, f"{found.base}..task")
    first = found.repo.oid("other")
    assert await found.take() == Taken(tip, 1, base_is_ancestor=False, merge_base=first)


async def test_a_history_of_its_own_comes_in_and_has_nothing_in_common(tmp_path: Path) -> None:
    found = await world(tmp_path)
    found.guest.git("checkout", "--quiet", "--orphan", "fresh")
    tip = found.guest.commit({"README": "fresh\n"})
    found.guest.bundle(found.file, "fresh")
    assert await found.take() == Taken(tip, 1, base_is_ancestor=False, merge_base=None)


async def test_the_first_commits_of_an_empty_repository_come_in(tmp_path: Path) -> None:
    repo = Repo.make(tmp_path / "repo")
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    guest = Repo.make(tmp_path / "guest")
    tip = guest.commit({"a": "a"})
    guest.bundle(tmp_path / "came", "main")
    taken = await take(mirror, tmp_path / "came", ref=REF, base=None)
    assert taken == Taken(tip, 1, base_is_ancestor=True, merge_base=None)
    assert await mirror.find(REF) == tip


async def test_merges_removals_and_old_files_that_come_back_come_in(tmp_path: Path) -> None:
    found = await world(tmp_path)
    guest = found.guest
    guest.git("switch", "--quiet", "--create", "side", "HEAD~1")
    guest.commit({"side": "side\n", "link": "x"})
    (guest.path / "link").unlink()
    (guest.path / "link").symlink_to("README")
    guest.commit({})
    guest.git("switch", "--quiet", "task")
    guest.git("merge", "--quiet", "--no-edit", "side")
    # As it was in the first commit: the base's own trees do not have it any more.
    tip = guest.commit({"README": "one\n"})
    guest.git("gc", "--quiet")  # with an index by which git leaves out more than otherwise
    guest.bundle(found.file, f"{found.base}..task")
    assert (await found.take()).tip == tip


async def test_a_large_history_comes_in_by_what_is_new(tmp_path: Path) -> None:
    repo = long_history(tmp_path / "repo.git", 2000)
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    base = repo.oid("main")
    await bundle.write(mirror, tmp_path / "sent", want=base, ref="refs/heads/task", have=[])
    guest = clone_of_bundle(tmp_path / "guest", tmp_path / "sent")
    guest.commit({"folder1/file1": "changed\n"})
    guest.bundle(tmp_path / "came", f"{base}..task")
    before = Repo(mirror.path).objects()
    await take(mirror, tmp_path / "came", ref=REF, base=base)
    assert Repo(mirror.path).objects() - before == 4


async def test_the_ref_is_not_moved_from_elsewhere_and_nothing_comes_in(tmp_path: Path) -> None:
    found = await world(tmp_path)
    await found.mirror.keep(REF, found.base, None)
    found.guest.commit({"README": "three\n"})
    found.guest.bundle(found.file, f"{found.base}..task")
    before = state_of(found.mirror)
    with pytest.raises(errors.VersionMoved):
        await found.take()
    assert state_of(found.mirror) == before


async def test_guests_that_end_together_all_come_in(tmp_path: Path) -> None:
    found = await world(tmp_path)
    tips: list[Oid] = []
    for index in range(5):
        found.guest.git("checkout", "--quiet", "-B", "task", found.base)
        tips.append(found.guest.commit({f"file{index}": "x\n"}))
        found.guest.bundle(tmp_path / f"came{index}", f"{found.base}..task")

    async def one(index: int) -> None:
        file = tmp_path / f"came{index}"
        await take(found.mirror, file, ref=f"refs/tasks/t{index}", base=found.base)

    with anyio.fail_after(SOON_S):
        async with anyio.create_task_group() as group:
            for index in range(5):
                group.start_soon(one, index)
            group.start_soon(found.mirror.tidy)
    assert list((await found.mirror.refs("refs/tasks/")).values()) == tips


async def test_cancelling_leaves_nothing(tmp_path: Path) -> None:
    found = await world(tmp_path)
    found.guest.commit({"README": "three\n", "big": os.urandom(1 << 22)})
    found.guest.bundle(found.file, f"{found.base}..task")
    before = state_of(found.mirror)
    with anyio.fail_after(SOON_S):
        async with anyio.create_task_group() as group:
            group.start_soon(found.take)
            while not list(found.mirror.path.glob("incoming-*/objects/pack")):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    assert state_of(found.mirror) == before


def good(found: World) -> bytes:
    found.guest.commit({"README": "three\n"})
    return found.guest.bundle(found.file, f"{found.base}..task").read_bytes()


HEADERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "empty file": ("ends within its header", lambda _: b""),
    "no bundle": ("does not begin", lambda _: b"#!/bin/sh\n"),
    "one long line": ("longer than", lambda _: b"#" * (1 << 20)),
    "no end": (
        "longer than",
        lambda _: b"# v2 git bundle\n" + b"-" + b"1" * 40 + b" " + b"x" * (1 << 20),
    ),
    "cut short": ("ends within its header", lambda whole: whole[:60]),
    "100,000 refs": (
        "more than one ref",
        lambda _: (
            b"# v2 git bundle\n"
            + b"".join(b"%040x refs/heads/a%d\n" % (n, n) for n in range(100_000))
            + b"\n"
        ),
    ),
    "100,000 prerequisites": (
        "more than 100 prerequisites",
        lambda _: b"# v2 git bundle\n" + b"".join(b"-%040x \n" % n for n in range(100_000)) + b"\n",
    ),
    "no ref": ("brings no ref", lambda _: b"# v2 git bundle\n\nPACK"),
    "a filter": (
        "not understood",
        lambda _: b"# v3 git bundle\n@filter=blob:none\n" + b"1" * 40 + b" refs/heads/a\n\n",
    ),
    "another object format": (
        "by sha256, the repository by sha1",
        lambda _: b"# v3 git bundle\n@object-format=sha256\n" + b"1" * 64 + b" refs/heads/a\n\n",
    ),
    "an object format behind a ref": (
        "not where one can be",
        lambda _: b"# v3 git bundle\n" + b"1" * 40 + b" refs/heads/a\n@object-format=sha256\n\n",
    ),
    "an unknown object format": (
        "not understood",
        lambda _: b"# v3 git bundle\n@object-format=md5\n\n",
    ),
    "a short object name": (
        "names no sha1 object",
        lambda _: b"# v2 git bundle\n123 refs/heads/a\n\n",
    ),
    "an object name of no digits": (
        "names no sha1 object",
        lambda _: b"# v2 git bundle\n" + b"\xff" * 40 + b" refs/heads/a\n\n",
    ),
    "a prerequisite that nobody knows": (
        "no commit here",
        lambda _: b"# v2 git bundle\n-" + b"1" * 40 + b" \n" + b"1" * 40 + b" refs/heads/a\n\nPACK",
    ),
    "no pack": (
        "no pack behind its header",
        lambda whole: whole[: whole.index(b"PACK")],
    ),
    "something else for a pack": (
        "no pack behind its header",
        lambda whole: whole[: whole.index(b"PACK")] + b"x" * 100,
    ),
    "a pack of a later version": (
        "of a version that git does not have",
        lambda whole: whole.replace(b"PACK\0\0\0\2", b"PACK\0\0\0\7"),
    ),
    "four thousand million objects": (
        "4294967295 objects",
        lambda whole: whole[: whole.index(b"PACK") + 8] + b"\xff" * 4,
    ),
    "an empty pack": (
        "0 objects",
        lambda whole: whole[: whole.index(b"PACK")] + pack([]),
    ),
}


@pytest.mark.parametrize("case", HEADERS)
async def test_a_header_that_is_not_one_branchs_is_refused(tmp_path: Path, case: str) -> None:
    found = await world(tmp_path)
    why, change = HEADERS[case]
    found.file.write_bytes(change(good(found)))
    await refused(found, why)


@pytest.mark.parametrize(
    "name", ["", "-x", "a b", "../../refs/heads/main", "a\x1b[2J", "a//b", ".x", "x" * 2000]
)
async def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    found = await world(tmp_path)
    git_repos.bundle(found.file, [], found.base, ref=name)
    await refused(found, "the name of its ref, .*,|names no sha1 object|does not begin")


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.99])
async def test_a_pack_that_was_cut_short_is_refused(tmp_path: Path, keep: float) -> None:
    found = await world(tmp_path)
    whole = good(found)
    start = whole.index(b"PACK") + 12
    found.file.write_bytes(whole[: start + int((len(whole) - start) * keep)])
    await refused(found, "index-pack refused it")


@pytest.mark.parametrize("more", [b"x", b"PACK", bytes(1 << 20)], ids=["a byte", "a pack", "1 MiB"])
async def test_what_stands_behind_a_pack_is_refused(tmp_path: Path, more: bytes) -> None:
    found = await world(tmp_path)
    found.file.write_bytes(good(found) + more)
    await refused(found, "index-pack refused it")


async def test_each_byte_of_a_pack_that_was_changed_is_noticed(tmp_path: Path) -> None:
    found = await world(tmp_path)
    whole = good(found)
    start = whole.index(b"PACK") + 12
    for at in range(start, len(whole), max(1, (len(whole) - start) // 12)):
        found.file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        await refused(found, "refused it")


async def test_a_pack_whose_objects_are_fewer_or_more_than_it_says_is_refused(
    tmp_path: Path,
) -> None:
    found = await world(tmp_path)
    content = blob(b"content\n")
    top = tree(("100644", b"file", content.oid))
    tip = commit(top.oid, found.base)
    entries = [entry(made) for made in (content, top, tip)]
    head = f"# v2 git bundle\n-{found.base} \n{tip.oid} refs/heads/task\n\n".encode()
    for count in (2, 4, 100_000):
        found.file.write_bytes(head + pack(entries, count=count))
        await refused(found, "index-pack refused it")
    found.file.write_bytes(head + pack(entries))
    assert (await found.take()).tip == tip.oid


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "nothing"])
async def test_what_is_no_plain_file_is_refused(tmp_path: Path, kind: str) -> None:
    found = await world(tmp_path)
    match kind:
        case "link":
            good(found)
            found.file.rename(tmp_path / "elsewhere")
            found.file.symlink_to(tmp_path / "elsewhere")
        case "folder":
            found.file.mkdir()
        case "pipe":
            os.mkfifo(found.file)
        case _:
            pass
    with anyio.fail_after(SOON_S):
        await refused(found, "cannot be opened|no plain file")


@pytest.mark.parametrize("kind", ["tree", "blob", "tag", "nothing"])
async def test_a_tip_that_is_no_commit_is_refused(tmp_path: Path, kind: str) -> None:
    found = await world(tmp_path)
    content = blob(b"x")
    top = tree(("100644", b"a", content.oid))
    tip = commit(top.oid, found.base)
    text = f"object {tip.oid}\ntype commit\ntag t\ntagger E <e@x> 1 +0000\n\nt\n"
    tag = Made("tag", text.encode())
    oid = {"tree": top.oid, "blob": content.oid, "tag": tag.oid, "nothing": "1" * 40}[kind]
    git_repos.bundle(found.file, [content, top, tip, tag], oid, needs=[found.base])
    await refused(found, "its tip is a|cat-file refused it")


async def test_a_history_with_a_hole_is_refused(tmp_path: Path) -> None:
    found = await world(tmp_path)
    content, missing = blob(b"x"), blob(b"missing")
    top = tree(("100644", b"a", content.oid), ("100644", b"b", missing.oid))
    tip = commit(top.oid, found.base)
    git_repos.bundle(found.file, [content, top, tip], tip.oid, needs=[found.base])
    await refused(found, "refused it")
    tip = commit(found.repo.oid("main^{tree}"), "2" * 40)
    git_repos.bundle(found.file, [tip], tip.oid)
    await refused(found, "refused it")


async def test_what_the_guest_was_not_given_cannot_be_had_by_its_name(tmp_path: Path) -> None:
    found = await world(tmp_path)
    secret = found.repo.oid("secret:secret")
    top = tree(("100644", b"mine", secret))
    tip = commit(top.oid, found.base)
    # In a tree, as a parent, as a prerequisite, and as what a difference is to.
    git_repos.bundle(found.file, [top, tip], tip.oid, needs=[found.base])
    await refused(found, f"it uses {secret}, which it neither brings nor was given")
    tip = commit(found.repo.oid("main^{tree}"), found.repo.oid("secret"))
    git_repos.bundle(found.file, [tip], tip.oid, needs=[found.base])
    await refused(found, "it uses .*, which it neither brings nor was given")
    git_repos.bundle(found.file, [tip], tip.oid, needs=[found.repo.oid("secret")])
    await refused(found, "builds on a commit that its guest was not given")
    size = len("do not tell\n")
    delta = number(size) + number(size + 1) + copy(0, size) + b"\1!"
    stolen = blob(b"do not tell\n!")
    top = tree(("100644", b"mine", stolen.oid))
    tip = commit(top.oid, found.base)
    needs = [found.base]
    git_repos.bundle(found.file, [difference(secret, delta), top, tip], tip.oid, needs=needs)
    await refused(found, f"it uses {secret}, which it neither brings nor was given")
    # Whoever was given that branch as well may build on it.
    git_repos.bundle(found.file, [difference(secret, delta), top, tip], tip.oid, needs=needs)
    given = [found.repo.oid("secret")]
    taken = await take(found.mirror, found.file, ref=REF, base=found.base, given=given)
    assert taken.tip == tip.oid


async def test_what_the_tip_does_not_need_is_not_let_in(tmp_path: Path) -> None:
    found = await world(tmp_path)
    content, stowaway = blob(b"x"), blob(b"not in any tree")
    top = tree(("100644", b"a", content.oid))
    tip = commit(top.oid, found.base)
    needs = [found.base]
    git_repos.bundle(found.file, [content, top, tip, stowaway], tip.oid, needs=needs)
    await refused(found, f"it brings {stowaway.oid}, which its tip does not need")


async def test_nothing_that_is_planted_in_a_tree_runs(tmp_path: Path) -> None:
    found = await world(tmp_path)
    marker = tmp_path / "it ran"
    found.guest.write({".husky/post-checkout": f"#!/bin/sh\ntouch '{marker}'\n"})
    (found.guest.path / ".husky/post-checkout").chmod(0o755)
    found.guest.write({".gitattributes": "* filter=x diff=x merge=x\n"})
    found.guest.git("config", "core.hooksPath", ".husky")
    tip = found.guest.commit({".gitconfig": f"[core]\n\tfsmonitor = touch '{marker}'\n"})
    found.guest.bundle(found.file, f"{found.base}..task")
    marker.unlink(missing_ok=True)
    assert (await found.take()).tip == tip
    assert not marker.exists()
