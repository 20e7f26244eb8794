"""The tasks of the profile `orchestrator-server`, translated onto the service.

Its clients choose the ids of tasks and name the instance that works: an id is a task's key in a
group of its own, an instance is a worker. That program knew no leases, so a claim here takes the
longest one, and whatever an instance says renews all it holds. What it got wrong (two claimants of
one task, diamonds taken for cycles) is the service's to get right.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from pydantic import ConfigDict, Field

from microvm_orchestrator import errors
from microvm_orchestrator.mcp_server.profiles.instances import instance_of, worker_name
from microvm_orchestrator.model.task import Gate, Task, TaskBrief, TaskState
from microvm_orchestrator.model.values import MAX_DEPENDENCIES, Key, Text
from microvm_orchestrator.service.calls import Request
from microvm_orchestrator.service.page import PageOf
from microvm_orchestrator.service.work import ClaimAnswer, SettleAnswer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.service import Service

GROUP = "orchestrator-server"
# A day, the longest there is: that program's claims lasted until they were completed.
LEASE_S = 86_400
_PAGE = 1000

Shown = dict[str, Any] | list[dict[str, Any]]


class Asked(Request):
    # That program never minded an argument too many.
    model_config = ConfigDict(extra="ignore", frozen=True)


class Nothing(Asked):
    """No arguments."""


class Create(Asked):
    id: Key = Field(description="Unique identifier for the task")
    description: Text = Field(description="Description of the task")
    dependencies: list[Key] = Field(
        default=[],
        max_length=MAX_DEPENDENCIES,
        description="IDs of tasks that must be completed first",
    )


class Update(Asked):
    task_id: Key = Field(description="ID of the task to update")
    description: Text = Field(default="", description="New description for the task")
    dependencies: list[Key] = Field(
        default=[], max_length=MAX_DEPENDENCIES, description="New list of dependency task IDs"
    )


class Named(Asked):
    task_id: Key = Field(description="ID of the task")


class Instance(Asked):
    instance_id: Key = Field(description="ID of the instance requesting work")


class Complete(Asked):
    task_id: Key = Field(description="ID of the task to complete")
    instance_id: Key = Field(description="ID of the instance completing the task")
    result: Text = Field(description="Result or output from the task")


class Refused(Exception):
    """What that program answers with a protocol error."""


class OrchestratorTasks:
    """The seven tools, translated."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, caller: Caller, asked: Create) -> Shown:
        spec = {
            "group": GROUP,
            "key": asked.id,
            "description": asked.description,
            "depends_on": asked.dependencies,
            "lease_s": float(LEASE_S),
        }
        try:
            await self._service.invoke(caller, "task_submit", spec)
        except errors.AlreadyExists as error:
            raise Refused(f"Task {asked.id} already exists") from error
        except (errors.NotFound, errors.CycleFound):
            # A task that names itself names one that is not there yet.
            await self._refuse_missing(caller, asked.dependencies)
            raise
        return await self._shown(caller, await self._task(caller, asked.id))

    async def update(self, caller: Caller, asked: Update) -> Shown:
        before = await self._task(caller, asked.task_id)
        changes: dict[str, object] = {}
        if "description" in asked.model_fields_set:
            changes["description"] = asked.description
        if "dependencies" in asked.model_fields_set:
            changes["depends_on"] = asked.dependencies
        status = _status(before)
        if status != "pending":
            raise Refused(f"Cannot update task {asked.task_id} in {status} state")
        if changes:
            await self._change(caller, asked, changes)
        return await self._shown(caller, await self._task(caller, asked.task_id))

    async def _change(self, caller: Caller, asked: Update, changes: dict[str, object]) -> None:
        try:
            await self._service.invoke(
                caller, "task_update", {**_named(asked.task_id), "changes": changes}
            )
        except errors.CycleFound as error:
            raise Refused("Dependencies would create a cycle") from error
        except errors.StateForbids as error:
            status = _status(await self._task(caller, asked.task_id))
            raise Refused(f"Cannot update task {asked.task_id} in {status} state") from error
        except errors.NotFound:
            await self._refuse_missing(caller, asked.dependencies)
            raise

    async def delete(self, caller: Caller, asked: Named) -> Shown:
        task = await self._task(caller, asked.task_id)
        if task.state is TaskState.RUNNING:
            await self._delete_running(caller, asked.task_id, task)
        else:
            await self._delete(caller, asked.task_id)
        return {"deleted": asked.task_id}

    async def _delete_running(self, caller: Caller, task_id: str, running: Task) -> None:
        """Take a task from its worker first, unless it must stay for others' sake."""
        if any(running.task_id in upstream(task) for task in await self._all(caller)):
            raise await self._has_dependents(caller, task_id)
        await self._service.invoke(caller, "task_cancel", _named(task_id))
        await self._delete(caller, task_id)

    async def _delete(self, caller: Caller, task_id: str) -> None:
        try:
            await self._service.invoke(caller, "task_delete", _named(task_id))
        except errors.HasDependents as error:
            raise await self._has_dependents(caller, task_id) from error

    async def _has_dependents(self, caller: Caller, task_id: str) -> Refused:
        needed = (await self._task(caller, task_id)).task_id
        waiting = [
            task.key or task.task_id for task in await self._all(caller) if needed in upstream(task)
        ]
        return Refused(
            f"Cannot delete task {task_id} as it has dependent tasks: {', '.join(waiting)}"
        )

    async def next(self, caller: Caller, asked: Instance) -> Shown:
        worker = worker_name(caller, asked.instance_id)
        await self._renew(caller, worker)
        arguments = {"worker": worker, "groups": [GROUP], "lease_s": LEASE_S}
        claimed = cast("ClaimAnswer", await self._service.invoke(caller, "task_claim", arguments))
        if not claimed.tasks:
            return {"status": "no_tasks"}
        return await self._shown(caller, claimed.tasks[0].task)

    async def complete(self, caller: Caller, asked: Complete) -> Shown:
        worker = worker_name(caller, asked.instance_id)
        task = await self._task(caller, asked.task_id)
        if task.worker == worker and task.state is TaskState.DONE:
            raise Refused(f"Task {asked.task_id} is already completed")
        not_theirs = Refused(
            f"Task {asked.task_id} is not assigned to instance {asked.instance_id}"
        )
        if task.worker != worker or task.state is not TaskState.RUNNING:
            raise not_theirs
        arguments = {**_held(task, worker), "result": asked.result}
        try:
            answer = await self._service.invoke(caller, "task_complete", arguments)
        except errors.LeaseLost as error:
            raise not_theirs from error
        settled = cast("SettleAnswer", answer)
        if settled.repeated:
            raise Refused(f"Task {asked.task_id} is already completed")
        await self._renew(caller, worker)
        return {
            "completed_task": await self._shown(caller, settled.task),
            "unlocked_tasks": [
                await self._shown(caller, await self._task(caller, each.task_id))
                for each in settled.unlocked
            ],
        }

    async def status(self, caller: Caller, _asked: Nothing) -> Shown:
        tasks = await self._all(caller)
        names = {task.task_id: task.key or task.task_id for task in tasks}
        return [shown(task, caller, names) for task in tasks]

    async def details(self, caller: Caller, asked: Named) -> Shown:
        return await self._shown(caller, await self._task(caller, asked.task_id))

    async def _shown(self, caller: Caller, task: Task) -> dict[str, Any]:
        names: dict[str, str] = {}
        for task_id in upstream(task):
            names[task_id] = (await self._task(caller, task_id)).key or task_id
        return shown(task, caller, names)

    async def _task(self, caller: Caller, task_id: str) -> Task:
        try:
            return cast("Task", await self._service.invoke(caller, "task_get", _named(task_id)))
        except errors.NotFound as error:
            raise Refused(f"Task {task_id} not found") from error

    async def _all(self, caller: Caller) -> list[Task]:
        tasks: list[Task] = []
        asked: dict[str, object] = {"group": GROUP, "limit": _PAGE}
        try:
            while True:
                page = cast(
                    "PageOf[Task]", await self._service.invoke(caller, "group_tasks", asked)
                )
                tasks += page.items
                if page.next_cursor is None:
                    return tasks
                asked["cursor"] = page.next_cursor
        except errors.NotFound:
            # Nothing was ever created here.
            return tasks

    async def _refuse_missing(self, caller: Caller, dependencies: list[str]) -> None:
        for dependency in dependencies:
            try:
                await self._task(caller, dependency)
            except Refused as error:
                raise Refused(f"Dependency task {dependency} not found") from error

    async def _renew(self, caller: Caller, worker: str) -> None:
        """Renew whatever an instance holds, for it just gave a sign of life."""
        asked = {"group": GROUP, "worker": worker, "state": [TaskState.RUNNING], "limit": 200}
        page = cast("PageOf[TaskBrief]", await self._service.invoke(caller, "task_list", asked))
        for task in page.items:
            beat = {**_held(task, worker), "lease_s": LEASE_S}
            await self._service.invoke(caller, "task_heartbeat", beat)


_STATUS = {
    TaskState.BLOCKED: "pending",
    TaskState.READY: "pending",
    TaskState.RUNNING: "in_progress",
    TaskState.DONE: "completed",
}


def _status(task: Task) -> str:
    """Say it in that program's words; what it had none for is told as it is."""
    return _STATUS.get(task.state, str(task.state))


def upstream(task: Task) -> list[str]:
    """Give the ids of the tasks that one depends on, in the order they were named."""
    gates = (gate.edges if isinstance(gate, Gate) else [gate] for gate in task.depends_on)
    return [edge.task for edges in gates for edge in edges]


def shown(task: Task, caller: Caller, names: Mapping[str, str]) -> dict[str, Any]:
    """Show a task in that program's shape; what was never given has no field."""
    told: dict[str, Any] = {
        "id": task.key or task.task_id,
        "description": task.description,
        "status": _status(task),
    }
    if task.depends_on:
        told["dependencies"] = [names.get(task_id, task_id) for task_id in upstream(task)]
    if task.worker is not None and task.state in {TaskState.RUNNING, TaskState.DONE}:
        told["assignedTo"] = instance_of(task.worker, caller)
    if task.state is TaskState.DONE and task.result is not None:
        told["result"] = task.result if isinstance(task.result, str) else json.dumps(task.result)
    return told


def _named(task_id: str) -> dict[str, object]:
    return {"task_id": task_id, "group": GROUP}


def _held(task: TaskBrief, worker: str) -> dict[str, object]:
    """Name a running task the way its holder does: the token of a lease is the attempt's number."""
    return {"task_id": task.task_id, "worker": worker, "token": task.attempt}
