"""What can befall a machine that runs, and how each way to run one does it: said, and read back.

A machine has a few of these, each for some fields of what a machine suffers; what none of them is
for is not offered. That a machine stands still is no part of it: whoever has machines pauses them.
Above stands the machine; below, the hypervisor, this host's kernel, or the guest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from microvm_orchestrator import errors
from microvm_orchestrator.model.fault import Harm

PAUSED = "paused"


class Harming(Protocol):
    """Something that can befall a machine."""

    @property
    def fields(self) -> frozenset[str]:
        """What of `Harm` it is for."""
        ...

    async def check(self, harm: Harm) -> None:
        """Tell in advance whether this can be. Raises: FaultNotOffered, InvalidInput."""
        ...

    async def make(self, harm: Harm) -> None:
        """Let it be so; said again it changes nothing. Raises: Unavailable."""
        ...

    async def see(self) -> Harm:
        """Tell what is, where it is. Raises: Unavailable."""
        ...


async def check(machine_id: str, ways: Sequence[Harming], harm: Harm) -> None:
    """Tell whether all of it can befall a machine. Raises: FaultNotOffered, InvalidInput."""
    offered = frozenset[str]().union(*(way.fields for way in ways), {PAUSED})
    if missing := sorted(harm.touched - offered):
        raise errors.FaultNotOffered(
            f"machine {machine_id} is run in a way that does not offer {', '.join(missing)}"
        )
    for way in ways:
        if way.fields & harm.touched:
            await way.check(harm)


async def make(ways: Sequence[Harming], harm: Harm, touched: frozenset[str]) -> None:
    """Let a machine suffer this, as far as it is touched."""
    for way in ways:
        if way.fields & touched:
            await way.make(harm)


async def see(ways: Sequence[Harming], touched: frozenset[str]) -> Harm:
    """Tell what a machine does suffer, as far as it is touched."""
    seen: dict[str, object] = {}
    for way in ways:
        if found := way.fields & touched:
            harm = await way.see()
            seen |= {name: getattr(harm, name) for name in found}
    return Harm.model_validate(seen)
