"""What it costs to get a large repository into a guest and back, against git over SSH.

The guest is the real agent as a process of this host, so that no hypervisor is in the figures; what
a hypervisor adds is told apart. SSH is a real client and a real server on one host, joined by a
pipe. Each round does both sides, one after the other, with the work tree written out at the end.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from bench.figures import Side, compare, cpu_of, median_ms, tell
from git_repos import ENV, Repo, mirrored, raw
from guests import on_socketpair
from machines import built_image, qemu_rig, removed_in_the_end
from microvm_orchestrator.git import bundle, history, incoming
from microvm_orchestrator.git.mirror import Mirror
from microvm_orchestrator.git.names import Oid
from microvm_orchestrator.images.squashfs import write_squashfs
from microvm_orchestrator.lifecycle import guest
from microvm_orchestrator.machine.base import Disk
from microvm_orchestrator.machine.shell import Command, Shell
from microvm_orchestrator.starting import HISTORY_SERIAL
from sshd import SSHD, login_name, set_up_sshd

MIB = 1 << 20
FILES = 100
COMMITS = 20
REF = "refs/heads/base"
PIECE = 1 << 18
LAY_OUT = """\
set -eu
rm -rf "$1"
git init -q "$1"
cd "$1"
if [ -n "$4" ]; then
    echo "$4" >.git/objects/info/alternates
    git update-ref refs/microvm/history "$5"
fi
if [ -s "$2" ]; then git fetch -q "$2" refs/heads/base; fi
git reset -q --hard "$3"
"""
TAKE_UP = 'cd "$1" && git bundle create -q "$2" HEAD && git rev-parse HEAD'


def make_repo(path: Path, size: int) -> Repo:
    """Make a history of that size: each commit writes every file anew, as nothing compresses."""
    repo = Repo.make(path, bare=True)
    grow(repo, size // COMMITS, COMMITS, seed=1)
    return repo


def grow(repo: Repo, size: int, commits: int, seed: int) -> Oid:
    chance = random.Random(seed)
    with_parent = bool(repo.refs())
    parts: list[bytes] = []
    for number in range(commits):
        head = ["commit refs/heads/main", f"committer Ada <a@example.org> {seed}{number:05} +0000"]
        head += ["data 4", "more", *(["from refs/heads/main^0"] if with_parent else [])]
        parts.append("\n".join([*head, ""]).encode())
        with_parent = False
        for file in range(FILES):
            content = chance.randbytes(size // FILES)
            parts.append(f"M 100644 inline d{file % 10}/f{file}\ndata {len(content)}\n".encode())
            parts += [content, b"\n"]
    raw(repo.path, "fast-import", "--quiet", stdin=b"".join(parts))
    return repo.oid("main")


@dataclass(frozen=True, slots=True)
class Stage:
    """A user's repository, its mirror, and two ways to a copy."""

    folder: Path
    repo: Repo
    mirror: Mirror
    shell: Shell
    agent: int
    env: dict[str, str]

    @property
    def copy(self) -> Path:
        return self.folder / "guest"

    @property
    def clone(self) -> Path:
        return self.folder / "clone"

    def cpu_s(self) -> float:
        return cpu_of(self.agent)

    async def git(self, at: Path, *words: str | Path) -> None:
        await anyio.to_thread.run_sync(lambda: raw(at, *words, env=self.env))

    def url(self, path: Path) -> str:
        return f"ssh://{login_name()}@loopback{path}"

    async def cloned(self) -> None:
        await anyio.to_thread.run_sync(lambda: shutil.rmtree(self.clone, ignore_errors=True))
        await self.git(self.folder, "clone", "--quiet", self.url(self.repo.path), self.clone)

    async def fetched(self) -> None:
        await self.git(self.clone, "fetch", "--quiet", "origin")
        await self.git(self.clone, "reset", "--quiet", "--hard", "origin/main")

    async def sent(self, have: Oid | None = None, objects: Path | None = None) -> None:
        """Do as `lifecycle/source.py` does."""
        want, file = self.repo.oid("main"), self.folder / "outgoing"
        file.unlink(missing_ok=True)
        there = str(self.folder / "in")
        known = [] if have is None else [have]
        written = await bundle.write(self.mirror, file, want=want, ref=REF, have=known)
        if written.commits:
            await put(self.shell, file, there)
        else:
            await self.shell.put(there, b"")
        words = [str(self.copy), there, want, str(objects or ""), have or ""]
        await run(self.shell, LAY_OUT, *words)

    async def came_back(self) -> None:
        there, file = str(self.folder / "out"), self.folder / "incoming"
        tip = await run(self.shell, TAKE_UP, str(self.copy), there)
        coming, out = self.shell.get(there, max_size=1 << 30), await anyio.open_file(file, "wb")
        async with coming as content, out:
            async for piece in content:
                await out.write(piece)
        # A mirror that has nothing yet, so that all of it is new.
        path = self.folder / "taking.git"
        await anyio.to_thread.run_sync(lambda: shutil.rmtree(path, ignore_errors=True))
        taking = Mirror(path)
        await taking.make(await self.mirror.object_format())
        taken = await incoming.take(taking, file, ref="refs/tasks/t1", base=None)
        assert taken.tip == tip

    async def fetched_back(self) -> None:
        path = self.folder / "taken"
        await anyio.to_thread.run_sync(lambda: shutil.rmtree(path, ignore_errors=True))
        into = Repo.make(path, bare=True)
        await self.git(into.path, "fetch", "--quiet", self.url(self.copy), "HEAD:refs/heads/got")


async def pieces(path: Path) -> AsyncGenerator[bytes]:
    async with await anyio.open_file(path, "rb") as file:
        while piece := await file.read(PIECE):
            yield piece


async def put(shell: Shell, file: Path, there: str) -> None:
    size = (await anyio.Path(file).stat()).st_size
    await shell.put(there, pieces(file), size=size)


async def run(shell: Shell, script: str, *words: str) -> str:
    done = await shell.exec(Command(["/bin/sh", "-c", script, "sh", *words], env=ENV))
    assert done.exit.code == 0, done.stderr
    return done.stdout.decode().strip()


@asynccontextmanager
async def staged(folder: Path, size: int) -> AsyncGenerator[Stage]:
    server = set_up_sshd(folder / "sshd", env=f"PATH={ENV['PATH']} GIT_CONFIG_NOSYSTEM=1")
    options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
    words = ["ssh", "-F", "none", "-i", str(server.folder / "keys" / "client")]
    words += [word for option in options for word in ("-o", option)]
    words += ["-o", f"'ProxyCommand={SSHD} -i -e -f {server.folder / 'config'}'"]
    env = {**ENV, "GIT_SSH_COMMAND": " ".join(words)}
    repo = make_repo(folder / "repo.git", size)
    mirror = await mirrored(folder / "mirror.git", repo)
    async with on_socketpair() as (shell, agent):
        yield Stage(folder, repo, mirror, shell, agent.pid, env)


async def write_disk(mirror: Mirror, commit: Oid, folder: Path) -> Path:
    """Make a disk as `lifecycle/cache.py` does; the objects stay beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    pack = folder / "objects" / "pack"
    pack.mkdir(parents=True)
    files = await history.export(mirror, commit, pack)
    (folder / "commit").write_text(f"{commit}\n")
    disk = folder / "disk"
    packs = {f"objects/pack/{file.name}": file for file in files}

    def write() -> None:
        with disk.open("xb") as out:
            write_squashfs(out, {"commit": folder / "commit", **packs})

    await anyio.to_thread.run_sync(write)
    return disk


async def timed_ms(work: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    await work()
    return median_ms([time.perf_counter() - started])


async def test_a_large_repository_to_a_guest_and_back_against_git_over_ssh(
    tmp_path: Path, *, whole: bool
) -> None:
    size, rounds = (200 * MIB, 3) if whole else (2 * MIB, 1)
    name = f"{size // MIB} MiB"
    async with staged(tmp_path, size) as stage:
        cloned = Side(stage.cloned, lambda: 0.0)
        sent = Side(stage.sent, stage.cpu_s)
        await compare(f"{name} to a guest, whole", sent, cloned, rounds, against="git clone")
        tip, place = stage.repo.oid("main"), tmp_path / "history"
        objects = place / "objects"

        async def first() -> None:
            await write_disk(stage.mirror, tip, place)
            await stage.sent(tip, objects)

        await compare(
            f"{name} to a guest, its disk made first",
            Side(first, stage.cpu_s),
            cloned,
            rounds,
            against="git clone",
        )
        with_disk = Side(lambda: stage.sent(tip, objects), stage.cpu_s)
        await compare(
            "  a second run, with the disk",
            with_disk,
            Side(first, stage.cpu_s),
            rounds,
            against="the first",
        )
        back = Side(stage.came_back, stage.cpu_s)
        fetched = Side(stage.fetched_back, lambda: 0.0)
        await compare(f"{name} from a guest", back, fetched, rounds, against="git fetch")

        async def grown(act: Callable[[], Awaitable[None]], seed: int) -> float:
            # From the same commit each time: the disk lacks no more than a clone does.
            stage.repo.git("update-ref", "refs/heads/main", tip)
            grow(stage.repo, size // COMMITS, 1, seed)
            await stage.mirror.refresh(stage.repo.path)
            return await timed_ms(act)

        ours = [
            await grown(lambda: stage.sent(tip, objects), seed) for seed in range(2, 2 + rounds)
        ]
        await stage.cloned()
        theirs = [await grown(stage.fetched, seed) for seed in range(20, 20 + rounds)]
        tell(
            f"{size // COMMITS // MIB} MiB more, with the disk",
            f"p50 {sorted(ours)[rounds // 2]:.0f} ms",
            floor=f"p50 {sorted(theirs)[rounds // 2]:.0f} ms, git fetch",
            ratio=f"{sorted(ours)[rounds // 2] / sorted(theirs)[rounds // 2]:.2f}",
        )


async def test_a_large_history_in_a_real_guest_whole_and_as_a_disk(
    tmp_path: Path, *, whole: bool
) -> None:
    """Why large repositories have disks: the whole of one has to be indexed in the guest."""
    size = 200 * MIB if whole else 2 * MIB
    repo = make_repo(tmp_path / "repo.git", size)
    mirror = await mirrored(tmp_path / "mirror.git", repo)
    tip = repo.oid("main")
    file = tmp_path / "outgoing"
    await bundle.write(mirror, file, want=tip, ref=REF, have=())
    started = time.perf_counter()
    disk = Disk(HISTORY_SERIAL, await write_disk(mirror, tip, tmp_path / "history"))
    tell("making the disk", f"{time.perf_counter() - started:.2f} s")
    rig = qemu_rig(tmp_path / "s", await built_image())
    sent = guest.Tree(tip, file, REF, "task", "sha1")
    read = guest.Tree(tip, None, REF, "task", "sha1", with_history=True)
    took: dict[str, float] = {}
    async with rig.open() as qemu, removed_in_the_end(qemu):
        for name, disks, tree in (("whole", (), sent), ("disk", (disk,), read)):
            started = time.perf_counter()
            machine = await qemu.start(rig.spec(disks=disks, memory_mib=1024))
            booted_s = time.perf_counter() - started
            await guest.begin(machine.shell)
            if tree.bundle is not None:
                moved_ms = await timed_ms(partial(put, machine.shell, tree.bundle, "/tmp/moved"))
                await run(machine.shell, 'rm "$1"', "/tmp/moved")
                tell("  of which to move the bundle", f"{moved_ms / 1000:.2f} s")
            started = time.perf_counter()
            await guest.begin_tree(machine.shell, tree)
            took[name] = time.perf_counter() - started
            memory = (await machine.usage()).peak_mib
            head = await run(machine.shell, 'git -C "$1" rev-parse HEAD', guest.REPO)
            assert head == tip
            tell(
                f"{size // MIB} MiB in a real guest, {name}",
                f"{took[name]:.2f} s",
                floor=f"boot {booted_s:.2f} s, memory {memory or 0:.0f} MiB",
            )
            await qemu.remove(machine.machine_id)
    tell("  the disk against the whole", f"ratio {took['disk'] / took['whole']:.3f}")
