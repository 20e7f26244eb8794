"""The part of the seam that speaks of hosts: who is there, who owns what, what must happen once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pydantic import JsonValue


@dataclass(frozen=True, slots=True)
class HostRecord:
    """A host and what it has; quantities such as `memory_mib` and `vcpus`."""

    id: str
    address: str
    capacity: dict[str, int] = field(default_factory=dict[str, int])
    free: dict[str, int] = field(default_factory=dict[str, int])
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """One of a gang's machines and what it needs."""

    id: str
    needs: dict[str, int]


@dataclass(frozen=True, slots=True)
class Gang:
    """Machines that are placed all or not at all."""

    id: str
    members: tuple[Member, ...]
    hold_s: float


@dataclass(frozen=True, slots=True)
class Reservation:
    """Where each member goes; void unless confirmed by `own` before `until`."""

    gang: str
    places: dict[str, str]
    until: float


@dataclass(frozen=True, slots=True)
class Owner:
    host: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Command:
    """Durable word to a host, known by its id however often it is sent."""

    id: str
    body: JsonValue
    seq: int = 0


@dataclass(frozen=True, slots=True)
class Effect:
    """Whether a side effect may begin: `already` carries the result of the time it happened."""

    verdict: Literal["begun", "already", "fenced"]
    result: str | None = None


class FleetStore(Protocol):
    """Verbs for one host or many."""

    async def announce(self, host: HostRecord, ttl_s: float, *, fresh: bool) -> int:
        """Say that a host is there. `fresh` is a daemon's first word: it gets a new epoch.

        The epoch fences what an earlier daemon of the same host still tries.
        """
        ...

    async def hosts(self) -> list[HostRecord]:
        """The hosts that were heard of within their time."""
        ...

    async def reserve(self, gang: Gang) -> Reservation | None: ...
    async def unreserve(self, gang: str) -> None: ...
    async def own(self, kind: str, id: str, host: str, epoch: int) -> bool:
        """Take ownership of a thing nobody owns, or that an older epoch of this host owned."""
        ...

    async def disown(self, kind: str, id: str, host: str, epoch: int) -> bool: ...
    async def locate(self, kind: str, id: str) -> Owner | None: ...
    async def send(self, host: str, command: Command) -> None: ...
    async def inbox(self, host: str, after: int, limit: int = 100) -> list[Command]: ...
    async def acknowledge(self, host: str, through: int) -> None: ...
    async def effect(self, task_id: str, token: int, key: str, intent: str) -> Effect: ...
    async def effect_done(self, key: str, token: int, result: str) -> bool: ...
    async def holds(self, host: str, add: Sequence[str], drop: Sequence[str]) -> None: ...
    async def holders(self, digests: Sequence[str]) -> dict[str, list[str]]: ...
