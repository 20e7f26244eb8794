"""What a scripted model does: it says something, calls tools, fails, and tells what it took."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Usage:
    """What a turn says it took, in tokens."""

    input: int = 1000
    output: int = 50
    cache_write: int = 0
    cache_read: int = 200


@dataclass(frozen=True)
class Say:
    """The model writes text."""

    text: str


@dataclass(frozen=True)
class Use:
    """The model calls a tool."""

    name: str
    # Text is for tools that take such, as codex's `exec` takes a program.
    input: Mapping[str, Any] | str


@dataclass(frozen=True)
class Turn:
    """What the model does between two answers of its client."""

    blocks: tuple[Say | Use, ...]
    usage: Usage = Usage()
    # Awaited with the number of each event of a stream before it is sent.
    pause: Callable[[int], Awaitable[None]] | None = None
    # The connection breaks after so many events.
    cut_after: int | None = None
    # A stream is sent in pieces of so many bytes, whatever events they cut through.
    piece: int | None = None


@dataclass(frozen=True)
class Fail:
    """An error in place of an answer: `times` times, and then the next turn; else always."""

    status: int
    times: int | None = None
    kind: str | None = None
    message: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


Part: TypeAlias = Turn | Fail | Say | Use
Turns: TypeAlias = Sequence[Part]


def say(text: str) -> Say:
    return Say(text)


def use(tool: str, /, **given: Any) -> Use:
    return Use(tool, given)


def write(tool: str, text: str, /) -> Use:
    """Call a tool that takes text."""
    return Use(tool, text)


def turn(*blocks: Say | Use, usage: Usage | None = None) -> Turn:
    """Several blocks in one turn."""
    return Turn(blocks, usage or Usage())


def fail(
    status: int, *, times: int | None = None, kind: str | None = None, message: str | None = None
) -> Fail:
    return Fail(status, times, kind, message)
