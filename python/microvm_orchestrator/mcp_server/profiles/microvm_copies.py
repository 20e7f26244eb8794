"""Copies of what is known of a task, as files below `.microvm/tasks/<id>/`, for people and tools.

That program kept its state there, in a folder its guests could write; here the files are written by
the host, from the store, and never read. They lie in the registered repository only where git is
told to ignore them, since nothing else of ours is put into a user's work tree unasked; otherwise in
the state directory. Links on the way are not followed: commits of a guest may have put them there.
Above are the tools of the profile; below, the service and the git room.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from microvm_orchestrator import errors, log
from microvm_orchestrator.git.place import open_place
from microvm_orchestrator.lifecycle import output
from microvm_orchestrator.mcp_server.profiles import microvm_words as words
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.model.run import RunRecord
from microvm_orchestrator.model.task import FINISHED, Task, TaskState
from microvm_orchestrator.store.base import Match
from microvm_orchestrator.store.questions import FullTaskList, OneTask, TaskList
from microvm_orchestrator.store.runs import last_run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from microvm_orchestrator.model.repo import Repo
    from microvm_orchestrator.service.service import Service

_UNFINISHED = tuple(state for state in TaskState if state not in FINISHED)
IN_REPO = (".microvm", "tasks")
# In the state directory.
IN_STATE = "tasks"
LOG = "serial.log"
_PAGE = 200
# How often a log grows while its task runs.
_LOOK_S = 1.0
# A store that does not answer now is asked again.
_AGAIN_S = 5.0
# Of a log, in one step.
_PIECE = 4 << 20
_IGNORED, _NOT_IGNORED = 0, 1
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class _Folder:
    """Where the copies of a task lie: below a folder that is trusted, by names that are not."""

    root: Path
    names: tuple[str, ...]
    # Acts as whoever the files shall belong to.
    act: Callable[[Callable[[], None]], Awaitable[None]]

    @property
    def path(self) -> Path:
        return self.root.joinpath(*self.names)


class Copies:
    """The copies of one group of tasks; they follow the tasks as long as `keep` runs."""

    def __init__(self, service: Service, group: str) -> None:
        self._service = service
        self._group = group
        # One writer at a time, so that what was taken away stays away.
        self._writing = anyio.Lock()
        # Of a log, how far it is copied; and what the other files say.
        self._copied: dict[str, int] = {}
        self._written: dict[str, dict[str, bytes]] = {}
        # Where those lie that are looked after: it is decided once.
        self._folders: dict[str, _Folder] = {}
        # Those to look after, and those that are done with.
        self._open: set[str] = set()
        self._settled: set[str] = set()

    async def keep(self) -> None:
        """Write what is new as it comes, until cancelled."""
        match = Match(kinds=("task.*",), groups=(self._group,))
        with self._service.journal.listen(match) as bell:
            await self._take_up()
            while True:
                pause = _LOOK_S
                try:
                    if not await self._look():
                        pause = float("inf")
                except errors.OrchestratorError as error:
                    pause = _AGAIN_S
                    _log.warning("task_files_not_written", code=error.code, reason=error.message)
                except Exception as error:  # noqa: BLE001 - copies are not worth a daemon
                    pause = _AGAIN_S
                    _log.error("task_files_crashed", exc_info=error)
                with anyio.move_on_after(pause):
                    await bell.wait()

    def begin(self, task_id: str) -> None:
        """Look after a new task, however soon it ends."""
        self._open.add(task_id)

    async def log_of(self, task_id: str) -> Path:
        """Bring the log of a task up to what was said by now; there is none of one cleaned up.

        Raises: NotFound, StoreReadOnly.
        """
        async with self._writing:
            if task_id in self._open:
                await self._look_after(task_id)
            task = await self._service.store.query(OneTask(task_id), SYSTEM)
            folder = await self._folder(task, await self._repo(task))
        return folder.path / LOG

    async def remove(self, task: Task) -> None:
        """Take the copies of a task away for good. Raises: StoreReadOnly."""
        async with self._writing:
            self._settle(task.task_id)
            folder = await self._folder(task, await self._repo(task))
            await _act(folder, lambda: _remove(folder.root, folder.names))

    async def _take_up(self) -> None:
        """Look after those that ended before, if their last files are missing."""
        with suppress(errors.OrchestratorError):
            for task in await self._every():
                folder = await self._folder(task, await self._repo(task))
                path = anyio.Path(folder.path)
                if await path.is_dir() and not await (path / "result.json").exists():
                    self._open.add(task.task_id)

    async def _look(self) -> bool:
        """Look after every task that is under way; tells whether there is one."""
        cursor = None
        while True:
            question = TaskList(states=_UNFINISHED, group=self._group, limit=_PAGE, cursor=cursor)
            page = await self._service.store.query(question, SYSTEM)
            self._open |= {task.task_id for task in page.items} - self._settled
            cursor = page.cursor
            if cursor is None:
                break
        for task_id in sorted(self._open):
            async with self._writing:
                await self._look_after(task_id)
        return bool(self._open)

    async def _look_after(self, task_id: str) -> None:
        try:
            task = await self._service.store.query(OneTask(task_id), SYSTEM)
        except errors.NotFound:
            self._settle(task_id)
            return
        if task.run is None or task.run.repo is None:
            self._settle(task_id)
        elif task_id in self._open:
            repo = await self._repo(task)
            await self._write(task, await self._folder(task, repo), repo)

    def _settle(self, task_id: str) -> None:
        self._settled.add(task_id)
        self._open.discard(task_id)
        for known in (self._copied, self._written, self._folders):
            known.pop(task_id, None)

    async def _every(self) -> list[Task]:
        found: list[Task] = []
        cursor = None
        while True:
            try:
                question = FullTaskList(self._group, _PAGE, cursor)
                page = await self._service.store.query(question, SYSTEM)
            except errors.NotFound:
                return found
            found += [task for task in page.items if task.run is not None and task.run.repo]
            cursor = page.cursor
            if cursor is None:
                return found

    async def _repo(self, task: Task) -> Repo | None:
        if task.run is None or task.run.repo is None:
            return None
        with suppress(errors.NotFound):
            return await self._service.host.repos.get(task.run.repo, SYSTEM)
        return None

    # Where

    async def _folder(self, task: Task, repo: Repo | None) -> _Folder:
        """Find where the copies of a task are, or will be."""
        known = self._folders.get(task.task_id)
        if known is not None:
            return known
        found = await self._find_folder(task, repo)
        if task.task_id in self._open:
            self._folders[task.task_id] = found
        return found

    async def _find_folder(self, task: Task, repo: Repo | None) -> _Folder:
        state = self._service.settings.state_dir
        here = _Folder(state, (IN_STATE, task.task_id), _plainly)
        if repo is None or await anyio.Path(here.path).is_dir():
            return here
        with suppress(errors.OrchestratorError, OSError):
            place = await open_place(Path(repo.path))
            asked = "/".join((*IN_REPO, task.task_id, LOG))
            # 128 where a link is on the way, or there is no work tree at all.
            words_ = ("check-ignore", "--quiet", "--no-index", asked)
            done = await place.git(*words_, ok=(_IGNORED, _NOT_IGNORED, 128))
            if done.status == _IGNORED:
                return _Folder(Path(repo.path), (*IN_REPO, task.task_id), place.act)
        return here

    # What

    async def _write(self, task: Task, folder: _Folder, repo: Repo | None) -> None:
        run = await last_run(self._service.store, task, SYSTEM)
        # A run that was cancelled has something to say after its task has ended.
        under_way = self._service.host.runs.find(task.task_id) is not None
        settled = task.state in FINISHED and not under_way
        facts = words.facts_of(task, run, None if repo is None else repo.path)
        files = {
            "task.json": _json({"id": task.task_id, **facts}),
            "task.md": task.description.encode(),
        }
        if settled:
            files["result.json"] = _json(words.result_of(task, run) or _nothing(task, run))
            merged = words.merge_result_of(task, run)
            if merged is not None:
                files["merge-result.json"] = _json(merged)
        source = None if run is None else self._service.host.runs.output(run.run_id)
        while True:
            begin = self._copied.get(task.task_id)
            said, end = await anyio.to_thread.run_sync(_said, source, begin or 0)
            piece = _Log(said, fresh=begin is None)
            if not (said or piece.fresh) and files == self._written.get(task.task_id, {}):
                break
            await _act(folder, partial(_lay_out, folder.root, folder.names, files, piece))
            self._copied[task.task_id] = end
            self._written[task.task_id] = files
            if not said:
                break
        if settled:
            self._settle(task.task_id)


@dataclass(frozen=True, slots=True)
class _Log:
    """What is to be added to a log; one that is begun anew may hold what another daemon wrote."""

    said: bytes
    fresh: bool


def _nothing(task: Task, run: RunRecord | None) -> dict[str, object]:
    error = words.error_of(task, run)
    return {"success": False, "summary": "", "files_changed": [], "error": error}


def _said(path: Path | None, begin: int) -> tuple[bytes, int]:
    """Read what a run's program said from a cursor on, on both channels in their order."""
    said, end = bytearray(), begin
    for piece in output.read(path, begin, _PIECE) if path is not None else ():
        said += piece.data
        end = piece.next
    return bytes(said), end


async def _act(folder: _Folder, work: Callable[[], None]) -> None:
    """Raises: StoreReadOnly for what the file system does not let us do."""
    try:
        await folder.act(work)
    except OSError as error:
        why = f"{folder.path}: {error.strerror}"
        raise errors.StoreReadOnly(f"the files of a task cannot be written: {why}") from error


async def _plainly(work: Callable[[], None]) -> None:
    await anyio.to_thread.run_sync(work)


# On the file system, as whoever the files belong to.


@contextmanager
def _opened(root: Path, names: tuple[str, ...], *, make: bool) -> Generator[int]:
    """Open a folder below another one. Raises: OSError, also where a link is on the way."""
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in names:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=handle)
            inner = os.open(name, _FOLDER, dir_fd=handle)
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


def _lay_out(root: Path, names: tuple[str, ...], files: Mapping[str, bytes], log_: _Log) -> None:
    with _opened(root, names, make=True) as folder:
        for name, content in files.items():
            _replace(folder, name, content)
        if log_.fresh:
            _replace(folder, LOG, log_.said)
        else:
            _append(folder, LOG, log_.said)


def _replace(folder: int, name: str, content: bytes) -> None:
    fresh = f".{name}.new"
    with suppress(FileNotFoundError):
        os.unlink(fresh, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(fresh, flags, 0o644, dir_fd=folder), "wb") as file:  # noqa: PTH123 - a handle
        file.write(content)
    os.rename(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)


def _append(folder: int, name: str, content: bytes) -> None:
    if not content:
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(name, flags, 0o644, dir_fd=folder), "ab") as file:  # noqa: PTH123 - a handle
        # Another thing of that name is not ours to write to.
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.write(content)


def _remove(root: Path, names: tuple[str, ...]) -> None:
    """Remove the files of ours in a folder, and the folder if nothing else is in it."""
    with suppress(FileNotFoundError, NotADirectoryError):
        with _opened(root, names, make=False) as folder:
            for name in ("task.json", "task.md", "result.json", "merge-result.json", LOG):
                for each in (name, f".{name}.new"):
                    with suppress(FileNotFoundError):
                        os.unlink(each, dir_fd=folder)
        with _opened(root, names[:-1], make=False) as above, suppress(OSError):
            os.rmdir(names[-1], dir_fd=above)


def _json(told: Mapping[str, object]) -> bytes:
    return json.dumps(told, indent=2, ensure_ascii=False).encode() + b"\n"
