"""The tools of an agent that does tasks: it claims them, and says what became of them.

They are listed for who may use them, and refuse all others. Above is the profile `agent`; below,
the service.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from microvm_orchestrator.mcp_server.profiles.offers import Offer
from microvm_orchestrator.model.task import TaskBrief, TaskError, TaskProgress, TaskState
from microvm_orchestrator.model.values import Flag, Json, Key, Line, Name, Seconds, Text
from microvm_orchestrator.service import as_worker
from microvm_orchestrator.service.calls import Answer, Request
from microvm_orchestrator.service.content import checked_json
from microvm_orchestrator.service.work import ClaimAnswer, LeaseLength, SettleAnswer
from microvm_orchestrator.store.base import Done, Failed, Released

if TYPE_CHECKING:
    from microvm_orchestrator.model.agent import Agent
    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.service import Service

# A client of a model gives up on a call at some time.
_WAIT_MOST_S = 600.0
Waits = Annotated[float, Field(ge=0, le=_WAIT_MOST_S)]


class SeeTasks(Request):
    """How many tasks to see."""

    limit: Annotated[int, Field(ge=1, le=200)] = 50


class TasksThere(Answer):
    """What you are at, and what you could do."""

    yours: list[TaskBrief] = Field(description="you hold them: complete, fail or release each")
    ready: list[TaskBrief] = Field(description="`claim` gives you the best of them")


class ClaimTask(Request):
    """Which task to take."""

    groups: Annotated[list[Name], Field(max_length=64)] = Field(
        default=[], description="of these groups only; none: of all that you may do"
    )
    wait_s: Waits = Field(default=0.0, description="how long to wait for one at the most")
    lease_s: LeaseLength | None = Field(
        default=None,
        description="how long it is yours after you have answered; while you work it is kept",
    )


class YourTask(Request):
    """A task that you hold."""

    task_id: Key


class SayProgress(YourTask):
    """How far you are."""

    message: Line = ""
    fraction: Annotated[float, Field(ge=0, le=1)] | None = None


class StillYours(Answer):
    """`held` false: stop, the task is no longer yours."""

    held: bool
    state: TaskState


class TaskDone(YourTask):
    """What came of it."""

    result: Json = None


class TaskFailed(YourTask):
    """What went wrong."""

    message: Text
    code: Annotated[str, Field(min_length=1, max_length=64)] = "failed"
    retryable: Flag = Field(default=True, description="false: nobody needs to try it again")


class TaskGivenBack(YourTask):
    """Why it is given back."""

    reason: Line = ""
    delay_s: Seconds = Field(default=0.0, description="not to be claimed again before")


class AgentTasks:
    """What an agent asks about tasks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def see(self, caller: Caller, agent: Agent, asked: SeeTasks) -> TasksThere:
        yours, ready = await as_worker.claimable_as(self._service, caller, agent, asked.limit)
        return TasksThere(yours=yours, ready=ready)

    async def claim(self, caller: Caller, agent: Agent, asked: ClaimTask) -> ClaimAnswer:
        return await as_worker.claim_as(
            self._service,
            caller,
            agent,
            groups=asked.groups,
            wait_s=asked.wait_s,
            lease_s=asked.lease_s,
        )

    async def progress(self, caller: Caller, agent: Agent, asked: SayProgress) -> StillYours:
        told = TaskProgress(fraction=asked.fraction, message=asked.message)
        renewed = await as_worker.beat_as(self._service, caller, agent, asked.task_id, told)
        return StillYours(held=renewed.held, state=renewed.state)

    async def complete(self, caller: Caller, agent: Agent, asked: TaskDone) -> SettleAnswer:
        checked_json(asked.result, "result")
        done = Done(asked.result)
        return await as_worker.settle_as(
            self._service, caller, agent, "task_complete", asked.task_id, done
        )

    async def fail(self, caller: Caller, agent: Agent, asked: TaskFailed) -> SettleAnswer:
        failed = Failed(TaskError(code=asked.code, message=asked.message), asked.retryable)
        return await as_worker.settle_as(
            self._service, caller, agent, "task_fail", asked.task_id, failed
        )

    async def release(self, caller: Caller, agent: Agent, asked: TaskGivenBack) -> SettleAnswer:
        released = Released(asked.reason, asked.delay_s)
        return await as_worker.settle_as(
            self._service, caller, agent, "task_release", asked.task_id, released
        )


TaskWork = Callable[[AgentTasks, "Caller", "Agent", Any], Awaitable[BaseModel]]

TASK_TOOLS: dict[str, Offer[TaskWork]] = {
    "tasks": Offer(
        "See the tasks that you hold, and those that you could do.", SeeTasks, AgentTasks.see
    ),
    "claim": Offer(
        "Take the best task that you can do; it is yours until you say what became of it.",
        ClaimTask,
        AgentTasks.claim,
    ),
    "progress": Offer("Tell how far you are with a task.", SayProgress, AgentTasks.progress),
    "complete": Offer("Say that a task is done, with its result.", TaskDone, AgentTasks.complete),
    "fail": Offer("Say that a task failed, and why.", TaskFailed, AgentTasks.fail),
    "release": Offer("Give a task back undone, for others.", TaskGivenBack, AgentTasks.release),
}
