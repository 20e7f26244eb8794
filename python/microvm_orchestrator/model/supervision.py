"""What is seen of agents that do not get on, and what is done about it, as callers read it."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from microvm_orchestrator.model.values import Line, Moment


class Supervise(StrEnum):
    """What is done about an agent that does not get on."""

    OFF = "off"
    # Events tell of it, and nothing is done.
    WATCH = "watch"
    ACT = "act"


class Sight(StrEnum):
    """What is seen of an agent."""

    # Its machine ended, and nobody asked for that.
    DEAD = "dead"
    # In a turn, without a word and without a request to a model.
    STUCK = "stuck"
    # It would have waited for somebody who waits for it.
    DEADLOCK = "deadlock"
    # Its last messages failed with the same error.
    LOOPING = "looping"
    # Its last answer asks for something, and nobody says anything.
    WAITING = "waiting"
    # Nothing was said to it for long.
    IDLE = "idle"


class Deed(StrEnum):
    """What was done about it."""

    NONE = "none"
    STATUS_CHECK = "status_check"
    GUIDANCE = "guidance"
    HELPER = "helper"
    INTERRUPT = "interrupt"
    ESCALATE = "escalate"
    END = "end"
    # Its call was refused that would have waited for ever.
    REFUSED = "refused"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Seen(_Part):
    """Something that is seen of an agent at this moment."""

    sight: Sight
    since: Moment
    what: Line


class Observation(_Part):
    """Something that was seen of an agent, and what was done about it."""

    at: Moment
    sight: Sight
    what: Line
    deed: Deed = Deed.NONE
    error: Line | None = Field(default=None, description="why it could not be done")
