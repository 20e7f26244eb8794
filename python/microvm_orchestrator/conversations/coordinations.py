"""The coordinations of this host: carried out step by step, whatever becomes of this daemon.

Each step is in the store, with the id of its message, before that is sent, and what has an id
is said once. So a daemon that finds a coordination which nobody ended begins it from the top: what
was answered is known, what was said is waited for, and it goes on where it was. A store that takes
nothing for a while holds it up and ends nothing. Above is the service; below are the kinds, and the
agents.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Protocol

import anyio
from pydantic import JsonValue

from microvm_orchestrator import errors, log
from microvm_orchestrator.conversations.kinds import Question, Reading, coordinate
from microvm_orchestrator.conversations.records import new_message_id
from microvm_orchestrator.conversations.waits import Waits
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.agent import Message, MessageState
from microvm_orchestrator.model.coordination import (
    COORDINATION,
    STEP,
    Coordination,
    CoordinationState,
    Step,
    StepState,
)
from microvm_orchestrator.model.operation import Operation
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.model.task import TaskError
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.operations import Operations, Report
from microvm_orchestrator.store.base import Store, Tell
from microvm_orchestrator.store.every import every_record
from microvm_orchestrator.store.seen import find_seen
from microvm_orchestrator.together import together

_log = log.get(__name__)

# The kind of operation that a coordination is.
OPERATION_KIND = "team_coordinate"
# How many that have ended are kept to be looked at, each with its steps.
_KEPT = 200
# Of one coordinator at the same time: an agent can begin some too.
_OPEN_MOST = 8
# The store says no now, or too much waits for an agent; soon that may be over.
_AGAIN_S = 1.0
# To have agents break off what nobody waits for any more.
_WITHDRAW_S = 20.0
_BUG = "it failed in the daemon; see its log"


class Talk(Protocol):
    """Agents, as far as they are talked to here."""

    async def send(
        self, reference: str, text: str, by: Actor, *, message_id: str | None = None
    ) -> Message:
        """Say something, once for an id."""
        ...

    async def settled(self, message_id: str, by: Actor) -> Message:
        """Wait until it is answered, or never will be."""
        ...

    async def withdraw(self, message_id: str, by: Actor) -> None:
        """Have it heard no more."""
        ...


class Coordinations:
    """The coordinations of one daemon; they run as long as `running`."""

    def __init__(self, store: Store, talk: Talk, operations: Operations, waits: Waits) -> None:
        self._store = store
        self._talk = talk
        self._operations = operations
        self._waits = waits
        # Those that have not ended.
        self._open: dict[str, Coordination] = {}
        # Those that have, the oldest first.
        self._ended: deque[str] = deque()
        self._stopping = False

    # What is known

    async def get(self, coordination_id: str, by: Actor) -> Coordination:
        """Raises: NotFound, also for what `by` cannot see."""
        found = await find_seen(self._store, COORDINATION, coordination_id, Coordination, by)
        if found is None:
            raise errors.NotFound(
                f"no coordination {coordination_id[:100]}",
                hint="coordination_list shows the coordinations",
            )
        return found

    async def steps(self, coordination_id: str) -> list[Step]:
        """All steps of a coordination so far, in their order."""
        records = await every_record(self._store, STEP, SYSTEM, f"{coordination_id}.")
        return [Step.model_validate(record.body) for record in records]

    def operation_of(self, coordination: Coordination) -> str | None:
        """Name the operation that carries it out, while one does."""
        return self._operations.at_work(OPERATION_KIND, coordination.coordination_id)

    # Verbs

    async def begin(self, coordination: Coordination, by: Actor) -> Operation:
        """Write a coordination down, and begin to carry it out.

        Raises: TooLarge when its coordinator has as many as one may have; Stopping.
        """
        await self._forget_oldest()
        leads = coordination.coordinator
        has = [each for each in self._open.values() if each.coordinator == leads]
        if len(has) >= _OPEN_MOST:
            raise errors.TooLarge(f"agent {leads.name} coordinates {_OPEN_MOST} tasks already")
        # It counts before it is written down, so that no other takes its place.
        self._open[coordination.coordination_id] = coordination
        # Whoever leaves now leaves none that is written down and that nobody carries out.
        with anyio.CancelScope(shield=True):
            try:
                await self._save(coordination, by, "begun")
            except BaseException:
                del self._open[coordination.coordination_id]
                raise
            work = partial(self._carry_out, coordination)
            try:
                return await self._operations.begin(
                    OPERATION_KIND, coordination.coordination_id, by, work
                )
            except errors.Stopping:
                await self._end(coordination, CoordinationState.CANCELLED)
                raise
        raise AssertionError  # what is shielded is not cancelled

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Go on with what an earlier daemon was in the middle of, until the block ends.

        It is entered after the operations and the agents.
        """
        records = await every_record(self._store, COORDINATION, SYSTEM)
        every = [Coordination.model_validate(record.body) for record in records]
        self._ended = deque(each.coordination_id for each in every if each.ended)
        await self._forget_oldest()
        for each in every:
            if not each.ended:
                self._open[each.coordination_id] = each
                work = partial(self._carry_out, each)
                await self._go_on(each, work)
            elif each.state is CoordinationState.CANCELLED:
                await self._withdraw(each)
            else:
                # Its operation may not have heard of the end.
                await self._told_again(each)
        await self._operations.lose_left(OPERATION_KIND)
        try:
            yield
        finally:
            self._stopping = True

    async def _go_on(
        self, coordination: Coordination, work: Callable[[Report], Awaitable[JsonValue]]
    ) -> None:
        await self._operations.go_on(
            OPERATION_KIND, coordination.coordination_id, _acting(coordination), work
        )

    async def _told_again(self, coordination: Coordination) -> None:
        if self._operations.is_left(OPERATION_KIND, coordination.coordination_id):

            async def work(report: Report) -> JsonValue:
                del report
                return _result(coordination)

            await self._go_on(coordination, work)

    async def _forget_oldest(self) -> None:
        while len(self._ended) > _KEPT:
            oldest = self._ended.popleft()
            for step in await self.steps(oldest):
                await self._store.erase(STEP, _step_id(step), SYSTEM)
            await self._store.erase(COORDINATION, oldest, SYSTEM)

    # One of them

    async def _carry_out(self, coordination: Coordination, report: Report) -> JsonValue:
        """Take it through all its steps. Raises: CoordinationFailed."""
        try:
            return _result(await self._until_ended(coordination, report))
        except anyio.get_cancelled_exc_class():
            if not self._stopping:
                with anyio.CancelScope(shield=True):
                    await self._end(coordination, CoordinationState.CANCELLED)
                    await self._withdraw(coordination)
            raise

    async def _until_ended(self, coordination: Coordination, report: Report) -> Coordination:
        while True:
            try:
                return await self._through(coordination, report)
            except errors.Unavailable as error:
                _log.warning(
                    "coordination_held_up",
                    coordination=coordination.coordination_id,
                    reason=error.message,
                )
                await anyio.sleep(_AGAIN_S)
            except Exception:
                # A bug, which ends the operation too.
                await self._end(coordination, CoordinationState.FAILED, reason=_BUG)
                raise

    async def _through(self, coordination: Coordination, report: Report) -> Coordination:
        known = {step.number: step for step in await self.steps(coordination.coordination_id)}
        asking = _Asking(coordination, self._store, self._talk, self._waits, known, report)
        try:
            end = await coordinate(coordination, asking.ask)
        except errors.CoordinationFailed as failed:
            return await self._end(coordination, CoordinationState.FAILED, reason=failed.message)
        return await self._end(
            coordination,
            CoordinationState.SUCCEEDED,
            result=end.result,
            outcome=end.outcome,
            tallies=end.tallies,
            dissent=end.dissent,
        )

    async def _withdraw(self, coordination: Coordination) -> None:
        """Have agents break off what they were asked, and what nobody waits for any more."""
        by = _acting(coordination)

        async def withdraw(step: Step) -> None:
            with anyio.move_on_after(_WITHDRAW_S), suppress(errors.OrchestratorError):
                await self._talk.withdraw(step.message_id, by)
            # The next daemon finds a step that could not be written down.
            with suppress(errors.Unavailable):
                await _save_step(self._store, step, by, StepState.CANCELLED)

        steps = await self.steps(coordination.coordination_id)
        left = [partial(withdraw, step) for step in steps if not step.state.ended]
        await together(left, at_once=max(1, len(left)))

    async def _end(
        self, coordination: Coordination, state: CoordinationState, **known: object
    ) -> Coordination:
        ended_at = moment(await self._store.now())
        update = {"state": state, "ended_at": ended_at, **known}
        coordination = coordination.model_copy(update=update)
        with anyio.CancelScope(shield=True):
            await self._save(coordination, _acting(coordination), f"{state}")
        return coordination

    async def _save(self, coordination: Coordination, by: Actor, what: str) -> None:
        told: dict[str, JsonValue] = {
            "kind": coordination.rules.kind,
            "coordinator": coordination.coordinator.name,
            "outcome": coordination.outcome,
        }
        if coordination.reason:
            told["reason"] = coordination.reason
        body = coordination.model_dump(mode="json")
        record = Record(COORDINATION, coordination.coordination_id, body)
        await self._store.save(record, by, tell=Tell(what, told, audited=False))
        if coordination.ended:
            self._open.pop(coordination.coordination_id, None)
            self._ended.append(coordination.coordination_id)
        else:
            self._open[coordination.coordination_id] = coordination


class _Asking:
    """The steps of one coordination, each asked once however often it is begun from the top."""

    def __init__(
        self,
        coordination: Coordination,
        store: Store,
        talk: Talk,
        waits: Waits,
        known: dict[int, Step],
        report: Report,
    ) -> None:
        self._coordination = coordination
        self._store = store
        self._talk = talk
        self._waits = waits
        self._known = known
        self._report = report
        self._by = _acting(coordination)
        self._next = 1

    async def ask(self, *questions: Question) -> list[Step]:
        """Ask several agents at once, and give what became of each question."""
        first = self._next
        self._next += len(questions)
        asked = [
            partial(self._one, number, question) for number, question in enumerate(questions, first)
        ]
        return await together(asked, at_once=max(1, len(asked)))

    async def _one(self, number: int, question: Question) -> Step:
        step = self._known.get(number)
        if step is None:
            step = Step(
                coordination_id=self._coordination.coordination_id,
                number=number,
                part=question.part,
                round=question.round,
                agent_id=question.agent.agent_id,
                agent=question.agent.name,
                message_id=new_message_id(question.agent.agent_id),
                asked_at=moment(await self._store.now()),
            )
            await self._save(step)
        if step.state.ended:
            return step
        await self._report(None, f"step {number}: {step.agent}, {step.part}")
        try:
            with anyio.fail_after(self._coordination.rules.step_timeout_s):
                message = await self._heard(step, question)
        except TimeoutError:
            return await self._late(step)
        except errors.OrchestratorError as error:
            return await self._save(step, StepState.FAILED, error=TaskError.of(error))
        return await self._answered(step, question, message)

    async def _heard(self, step: Step, question: Question) -> Message:
        """Say it, and wait for what comes of it, however often the store or a full queue says no.

        Raises: OrchestratorError when it is never heard.
        """
        while True:
            try:
                await self._talk.send(
                    step.agent_id, question.text, self._by, message_id=step.message_id
                )
                with self._waits.waiting(step.coordination_id, step.agent_id):
                    return await self._talk.settled(step.message_id, self._by)
            except errors.MachineFailed:
                raise
            except errors.Unavailable as error:
                _log.warning(
                    "coordination_step_held_up",
                    coordination=step.coordination_id,
                    step=step.number,
                    reason=error.message,
                )
                await anyio.sleep(_AGAIN_S)

    async def _late(self, step: Step) -> Step:
        limit = self._coordination.rules.step_timeout_s
        with anyio.move_on_after(_WITHDRAW_S), suppress(errors.OrchestratorError):
            await self._talk.withdraw(step.message_id, self._by)
        error = TaskError(code="timed-out", message=f"it gave no answer within {limit:g} s")
        return await self._save(step, StepState.FAILED, error=error)

    async def _answered(self, step: Step, question: Question, message: Message) -> Step:
        answer = message.answer or ""
        if message.state is not MessageState.ANSWERED:
            error = message.error or TaskError(
                code="cancelled", message="it ended before it heard this"
            )
            return await self._save(step, StepState.FAILED, answer=message.answer, error=error)
        try:
            read: Reading = question.read(answer) if question.read else {}
        except errors.InvalidInput as wrong:
            return await self._save(
                step, StepState.UNREADABLE, answer=answer, error=TaskError.of(wrong)
            )
        return await self._save(step, StepState.ANSWERED, answer=answer, **read)

    async def _save(self, step: Step, state: StepState = StepState.ASKED, **known: object) -> Step:
        saved = await _save_step(self._store, step, self._by, state, **known)
        self._known[saved.number] = saved
        return saved


async def _save_step(
    store: Store, step: Step, by: Actor, state: StepState, **known: object
) -> Step:
    update: dict[str, object] = {"state": state, **known}
    if state.ended:
        update["ended_at"] = moment(await store.now())
    step = step.model_copy(update=update)
    told: dict[str, JsonValue] = {
        "coordination_id": step.coordination_id,
        "number": step.number,
        "part": step.part,
        "round": step.round,
        "agent": step.agent,
        "message_id": step.message_id,
    }
    if step.error is not None:
        told["error"] = step.error.model_dump(mode="json")
    record = Record(STEP, _step_id(step), step.model_dump(mode="json"))
    await store.save(record, by, tell=Tell(f"{state}", told, audited=False))
    return step


def _step_id(step: Step) -> str:
    return f"{step.coordination_id}.{step.number:06}"


def _acting(coordination: Coordination) -> Actor:
    """Who does what a coordination needs: whoever its agents belong to."""
    return Actor(
        coordination.owner,
        Role.OPERATOR,
        "coordination",
        f"coordination {coordination.coordination_id}",
    )


def _result(coordination: Coordination) -> JsonValue:
    """Give what came of it. Raises: CoordinationFailed."""
    if coordination.state is CoordinationState.FAILED:
        raise errors.CoordinationFailed(
            coordination.reason,
            hint=f"coordination_get {coordination.coordination_id} shows its steps",
        )
    return coordination.model_dump(mode="json")
