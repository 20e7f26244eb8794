"""Answers of agents that are to have a form: a vote, a plan.

They come from guests. So each is bounded, is read strictly, and says in one sentence what is wrong
with it, for the agent to hear. Pure; above are the kinds of coordination.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from microvm_orchestrator import errors
from microvm_orchestrator.model.coordination import (
    PARTICIPANTS_MOST,
    Choice,
    Subtask,
    Vote,
)
from microvm_orchestrator.model.values import check_json

# More than any vote has, and a plan for as many as there may be that says what is to be done.
VOTE_MOST = 16_384
PLAN_MOST = 131_072

_FENCE, _OPENED = "```", {"```", "```json"}
_TOLD = 300

M = TypeVar("M", bound=BaseModel)


class _Plan(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: list[Subtask] = Field(min_length=1, max_length=PARTICIPANTS_MOST)


def read_vote(answer: str) -> Vote:
    """Read the vote in an answer. Raises: InvalidInput."""
    vote = _read(answer, Vote, VOTE_MOST)
    if vote.vote is Choice.DISAGREE and not vote.reason.strip():
        raise errors.InvalidInput("a vote that disagrees says its reason")
    return vote


def read_plan(answer: str, names: Sequence[str]) -> list[Subtask]:
    """Read the plan in an answer, for agents of these names. Raises: InvalidInput."""
    parts = _read(answer, _Plan, PLAN_MOST).parts
    given: set[str] = set()
    for part in parts:
        if part.agent not in names:
            raise errors.InvalidInput(
                f"no {part.agent[:64]!r} takes part; there are {', '.join(names)}"
            )
        if part.agent in given:
            raise errors.InvalidInput(f"{part.agent} has more than one part")
        given.add(part.agent)
    return parts


def _read(answer: str, model: type[M], most: int) -> M:
    text = _block(answer)
    if len(text) > most:
        raise errors.InvalidInput(f"the JSON has more than {most} characters")
    try:
        value = json.loads(text, object_pairs_hook=_unique)
        return model.model_validate_json(json.dumps(check_json(value)), strict=True)
    except ValidationError as error:
        [first, *_] = error.errors(include_url=False, include_context=False, include_input=False)
        where = ".".join(str(step)[:80] for step in first["loc"]) or "it"
        raise errors.InvalidInput(f"{where}: {first['msg']}"[:_TOLD]) from None
    except (ValueError, RecursionError) as error:
        raise errors.InvalidInput(f"the JSON cannot be read: {error}"[:_TOLD]) from None


def _block(answer: str) -> str:
    """Give the JSON of an answer: all of it, or what its last fence holds."""
    whole = answer.strip()
    if whole.startswith("{"):
        return whole
    found: list[str] | None = None
    opened: list[str] | None = None
    # A line is looked at once: an expression would go back for each fence that is never closed.
    for line in answer.split("\n"):
        bare = line.rstrip(" \t")
        if opened is None:
            opened = [] if bare in _OPENED else None
        elif bare == _FENCE:
            found, opened = opened, None
        else:
            opened.append(line)
    if found is None:
        raise errors.InvalidInput("there is no JSON in it, alone or between lines of ```")
    return "\n".join(found)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it says a key twice")
    return found
