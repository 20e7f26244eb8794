"""How a message is settled, and how its answer comes to the agent who said it.

Above are the life of an agent and the agents of this host; below, what a message is.
"""

from __future__ import annotations

import time

from microvm_orchestrator.model.agent import Agent, Message, MessageState
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.values import MAX_TEXT, moment

# Of what was said, as much as tells which it was.
_REMINDER = 200


def answered(message: Message, answer: str, by: str | None) -> Message:
    """Give a message its answer while its turn goes on; that stays the answer."""
    return message.model_copy(
        update={
            "answer": answer,
            "answered_by": by,
            "replied_at": moment(time.time()),
            "told_back": _told_back(message),
        }
    )


def settled(message: Message, state: MessageState, **known: object) -> Message:
    """Have a message be over; an answer that it was given before stays."""
    if message.answer is not None:
        known.pop("answer", None)
    now = moment(time.time())
    update = {
        "state": state,
        "replied_at": message.replied_at or now,
        "ended_at": now,
        "told_back": _told_back(message),
        **known,
    }
    return message.model_copy(update=update)


def _told_back(message: Message) -> str | None:
    """The id under which the answer is said: written down with it, so it is said once."""
    if not message.tell_back:
        return None
    return message.told_back or f"{message.sender}.{new_id('msg')}"


def telling_back(answered: Message, by: str, hearer: Agent) -> Message:
    """Give the message by which an agent hears an answer."""
    return Message(
        message_id=answered.told_back or "",
        agent_id=hearer.agent_id,
        owner=hearer.owner,
        sender=answered.agent_id,
        sender_agent=by,
        text=_words_back(answered)[:MAX_TEXT],
        state=MessageState.QUEUED,
        created_at=moment(time.time()),
    )


def _words_back(message: Message) -> str:
    """What the agent who said something hears of it."""
    said = message.text if len(message.text) <= _REMINDER else f"{message.text[:_REMINDER]}..."
    if message.answer is not None:
        return f"You said: {said}\n\nThe answer:\n\n{message.answer}"
    return f"You said: {said}\n\nThere is no answer: {message.state}, {message.failure}"
