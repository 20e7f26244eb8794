"""Files that runs leave behind and those of registered trees, kept by what they hold, on this disk.

    artifacts/sha256/<digits>              each content once
    artifacts/incoming/                    what is being written; a daemon that starts empties it
    runs/<run_id>/kept/<digits>            another name of the same file, for each run that has it
    artifacts/trees/<tree>/kept/<digits>   and for each tree

A content stays as long as somebody has it. The file system counts its names, so the count is right
whenever a daemon is killed: a content with no second name is removed by the next one. A file comes
into being under a name of no meaning, is forced to the disk and then gets its own. What a run's
folder holds besides, such as its output, goes with it. Above are the lifecycle and the service;
below, files.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Collection, Generator, Iterable
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import anyio
import anyio.to_thread

from microvm_orchestrator import errors, log
from microvm_orchestrator.model.artifact import DIGEST, PREFIX

_log = log.get(__name__)

_KEPT = "kept"
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.[0-9]+")
# A tree that is being taken in is called so until its own name is known.
_NEW = "new-"
_TREE = re.compile(rf"(?:{PREFIX}[0-9a-f]{{64}}|{_NEW}[0-9a-f]{{32}})")
# Far fewer names than any file system allows a file; then a content gets a second copy.
_NAMES_MOST = 30_000
# What is handed to a worker thread at once, and read.
_PIECE = 1 << 18
# Files of a tree that one visit to a worker thread takes in.
_FILES = 32


@dataclass(frozen=True, slots=True)
class Quotas:
    """How much may be kept, in bytes."""

    # Of one file, of one run or tree, and of all together.
    file: int
    run: int
    total: int


class _Incoming:
    """A file that is being written; its methods block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._fd = -1
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        if self._fd < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self.path, flags, 0o600)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self._digest.update(data)
        self.size += len(data)

    def finish(self) -> str:
        """Force it to the disk and give the digits of its digest."""
        os.fsync(self._fd)
        return self._digest.hexdigest()

    def end(self) -> None:
        """Leave nothing of it under this name."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.path.unlink(missing_ok=True)


class Artifacts:
    """What the runs of one host have left behind."""

    def __init__(self, folder: Path, runs: Path, quotas: Quotas) -> None:
        """`runs` holds a folder for each run, on the same file system as `folder`."""
        self._contents = folder / "sha256"
        self._incoming = folder / "incoming"
        self._trees = folder / "trees"
        self._runs = runs
        self.quotas = quotas
        # Of all contents together, and of what is being written.
        self._total = 0
        self._announced = 0
        # Names are given and taken by one at a time.
        self._lock = anyio.Lock()

    async def reconcile(self, known: Collection[str]) -> None:
        """Put away what a killed daemon left, and folders of runs and trees that nobody knows.

        To be called once, before anything else.
        """
        await anyio.to_thread.run_sync(self._reconcile, known)

    @property
    def total(self) -> int:
        """How many bytes are kept."""
        return self._total

    async def add(
        self, run_id: str, size: int, pieces: AsyncIterable[bytes], *, bounded: bool = True
    ) -> str:
        """Keep a content of a known size for a run, and give its digest; twice is as once.

        One that is not `bounded` is a run's own, and small: it is kept whatever else there is.

        Raises: TooLarge when a quota is passed, before a piece is asked for; ProtocolBroken when
            it is not of its size; Unavailable when the disk does not take it.
        """
        kept = self._kept(run_id)
        with _explained(), self._announcing(size):
            if bounded:
                await self._admit(kept, size)
            incoming = _Incoming(self._incoming / uuid4().hex)
            try:
                await _receive(incoming, size, pieces)
                digits = await anyio.to_thread.run_sync(incoming.finish)
                async with self._lock:
                    await anyio.to_thread.run_sync(self._settle, incoming, kept, digits)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(incoming.end)
        return PREFIX + digits

    async def add_bytes(self, run_id: str, data: bytes, *, bounded: bool = True) -> str:
        """Raises: as `add`."""
        async with aclosing(_pieces_of(data)) as pieces:
            return await self.add(run_id, len(data), pieces, bounded=bounded)

    async def add_file(self, run_id: str, path: Path, *, bounded: bool = True) -> tuple[int, str]:
        """Keep what a file of ours holds; give its size and digest. Raises: as `add`."""
        with _explained():
            size = (await anyio.Path(path).stat()).st_size
            async with aclosing(_read(path)) as pieces:
                return size, await self.add(run_id, size, pieces, bounded=bounded)

    @asynccontextmanager
    async def new_tree(self) -> AsyncGenerator[str]:
        """Give a holder for the files of a tree; what it has then goes, unless it got a name."""
        holder = _NEW + uuid4().hex
        try:
            yield holder
        finally:
            with anyio.CancelScope(shield=True):
                await self.forget(holder)

    async def add_files(
        self, holder: str, files: Iterable[Callable[[], int]]
    ) -> list[tuple[int, str]]:
        """Keep what these open, as it is read; the size and digest of each.

        Raises: TooLarge when a quota is passed; OSError of a file that cannot be read.
        """
        kept, told = self._kept(holder), list[tuple[int, str]]()
        used, rest = 0, list(files)
        while rest:
            some, rest = rest[:_FILES], rest[_FILES:]
            taken: list[_Incoming] = []
            announced = 0
            try:
                with _explained():
                    for each in some:
                        most = min(self.quotas.file, self.quotas.run - used)
                        most = min(most, self.quotas.total - self._total - self._announced)
                        incoming = _Incoming(self._incoming / uuid4().hex)
                        taken.append(incoming)
                        await anyio.to_thread.run_sync(_take_in, incoming, each, most)
                        used += incoming.size
                        self._announced += incoming.size
                        announced += incoming.size
                    async with self._lock:
                        told += await anyio.to_thread.run_sync(self._settle_all, taken, kept)
            finally:
                self._announced -= announced
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(_end_all, taken)
        return told

    async def name_tree(self, holder: str, name: str) -> None:
        """Give what a new tree has to the tree of this name; one that is there is the same."""
        source, target = self._kept(holder).parent, self._kept(name).parent
        with _explained():
            async with self._lock:
                await anyio.to_thread.run_sync(_rename, source, target)

    async def link_to(self, holder: str, digest: str, path: Path) -> None:
        """Give what somebody has another name, to be read and to be removed, or a copy of it."""
        source = self._path(holder, digest)
        with _explained():
            await anyio.to_thread.run_sync(_link_or_copy, source, path)

    async def heads(self, holder: str, digests: list[str], most: int) -> list[bytes]:
        """Read how each of these begins. Raises: NotFound, Unavailable."""
        paths = [self._path(holder, digest) for digest in digests]

        def read() -> list[bytes]:
            found: list[bytes] = []
            for path in paths:
                with path.open("rb") as file:
                    found.append(file.read(most))
            return found

        with _explained():
            return await anyio.to_thread.run_sync(read)

    async def read(self, run_id: str, digest: str, offset: int, most: int) -> bytes:
        """Read a part of what a run has. Raises: NotFound, Unavailable."""
        path = self._path(run_id, digest)

        def read() -> bytes:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(most)

        with _explained():
            return await anyio.to_thread.run_sync(read)

    @asynccontextmanager
    async def open(
        self, run_id: str, digest: str
    ) -> AsyncGenerator[tuple[int, AsyncGenerator[bytes]]]:
        """Give the size of what a run has, and its pieces. Raises: NotFound, Unavailable."""
        path = self._path(run_id, digest)
        with _explained():
            size = (await anyio.Path(path).stat()).st_size
        async with aclosing(_read(path)) as pieces:
            yield size, pieces

    async def holders(self, digest: str) -> list[str]:
        """Name the runs that have a content. Raises: NotFound for what is no digest."""
        digits = _digits(digest)

        def look() -> list[str]:
            with suppress(FileNotFoundError), os.scandir(self._runs) as found:
                names = [each.name for each in found]
                return sorted(
                    name for name in names if (self._runs / name / _KEPT / digits).is_file()
                )
            return []

        return await anyio.to_thread.run_sync(look)

    async def inherit(self, run_id: str, other: str, files: Collection[str]) -> None:
        """Give a run what another one has kept, and these files of its folder; twice is as once.

        Nobody may write into the files any more. Raises: Unavailable.
        """
        source, kept = self._kept(other).parent, self._kept(run_id)
        with _explained():
            async with self._lock:
                await anyio.to_thread.run_sync(_link_all, source, kept.parent, files)

    async def forget(self, run_id: str) -> None:
        """Let go of all that this host keeps of a run: its folder, and what only it has.

        The run must be over. Twice is as once, and one that was cut off can be called again.

        Raises: Unavailable.
        """
        kept = self._kept(run_id)
        with _explained():
            async with self._lock:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(self._forget, kept)

    def _kept(self, holder: str) -> Path:
        if _TREE.fullmatch(holder):
            return self._trees / holder.removeprefix(PREFIX) / _KEPT
        if not _RUN_ID.fullmatch(holder):
            raise errors.NotFound(f"there is no run {holder[:100]!r}")
        return self._runs / holder / _KEPT

    def _path(self, run_id: str, digest: str) -> Path:
        return self._kept(run_id) / _digits(digest)

    @contextmanager
    def _announcing(self, size: int) -> Generator[None]:
        """Count what is on its way, so that those beside it do not take its room."""
        self._announced += size
        try:
            yield
        finally:
            self._announced -= size

    async def _admit(self, kept: Path, size: int) -> None:
        quotas = self.quotas
        if size > quotas.file:
            raise errors.TooLarge(f"it has {size} bytes, and one file may have {quotas.file}")
        used = await anyio.to_thread.run_sync(_sum, kept)
        if used + size > quotas.run:
            raise errors.TooLarge(
                f"it has {size} bytes, and of the {quotas.run} of a run {used} are taken"
            )
        if self._total + self._announced > quotas.total:
            raise errors.TooLarge(
                f"it has {size} bytes, and of the {quotas.total} of all runs {self._total} are "
                "taken",
                hint="task_delete forgets what tasks have left behind",
            )

    # Not for the event loop.

    def _settle(self, incoming: _Incoming, kept: Path, digits: str) -> None:
        try:
            self._place(incoming, kept, digits)
            _force(self._contents)
            _force(kept)
        except OSError:
            self._drop(digits)
            raise

    def _settle_all(self, taken: list[_Incoming], kept: Path) -> list[tuple[int, str]]:
        told = [(incoming.size, incoming.finish()) for incoming in taken]
        for incoming, (_, digits) in zip(taken, told, strict=True):
            self._place(incoming, kept, digits)
        _force(self._contents)
        _force(kept)
        return [(size, PREFIX + digits) for size, digits in told]

    def _place(self, incoming: _Incoming, kept: Path, digits: str) -> None:
        content = self._contents / digits
        with suppress(FileNotFoundError):
            there = content.stat()
            if there.st_size != incoming.size or there.st_nlink >= _NAMES_MOST:
                content.unlink()  # those who have it keep it
        try:
            os.link(incoming.path, content)
            self._total += incoming.size
        except FileExistsError:
            pass
        incoming.end()
        kept.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.link(content, kept / digits)

    def _forget(self, kept: Path) -> None:
        found = [path.name for path in kept.iterdir()] if kept.is_dir() else []
        with suppress(FileNotFoundError):
            shutil.rmtree(kept.parent)
        for digits in found:
            self._drop(digits)

    def _drop(self, digits: str) -> None:
        """Remove a content that nobody has any more."""
        content = self._contents / digits
        with suppress(FileNotFoundError):
            found = content.stat()
            if found.st_nlink == 1:
                content.unlink()
                self._total -= found.st_size

    def _reconcile(self, known: Collection[str]) -> None:
        for folder in (self._contents, self._incoming, self._trees, self._runs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self._incoming.iterdir():
            path.unlink()
        for folder in self._runs.iterdir():
            if _RUN_ID.fullmatch(folder.name) and folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)  # what resists is tried again next time
        for folder in self._trees.iterdir():
            if PREFIX + folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)
        self._total = 0
        dropped = 0
        with os.scandir(self._contents) as contents:
            for each in contents:
                found = each.stat(follow_symlinks=False)
                if found.st_nlink == 1:
                    (self._contents / each.name).unlink()
                    dropped += 1
                else:
                    self._total += found.st_size
        if dropped:
            _log.info("artifacts_put_away", count=dropped)


async def _receive(incoming: _Incoming, size: int, pieces: AsyncIterable[bytes]) -> None:
    waiting = bytearray()
    came = 0
    async for piece in pieces:
        came += len(piece)
        if came > size:
            break
        waiting += piece
        if len(waiting) >= _PIECE:
            await anyio.to_thread.run_sync(incoming.write, bytes(waiting))
            waiting.clear()
    if came != size:
        raise errors.ProtocolBroken(f"a file is not of the {size} bytes that were announced")
    await anyio.to_thread.run_sync(incoming.write, bytes(waiting))


def _take_in(incoming: _Incoming, open_it: Callable[[], int], most: int) -> None:
    """Raises: TooLarge; InvalidInput when the file cannot be read."""
    try:
        fd = open_it()
    except OSError as error:
        raise errors.InvalidInput(f"{error.filename}: {error.strerror}") from error
    try:
        size = os.fstat(fd).st_size
        while True:
            if max(size, incoming.size) > most:
                raise errors.TooLarge(
                    f"a file has {max(size, incoming.size)} bytes, and there is room for "
                    f"{max(0, most)} more",
                    hint="the settings artifacts.max_file_mib, max_run_mib and max_total_mib",
                )
            piece = os.read(fd, _PIECE)
            incoming.write(piece)
            if not piece:
                return
    finally:
        os.close(fd)


def _end_all(taken: list[_Incoming]) -> None:
    for incoming in taken:
        incoming.end()


def _rename(source: Path, target: Path) -> None:
    source.mkdir(parents=True, exist_ok=True)  # an empty tree has nothing yet
    if not target.exists():
        source.rename(target)
        _force(target.parent)


def _link_or_copy(source: Path, path: Path) -> None:
    try:
        os.link(source, path)
    except OSError as error:
        if error.errno not in {errno.EMLINK, errno.EXDEV}:
            raise
        shutil.copyfile(source, path)


async def _pieces_of(data: bytes) -> AsyncGenerator[bytes]:
    yield data


async def _read(path: Path) -> AsyncGenerator[bytes]:
    async with await anyio.open_file(path, "rb") as file:
        while piece := await file.read(_PIECE):
            yield piece


def _link_all(source: Path, folder: Path, files: Collection[str]) -> None:
    """Give files of a folder another name in a second one."""
    (folder / _KEPT).mkdir(parents=True, exist_ok=True)
    for path in [*(source / _KEPT).glob("*"), *(source / name for name in files)]:
        with suppress(FileExistsError, FileNotFoundError):
            os.link(path, folder / path.relative_to(source))
    _force(folder / _KEPT)
    _force(folder)


def _sum(folder: Path) -> int:
    with suppress(FileNotFoundError), os.scandir(folder) as found:
        return sum(each.stat(follow_symlinks=False).st_size for each in found)
    return 0


def _force(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _digits(digest: str) -> str:
    if not DIGEST.fullmatch(digest):
        raise errors.NotFound(f"{digest[:100]!r} is no digest", hint="it begins with sha256:")
    return digest.removeprefix(PREFIX)


@contextmanager
def _explained() -> Generator[None]:
    """Say in our words what this host's disk refused."""
    try:
        yield
    except FileNotFoundError as error:
        raise errors.NotFound("the run does not have that content, or no longer") from error
    except OSError as error:
        raise errors.Unavailable(f"artifacts cannot be kept or read: {error.strerror}") from error
