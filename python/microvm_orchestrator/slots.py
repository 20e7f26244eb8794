"""Places on this host where machines run: so many, with so much memory and so many processors.

A place is held by a name, from before its machine starts until after it has ended, and released by
that name alone. Who comes when all is taken waits in line, first come first served, or is refused.
Above are the machines; nothing below.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import anyio

from microvm_orchestrator import errors


@dataclass(frozen=True, slots=True)
class Capacity:
    """What may be in use at a time."""

    count: int
    memory_mib: int
    vcpus: int


@dataclass(frozen=True, slots=True)
class Need:
    """What one machine takes."""

    memory_mib: int
    vcpus: int


@dataclass(eq=False, slots=True)
class _Waiting:
    owner: str
    need: Need
    admitted: anyio.Event = field(default_factory=anyio.Event)


class Slots:
    """Who is in which place."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self._held: dict[str, Need] = {}
        self._line: deque[_Waiting] = deque()

    @property
    def owners(self) -> list[str]:
        return list(self._held)

    @property
    def waiting(self) -> list[str]:
        return [each.owner for each in self._line]

    def used(self) -> Capacity:
        needs = self._held.values()
        return Capacity(
            len(self._held), sum(n.memory_mib for n in needs), sum(n.vcpus for n in needs)
        )

    def keep(self, owner: str, need: Need) -> None:
        """Hold a place for a machine that runs already, even where it is one too many."""
        self._held[owner] = need

    async def hold(self, owner: str, need: Need, *, wait: bool = True) -> None:
        """Take a place, after everybody who asked before.

        Raises: InvalidInput for what would never fit; NoRoom when all is taken and `wait` is
            false. One who is cancelled leaves the line.
        """
        if owner in self._held:
            return
        self._refuse_giants(need)
        if not self._line and self._fits(need):
            self._held[owner] = need
            return
        if not wait:
            raise errors.NoRoom(self._full(), hint="stop one of them, or ask to wait")
        mine = _Waiting(owner, need)
        self._line.append(mine)
        try:
            await mine.admitted.wait()
        except BaseException:
            self._leave(mine)
            raise

    def release(self, owner: str) -> None:
        """Leave a place; whoever is first in line and fits now gets it. Harmless when repeated."""
        self._held.pop(owner, None)
        self._admit()

    def _leave(self, waiting: _Waiting) -> None:
        if waiting in self._line:
            self._line.remove(waiting)
        else:
            # Admitted and cancelled in the same moment.
            self._held.pop(waiting.owner, None)
        self._admit()

    def _admit(self) -> None:
        # A large one at the head is not overtaken by small ones behind it, or it would starve.
        while self._line and self._fits(self._line[0].need):
            first = self._line.popleft()
            self._held[first.owner] = first.need
            first.admitted.set()

    def _fits(self, need: Need) -> bool:
        used = self.used()
        return (
            used.count < self.capacity.count
            and used.memory_mib + need.memory_mib <= self.capacity.memory_mib
            and used.vcpus + need.vcpus <= self.capacity.vcpus
        )

    def _refuse_giants(self, need: Need) -> None:
        if need.memory_mib > self.capacity.memory_mib or need.vcpus > self.capacity.vcpus:
            raise errors.InvalidInput(
                f"a machine of {need.memory_mib} MiB and {need.vcpus} processors never fits: "
                f"machines may use {self.capacity.memory_mib} MiB and {self.capacity.vcpus}",
                hint="ask for less, or raise machines.memory_mib and machines.vcpus",
            )

    def _full(self) -> str:
        used = self.used()
        return (
            f"All {self.capacity.count} slots are busy"
            if used.count >= self.capacity.count
            else f"{used.memory_mib} of {self.capacity.memory_mib} MiB and {used.vcpus} of "
            f"{self.capacity.vcpus} processors are in use"
        ) + f". Active machines: {', '.join(self._held)}"
