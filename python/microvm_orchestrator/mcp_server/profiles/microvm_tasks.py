"""The tasks of the profile `microvm-orchestrator-mcp`, translated onto tasks that run in machines.

A task there is a task here, of a group of its own, that an agent does on a registered repository.
Its end is an event of the journal that takes nothing away from others who wait: each connection has
its own place in the journal, and a new one goes on where the last of its client had come to.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, cast
from weakref import WeakKeyDictionary

import anyio
from pydantic import ConfigDict, Field

from microvm_orchestrator import errors
from microvm_orchestrator.egress.credentials import Kind as Key
from microvm_orchestrator.mcp_server.callers import Peer, caller_of
from microvm_orchestrator.mcp_server.profiles import microvm_words as words
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.run import Kind
from microvm_orchestrator.model.task import FINISHED, Task, TaskState
from microvm_orchestrator.model.values import MAX_TEXT, rfc3339
from microvm_orchestrator.service.calls import Request
from microvm_orchestrator.service.journal import EventAnswer
from microvm_orchestrator.service.page import PageOf
from microvm_orchestrator.service.runs import RunInfo
from microvm_orchestrator.service.tasks import SubmitAnswer
from microvm_orchestrator.service.waiting import MAX_WAIT_S

if TYPE_CHECKING:
    from microvm_orchestrator.mcp_server.callers import Context
    from microvm_orchestrator.mcp_server.profiles.microvm_copies import Copies
    from microvm_orchestrator.model.repo import Repo
    from microvm_orchestrator.model.run import RunRecord
    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.service import Service

GROUP = "microvm-orchestrator-mcp"
_PAGE = 200
_TITLE_MOST = 100
_LISTED_MOST = 50
_ENDS = ("task.done", "task.failed", "task.cancelled")
_UNFINISHED = [state for state in TaskState if state not in FINISHED]
_KEYS = (Key.ANTHROPIC_OAUTH, Key.ANTHROPIC_API_KEY)

Shown = dict[str, Any]


class Asked(Request):
    # That program never minded an argument too many.
    model_config = ConfigDict(extra="ignore", frozen=True)


class RunTask(Asked):
    """What an agent is to do, and on which repository."""

    description: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)] = Field(
        description="Task description/instructions for the agent"
    )
    repo: Annotated[str, Field(max_length=100)] | None = Field(
        default=None, description="Alias of the repository; needed where several are registered"
    )
    slot: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=1, description="A number to tell tasks apart by; with `repo` the first free one"
    )


class Named(Asked):
    task_id: Annotated[str, Field(min_length=1, max_length=200)] = Field(description="Task ID")


class Wait(Asked):
    timeout_ms: Annotated[int, Field(ge=0)] = Field(
        default=1_800_000, description="Timeout in milliseconds"
    )


class Cleanup(Named):
    delete_ref: bool = Field(
        default=False, description="Whether to delete refs/tasks/<task_id>, if it is merged"
    )


class Nothing(Asked):
    """No arguments."""


class Refused(Exception):
    """What that program answered with an error; the sentence is one that its clients know."""


@dataclass(slots=True)
class _Places:
    """How far in the journal each client was told of ends."""

    # Where a client begins of which nothing is known yet.
    beginning: str = "now"
    of_connection: WeakKeyDictionary[Peer, str] = field(
        default_factory=WeakKeyDictionary[Peer, str]
    )
    of_client: dict[str, str] = field(default_factory=dict[str, str])

    def find(self, ctx: Context, caller: Caller) -> str:
        client = self.of_client.get(caller.principal.name, self.beginning)
        request: object = ctx.request
        if isinstance(request, Peer):
            return self.of_connection.setdefault(request, client)
        return client

    def note(self, ctx: Context, caller: Caller, cursor: str) -> None:
        self.of_client[caller.principal.name] = cursor
        request: object = ctx.request
        if isinstance(request, Peer):
            self.of_connection[request] = cursor


class MicrovmTasks:
    """The eight tools, translated."""

    def __init__(self, service: Service, copies: Copies) -> None:
        self._service = service
        self._copies = copies
        self._places = _Places()
        # From looking which numbers are free until one is written down.
        self._numbering = anyio.Lock()

    def begin(self, since: str) -> None:
        """Let those who come wait for what ended since then."""
        self._places.beginning = since

    def greet(self, ctx: Context) -> None:
        """Give whoever comes a place in the journal: what ends from now on, they can wait for."""
        self._places.find(ctx, caller_of(ctx))

    async def run_task(self, ctx: Context, asked: RunTask) -> Shown:
        caller = caller_of(ctx)
        repo = await self._chosen(caller, asked.repo)
        if repo.defaults.driver in {None, "claude"}:
            self._refuse_without_key()
        async with self._numbering:
            chosen = "slot" in asked.model_fields_set or asked.repo is None
            slot = asked.slot if chosen else await self._free_slot(caller)
            spec = {
                "group": GROUP,
                "title": " ".join(asked.description.split())[:_TITLE_MOST],
                "description": asked.description,
                "input": {"slot": slot},
                "run": {"kind": "agent", "repo": repo.alias, "prompt": asked.description},
            }
            try:
                answer = await self._service.invoke(caller, "task_submit", spec)
            except errors.OrchestratorError as error:
                raise Refused(f"Failed to start task: {error.message}") from error
        task_id = cast("SubmitAnswer", answer).task_id
        self._copies.begin(task_id)
        return {"task_id": task_id}

    async def get_task_info(self, ctx: Context, asked: Named) -> Shown:
        caller = caller_of(ctx)
        info = await self._info(caller, asked.task_id)
        task, run = info.task, info.run
        repo = await self._repo_of(caller, task)
        facts = words.facts_of(task, run, None if repo is None else repo.path)
        told = {"task_id": task.task_id, **facts, "isolated_repo_path": None}
        if (result := words.result_of(task, run)) is not None:
            told["result"] = result
        if (merged := self._merged(task, run, repo)) is not None:
            told["merge_result"] = merged
        return told

    async def get_task_logs(self, ctx: Context, asked: Named) -> Shown:
        info = await self._info(caller_of(ctx), asked.task_id)
        path = await self._copies.log_of(info.task.task_id)
        if not await anyio.Path(path).exists():
            raise Refused(f"Log file not found: {path}")
        return {"log_path": str(path)}

    async def wait_next_event(self, ctx: Context, asked: Wait) -> Shown:
        caller = caller_of(ctx)
        timeout_s = min(asked.timeout_ms / 1000, MAX_WAIT_S)
        told = await self._next(ctx, caller, 0.0)
        if told is not None:
            return told
        if not await self._unfinished(caller):
            # One may have ended since we looked.
            told = await self._next(ctx, caller, 0.0)
            return {"no_running_tasks": True} if told is None else told
        told = await self._next(ctx, caller, timeout_s)
        return {"timeout": True} if told is None else told

    async def cleanup_task(self, ctx: Context, asked: Cleanup) -> Shown:
        caller = caller_of(ctx)
        if not caller.principal.role.reaches(Role.OPERATOR):
            raise errors.Denied(
                f"{caller.principal.name} is a {caller.principal.role}, and cleans up nothing"
            )
        info = await self._info(caller, asked.task_id)
        task, run = info.task, info.run
        if asked.delete_ref and task.state in FINISHED and words.is_unmerged(run):
            raise Refused(
                f"{words.task_ref(task)} holds commits that were not merged; merge them first, "
                "then clean up"
            )
        if task.state not in FINISHED:
            named = {"task_id": task.task_id, "reason": "cleaned up"}
            # It may just have ended by itself.
            with suppress(errors.StateForbids):
                await self._service.invoke(caller, "task_cancel", named)
        await self._copies.remove(task)
        return {"success": True}

    async def list_repos(self, ctx: Context, _asked: Nothing) -> Shown:
        repos = await self._repos(caller_of(ctx))
        told = [
            {"alias": repo.alias, "path": repo.path, "added": rfc3339(repo.added_at)}
            for repo in repos
        ]
        return {"repos": told}

    async def list_tasks(self, ctx: Context, _asked: Nothing) -> Shown:
        caller = caller_of(ctx)
        told: list[Shown] = []
        for task in await self._tasks(caller):
            # Whether one that failed only was not merged, its run tells.
            failed = task.state is TaskState.FAILED
            run = (await self._info(caller, task.task_id)).run if failed else None
            brief = task.description[:_LISTED_MOST]
            more = "..." if len(task.description) > _LISTED_MOST else ""
            told.append(
                {
                    "task_id": task.task_id,
                    "status": words.status_of(task, run),
                    "description": brief + more,
                    "repo": None if task.run is None else task.run.repo,
                }
            )
        return {"tasks": told}

    async def list_slots(self, ctx: Context, _asked: Nothing) -> Shown:
        unfinished = await self._unfinished(caller_of(ctx))
        active = [
            {"slot": words.slot_of(task), "task_id": task.task_id}
            for task in unfinished
            if task.state is TaskState.RUNNING
        ]
        most = self._service.settings.runs.count
        taken = {each["slot"] for each in active}
        available = [slot for slot in range(1, most + 1) if slot not in taken]
        return {"max_slots": most, "active": active, "available": available}

    # Repositories

    async def _chosen(self, caller: Caller, alias: str | None) -> Repo:
        """Find the repository to work on; the only one needs no name. Raises: Refused."""
        repos = await self._repos(caller)
        if alias is None and len(repos) == 1:
            return repos[0]
        for repo in repos:
            if repo.alias == alias:
                return repo
        if alias is None and repos:
            names = ", ".join(repo.alias for repo in repos)
            raise Refused(f"Several repositories are registered, so `repo` is one of: {names}")
        raise Refused(f"Repo '{alias or ''}' not registered. Run: microvm-orchestrator allow")

    async def _repos(self, caller: Caller) -> list[Repo]:
        repos: list[Repo] = []
        asked: dict[str, object] = {"limit": _PAGE}
        while True:
            page = cast("PageOf[Repo]", await self._service.invoke(caller, "repo_list", asked))
            repos += page.items
            if page.next_cursor is None:
                return repos
            asked["cursor"] = page.next_cursor

    async def _repo_of(self, caller: Caller, task: Task) -> Repo | None:
        alias = None if task.run is None else task.run.repo
        return next((repo for repo in await self._repos(caller) if repo.alias == alias), None)

    def _refuse_without_key(self) -> None:
        if self._service.host.credentials.find(_KEYS) is None:
            raise Refused(
                "No API key found. Set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN, or run "
                "'microvm-orchestrator setup-token'"
            )

    def _merged(self, task: Task, run: RunRecord | None, repo: Repo | None) -> Shown | None:
        told = words.merge_result_of(task, run)
        if told is not None and not told["merged"] and repo is not None:
            # The ref is in our mirror: nothing of it is put into the user's repository unasked.
            told["fetch_from"] = str(self._service.host.repos.mirror(repo).path)
        return told

    # Tasks

    async def _info(self, caller: Caller, task_id: str) -> RunInfo:
        named = {"task_id": task_id, "group": GROUP}
        try:
            info = cast("RunInfo", await self._service.invoke(caller, "run_get", named))
        except (errors.NotFound, errors.InvalidInput, errors.StateForbids) as error:
            raise Refused(f"Task not found: {task_id}") from error
        if info.task.group != GROUP:
            raise Refused(f"Task not found: {task_id}")
        return info

    async def _tasks(self, caller: Caller) -> list[Task]:
        tasks: list[Task] = []
        asked: dict[str, object] = {"group": GROUP, "limit": 1000}
        try:
            while True:
                page = cast(
                    "PageOf[Task]", await self._service.invoke(caller, "group_tasks", asked)
                )
                tasks += [task for task in page.items if task.kind is not Kind.MANUAL]
                if page.next_cursor is None:
                    return tasks
                asked["cursor"] = page.next_cursor
        except errors.NotFound:
            # Nothing was ever run here.
            return tasks

    async def _unfinished(self, caller: Caller) -> list[Task]:
        return [task for task in await self._tasks(caller) if task.state in _UNFINISHED]

    async def _free_slot(self, caller: Caller) -> int:
        """Find the lowest number that no unfinished task goes by."""
        taken = {words.slot_of(task) for task in await self._unfinished(caller)}
        return next(slot for slot in range(1, len(taken) + 2) if slot not in taken)

    async def _next(self, ctx: Context, caller: Caller, timeout_s: float) -> Shown | None:
        """Give the next end that a client was not told of; None when there is none in time."""
        asked = {
            "after": self._places.find(ctx, caller),
            "kinds": list(_ENDS),
            "groups": [GROUP],
            "limit": 1,
            "timeout_s": timeout_s,
        }
        try:
            answer = cast("EventAnswer", await self._service.invoke(caller, "event_wait", asked))
        except errors.CursorExpired:
            # Nobody asked for so long that the journal has forgotten; list_tasks still tells.
            self._places.note(ctx, caller, await self._service.store.cursor())
            return None
        told: Shown | None = None
        for event in answer.events:
            try:
                info = await self._info(caller, event.subject)
            except Refused:
                continue  # it was deleted
            told = words.event_of(info.task, info.run)
        # Only now: who gave up waiting before was told nothing.
        self._places.note(ctx, caller, answer.cursor)
        return told
