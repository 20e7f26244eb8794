"""What a campaign breaks when: drawn from a seed, or taken as it was written by hand.

The same seed draws the same schedule for nodes and networks of the same names, on any host and
with any Python: all luck is one stream of `random()`, and nothing that is drawn depends on what a
host can do or on how things are. How the parameters of a fault are drawn stands in one table by
kind. Pure. Above stands the service; below, the models.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.model.campaign import MAX_FAULTS, ScheduledFault

T = TypeVar("T")
Fault = dict[str, JsonValue]

CRASH = "crash"


@dataclass(frozen=True, slots=True)
class Ground:
    """What of a cluster can be broken: its nodes, and who of them is in which network."""

    nodes: Sequence[str]
    # The first one is usual.
    networks: Mapping[str, Sequence[str]]


@dataclass(slots=True)
class Luck:
    """What is drawn, one after another."""

    seed: str
    _stream: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._stream = random.Random(self.seed)  # noqa: S311 # to be repeated is its point

    def one(self, of: Sequence[T]) -> T:
        return of[int(self._stream.random() * len(of))]

    def between(self, least: float, most: float) -> float:
        return round(least + (most - least) * self._stream.random(), 3)

    def about(self, mean: float) -> float:
        """Draw from half of something to half as much again."""
        return max(self.between(mean / 2, mean * 1.5), 0.001)

    def word(self) -> str:
        """Draw the seed of somebody else's luck."""
        return str(int(self._stream.random() * 1e9))


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault that can be drawn."""

    # What it takes besides its kind, among the nodes of a network, or of the cluster.
    draw: Callable[[Luck, Sequence[str]], Fault]
    # As few nodes as it takes.
    fewest: int = 2
    # It is between the nodes of a network, and not about one by itself.
    between: bool = True
    # It is drawn where nobody says which kinds.
    usual: bool = True


def _partition(luck: Luck, nodes: Sequence[str]) -> Fault:
    shapes = ["single", "halves", "one_way"]
    if len(nodes) > 2:  # fewer have no majority that is not all of them
        shapes += ["bridge", "majorities_ring"]
    shape = luck.one(shapes)
    match shape:
        case "single":
            return {"shape": shape, "machine": luck.one(nodes)}
        case "one_way":
            apart = luck.one(nodes)
            groups: list[JsonValue] = [[apart], [each for each in nodes if each != apart]]
            # Who does not hear the other is the second one.
            return {"shape": shape, "groups": luck.one([groups, groups[::-1]])}
        case _:
            return {"shape": shape, "shuffle": luck.word()}


def _impair(luck: Luck, nodes: Sequence[str]) -> Fault:
    harms: list[Callable[[], Fault]] = [
        lambda: {"delay_s": (delay := luck.between(0.02, 0.5)), "jitter_s": round(delay / 4, 3)},
        lambda: {"loss": luck.between(0.05, 0.5)},
        lambda: {"bursts": [luck.between(0.02, 0.2), luck.between(0.1, 0.5)]},
        lambda: {"duplicate": luck.between(0.05, 0.5)},
        lambda: {"corrupt": luck.between(0.01, 0.1)},
        lambda: {"delay_s": luck.between(0.01, 0.1), "reorder": luck.between(0.1, 0.5)},
        lambda: {"mtu": int(luck.between(600, 1400))},
    ]
    return {"machine": luck.one(nodes), **luck.one(harms)(), "seed": luck.word()}


def _flap(luck: Luck, nodes: Sequence[str]) -> Fault:
    phases: Fault = {"down_s": luck.between(0.2, 2), "up_s": luck.between(0.2, 2)}
    return {"machine": luck.one(nodes), **phases}


def _one_node(luck: Luck, nodes: Sequence[str]) -> Fault:
    return {"machine": luck.one(nodes)}


def _alone(more: Callable[[Luck], Fault], *, usual: bool = True) -> Kind:
    """Make a kind that befalls one node by itself."""

    def draw(luck: Luck, nodes: Sequence[str]) -> Fault:
        return {"machine": luck.one(nodes), **more(luck)}

    return Kind(draw, fewest=1, between=False, usual=usual)


KINDS: Mapping[str, Kind] = {
    "partition": Kind(_partition),
    "impair": Kind(_impair),
    "link_down": Kind(_one_node),
    "flap": Kind(_flap),
    "dns": Kind(_one_node, usual=False),
    "pause": _alone(lambda _: {}),
    CRASH: _alone(lambda _: {}),
    # What they harm, a cluster may not have, or not have much of.
    "slow_cpu": _alone(lambda luck: {"cpu_share": luck.between(0.05, 0.5)}, usual=False),
    "clock_skew": _alone(
        lambda luck: {"skew_s": luck.one([-1, 1]) * luck.between(2, 600)}, usual=False
    ),
    "disk_slow": _alone(
        lambda luck: {"disk_bytes_s": int(luck.between(1 << 16, 1 << 20))}, usual=False
    ),
    "disk_error": _alone(
        lambda luck: {"fails": luck.one(["reads", "writes", "both"])}, usual=False
    ),
    "memory": _alone(lambda luck: {"memory_mib": int(luck.between(16, 64))}, usual=False),
    "disk_full": _alone(lambda _: {}, usual=False),
}


def drawn(
    seed: str,
    ground: Ground,
    *,
    duration_s: float,
    interval_s: float,
    hold_s: float,
    kinds: Collection[str] = (),
) -> list[ScheduledFault]:
    """Draw faults one after another, of which each is over before the next and by the end.

    Times are from half of what is asked for to half as much again. Raises: InvalidInput for a kind
        that cannot be here, or where no fault has room; TooLarge.
    """
    luck = Luck(seed)
    chosen = _chosen(kinds, ground)
    schedule: list[ScheduledFault] = []
    at_s = luck.about(interval_s)
    while at_s + (for_s := luck.about(hold_s)) <= duration_s:
        if len(schedule) == MAX_FAULTS:
            raise errors.TooLarge(
                f"a campaign has at most {MAX_FAULTS} faults",
                hint="let them hold longer, or have longer intervals",
            )
        schedule.append(
            ScheduledFault(at_s=round(at_s, 3), for_s=for_s, fault=_fault(luck, chosen, ground))
        )
        at_s += for_s + luck.about(interval_s)
    if not schedule:
        raise errors.InvalidInput(
            f"no fault has room in {duration_s:g} s, with {interval_s:g} s before each and "
            f"{hold_s:g} s for it",
            hint="make the campaign longer, or these shorter",
        )
    return schedule


def ending_s(schedule: Collection[ScheduledFault]) -> float:
    """Tell when the last fault of a schedule is over."""
    return max((each.at_s + each.for_s for each in schedule), default=0.0)


def _fault(luck: Luck, kinds: Sequence[str], ground: Ground) -> Fault:
    name = luck.one(kinds)
    kind = KINDS[name]
    if not kind.between:
        return {"kind": name, **kind.draw(luck, ground.nodes)}
    network = luck.one([n for n, nodes in ground.networks.items() if len(nodes) >= kind.fewest])
    return {"kind": name, "network": network, **kind.draw(luck, ground.networks[network])}


def _chosen(kinds: Collection[str], ground: Ground) -> list[str]:
    """Give the kinds to draw from, in the order of the table. Raises: InvalidInput."""
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise errors.InvalidInput(
            f"no fault of kind {unknown[0]} can be drawn", hint=f"one of {', '.join(KINDS)} can be"
        )
    here = [name for name, kind in KINDS.items() if _has_room(kind, ground)]
    if missing := sorted(set(kinds) - set(here)):
        raise errors.InvalidInput(
            f"a fault of kind {missing[0]} takes {KINDS[missing[0]].fewest} nodes in a network"
        )
    return [name for name in here if (name in kinds if kinds else KINDS[name].usual)]


def _has_room(kind: Kind, ground: Ground) -> bool:
    nodes = (
        max(map(len, ground.networks.values()), default=0) if kind.between else len(ground.nodes)
    )
    return nodes >= kind.fewest
