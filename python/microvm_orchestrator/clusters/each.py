"""The same for several nodes at once, where one that fails keeps nobody else from it.

Above is the room; below are the errors alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import anyio

from microvm_orchestrator import errors

T = TypeVar("T")


# A reason goes into one line with those of others.
_REASON_CHARS = 300


@dataclass(slots=True)
class Outcome(Generic[T]):
    """What came of each, by its name and in the order of the names."""

    done: dict[str, T] = field(default_factory=dict[str, T])
    failed: dict[str, errors.OrchestratorError] = field(
        default_factory=dict[str, errors.OrchestratorError]
    )

    def told(self) -> str:
        """Name those that failed, and why."""
        return "; ".join(f"{name}: {reason(error)}" for name, error in self.failed.items())


def reason(error: errors.OrchestratorError) -> str:
    text = " ".join(error.message.split())
    return text if len(text) <= _REASON_CHARS else f"{text[:_REASON_CHARS]}…"


async def each(
    names: Iterable[str],
    act: Callable[[str], Awaitable[T]],
    *,
    on_done: Callable[[int], Awaitable[None]] | None = None,
) -> Outcome[T]:
    """Do something for each name, all at once. `on_done` hears how many are over."""
    found: dict[str, T | errors.OrchestratorError] = {}
    over = 0

    async def one(name: str) -> None:
        nonlocal over
        try:
            found[name] = await act(name)
        except errors.OrchestratorError as error:
            found[name] = error
        over += 1
        if on_done is not None:
            await on_done(over)

    ordered = list(names)
    async with anyio.create_task_group() as group:
        for name in ordered:
            group.start_soon(partial(one, name))
    outcome = Outcome[T]()
    for name in ordered:
        result = found[name]
        if isinstance(result, errors.OrchestratorError):
            outcome.failed[name] = result
        else:
            outcome.done[name] = result
    return outcome
