"""Sample repositories made by real git, and packs and bundles that git itself would not make."""

from __future__ import annotations

import hashlib
import os
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from microvm_orchestrator.git.mirror import Mirror
from microvm_orchestrator.git.names import ObjectFormat, Oid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ENV = {
    "PATH": os.environ.get("PATH", os.defpath),
    "HOME": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_AUTHOR_DATE": "2024-05-06T07:08:09Z",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "GIT_COMMITTER_DATE": "2024-05-06T07:08:09Z",
    "LC_ALL": "C",
    # Who runs the tests owns some of what they look at and not the rest.
    "GIT_CONFIG_COUNT": "2",
    "GIT_CONFIG_KEY_0": "protocol.file.allow",
    "GIT_CONFIG_VALUE_0": "always",
    "GIT_CONFIG_KEY_1": "gc.auto",
    "GIT_CONFIG_VALUE_1": "0",
}


def raw(at: Path, *words: str | Path, stdin: bytes = b"", env: Mapping[str, str] = ENV) -> bytes:
    """Run git as a user would, and give what it prints."""
    done = subprocess.run(
        ["git", *words], cwd=at, input=stdin, env=dict(env), check=False, capture_output=True
    )
    assert done.returncode == 0, (words, done.stderr.decode(errors="replace"))
    return done.stdout


@dataclass(frozen=True, slots=True)
class Repo:
    """A repository and its work tree."""

    path: Path

    @classmethod
    def make(cls, path: Path, *, object_format: str = "sha1", bare: bool = False) -> Repo:
        path.mkdir(parents=True)
        words = ["init", "--quiet", "--initial-branch=main", f"--object-format={object_format}"]
        raw(path, *words, *(["--bare"] if bare else []), ".")
        return cls(path)

    def git(self, *words: str | Path, stdin: bytes = b"") -> str:
        return raw(self.path, *words, stdin=stdin).decode().strip()

    def write(self, files: Mapping[str, str | bytes]) -> None:
        for name, content in files.items():
            file = self.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.encode() if isinstance(content, str) else content)

    def commit(self, files: Mapping[str, str | bytes], message: str = "change") -> Oid:
        self.write(files)
        self.git("add", "--all", "--force")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.oid()

    def oid(self, name: str = "HEAD") -> Oid:
        return Oid(self.git("rev-parse", "--verify", name))

    def objects(self) -> int:
        """Count every object that is there, reachable or not."""
        words = ["cat-file", "--batch-all-objects", "--unordered", "--batch-check=%(objectname)"]
        return len(self.git(*words).splitlines())

    def refs(self) -> dict[str, str]:
        said = self.git("for-each-ref", "--format=%(refname) %(objectname)")
        return dict(line.split() for line in said.splitlines())

    def bundle(self, to: Path, *words: str) -> Path:
        self.git("bundle", "create", "--quiet", to, *words)
        return to


def sample(path: Path, *, object_format: str = "sha1") -> Repo:
    """Make a repository with two commits, a second branch and a tag."""
    repo = Repo.make(path, object_format=object_format)
    repo.commit({"README": "one\n", "src/a.c": "int a;\n"}, "first")
    repo.git("tag", "--annotate", "v1", "--message", "the first")
    repo.git("branch", "other")
    repo.commit({"README": "two\n"}, "second")
    return repo


def long_history(path: Path, commits: int) -> Repo:
    """Make a history of that many commits, each of which changes one file of a hundred."""
    repo = Repo.make(path, bare=True)
    extend(repo, 0, commits)
    return repo


def extend(repo: Repo, start: int, commits: int) -> None:
    """Add commits to the main branch of a long history."""
    lines: list[str] = []
    for number in range(start, start + commits):
        text = f"line {number}\n" * 3
        lines += [
            "commit refs/heads/main",
            f"committer Ada <ada@example.org> {1_700_000_000 + number} +0000",
            f"data {len(message := f'commit {number}')}",
            message,
            *(["from refs/heads/main^0"] if number == start and start else []),
            f"M 100644 inline folder{number % 10}/file{number % 100}",
            f"data {len(text)}",
            text,
        ]
    raw(repo.path, "fast-import", "--quiet", stdin="\n".join([*lines, ""]).encode())


async def mirrored(path: Path, repo: Repo) -> Mirror:
    """Make our mirror of a repository, as it is now."""
    mirror = Mirror(path)
    await mirror.make(ObjectFormat(repo.git("rev-parse", "--show-object-format")))
    await mirror.refresh(repo.path)
    return mirror


def clone_of_bundle(path: Path, bundle: Path, *, object_format: str = "sha1") -> Repo:
    """Make what a guest makes of the bundle it was sent."""
    repo = Repo.make(path, object_format=object_format)
    fetch_bundle(repo, bundle)
    repo.git("checkout", "--quiet", "-B", "task", "FETCH_HEAD")
    return repo


def fetch_bundle(repo: Repo, bundle: Path) -> None:
    repo.git("fetch", "--quiet", bundle, "refs/heads/task")


def look_of(top: Path) -> dict[str, tuple[object, ...]]:
    """Describe everything below a folder so that no change to it goes unseen."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(top):
        for name in [*folders, *files, ""]:
            path = Path(folder, name)
            about = path.lstat()
            if path.is_symlink():
                content = os.readlink(path)  # noqa: PTH115 - the text, as it is
            elif path.is_file():
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                content = ""
            found[str(path)] = (about.st_mode, about.st_mtime_ns, about.st_ino, content)
    return found


_KINDS = {"commit": 1, "tree": 2, "blob": 3, "tag": 4}
_BY_NAME = 7


@dataclass(frozen=True, slots=True)
class Made:
    """An object as bytes, whether or not git would make it."""

    kind: str
    content: bytes

    @property
    def oid(self) -> Oid:
        head = f"{self.kind} {len(self.content)}\0".encode()
        return Oid(hashlib.sha1(head + self.content).hexdigest())  # noqa: S324 - git's own


def blob(content: bytes) -> Made:
    return Made("blob", content)


def tree(*entries: tuple[str, bytes, str]) -> Made:
    """Make a tree of entries as they are given: mode, name and object."""
    return Made(
        "tree",
        b"".join(
            mode.encode() + b" " + name + b"\0" + bytes.fromhex(oid) for mode, name, oid in entries
        ),
    )


def commit(tree_oid: str, *parents: str, message: str = "made\n") -> Made:
    who = "Eve <eve@example.org> 1700000000 +0000"
    lines = [f"tree {tree_oid}", *(f"parent {oid}" for oid in parents)]
    lines += [f"author {who}", f"committer {who}", "", message]
    return Made("commit", "\n".join(lines).encode())


def entry(made: Made) -> bytes:
    """Write an object as a pack has it."""
    return _size(_KINDS[made.kind], len(made.content)) + zlib.compress(made.content)


def difference(base: str, content: bytes) -> bytes:
    """Write a delta to an object that is named and need not be in the pack."""
    return _size(_BY_NAME, len(content)) + bytes.fromhex(base) + zlib.compress(content)


def _size(kind: int, size: int) -> bytes:
    first, size = kind << 4 | size & 15, size >> 4
    out = bytearray()
    while size:
        out.append(first | 0x80)
        first, size = size & 0x7F, size >> 7
    return bytes([*out, first])


def number(value: int) -> bytes:
    """Write a size as a delta has it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def copy(offset: int, size: int) -> bytes:
    """Write the instruction of a delta that copies from its base, up to 16 MiB less one."""
    return bytes([0xFF, *offset.to_bytes(4, "little"), *size.to_bytes(3, "little")])


def pack(entries: Sequence[bytes], *, count: int | None = None) -> bytes:
    head = b"PACK" + (2).to_bytes(4) + (len(entries) if count is None else count).to_bytes(4)
    whole = head + b"".join(entries)
    return whole + hashlib.sha1(whole).digest()  # noqa: S324 - git's own


def bundle(
    to: Path,
    objects: Iterable[Made | bytes],
    tip: str,
    *,
    needs: Sequence[str] = (),
    ref: str = "refs/heads/task",
) -> Path:
    """Write a bundle of these objects, whatever they are."""
    lines = ["# v2 git bundle", *(f"-{oid} " for oid in needs), f"{tip} {ref}", "", ""]
    entries = [entry(made) if isinstance(made, Made) else made for made in objects]
    to.write_bytes("\n".join(lines).encode() + pack(entries))
    return to
