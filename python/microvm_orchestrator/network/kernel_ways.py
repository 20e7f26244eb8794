"""What is wrong with ways between the kernel's ports: made so, and read back.

What is cut, lost, too large or a question for a name is up to rules of the bridge, which stay when
a port goes and comes; all else are queues of the target's tap, which go with it, so they are given
again when the port is made. The kernel is what counts: what is told is read from there. Above stand
the kernel's networks; below, tables and queues.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import anyio.to_thread

from microvm_orchestrator import errors, log
from microvm_orchestrator.machine.tap import within
from microvm_orchestrator.network import queues, tables, way_rules
from microvm_orchestrator.network.base import Abilities
from microvm_orchestrator.network.impairment import AS_IT_SHOULD_BE, Behaviour, Impairment
from microvm_orchestrator.network.way_rules import Rule

T = TypeVar("T")

# From one tap to another.
Taps = tuple[str, str]
Ways = Mapping[Taps, Impairment]

# All that rules can say, to see whether nft and the kernel take it.
_TRIAL = {("mvt0", "mvt1"): Rule(cut=True, loss=0.5, mtu=1280, dns=True, number=2)}
# Class 1 is left alone: a queue itself is 1:0, and so it reads better.
_FIRST = 2
_BY_RULES = frozenset({Behaviour.CUT, Behaviour.LOSS, Behaviour.MTU, Behaviour.DNS})
_log = log.get(__name__)


class KernelWays:
    """The ways of all bridges of one owner; one verb at a time, which the caller sees to."""

    def __init__(self, netns: Path | None) -> None:
        self._netns = netns
        self._abilities: Abilities | None = None
        # By bridge. For where there is no tap now, this alone knows.
        self._wanted: dict[str, dict[Taps, Impairment]] = {}

    async def abilities(self) -> Abilities:
        # What a kernel has, it keeps; what it has not, it may come to load.
        if self._abilities is None or self._abilities.reason:
            self._abilities = await self._try_out()
        return self._abilities

    async def check(self, impairments: Collection[Impairment]) -> None:
        """Raises: FaultNotOffered, Unavailable."""
        needs = frozenset[Behaviour]().union(*(each.needs for each in impairments))
        known = self._abilities.can if self._abilities is not None else _BY_RULES
        if needs <= known:
            return
        abilities = await self.abilities()
        if lacking := sorted(needs - abilities.can):
            raise errors.FaultNotOffered(
                f"the kernel's networks cannot do {', '.join(lacking)} here: {abilities.reason}",
                hint='networks in userspace can do it: set networks.kind = "userspace"',
            )

    async def change(self, bridge: str, ways: Ways, taps: Collection[str]) -> None:
        """Let frames meet this. `taps` are those that are there now.

        Raises: FaultNotOffered, Unavailable; all is as it was before then.
        """
        await self.check(ways.values())
        before = await self._known(bridge, taps)
        after = {
            ends: impairment
            for ends, impairment in {**before, **ways}.items()
            if impairment != AS_IT_SHOULD_BE
        }
        try:
            await self._apply(bridge, after, taps)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._go_back(bridge, before, taps)
            raise
        self._wanted[bridge] = after

    async def stand(self, bridge: str, taps: Collection[str]) -> dict[Taps, Impairment]:
        """Read what frames meet; of ways to a tap that is not there, what they will meet."""
        table, given = await self._do(
            lambda: (
                tables.find(bridge, way_rules.SETS, way_rules.MAPS),
                queues.queues_of(taps),
            )
        )
        rules = way_rules.rules_in(table)
        standing: dict[Taps, Impairment] = {}
        for (source, target), rule in rules.items():
            queue = given.get(target, {}).get(rule.number, AS_IT_SHOULD_BE)
            standing[source, target] = replace(
                queue, cut=rule.cut, loss=rule.loss, mtu=rule.mtu, dns=rule.dns
            )
        for ends, its in self._wanted.get(bridge, {}).items():
            if ends in standing and _as_read(its) == standing[ends]:
                standing[ends] = its
        waiting = {
            ends: impairment
            for ends, impairment in self._wanted.get(bridge, {}).items()
            if ends[1] not in taps and impairment.needs - _BY_RULES
        }
        both = {**standing, **waiting}
        return {ends: both[ends] for ends in sorted(both) if both[ends] != AS_IT_SHOULD_BE}

    async def give(self, bridge: str, tap: str, taps: Collection[str]) -> None:
        """Let a tap that was just made have its queue."""
        given = _queues(await self._known(bridge, taps)).get(tap)
        if given:
            await self._do(lambda: queues.give(tap, given))

    async def drop(self, bridge: str) -> None:
        """Forget a bridge that is no more."""
        self._wanted.pop(bridge, None)
        await self._do(lambda: tables.replace(bridge, tables.Table()))

    async def _known(self, bridge: str, taps: Collection[str]) -> dict[Taps, Impairment]:
        """What was said of a bridge, by whoever it was."""
        if bridge not in self._wanted:
            self._wanted[bridge] = await self.stand(bridge, taps)
        return self._wanted[bridge]

    async def _apply(self, bridge: str, ways: Ways, taps: Collection[str]) -> None:
        given, numbers = _queues(ways), _numbers(ways)
        rules = {
            ends: Rule(
                each.cut,
                0.0 if each.chain is not None else each.loss,
                each.mtu,
                each.dns,
                numbers.get(ends, 0),
            )
            for ends, each in ways.items()
        }
        table = way_rules.table_of(rules)

        def apply() -> None:
            _give(given, taps)
            tables.replace(bridge, table)

        await self._do(apply)

    async def _go_back(self, bridge: str, ways: Ways, taps: Collection[str]) -> None:
        try:
            await self._apply(bridge, ways, taps)
        except errors.OrchestratorError as error:
            _log.error("ways_not_restored", bridge=bridge, why=error.message)

    async def _try_out(self) -> Abilities:
        missing: list[str] = []
        can = set(_BY_RULES)
        await self._do(lambda: tables.try_out("mvbtrial", way_rules.table_of(_TRIAL)))
        if await self._do(lambda: queues.lacks("htb")):
            missing.append("htb")
        else:
            can.add(Behaviour.RATE)
        if await self._do(lambda: queues.lacks("netem")):
            missing.append("netem")
        elif not missing:
            can = set(Behaviour)
        reason = f"this kernel has no {' and no '.join(missing)}" if missing else ""
        return Abilities("kernel", frozenset(can), reason)

    async def _do(self, act: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(lambda: within(self._netns, act))


def _numbers(ways: Ways) -> dict[Taps, int]:
    """Number the classes of each tap by who sends to it."""
    numbers: dict[Taps, int] = {}
    used: dict[str, int] = {}
    for source, target in sorted(ways):
        if ways[source, target].needs - _BY_RULES:
            numbers[source, target] = used[target] = used.get(target, _FIRST - 1) + 1
    return numbers


def _queues(ways: Ways) -> dict[str, dict[int, Impairment]]:
    """Tell which classes each tap has."""
    given: dict[str, dict[int, Impairment]] = {}
    for (source, target), number in _numbers(ways).items():
        its = _as_read(ways[source, target])
        given.setdefault(target, {})[number] = replace(
            its, cut=False, loss=0.0, mtu=None, dns=False
        )
    return given


def _as_read(its: Impairment) -> Impairment:
    """Say a loss that follows the last one as the kernel does: as the chain that it is."""
    if not its.loss_correlation:
        return its
    return replace(its, loss=0.0, loss_correlation=0.0, bursts=its.chain)


def _give(given: dict[str, dict[int, Impairment]], taps: Collection[str]) -> None:
    there = queues.queues_of(taps)
    for tap in sorted(taps):
        # What waits in a queue that stays as it is goes on waiting.
        if there.get(tap, {}) != given.get(tap, {}):
            queues.give(tap, given.get(tap, {}))
