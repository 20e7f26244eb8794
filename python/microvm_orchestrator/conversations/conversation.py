"""One agent that lives: what is said to it is heard in order, one message after the other.

Everything is written down before it is done, so a daemon that comes up again goes on in the middle
of a turn. Whatever fails is the answer to the message that met it; the agent stays, and hears the
next. Above are the agents of this host; below, one turn and the machine.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors, log
from microvm_orchestrator.agents.drivers.base import Cause
from microvm_orchestrator.conversations.answers import answered, settled
from microvm_orchestrator.conversations.claims import keep
from microvm_orchestrator.conversations.fit import look_for_program
from microvm_orchestrator.conversations.home import (
    acting,
    close_home,
    find_home,
    forget_origin,
    halt_home,
    open_home,
)
from microvm_orchestrator.conversations.room import Room
from microvm_orchestrator.conversations.standing import Standing
from microvm_orchestrator.conversations.turn import take_turn, used_by
from microvm_orchestrator.conversations.workplace import Workplace, begun
from microvm_orchestrator.model.agent import OVER, Agent, AgentState, Message, MessageState
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.records import SYSTEM, Actor
from microvm_orchestrator.model.task import TaskError
from microvm_orchestrator.model.values import MAX_TEXT, moment
from microvm_orchestrator.together import beside

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from microvm_orchestrator.conversations.accounts import Reached
    from microvm_orchestrator.conversations.ground import AgentGround
    from microvm_orchestrator.lifecycle.egress import WayOut
    from microvm_orchestrator.machine.base import Machine as RunningMachine
    from microvm_orchestrator.model.agent_work import Brought
    from microvm_orchestrator.model.run import Merge, Result, Usage

_log = log.get(__name__)

# The code of a message's error whose turn met a limit.
USED_UP = "budget-exhausted"
# The store says no more now; soon it may.
_AGAIN_S = 1.0
# Claude Code takes the first, at some moments, for a request that failed, and makes it again.
_BREAKS_OFF = (signal.SIGINT, signal.SIGINT, signal.SIGINT, signal.SIGKILL)
_HEEDS_S = 5.0
# For a turn that is broken off to start its program.
_BEGINS_S = 10.0
# For who starts its machine, or saves it, to be done with that, before it ends.
_STILL_S = 30.0


class Conversation:
    """An agent, for as long as this daemon lets it live."""

    def __init__(
        self,
        agent: Agent,
        ground: AgentGround,
        unsettled: Iterable[Message],
        tell_back: Callable[[Message], Awaitable[None]],
    ) -> None:
        self.standing = Standing(agent, ground.records, self.wake)
        # What it says while it hears a message.
        self.saying = ""
        self._ground = ground
        self._queue = deque(unsettled)
        self.room = Room(agent.name, self._queue)
        # Has the agent who said something hear the answer, if that was asked for.
        self._tell_back = tell_back
        # Held while a message is given its answer.
        self._telling = anyio.Lock()
        self._machine: RunningMachine | None = None
        # The message that comes next, when it is to be heard no more.
        self._withdrawn: str | None = None
        # Whether its machine is to be stopped once it is idle.
        self._to_suspend = False
        # Set when there may be something new of it, and then another.
        self.news = anyio.Event()
        # Why it has not ended although it is ephemeral and done.
        self._stays = ""
        # Held while it is in a turn, or its machine is saved or stopped.
        self._quiet = anyio.Lock()
        self._accounts = ground.records.accounts
        # Set when the program of its turn has been started, or never will be.
        self._begun = anyio.Event()
        # Why its turn was broken off, where nobody asked for it.
        self._broken_off: TaskError | None = None
        # The last message that somebody had broken off.
        self._interrupted: str | None = None
        self.workplace = agent.work and Workplace(self.standing, ground.repos, ground.runs)

    # What callers do

    @property
    def agent(self) -> Agent:
        return self.standing.agent

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def owes(self, agent_id: str) -> bool:
        """Whether an agent is to hear the answer to something that it said to this one."""
        return any(each.tell_back and each.sender == agent_id for each in self._queue)

    def stays(self, why: str) -> None:
        """Have it said why it has not ended, until it hears something again."""
        self._stays = why
        self.wake()

    def hears(self, message: Message) -> None:
        """Have a message heard that is written down."""
        self._queue.append(message)
        self.wake()

    async def reply(self, message_id: str | None, text: str, by: Actor) -> Message:
        """Answer a message that is heard now before its turn is over, or one that waits.

        Without an id it is the one that is heard now. Raises: StateForbids if it has its answer.
        """
        async with self._telling:
            message = next((each for each in self._queue if _is_meant(each, message_id)), None)
            if message is None or message.replied:
                what = "it hears nothing now" if message_id is None else "it has its answer"
                raise errors.StateForbids(
                    f"there is nothing to answer for agent {self.agent.name}: "
                    + ("it has answered already" if message is not None else what)
                )
            told = answered(message, text, None if message_id is None else by.name)
            if not self._on_its_way(message):
                told = settled(told, MessageState.ANSWERED)
            with anyio.CancelScope(shield=True):
                await self._ground.records.save_message(told, by, "replied", audited=True)
            if told.settled:
                self._queue.remove(message)
            else:
                self._queue[0] = told
        await self._tell_back(told)
        return told

    def suspend(self) -> None:
        """Have its machine stopped as soon as it is idle."""
        self._to_suspend = True
        self.wake()

    async def interrupt(self) -> bool:
        """Break off the turn that it is in, if it is in one; what was said before it keeps."""
        message = self._heard
        if message is None or message.exec_id is None:
            return False
        with anyio.move_on_after(_BEGINS_S):
            await self._begun.wait()
        with suppress(errors.NotFound, errors.StateForbids):
            job = self._ground.execs.find(message.exec_id, acting(self.agent))
            for number in _BREAKS_OFF:
                await (await job.running()).signal(number)
                self._interrupted = message.message_id
                with anyio.move_on_after(_HEEDS_S):
                    await job.ended.wait()
                    return True
        return self._heard is not message

    async def withdraw(self, message_id: str) -> None:
        """Have a message heard no more; a turn in which it is heard is broken off."""
        found = next((each for each in self._queue if each.message_id == message_id), None)
        if found is None:
            return
        if self._on_its_way(found):
            self._withdrawn = message_id
            await self.interrupt()
        else:
            self._queue.remove(found)
            await self._settle(MessageState.CANCELLED, found)

    def _on_its_way(self, message: Message) -> bool:
        """Whether a message that waited will be heard now, or is heard."""
        return message is self._queue[0] and self._quiet.locked()

    async def end(self, why: str, by: Actor) -> Agent:
        """Write down that it is over, when nobody starts its machine; from then on nobody does."""
        async with self._still():
            usage, turns = await self.taken()
            return await self.standing.end(why, by, usage=usage, turns=turns)

    @asynccontextmanager
    async def _still(self) -> AsyncGenerator[None]:
        """Have nobody start, save or stop its machine meanwhile; it is not waited for for ever."""
        with anyio.move_on_after(_STILL_S) as patience:
            await self._quiet.acquire()
        try:
            yield
        finally:
            if not patience.cancelled_caught:
                self._quiet.release()

    @asynccontextmanager
    async def _quietly(self) -> AsyncGenerator[None]:
        """Have it in no other turn meanwhile; whoever waits for its machine looks again then."""
        try:
            async with self._quiet:
                yield
        finally:
            self.wake()

    async def until(self, *states: AgentState) -> Agent:
        """Wait until it stands so."""
        while self.agent.state not in states:
            await self.news.wait()
        return self.agent

    async def up(self) -> Agent:
        """Wait until it has come up, or never will."""
        return await self.until(AgentState.IDLE, AgentState.BUSY, AgentState.SUSPENDED, *OVER)

    async def awake(self) -> RunningMachine:
        """Have its machine run as for a message, also in the middle of a turn, and give it.

        Raises: StateForbids for one that is over; what machines raise.
        """
        await self.up()
        while self._machine is None:
            news = self.news
            try:
                self._quiet.acquire_nowait()
            except anyio.WouldBlock:
                await news.wait()
                continue
            try:
                await self._at_home()
                # Before it can begin a turn, or end.
                await self.standing.change(AgentState.IDLE)
            finally:
                self._quiet.release()
        return self._machine

    async def save(self, snapshot_id: str) -> None:
        """Save its machine as it is between two turns.

        Raises: StateForbids for one that is suspended, or over by then; what machines raise.
        """
        await self.up()
        async with self._quietly():
            self._refuse_over()
            await self._ground.snapshots.save(
                self.agent.machine_id, acting(self.agent), snapshot_id=snapshot_id
            )

    async def collect(self, policy: Merge | None = None, *, last: bool = False) -> Brought:
        """Bring home what it did by now between two turns, and merge it.

        At the `last` time what it has not committed is kept as well; its machine is started if it
        has to be looked at. Raises: StateForbids for one that works on no repository; what keeps
        its commits from coming.
        """
        place = self.workplace
        if place is None:
            raise errors.StateForbids(f"agent {self.agent.name} works on no repository")
        await self.up()
        async with self._quietly():
            machine = self._machine
            if machine is None and not place.is_all_here:
                machine = await self._at_home()
                await self.standing.change(AgentState.IDLE)
            since = place.work.head or place.work.base
            await place.collect(machine, policy)
            if last:
                await place.keep_rest(machine)
            if machine is not None:
                await self.standing.keep("looked", {}, **place.seen())
            return await place.brought(since)

    async def look(self) -> None:
        """Take in what it has committed by now, though it be in the middle of a turn."""
        if self.workplace is not None and self._machine is not None:
            await self.workplace.look(self._machine)

    async def break_off(self, why: str, code: str = Cause.INTERRUPTED) -> None:
        """Break off the turn that it is in, which then fails with this."""
        limit = used_up(why) if code == USED_UP else None
        self._broken_off = limit or TaskError(code=code, message=why)
        await self.interrupt()

    def wake(self) -> None:
        """Have it look again what is to be done."""
        self.news.set()
        self.news = anyio.Event()

    @property
    def _heard(self) -> Message | None:
        """The message that is heard now."""
        first = self._queue[0] if self._queue else None
        return first if first and first.state is MessageState.DELIVERED else None

    # Its life

    async def live(self) -> None:
        """Hear what is said to it until this is cancelled; return if it never came up."""
        while not self.agent.over:
            try:
                await self._live()
            except errors.OrchestratorError as error:
                # A machine that others stop at the same time is no reason for anybody to end.
                _log.warning("agent_held_up", agent=self.agent.agent_id, reason=error.message)
                await anyio.sleep(_AGAIN_S)
            except Exception as error:  # noqa: BLE001 - a bug, or a full disk, must not end the others
                _log.error("agent_crashed", agent=self.agent.agent_id, exc_info=error)
                await anyio.sleep(_AGAIN_S)

    async def _live(self) -> None:
        if self.agent.state is AgentState.STARTING:
            if not await self._begin():
                return
        else:
            await self._look_home()
        while True:
            news = self.news
            limit = await self._limit()
            first = self._queue[0] if self._queue else None
            # One that it has begun to hear it hears to the end.
            if first and (limit is None or first.state is MessageState.DELIVERED):
                async with self._quietly():
                    if self._is_kept_from(first):
                        # Others may have begun since it looked, with what was left for all.
                        continue
                    if not first.settled:
                        # It counts as a turn before anything is awaited.
                        with self._accounts.hearing(self.agent.agent_id):
                            await self._hear(first)
                    else:
                        # Only what follows its end could not be written down; said once at most.
                        await self._tell_back(first)
                self._queue.popleft()
                self.wake()
            elif self._to_suspend:
                async with self._quietly():
                    await close_home(self.agent, self._ground)
                self._machine, self._to_suspend = None, False
                await self.standing.change(AgentState.SUSPENDED)
            else:
                await self._rest(news)

    async def _begin(self) -> bool:
        try:
            if self.workplace is not None:
                await self.workplace.settle()
            self._machine = await open_home(self.agent, self._ground)
            if self.agent.snapshot_id is None:
                image = await self._ground.image(self.agent.home.image)
                await look_for_program(self.agent.character, image, self._machine)
            if self.workplace is not None:
                await self.workplace.lay_out(self._machine)
        except errors.OrchestratorError as error:
            await forget_origin(self.agent, self._ground)
            # Before that is written down: from then on nobody looks after its machine.
            await halt_home(self.agent, self._ground)
            self._machine = None
            await self.standing.change(AgentState.FAILED, error.message)
            return False
        await forget_origin(self.agent, self._ground)
        await self.standing.change(AgentState.IDLE, snapshot_id=None)
        return True

    async def _look_home(self) -> None:
        """Find its machine as an earlier daemon left it."""
        if self.workplace is not None:
            await self.workplace.put_check_away()
        self._machine = await find_home(self.agent, self._ground)
        if self._machine is None and self.agent.state is not AgentState.SUSPENDED:
            await self.standing.change(
                AgentState.SUSPENDED, "its machine had ended when the daemon came up"
            )

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
        await self.standing.change(
            AgentState.SUSPENDED, f"its machine is {change.state}: {change.reason}".rstrip(": ")
        )

    async def _limit(self) -> Reached | None:
        """Tell which limit keeps it from hearing more, and stand so."""
        found = self._accounts.reached(self.agent.agent_id)
        reason = self._stays if found is None else found.seen_by(self.agent.agent_id)
        held = bool(reason and (self._queue or self._stays))
        if self.agent.state is AgentState.IDLE or (
            held and self.agent.state is AgentState.SUSPENDED
        ):
            await self.standing.change(self.agent.state, reason)
        return found

    def _is_kept_from(self, message: Message) -> bool:
        """Whether a limit keeps it from beginning to hear a message at this moment."""
        begins = message.state is MessageState.QUEUED and message.message_id != self._withdrawn
        return begins and self._accounts.reached(self.agent.agent_id) is not None

    async def _hear(self, message: Message) -> None:
        self._broken_off, self._stays, self._begun = None, "", anyio.Event()
        try:
            message, result = await self._turn(message)
        except errors.OrchestratorError as error:
            await self._failed(error)
        except Exception as error:  # noqa: BLE001 - a bug, or a full disk, must not end the others
            _log.error("turn_crashed", agent=self.agent.agent_id, exc_info=error)
            await self._failed(errors.MachineFailed("it failed in the daemon; see its log"))
        else:
            await self._heard_out(message, result)
        finally:
            self.saying = ""
            self._begun.set()

    async def _turn(self, message: Message) -> tuple[Message, Result]:
        """Take the turn in which a message is heard."""
        try:
            message, machine = await self._ready(message)
            async with self._keeping():
                result = await take_turn(self.agent, message, machine, self._ground, self)
                if (result.error or "").startswith(f"{Cause.SESSION_UNKNOWN}:"):
                    # Its program was broken off before it had written down what was said.
                    await self.standing.change(AgentState.BUSY, session_id=None)
                    output = anyio.Path(self._ground.output(message.message_id))
                    await output.unlink(missing_ok=True)
                    message = await self._deliver()
                    result = await take_turn(self.agent, message, machine, self._ground, self)
        finally:
            self._accounts.turn_over(self.agent.agent_id)
        return message, result

    async def _ready(self, message: Message) -> tuple[Message, RunningMachine]:
        """Begin to hear a message, or go on with it."""
        if message.state is MessageState.QUEUED:
            with self._accounts.place(self.agent.agent_id):
                machine = await self._at_home()
                if message.message_id == self._withdrawn:
                    raise errors.StateForbids("it is to be heard no more")
                message = await self._deliver()
        else:
            machine = await self._at_home()
        if message.began_at is not None:
            self._accounts.turn_began(self.agent.agent_id, message.began_at.timestamp())
        await self.standing.change(AgentState.BUSY, of_work=begun(self.agent, message.message_id))
        return message, machine

    async def _at_home(self) -> RunningMachine:
        """Raises: StateForbids for one that ended meanwhile; what machines raise."""
        self._refuse_over()
        if self._machine is None:
            self._machine = await open_home(self.agent, self._ground)
        return self._machine

    def _refuse_over(self) -> None:
        if self.agent.over:
            raise errors.StateForbids(f"agent {self.agent.name} is {self.agent.state}")

    async def _failed(self, error: errors.OrchestratorError) -> None:
        usage, turns = await self.taken()
        brought = await self._bring(self._queue[0], success=False)
        if self._machine is None or self._machine.state.ended:
            self._machine = None
            await self.standing.change(
                AgentState.SUSPENDED, error.message, usage=usage, turns=turns
            )
        else:
            await self.standing.change(AgentState.IDLE, usage=usage, turns=turns)
        told = TaskError.of(error)
        await self._settle(MessageState.FAILED, error=told, brought=brought)

    async def _heard_out(self, message: Message, result: Result) -> None:
        usage, turns = await self.taken()
        brought = await self._bring(message, success=result.success)
        await self.standing.change(
            AgentState.IDLE,
            usage=usage,
            turns=turns,
            # What the program told is on its disk, also of a turn that failed or was broken off.
            session_id=result.session_id or self.agent.session_id,
        )
        if result.success:
            answer = result.summary[:MAX_TEXT]
            await self._settle(MessageState.ANSWERED, answer=answer, brought=brought)
        else:
            await self._settle(
                MessageState.FAILED,
                answer=result.summary[:MAX_TEXT] or None,
                error=self._why(message, result),
                brought=brought,
            )

    @asynccontextmanager
    async def _keeping(self) -> AsyncGenerator[None]:
        """Keep the tasks that it holds for as long as it is in a turn."""
        if self.agent.works is None:
            yield
            return
        async with beside(partial(keep, self.agent, self._ground.records.store)):
            yield

    async def _bring(self, message: Message, *, success: bool) -> Brought | None:
        """Bring home what it committed in a turn; what keeps that from coming fails no turn."""
        if self.workplace is None:
            return None
        brought = await self.workplace.after_turn(
            self._machine, message.message_id, success=success
        )
        if brought.error is None:
            await self.standing.keep("looked", {}, **self.workplace.seen())
        return brought

    def _why(self, message: Message, result: Result) -> TaskError:
        """Say why a turn has failed; its program does not know of every limit."""
        code, _, why = (result.error or "").partition(": ")
        if self._broken_off is not None:
            return self._broken_off
        limit = self._accounts.of_models(self.agent.agent_id)
        if code == Cause.MODEL_PAYMENT_REQUIRED and limit is not None:
            return used_up(str(limit))
        if self._interrupted == message.message_id:
            # Not every program says so.
            code = Cause.INTERRUPTED
        return TaskError(code=code or "agent-failed", message=why or "it did not say why")

    async def taken(self) -> tuple[Usage, int]:
        """Tell what it has used by now, and how many messages it has heard."""
        taken = self._accounts.taken(self.agent.agent_id)
        usage = await used_by(self.agent, self._ground)
        return usage.model_copy(update={"wall_s": taken.wall_s}), taken.turns

    # What a turn tells

    def begun(self) -> None:
        self._begun.set()

    def says(self, said: str) -> None:
        self.saying = said
        self._accounts.sign(self.agent.agent_id)

    def goes_by(self, way_out: WayOut) -> None:
        """Have counted what it takes there."""
        self._accounts.metered(self.agent.agent_id, way_out.usage)

    # What is written down

    async def _deliver(self) -> Message:
        async with self._telling:
            update = {
                "state": MessageState.DELIVERED,
                "exec_id": new_id("x"),
                "began_at": moment(time.time()),
            }
            message = self._queue[0].model_copy(update=update)
            await self._ground.records.save_message(message, SYSTEM, "delivered")
            self._queue[0] = message
        return message

    async def _settle(
        self, state: MessageState, waited: Message | None = None, **known: object
    ) -> None:
        """Write down what came of the message that was heard, or of one that waits no more."""
        async with self._telling:
            told = settled(waited or self._queue[0], state, **known)
            with anyio.CancelScope(shield=True):
                await self._ground.records.save_message(told, SYSTEM, f"{state}")
            if waited is None:
                self._queue[0] = told
        await self._tell_back(told)


def used_up(limit: str) -> TaskError:
    """Why a turn failed that met a limit."""
    return TaskError(code=USED_UP, message=limit, detail="agent_budget gives an agent more")


def _is_meant(message: Message, message_id: str | None) -> bool:
    if message_id is None:
        return message.state is MessageState.DELIVERED
    return message.message_id == message_id
