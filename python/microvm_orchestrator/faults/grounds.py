"""What faults break, as the ledger sees it: all networks of this host, and all of its machines.

A ground has places, each a network or a machine, and makes them what the faults say that hold. Each
time it reads back what it has said. The ledger knows no ways and no harms, so it treats whatever is
broken alike. Above stands the ledger; below, one kind of networks and the machines.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Protocol

from microvm_orchestrator import errors, log
from microvm_orchestrator.faults.plans import (
    Ways,
    harms_read,
    harms_told,
    read,
    suffering,
    together,
    told,
)
from microvm_orchestrator.model.fault import Fault, FaultWay, Harm
from microvm_orchestrator.network.base import Ends, Networks
from microvm_orchestrator.network.impairment import AS_IT_SHOULD_BE, Impairment

# Clocks are set and read by commands, which take their time.
SKEW_TOLERANCE_S = 0.5
# A control group counts whole microseconds of a tenth of a second.
SHARE_TOLERANCE = 1e-5
_TOLERATED = {"skew_s": SKEW_TOLERANCE_S, "cpu_share": SHARE_TOLERANCE}
_log = log.get(__name__)


class Ground(Protocol):
    """What faults of one sort break."""

    @property
    def gone(self) -> str:
        """Say why a fault has ended whose places are gone."""
        ...

    async def places(self) -> Collection[str]:
        """Name the places that there are."""
        ...

    def places_of(self, fault: Fault) -> Collection[str]: ...

    async def check(self, fault: Fault, holding: Collection[Fault]) -> None:
        """Tell in advance whether a fault can hold beside others.

        Raises: NotFound, StateForbids, FaultNotOffered, InvalidInput, Conflict, Unavailable.
        """
        ...

    async def before(self, fault: Fault) -> Fault:
        """Write down in a fault what it finds. Raises: Unavailable."""
        ...

    async def make_so(self, fault: Fault, holding: Collection[Fault]) -> None:
        """Let what a fault is about be as those say that hold, and see it.

        Raises: FaultUnverified, Unavailable.
        """
        ...

    async def make_all_so(
        self, place: str, holding: Collection[Fault], ending: Collection[Fault]
    ) -> None:
        """Let all of a place be as those say that hold, and take away what nobody has said.

        What those have left that are about to end is known, too.
        Raises: FaultUnverified, Unavailable.
        """
        ...


class NetworkGround:
    """The ways between the machines of each network."""

    gone = "its network is gone"

    def __init__(self, switch: Networks) -> None:
        self._switch = switch

    async def places(self) -> Collection[str]:
        return await self._switch.found()

    def places_of(self, fault: Fault) -> Collection[str]:
        return fault.network_ids

    async def check(self, fault: Fault, holding: Collection[Fault]) -> None:
        found = await self._switch.found()
        for network_id in fault.network_ids:
            if network_id not in found:
                raise errors.NotFound(f"there is no network {network_id}")
            ways = read(fault.ways, network_id)
            await self._switch.check(list(ways.values()))
            _meeting([*holding, fault], network_id, ways)

    async def before(self, fault: Fault) -> Fault:
        before: list[FaultWay] = []
        for network_id in fault.network_ids:
            standing = await self._switch.impaired(network_id)
            mine = read(fault.ways, network_id)
            found = {ends: standing[ends] for ends in mine if ends in standing}
            before += told(found, network_id if fault.also_in else None)
        return fault.model_copy(update={"before": before})

    async def make_so(self, fault: Fault, holding: Collection[Fault]) -> None:
        found = await self._switch.found()

        async def make_so(network_id: str) -> None:
            ways = read(fault.ways, network_id)
            await self._make_so(network_id, _meeting(holding, network_id, ways))

        await _each(make_so, [each for each in fault.network_ids if each in found])

    async def make_all_so(
        self, place: str, holding: Collection[Fault], ending: Collection[Fault]
    ) -> None:
        here = [fault for fault in (*holding, *ending) if place in fault.network_ids]
        ways = {ends for fault in here for ends in read(fault.ways, place)}
        await self._make_so(place, _meeting(holding, place, ways))
        # Only now: a network may know those by name again that were spoken of.
        if strays := sorted(set(await self._switch.impaired(place)) - ways):
            _log.warning("fault_unknown", network=place, ways=list(map(str, strays)))
            await self._make_so(place, dict.fromkeys(strays, AS_IT_SHOULD_BE))

    async def _make_so(self, network_id: str, wanted: dict[Ends, Impairment]) -> None:
        await self._switch.impair(network_id, wanted)
        standing = await self._switch.impaired(network_id)
        wrong = [ends for ends, its in wanted.items() if standing.get(ends, AS_IT_SHOULD_BE) != its]
        if wrong:
            ways = ", ".join(map(str, wrong))
            raise errors.FaultUnverified(
                f"what frames meet in network {network_id} is not what it should be: {ways}"
            )


def _meeting(
    holding: Iterable[Fault], network_id: str, ways: Iterable[Ends]
) -> dict[Ends, Impairment]:
    """Tell what ways are to meet by the faults that hold. Raises: Conflict."""
    mine: list[Ways] = [
        read(fault.ways, network_id) for fault in holding if network_id in fault.network_ids
    ]
    return together(mine, list(ways))


async def _each(make_so: Callable[[str], Awaitable[None]], places: Iterable[str]) -> None:
    """Make each place so; the first error comes at the end: others are not left as they are."""
    failed: errors.OrchestratorError | None = None
    for place in places:
        try:
            await make_so(place)
        except errors.OrchestratorError as error:
            failed = failed or error
    if failed is not None:
        raise failed


class Sufferers(Protocol):
    """The machines of this host, as far as something can befall them."""

    async def found(self) -> Collection[str]: ...

    async def check(self, machine_id: str, harm: Harm) -> None:
        """Tell in advance whether this can befall a machine.

        Raises: NotFound, StateForbids, FaultNotOffered, InvalidInput, Unavailable.
        """
        ...

    async def harm(self, machine_id: str, harm: Harm, touched: frozenset[str]) -> None:
        """Let a machine suffer this, as far as it is touched; said again it changes nothing.

        One that does not run has nothing to suffer. Raises: Unavailable.
        """
        ...

    async def harmed(self, machine_id: str, touched: frozenset[str]) -> Harm | None:
        """Tell what a machine does suffer, as far as it is touched; None when it does not run.

        Raises: Unavailable.
        """
        ...


class MachineGround:
    """The machines themselves. What a fault does not touch is neither changed nor looked at."""

    gone = "its machines are gone"

    def __init__(self, machines: Sufferers) -> None:
        self._machines = machines

    async def places(self) -> Collection[str]:
        return await self._machines.found()

    def places_of(self, fault: Fault) -> Collection[str]:
        return fault.machines

    async def check(self, fault: Fault, holding: Collection[Fault]) -> None:
        for machine_id in harms_read(fault.harms):
            await self._machines.check(machine_id, suffers([*holding, fault], machine_id))

    async def before(self, fault: Fault) -> Fault:
        found: dict[str, Harm] = {}
        for machine_id, harm in harms_read(fault.harms).items():
            standing = await self._machines.harmed(machine_id, harm.touched)
            if standing is not None:
                found[machine_id] = standing
        return fault.model_copy(update={"harmed_before": harms_told(found)})

    async def make_so(self, fault: Fault, holding: Collection[Fault]) -> None:
        found = await self._machines.found()
        harms = harms_read(fault.harms)

        async def make_so(machine_id: str) -> None:
            touched = harms[machine_id].touched
            await self._make_so(machine_id, suffers(holding, machine_id), touched)

        await _each(make_so, [each for each in harms if each in found])

    async def make_all_so(
        self, place: str, holding: Collection[Fault], ending: Collection[Fault]
    ) -> None:
        touched = suffers([*holding, *ending], place).touched
        await self._make_so(place, suffers(holding, place), touched)

    async def _make_so(self, machine_id: str, harm: Harm, touched: frozenset[str]) -> None:
        await self._machines.harm(machine_id, harm, touched)
        seen = await self._machines.harmed(machine_id, touched)
        if seen is None:
            return
        wrong = [name for name in sorted(touched) if not _same(harm, seen, name)]
        if wrong:
            raise errors.FaultUnverified(
                f"what befalls machine {machine_id} is not what should: {', '.join(wrong)}"
            )


def suffers(holding: Iterable[Fault], machine_id: str) -> Harm:
    """Tell what a machine is to suffer by the faults that hold."""
    each = [harms_read(fault.harms) for fault in holding]
    return suffering([harms[machine_id] for harms in each if machine_id in harms])


def _same(wanted: Harm, seen: Harm, name: str) -> bool:
    is_said, is_seen = getattr(wanted, name), getattr(seen, name)
    if name in _TOLERATED and None not in {is_said, is_seen}:
        return abs(is_said - is_seen) <= _TOLERATED[name]
    return is_said == is_seen
