"""Who does not hear whom: partitions of a set of machines, each as the ways that are cut.

After Jepsen's: a grudge is decided at who listens, so a way is cut from the speaker to the one who
does not hear. Pure functions; the order of machines is the caller's, and who wants another one
each time shuffles them by a seed first. Above stand plans; below, only what a way is.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence

from microvm_orchestrator import errors
from microvm_orchestrator.network.base import Ends

Grudge = frozenset[Ends]

_FEWEST_IN_A_RING = 3
_FEWEST_BESIDE_A_BRIDGE = 3


def groups_apart(groups: Sequence[Collection[str]]) -> Grudge:
    """Nobody hears anybody of another group. Raises: InvalidInput."""
    _check_groups(groups)
    return frozenset(
        Ends(source, target)
        for one in groups
        for other in groups
        if one is not other
        for source in one
        for target in other
    )


def one_way(speaking: Collection[str], deaf: Collection[str]) -> Grudge:
    """Those who are deaf do not hear those who speak, who hear them. Raises: InvalidInput."""
    _check_groups([speaking, deaf])
    return frozenset(Ends(source, target) for source in speaking for target in deaf)


def halves(machines: Sequence[str]) -> Grudge:
    """The first half and the rest, which is a majority where their number is odd."""
    _check_some(machines, 2, "to be halved")
    middle = len(machines) // 2
    return groups_apart([machines[:middle], machines[middle:]])


def alone(machine: str, machines: Collection[str]) -> Grudge:
    """One is apart from all others. Raises: InvalidInput."""
    _check_known([machine], machines)
    return groups_apart([[machine], [each for each in machines if each != machine]])


def bridged(machines: Sequence[str]) -> Grudge:
    """Two halves that do not hear each other, and one in the middle whom all hear."""
    _check_some(machines, _FEWEST_BESIDE_A_BRIDGE, "with a bridge between two halves")
    middle = len(machines) // 2
    return groups_apart([machines[:middle], machines[middle + 1 :]])


def majorities_ring(machines: Sequence[str]) -> Grudge:
    """Everybody hears a majority, and no two the same one: their neighbours in a ring."""
    _check_some(machines, _FEWEST_IN_A_RING, "in a ring of majorities")
    count = len(machines)
    majority = count // 2 + 1
    first = -((majority - 1) // 2)
    cut: set[Ends] = set()
    for place, deaf in enumerate(machines):
        heard = {machines[(place + first + step) % count] for step in range(majority)}
        cut |= {Ends(other, deaf) for other in machines if other not in heard}
    return frozenset(cut)


def arbitrary(grudges: Mapping[str, Collection[str]], machines: Collection[str]) -> Grudge:
    """Each does not hear those it has a grudge against. Raises: InvalidInput."""
    cut: set[Ends] = set()
    for deaf, unheard in grudges.items():
        _check_known([deaf, *unheard], machines)
        if deaf in unheard:
            raise errors.InvalidInput(f"machine {deaf} always hears itself")
        cut |= {Ends(source, deaf) for source in unheard}
    if not cut:
        raise errors.InvalidInput("nobody has a grudge against anybody")
    return frozenset(cut)


def shuffled(machines: Collection[str], seed: str) -> list[str]:
    """Put machines into another order, the same for the same seed."""
    order = sorted(machines)
    random.Random(seed).shuffle(order)  # noqa: S311 # to be repeated is its point
    return order


def _check_groups(groups: Sequence[Collection[str]]) -> None:
    if len(groups) < 2:  # two are what it takes
        raise errors.InvalidInput("it takes at least 2 groups to be apart")
    if not all(groups):
        raise errors.InvalidInput("a group of machines has at least one")
    everybody = [machine for group in groups for machine in group]
    if twice := sorted({each for each in everybody if everybody.count(each) > 1}):
        raise errors.InvalidInput(f"machine {twice[0]} is in two groups, or in one twice")


def _check_some(machines: Collection[str], fewest: int, why: str) -> None:
    if len(machines) < fewest:
        raise errors.InvalidInput(f"it takes at least {fewest} machines {why}")
    if len(set(machines)) < len(machines):
        raise errors.InvalidInput("machines are named twice")


def _check_known(named: Collection[str], machines: Collection[str]) -> None:
    if unknown := sorted(set(named) - set(machines)):
        raise errors.InvalidInput(f"machine {unknown[0]} is not among {', '.join(machines)}")
