"""Trees that were registered: their names, what is kept of them, what differs, what is left out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import pytest

from git_repos import Repo
from microvm_orchestrator import errors
from microvm_orchestrator.artifact_trees import ArtifactTrees, Wanted
from microvm_orchestrator.artifacts import Artifacts, Quotas
from microvm_orchestrator.model.access import Role, Scope
from microvm_orchestrator.model.artifact_tree import ArtifactTree, BuildType, tree_digest
from microvm_orchestrator.model.records import SYSTEM, Actor
from microvm_orchestrator.store.sqlite import SqliteStore

ROOMY = Quotas(file=1 << 20, run=1 << 22, total=1 << 24)
ELF = b"\x7fELF\2\1" + bytes(10) + b"\3\0" + bytes(20)
BOB = Actor(name="bob", role=Role.ADMIN, via="test", action="x", scope=Scope(everything=False))
PATIENCE_S = 30


@dataclass(frozen=True)
class Shelf:
    """A host that keeps trees, and a folder to make some from."""

    state: Path
    trees: ArtifactTrees
    artifacts: Artifacts

    async def register(self, folder: Path, by: Actor = SYSTEM) -> ArtifactTree:
        return await self.trees.register(Wanted(folder), by)

    def contents(self) -> int:
        return len(list((self.state / "artifacts/sha256").iterdir()))


@asynccontextmanager
async def shelf_in(state: Path, quotas: Quotas = ROOMY) -> AsyncGenerator[Shelf]:
    store = SqliteStore(state / "store.db")
    artifacts = Artifacts(state / "artifacts", state / "runs", quotas)
    async with store.opened():
        trees = ArtifactTrees(store, artifacts)
        await artifacts.reconcile(await trees.known())
        yield Shelf(state, trees, artifacts)


@pytest.fixture
async def shelf(tmp_path: Path) -> AsyncGenerator[Shelf]:
    async with shelf_in(tmp_path) as shelf:
        yield shelf


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def digest_of(*files: tuple[str, bytes]) -> str:
    """Make a tree's name as it is written down: a line for each file."""
    lines = [f"{path}:{hashlib.sha256(data).hexdigest()}" for path, data in files]
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


async def test_a_tree_is_named_by_its_paths_and_contents_wherever_it_lies(
    shelf: Shelf, tmp_path: Path
) -> None:
    files = {"b": b"2", "a/c": b"3", "a/b/d": b"4", "a.c": b"1"}
    one = await shelf.register(lay(tmp_path / "one", files))
    junk = {".git/x": b"x", "a/__pycache__/c.pyc": b"x"}
    lay(tmp_path / "two", files | junk)
    os.utime(tmp_path / "two/b", (1, 1))
    (tmp_path / "two/b").chmod(0o755)
    two = await shelf.register(tmp_path / "two")
    # Files of a folder come before the folders in it.
    expected = digest_of(("a.c", b"1"), ("b", b"2"), ("a/c", b"3"), ("a/b/d", b"4"))
    assert one.artifact_id == two.artifact_id == expected
    assert (one.files, one.size) == (4, 4)
    moved = await shelf.register(lay(tmp_path / "three", {"c": b"2", "a/c": b"3"}))
    assert moved.artifact_id != one.artifact_id


async def test_what_becomes_of_the_folder_changes_nothing_of_the_tree(
    shelf: Shelf, tmp_path: Path
) -> None:
    folder = lay(tmp_path / "src", {"run.sh": b"#!/bin/sh\n", "sub/data": b"old" * 1000})
    (folder / "run.sh").chmod(0o750)
    tree = await shelf.register(folder)
    lay(folder, {"run.sh": b"changed", "more": b""})
    files = await shelf.trees.files(tree)
    assert [(each.path, each.size, each.executable) for each in files] == [
        ("run.sh", 10, True),
        ("sub/data", 3000, False),
    ]
    (tmp_path / "laid").mkdir()
    await shelf.trees.lay_out(tree, files, tmp_path / "laid")
    assert (tmp_path / "laid/run.sh").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "laid/sub/data").read_bytes() == b"old" * 1000
    assert tree_digest(files) == tree.artifact_id


async def test_links_count_as_what_they_lead_to_only_where_that_is_in_the_tree(
    shelf: Shelf, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(b"not yours")
    folder = lay(tmp_path / "src", {"real/file": b"data"})
    (folder / "alias").symlink_to("real/file")
    (folder / "out").symlink_to("../secret")
    (folder / "absolute").symlink_to(tmp_path / "secret")
    (folder / "nowhere").symlink_to("gone")
    (folder / "loop").symlink_to("loop")
    (folder / "folder").symlink_to("real")
    os.mkfifo(folder / "pipe")
    tree = await shelf.register(folder)
    assert tree.artifact_id == digest_of(("alias", b"data"), ("real/file", b"data"))
    assert {each.name: each.reason for each in tree.left_out} == {
        "absolute": "a link that leads out of the tree",
        "folder": "a link to a folder",
        "loop": "a link that leads nowhere",
        "nowhere": "a link that leads nowhere",
        "out": "a link that leads out of the tree",
        "pipe": "neither file nor folder",
    }


@pytest.mark.parametrize("name", ["two\nlines", "bell\a", b"no-utf8-\xff"])
async def test_a_name_that_could_pass_for_another_is_refused(
    shelf: Shelf, tmp_path: Path, name: str | bytes
) -> None:
    folder = lay(tmp_path / "src", {"a": b"x"})
    (folder / os.fsdecode(name)).write_bytes(b"x")
    with pytest.raises(errors.InvalidInput, match="is no name that a tree may have"):
        await shelf.register(folder)
    assert shelf.contents() == 0


async def test_it_is_told_what_a_tree_is_of(shelf: Shelf, tmp_path: Path) -> None:
    repo = Repo.make(tmp_path / "repo")
    release = '#define UTS_RELEASE "6.1.0-37-cloud-amd64"\n'
    repo.commit({"build/include/generated/utsrelease.h": release, "build/x.ko": ELF, "t": "t"})
    lay(repo.path / "build", {"tool": ELF, "lib.so": ELF, "short": ELF[:10], "text": b"text" * 9})
    tree = await shelf.trees.register(
        Wanted(repo.path / "build", BuildType.DEB, test_framework_path="t", metadata={"n": 1}),
        SYSTEM,
    )
    assert (tree.modules, tree.userspace_bins) == (["x.ko"], ["lib.so", "tool"])
    assert tree.kernel_version == "6.1.0-37-cloud-amd64"
    assert (tree.git_sha, tree.git_branch) == (repo.oid(), "main")
    assert (tree.build_type, tree.metadata) == (BuildType.DEB, {"n": 1})
    # Said again, it is told anew; it is the same tree.
    again = await shelf.trees.register(Wanted(repo.path / "build", kernel_version="6.6.6"), SYSTEM)
    assert (again.artifact_id, again.kernel_version) == (tree.artifact_id, "6.6.6")
    assert (await shelf.trees.get(tree.artifact_id, SYSTEM)).kernel_version == "6.6.6"


async def test_trees_are_compared_as_they_were_with_the_commits_between_them(
    shelf: Shelf, tmp_path: Path
) -> None:
    repo = Repo.make(tmp_path / "repo")
    repo.commit({"x.ko": "1", "tool": ELF, "gone.txt": "x", "same": "s"}, "first")
    one = await shelf.register(repo.path)
    (repo.path / "gone.txt").unlink()
    repo.commit({"x.ko": "2", "tool": ELF + b"more", "new.ko": "n"}, "second")
    repo.commit({"other": "x"}, "third")
    two = await shelf.register(repo.path)
    lay(repo.path, {"x.ko": b"3", "same": b"changed since"})
    diff = await shelf.trees.diff(one.artifact_id.removeprefix("sha256:"), two.artifact_id, SYSTEM)
    assert (diff.changed_modules, diff.changed_bins) == (["new.ko", "x.ko"], ["tool"])
    assert (diff.added, diff.removed) == (["new.ko", "other"], ["gone.txt"])
    assert (diff.changed, diff.truncated) == (["tool", "x.ko"], False)
    assert [line.partition(" ")[2] for line in diff.git_log or ()] == ["third", "second"]
    (repo.path / ".git").rename(tmp_path / "elsewhere")
    assert (await shelf.trees.diff(one.artifact_id, two.artifact_id, SYSTEM)).git_log is None


async def test_contents_are_kept_once_and_go_with_the_last_tree(
    shelf: Shelf, tmp_path: Path
) -> None:
    one = await shelf.register(lay(tmp_path / "one", {"a": b"same", "b": b"same", "c": b"1"}))
    two = await shelf.register(lay(tmp_path / "two", {"a": b"same"}))
    run = await shelf.artifacts.add_bytes("t_one.1", b"1")
    assert shelf.contents() == 4  # two of them list the trees' files
    await shelf.trees.remove(one.artifact_id, SYSTEM)
    assert await shelf.artifacts.read("t_one.1", run, 0, 9) == b"1"
    assert (await shelf.trees.files(two))[0].path == "a"
    with pytest.raises(errors.NotFound):
        await shelf.trees.get(one.artifact_id, SYSTEM)
    await shelf.trees.remove(two.artifact_id, SYSTEM)
    await shelf.artifacts.forget("t_one.1")
    assert (shelf.contents(), shelf.artifacts.total) == (0, 0)


@pytest.mark.parametrize(
    ("quotas", "match"),
    [
        (replace(ROOMY, file=9), "has 10 bytes"),
        (replace(ROOMY, run=405), "room for 5 more"),
        (replace(ROOMY, total=405), "room for 5 more"),
    ],
)
async def test_a_tree_that_is_too_large_leaves_nothing(
    tmp_path: Path, quotas: Quotas, match: str
) -> None:
    folder = lay(tmp_path / "src", {str(n): bytes([n]) * 10 for n in range(50)})
    async with shelf_in(tmp_path, quotas) as shelf:
        with pytest.raises(errors.TooLarge, match=match):
            await shelf.register(folder)
        assert (shelf.contents(), shelf.artifacts.total) == (0, 0)
        assert list((tmp_path / "artifacts/incoming").iterdir()) == []


async def test_what_is_no_folder_with_files_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    lay(tmp_path / "src", {"a": b"x", "empty/.git/x": b"x"})
    for wrong in (tmp_path / "none", tmp_path / "src/a", tmp_path / "src/empty", Path("src")):
        with pytest.raises(errors.InvalidInput):
            await shelf.register(wrong)


async def test_a_tree_is_whole_or_not_there_whenever_its_daemon_is_killed(tmp_path: Path) -> None:
    folder = lay(tmp_path / "src", {"a": b"x"})
    state = tmp_path / "state"
    state.mkdir()
    async with shelf_in(state) as shelf:
        tree = await shelf.register(folder)
        # Begun and not named, and named without a record.
        await shelf.artifacts.add_files(f"new-{'0' * 32}", [lambda: os.open(folder / "a", 0)])
        await shelf.artifacts.add_bytes(f"sha256:{'1' * 64}", b"y")
    async with shelf_in(state) as shelf:
        assert [each.path for each in await shelf.trees.files(tree)] == ["a"]
        assert shelf.contents() == 2
        assert len(list((state / "artifacts/trees").iterdir())) == 1


async def test_who_sees_only_its_own_neither_sees_nor_takes_trees_of_others(
    shelf: Shelf, tmp_path: Path
) -> None:
    folder = lay(tmp_path / "src", {"a": b"x"})
    tree = await shelf.register(folder)
    with pytest.raises(errors.NotFound):
        await shelf.trees.get(tree.artifact_id, BOB)
    with pytest.raises(errors.AlreadyExists):
        await shelf.register(folder, BOB)
    assert (await shelf.trees.get(tree.artifact_id, SYSTEM)).owner == SYSTEM.name


async def test_many_at_once_become_one(shelf: Shelf, tmp_path: Path) -> None:
    folder = lay(tmp_path / "src", {f"d{n}/f": bytes([n]) * 100 for n in range(40)})
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(shelf.register, folder)
    [name] = await shelf.trees.known()
    assert len(await shelf.trees.files(await shelf.trees.get(name, SYSTEM))) == 40
    await shelf.trees.remove(name, SYSTEM)
    assert shelf.contents() == 0
