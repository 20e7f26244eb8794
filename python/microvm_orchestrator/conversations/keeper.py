"""Sees that agents keep to their budgets while they work: it warns, breaks turns off, ends agents.

That nothing goes out to a model beyond a limit is seen to where requests pass, and that no turn
begins, where it would. One task of a daemon; above are the agents of this host; below, the
accounts.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Protocol

import anyio

from microvm_orchestrator import errors, log
from microvm_orchestrator.conversations.conversation import USED_UP
from microvm_orchestrator.model.agent_budget import AgentMeasure, AtLimit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyio.abc import TaskGroup

    from microvm_orchestrator.conversations.accounts import Accounts
    from microvm_orchestrator.conversations.conversation import Conversation

_log = log.get(__name__)
_Deed = Callable[[], Coroutine[None, None, None]]

# Between two looks at a clock while somebody is in a turn that may not take for ever: others may
# take of the same budget meanwhile.
_LOOK_LEAST_S = 0.1
_LOOK_MOST_S = 5.0
# A store that said no may say yes by then.
_AGAIN_S = 1.0


class Kept(Protocol):
    """The agents of a host."""

    def conversations(self) -> Sequence[Conversation]:
        """Give those who live."""
        ...

    async def retire(self, agent_id: str, reason: str) -> None:
        """End an agent with all below it."""
        ...


class Keeper:
    """The one who looks."""

    def __init__(self, kept: Kept, accounts: Accounts) -> None:
        self._kept = kept
        self._accounts = accounts
        # Agents that are being broken off or ended.
        self._at_work: set[str] = set()

    async def keep(self) -> None:
        """Look whenever something may have been reached, until this is cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                news = self._accounts.news
                try:
                    await self._look(tasks)
                except errors.OrchestratorError as error:
                    _log.warning("budgets_not_kept", reason=error.message)
                    await anyio.sleep(_AGAIN_S)
                    continue
                with anyio.move_on_after(self._until_next_look()):
                    await news.wait()

    async def _look(self, tasks: TaskGroup) -> None:
        for each in self._kept.conversations():
            agent_id = each.agent.agent_id
            if each.agent.over:
                # It may have been deleted while another was warned.
                continue
            for warning in self._accounts.warnings(agent_id):
                await each.standing.warn(warning)
            if each.agent.over:
                continue
            if each.waiting and self._accounts.reached(agent_id) is None:
                # It may rest, for another took the last turn and did not begin it after all.
                each.wake()
            todo = self._to_do(each)
            if todo is not None and agent_id not in self._at_work:
                self._at_work.add(agent_id)
                tasks.start_soon(self._do, agent_id, todo)

    def _to_do(self, conversation: Conversation) -> _Deed | None:
        agent_id = conversation.agent.agent_id
        hearing = set(self._accounts.in_message())
        for own in self._accounts.own_reached(agent_id):
            # Turns that go on are let end, with what they came to written down: they meet the limit
            # themselves.
            below = set(self._accounts.below(agent_id)) if own.tree else {agent_id}
            if own.at_limit is AtLimit.END and not below & hearing:
                return partial(self._kept.retire, agent_id, own.seen_by(agent_id))
        found = self._accounts.reached(agent_id, (AgentMeasure.WALL_S,))
        if found is not None and agent_id in self._accounts.in_turn():
            return partial(conversation.break_off, found.seen_by(agent_id), USED_UP)
        return None

    async def _do(self, agent_id: str, deed: _Deed) -> None:
        try:
            await deed()
        except errors.OrchestratorError as error:
            _log.warning("budget_not_kept", agent=agent_id, reason=error.message)
        except Exception as error:  # noqa: BLE001 - a bug, or a full disk, must not end the others
            _log.error("budget_not_kept", agent=agent_id, exc_info=error)
        finally:
            self._at_work.discard(agent_id)

    def _until_next_look(self) -> float | None:
        working = self._accounts.in_turn()
        left = [each for each in map(self._accounts.wall_left_s, working) if each is not None]
        if not left:
            return None
        # All of them may take of the same.
        return min(_LOOK_MOST_S, max(_LOOK_LEAST_S, min(left) / len(working)))
