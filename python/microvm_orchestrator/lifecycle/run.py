"""One run as this host knows it: its task, its lease, and the record of how far it has come.

`Work` is as much of it as the way of commits into a repository needs, which agents go as well.

Every step is written down, with its event, before it begins; so a daemon that comes up again goes
on where the last one was. Above are the steps; below, the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import anyio
from pydantic import JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.model.run import RUN, Budget, RunRecord, RunSpec, Step
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.store.base import Tell

if TYPE_CHECKING:
    from microvm_orchestrator.model.task import Task
    from microvm_orchestrator.store.base import Ref, Store

_ORDER = {step: number for number, step in enumerate(Step)}


class Work(Protocol):
    """Who has worked on a repository, and what they were to do: a run or an agent."""

    @property
    def id(self) -> str: ...

    @property
    def spec(self) -> RunSpec: ...

    @property
    def by(self) -> Actor:
        """Whoever it belongs to."""
        ...

    @property
    def called(self) -> str:
        """What messages call it."""
        ...

    @property
    def title(self) -> str: ...

    @property
    def branch(self) -> str:
        """The branch of its own, in the user's repository."""
        ...

    @property
    def variables(self) -> Mapping[str, str]:
        """What its programs find in their environment."""
        ...

    async def learn(
        self, what: str, told: Mapping[str, JsonValue] | None = None, /, **known: object
    ) -> None:
        """Write down what has become known, by the names that a run's record has."""
        ...


@dataclass(eq=False, slots=True)
class Run:
    """A run that this daemon sees through."""

    task: Task
    spec: RunSpec
    ref: Ref
    record: RunRecord
    version: int
    store: Store
    # Cancelled when the run is to end before its time, and why.
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    why: str = ""
    # What is told with the next sign of life.
    said: str = ""
    # The budget that somebody gives it while it is paused.
    raised: Budget | None = None
    # Set, and replaced, when its record or what is wanted of it has changed.
    news: anyio.Event = field(default_factory=anyio.Event)
    _writing: anyio.Lock = field(default_factory=anyio.Lock)

    @property
    def id(self) -> str:
        return self.record.run_id

    @property
    def called(self) -> str:
        return f"task {self.task.task_id}"

    @property
    def title(self) -> str:
        return self.task.title

    @property
    def branch(self) -> str:
        return f"tasks/{self.task.task_id}"

    @property
    def variables(self) -> Mapping[str, str]:
        return {"MICROVM_RUN_ID": self.record.run_id, "MICROVM_TASK_ID": self.record.task_id}

    @property
    def by(self) -> Actor:
        """Whoever submitted the task: what a run makes belongs to them."""
        return Actor(self.record.owner, Role.OPERATOR, "run", f"run {self.record.run_id}")

    def before(self, step: Step) -> bool:
        """Whether it has not come to a step yet."""
        return _ORDER[self.record.step] < _ORDER[step]

    async def enter(self, step: Step, **known: object) -> None:
        """Write down that a step begins, and what is known by then.

        Raises: VersionMoved when another daemon has taken the run over.
        """
        await self.learn(f"{step}", step=step, **known)

    async def learn(
        self, what: str, told: Mapping[str, JsonValue] | None = None, /, **known: object
    ) -> None:
        """Write down what has become known; what is `told` is in the event only."""
        async with self._writing:
            await self._learn(what, told or {}, known)
        self.wake()

    def wake(self) -> None:
        """Let whoever waits for this run look again."""
        self.news.set()
        self.news = anyio.Event()

    async def _learn(
        self, what: str, told: Mapping[str, JsonValue], known: Mapping[str, object]
    ) -> None:
        record = self.record.model_copy(update=known)
        if record.step is Step.OVER and record.ended_at is None:
            ended_at = moment(await self.store.now())
            record = record.model_copy(update={"ended_at": ended_at, "paused": None})
        body: dict[str, JsonValue] = {"task_id": record.task_id, "step": record.step, **told}
        tell = Tell(what, body, audited=False)
        saved = await self.store.save(
            Record(RUN, record.run_id, record.model_dump(mode="json")),
            SYSTEM,
            expect=self.version,
            tell=tell,
        )
        self.record = record
        self.version = saved.version

    def say(self, said: str) -> None:
        """Have it told with the next sign of life what its program said last."""
        self.said = said

    def end_soon(self, why: str) -> None:
        """Let it end before its time; what it has done is kept."""
        self.why = why
        self.scope.cancel()

    def failed(self, error: errors.OrchestratorError) -> None:
        """Remember why a step did not succeed."""
        self.why = error.message
