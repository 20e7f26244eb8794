"""One agent that lives: what is said to it is heard in order, one message after the other.

Everything is written down before it is done, so a daemon that comes up again goes on in the middle
of a turn. Whatever fails is the answer to the message that met it; the agent stays, and hears the
next. Above are the agents of this host; below, one turn and the machine.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors, log
from microvm_orchestrator.conversations.home import (
    acting,
    close_home,
    find_home,
    forget_origin,
    open_home,
)
from microvm_orchestrator.conversations.turn import limits_of, take_turn
from microvm_orchestrator.model.agent import (
    OVER,
    Agent,
    AgentBudget,
    AgentState,
    Message,
    MessageState,
)
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.model.task import TaskError
from microvm_orchestrator.model.values import MAX_TEXT, moment
from microvm_orchestrator.together import beside

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import JsonValue

    from microvm_orchestrator.conversations.ground import AgentGround
    from microvm_orchestrator.lifecycle.egress import WayOut
    from microvm_orchestrator.machine.base import Machine as RunningMachine

_log = log.get(__name__)

# As many may wait to be heard.
QUEUE_MOST = 1000
_REASON = 1000
# The store says no more now; soon it may.
_AGAIN_S = 1.0
# Claude Code takes the first, at some moments, for a request that failed, and makes it again.
_BREAKS_OFF = (signal.SIGINT, signal.SIGINT, signal.SIGINT, signal.SIGKILL)
_HEEDS_S = 5.0


class Conversation:
    """An agent, for as long as this daemon lets it live."""

    def __init__(self, agent: Agent, ground: AgentGround, unsettled: Iterable[Message]) -> None:
        self.agent = agent
        # What it says while it hears a message.
        self.saying = ""
        self._ground = ground
        self._queue = deque(unsettled)
        self._machine: RunningMachine | None = None
        # Whether its machine is to be stopped once it is idle.
        self._to_suspend = False
        self._news = anyio.Event()
        # Held while it is in a turn, or its machine is saved or stopped.
        self._quiet = anyio.Lock()
        self._way_out: WayOut | None = None
        # One at a time reads and writes the record.
        self._writing = anyio.Lock()

    # What callers do

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def hears(self, message: Message) -> None:
        """Have a message heard that is written down."""
        self._queue.append(message)
        self._wake()

    def suspend(self) -> None:
        """Have its machine stopped as soon as it is idle."""
        self._to_suspend = True
        self._wake()

    async def interrupt(self) -> bool:
        """Break off the turn that it is in, if it is in one; what was said before it keeps."""
        message = self._heard
        if message is None or message.exec_id is None:
            return False
        with suppress(errors.NotFound, errors.StateForbids):
            job = self._ground.execs.find(message.exec_id, acting(self.agent))
            for number in _BREAKS_OFF:
                await (await job.running()).signal(number)
                with anyio.move_on_after(_HEEDS_S):
                    await job.ended.wait()
                    return True
        return self._heard is not message

    async def until(self, *states: AgentState) -> Agent:
        """Wait until it stands so."""
        while self.agent.state not in states:
            await self._news.wait()
        return self.agent

    async def awake(self) -> RunningMachine:
        """Have its machine run as for a message, also in the middle of a turn, and give it.

        Raises: StateForbids for one that is over; what machines raise.
        """
        await self.until(AgentState.IDLE, AgentState.BUSY, AgentState.SUSPENDED, *OVER)
        while self._machine is None:
            if self.agent.over:
                raise errors.StateForbids(f"agent {self.agent.name} is {self.agent.state}")
            news = self._news
            try:
                self._quiet.acquire_nowait()
            except anyio.WouldBlock:
                await news.wait()
                continue
            try:
                self._machine = await open_home(self.agent, self._ground)
            finally:
                self._quiet.release()
            await self.stand(AgentState.IDLE)
        return self._machine

    async def save(self, snapshot_id: str) -> None:
        """Save its machine as it is between two turns.

        Raises: StateForbids for one that is suspended; what machines raise.
        """
        async with self._quiet:
            await self._ground.snapshots.save(
                self.agent.machine_id, acting(self.agent), snapshot_id=snapshot_id
            )

    async def allow(self, budget: AgentBudget) -> Agent:
        """Give it another budget, from now on."""
        await self.stand(self.agent.state, self.agent.reason, budget=budget)
        if self._way_out is not None:
            self._way_out.egress.set_budget(limits_of(budget))
        return self.agent

    def _wake(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    @property
    def _heard(self) -> Message | None:
        """The message that is heard now."""
        first = self._queue[0] if self._queue else None
        return first if first and first.state is MessageState.DELIVERED else None

    # Its life

    async def live(self) -> None:
        """Hear what is said to it until this is cancelled."""
        while True:
            try:
                await self._live()
            except errors.Unavailable as error:
                _log.warning("agent_held_up", agent=self.agent.agent_id, reason=error.message)
                await anyio.sleep(_AGAIN_S)

    async def _live(self) -> None:
        if self.agent.state is AgentState.STARTING:
            if not await self._begin():
                return
        else:
            await self._look_home()
        while True:
            news = self._news
            if self._queue:
                async with self._quiet:
                    await self._hear(self._queue[0])
                self._queue.popleft()
                self._wake()
            elif self._to_suspend:
                async with self._quiet:
                    await close_home(self.agent, self._ground)
                self._machine, self._to_suspend = None, False
                await self.stand(AgentState.SUSPENDED)
            else:
                await self._rest(news)

    async def _begin(self) -> bool:
        try:
            self._machine = await open_home(self.agent, self._ground)
        except errors.OrchestratorError as error:
            await forget_origin(self.agent, self._ground)
            await self.stand(AgentState.FAILED, error.message)
            return False
        await forget_origin(self.agent, self._ground)
        await self.stand(AgentState.IDLE, snapshot_id=None)
        return True

    async def _look_home(self) -> None:
        """Find its machine as an earlier daemon left it."""
        self._machine = await find_home(self.agent, self._ground)
        if self._machine is None and self.agent.state is not AgentState.SUSPENDED:
            await self.stand(AgentState.SUSPENDED, "its machine had ended when the daemon came up")

    async def _rest(self, news: anyio.Event) -> None:
        """Wait for something to do; a machine that ends meanwhile is noticed."""
        if self._machine is None:
            await news.wait()
            return
        async with beside(partial(self._watch, self._machine)):
            await news.wait()

    async def _watch(self, machine: RunningMachine) -> None:
        change = await machine.wait()
        self._machine = None
        await self.stand(
            AgentState.SUSPENDED, f"its machine is {change.state}: {change.reason}".rstrip(": ")
        )

    async def _hear(self, message: Message) -> None:
        try:
            if self._machine is None:
                self._machine = await open_home(self.agent, self._ground)
            if message.state is MessageState.QUEUED:
                message = await self._deliver(message)
            await self.stand(AgentState.BUSY)
            turn = await take_turn(self.agent, message, self._machine, self._ground, self)
        except errors.OrchestratorError as error:
            await self._settle(message, MessageState.FAILED, error=TaskError.of(error))
            if self._machine is None or self._machine.state.ended:
                self._machine = None
                await self.stand(AgentState.SUSPENDED, error.message)
            else:
                await self.stand(AgentState.IDLE)
            return
        finally:
            self.saying, self._way_out = "", None
        result = turn.result
        await self.stand(
            AgentState.IDLE,
            usage=turn.usage,
            # One that failed may have no session that can be gone on with.
            session_id=(result.session_id if result.success else None) or self.agent.session_id,
        )
        if result.success:
            await self._settle(message, MessageState.ANSWERED, answer=result.summary[:MAX_TEXT])
        else:
            code, _, why = (result.error or "").partition(": ")
            error = TaskError(code=code or "agent-failed", message=why or "it did not say why")
            await self._settle(
                message, MessageState.FAILED, answer=result.summary[:MAX_TEXT] or None, error=error
            )

    # What a turn tells

    def says(self, said: str) -> None:
        self.saying = said

    def goes_by(self, way_out: WayOut) -> None:
        """Have its budget changed there too while it is in a turn."""
        self._way_out = way_out

    # What is written down

    async def _deliver(self, message: Message) -> Message:
        message = message.model_copy(
            update={
                "state": MessageState.DELIVERED,
                "exec_id": new_id("x"),
                "began_at": moment(time.time()),
            }
        )
        await self._ground.records.save_message(message, SYSTEM, "delivered")
        self._queue[0] = message
        return message

    async def _settle(self, message: Message, state: MessageState, **known: object) -> None:
        update = {"state": state, "ended_at": moment(time.time()), **known}
        with anyio.CancelScope(shield=True):
            await self._ground.records.save_message(
                message.model_copy(update=update), SYSTEM, f"{state}"
            )

    async def stand(self, state: AgentState, reason: str = "", **known: object) -> None:
        """Write down how it stands, where that is new."""
        async with self._writing:
            agent = self.agent.model_copy(
                update={"state": state, "reason": reason[:_REASON], **known}
            )
            if agent == self.agent:
                return
            told: dict[str, JsonValue] = {"reason": agent.reason} if agent.reason else {}
            with anyio.CancelScope(shield=True):
                await self._ground.records.save(agent, SYSTEM, f"{state}", told)
            self.agent = agent
        self._wake()
