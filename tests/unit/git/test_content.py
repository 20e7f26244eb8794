from __future__ import annotations

import zlib
from pathlib import Path

import pytest

import git_repos
from git_guests import refused, world
from git_repos import blob, commit, copy, difference, entry, number, tree
from microvm_orchestrator.git import bundle
from microvm_orchestrator.git.held import Room


def bomb(base: bytes, times: int, more: bytes = b"!") -> bytes:
    """Write a delta of a few bytes that makes many times its base, and a little more."""
    step = min(len(base), (1 << 24) - 1)
    head = number(len(base)) + number(step * times + len(more))
    return head + copy(0, step) * times + bytes([len(more)]) + more


async def test_a_few_bytes_that_become_many_are_refused(tmp_path: Path) -> None:
    found = await world(tmp_path)
    zeros = blob(bytes(1 << 23))
    # 32 kB each, which git would make 8 GiB of; all zeros, so that it also packs well.
    entries = [entry(zeros), *[difference(zeros.oid, bomb(zeros.content, 1024)) for _ in range(3)]]
    top = tree(("100644", b"file", zeros.oid))
    tip = commit(top.oid, found.base)
    git_repos.bundle(found.file, [*entries, top, tip], tip.oid, needs=[found.base])
    assert found.file.stat().st_size < 1 << 20
    await refused(found, "index-pack refused it")


async def test_what_takes_too_much_of_a_processor_is_refused(tmp_path: Path) -> None:
    found = await world(tmp_path)
    zeros = blob(bytes(1 << 23))
    # Each fits, and differs from the last in a byte; together they are 25 GiB to be digested.
    deltas = [bomb(zeros.content, 16, more=b"%03d" % n) for n in range(200)]
    entries = [entry(zeros), *(difference(zeros.oid, delta) for delta in deltas)]
    top = tree(("100644", b"file", zeros.oid))
    tip = commit(top.oid, found.base)
    git_repos.bundle(found.file, [*entries, top, tip], tip.oid, needs=[found.base])
    assert found.file.stat().st_size < 1 << 15
    await refused(found, r"index-pack refused it: it needed more than it may have", Room(cpu_s=1))


async def test_an_object_that_says_it_is_huge_is_refused(tmp_path: Path) -> None:
    found = await world(tmp_path)
    huge = bytearray([0x80 | 2 << 4 | 15])  # a tree, whose size goes on for six more bytes
    huge += b"\xff" * 6 + b"\x7f" + zlib.compress(b"x")
    git_repos.bundle(found.file, [bytes(huge)], found.base, needs=[found.base])
    await refused(found, "index-pack refused it")


async def test_limits_on_what_is_brought_are_told_with_both_numbers(tmp_path: Path) -> None:
    found = await world(tmp_path)
    for index in range(5):
        found.guest.commit({f"dir{index}/{'n' * 40}": "x" * 5000, "README": f"{index}\n"})
    found.guest.bundle(found.file, f"{found.base}..task")
    size = found.file.stat().st_size
    for room, why in {
        Room(bundle_bytes=size - 1): f"it is {size} bytes long and may be {size - 1}",
        Room(objects=10): "objects; one has from 1 to 10",
        Room(commits=4): "it brings 5 commits and may bring 4",
        Room(blob_bytes=4999): "the blob .* has 5000 bytes and may have 4999",
        Room(commit_bytes=100): "the commit .* bytes and may have 100",
        Room(tree_bytes=200): "its trees has .* bytes and may have 200|the tree .* may have 200",
        Room(unpacked_bytes=5000): "all that it brings has .* bytes and may have 5000",
        Room(files=5): "more than 5 files",
        Room(depth=1): "more than 1 levels",
        Room(path_bytes=30): "more than 30 bytes in a path",
        Room(memory_bytes=1 << 20): "index-pack refused it|cat-file refused it",
    }.items():
        await refused(found, why, room)
    assert (await found.take(room=Room(bundle_bytes=size, commits=5, blob_bytes=5000))).commits == 5


async def test_a_few_trees_that_become_a_thousand_million_files_are_refused(tmp_path: Path) -> None:
    found = await world(tmp_path)
    content = blob(b"x")
    made = [content]
    top = tree(*(("100644", b"%02d" % n, content.oid) for n in range(10)))
    made.append(top)
    for _ in range(8):
        top = tree(*(("40000", b"%02d" % n, top.oid) for n in range(10)))
        made.append(top)
    tip = commit(top.oid, found.base)
    # It is taken away again, so that only who looks at each commit finds it.
    after = commit(found.repo.oid("main^{tree}"), tip.oid)
    git_repos.bundle(found.file, [*made, tip, after], after.oid, needs=[found.base])
    await refused(found, "more than 2000000 files")


async def test_the_repositorys_own_trees_used_many_times_are_counted_too(tmp_path: Path) -> None:
    found = await world(tmp_path)
    own = found.repo.oid("main^{tree}")
    top = tree(*(("40000", b"%03d" % n, own) for n in range(100)))
    tip = commit(top.oid, found.base)
    git_repos.bundle(found.file, [top, tip], tip.oid, needs=[found.base])
    await refused(found, "more than 300 files", Room(files=300))
    assert (await found.take()).tip == tip.oid


async def test_folders_within_folders_without_end_are_refused(tmp_path: Path) -> None:
    found = await world(tmp_path)
    content = blob(b"x")
    made = [content, tree(("100644", b"f", content.oid))]
    for _ in range(5000):
        made.append(tree(("40000", b"d", made[-1].oid)))
    tip = commit(made[-1].oid, found.base)
    git_repos.bundle(found.file, [*made, tip], tip.oid, needs=[found.base])
    await refused(found, "more than 200 levels|index-pack refused it")


NAMES = {
    ".git": b".git",
    "capitals": b".GIT",
    "parent": b"..",
    "itself": b".",
    "empty": b"",
    "a short name of Windows": b"git~1",
    "with a blank, which Windows drops": b".git ",
    "with a stream of Windows": b".git::$INDEX_ALLOCATION",
    "with a letter that macOS ignores": ".g\u200cit".encode(),
    "a path": b"a/b",
    "a path of Windows": b"a\\.git\\hooks",
}


@pytest.mark.parametrize("case", NAMES)
async def test_a_name_that_would_reach_gits_own_files_is_refused(tmp_path: Path, case: str) -> None:
    found = await world(tmp_path)
    content = blob(b"#!/bin/sh\n")
    inner = tree(("100644", NAMES[case], content.oid))
    top = tree(("40000", b"src", inner.oid))
    tip = commit(top.oid, found.base)
    git_repos.bundle(found.file, [content, inner, top, tip], tip.oid, needs=[found.base])
    await refused(found, "index-pack refused it: .*object .*: ")


async def test_trees_that_git_would_not_make_are_refused(tmp_path: Path) -> None:
    found = await world(tmp_path)
    content = blob(b"x")
    for entries in (
        [("100644", b"b", content.oid), ("100644", b"a", content.oid)],
        [("100644", b"a", content.oid), ("100644", b"a", content.oid)],
        [("0100644", b"a", content.oid)],
        [("100644", b"x" * 5000, content.oid)],
        [("100644", b"a", "0" * 40)],
    ):
        top = tree(*entries)
        tip = commit(top.oid, found.base)
        git_repos.bundle(found.file, [content, top, tip], tip.oid, needs=[found.base])
        await refused(found, "index-pack refused it|a name in a tree has more than 255 bytes")


@pytest.mark.parametrize(
    "url",
    [
        "ext::sh -c 'touch it'",
        "fd::7",
        "-upload-pack=touch",
        "--upload-pack=touch",
        "file:///etc",
        "/etc",
        "ssh://-oProxyCommand=touch/x",
        "-oProxyCommand=touch@x:y",
        "https://host/\x1b[2J",
        "git@host:-x",
        "./ext::sh",
    ],
)
async def test_submodules_that_would_run_or_read_something_here_are_refused(
    tmp_path: Path, url: str
) -> None:
    found = await world(tmp_path)
    found.guest.git("config", "--file", ".gitmodules", "submodule.x.path", "x")
    found.guest.git("config", "--file", ".gitmodules", "submodule.x.url", url)
    found.guest.commit({})
    found.guest.bundle(found.file, f"{found.base}..task")
    await refused(found, r"\.gitmodules has the url|index-pack refused it: .*gitmodules")


async def test_submodules_of_other_hosts_and_those_of_before_come_in(tmp_path: Path) -> None:
    found = await world(tmp_path)
    local = f'[submodule "local"]\n\tpath = local\n\turl = {tmp_path}/inner\n'
    found.repo.commit({".gitmodules": local})
    await found.mirror.refresh(found.repo.path)
    base = found.repo.oid()
    await bundle.write(
        found.mirror, tmp_path / "more", want=base, ref="refs/heads/task", have=[found.base]
    )
    git_repos.fetch_bundle(found.guest, tmp_path / "more")
    found.guest.git("reset", "--quiet", "--hard", "FETCH_HEAD")
    urls = ["https://host/x.git", "git@host:x/y.git", "../z", "..", "ssh://git@host:22/x", "host:x"]
    entries = [f'[submodule "{n}"]\n\tpath = p{n}\n\turl = {url}\n' for n, url in enumerate(urls)]
    found.guest.commit({".gitmodules": local + "".join(entries)})
    found.guest.bundle(found.file, f"{base}..task")
    assert (await found.take(base=base)).commits == 1


@pytest.mark.parametrize(
    "content",
    [
        b'[submodule "x"]\n\tpath = x\n\turl = https://h/x\n\tupdate = !touch it\n',
        b'[submodule "../../x"]\n\tpath = x\n\turl = https://h/x\n',
        b'[submodule "x"]\n\tpath = -x\n\turl = https://h/x\n',
        b"[submodule \n\0",
        b"#" * (1 << 19),
    ],
    ids=["a command", "a name above", "an option for a path", "no configuration", "half a MiB"],
)
async def test_a_gitmodules_file_that_would_mislead_git_is_refused(
    tmp_path: Path, content: bytes
) -> None:
    found = await world(tmp_path)
    found.guest.commit({".gitmodules": content})
    found.guest.bundle(found.file, f"{found.base}..task")
    await refused(found, "gitmodules|config refused it")


async def test_a_commit_of_too_many_parents_is_refused(tmp_path: Path) -> None:
    found = await world(tmp_path)
    own = found.repo.oid("main^{tree}")
    parents = [commit(own, found.base, message=f"{n}\n") for n in range(65)]
    tip = commit(own, *(parent.oid for parent in parents))
    git_repos.bundle(found.file, [*parents, tip], tip.oid, needs=[found.base])
    await refused(found, "a merge of more than 64 commits")


def test_the_limits_are_those_that_the_documentation_tells() -> None:
    page = (Path(__file__).parents[3] / "docs/explanation/git-boundary.md").read_text()
    room = Room()
    for told in (
        f"| bundle | {room.bundle_bytes >> 30} GiB |",
        f"| objects, commits | {room.objects:,} and {room.commits:,} |",
        f"{room.blob_bytes >> 20} MiB and {room.commit_bytes >> 20} MiB |",
        f"| everything unpacked | {room.unpacked_bytes >> 30} GiB |",
        f"| parents of a merge | {room.parents} |",
        f"| files of a commit's work tree | {room.files:,} |",
        f"{room.path_bytes} bytes, 255 bytes and {room.depth} |",
        f"{room.memory_bytes / (1 << 30)} GiB beside the mirror's indices, and {room.cpu_s} s |",
    ):
        assert told in page
