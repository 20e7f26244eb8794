"""What can be wrong with a way between two machines: slow, narrow, lossy, disturbed, or cut.

A value, the same for both kinds of networks, and what is asked for is what is read back: figures
are kept to a millionth, which both kinds can say exactly. Above stand the networks and the ledger
of faults; below, only the errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from statistics import NormalDist

from microvm_orchestrator import errors

# Of a chance, and of a second.
_PLACES = 6
# How many times its jitter a delay is off at most; what the kernel's tables can say.
MOST_ASIDE = 4.0
# How long a frame that is to be overtaken waits for another one, where nothing is delayed anyway.
HOLD_S = 0.01
# A frame that is never late but always overtaken would be for ever.
_MOST_REORDERED = 0.9
_MOST_S = 3600.0
# The least that IPv4 lets a way carry whole, and the most that a packet says of itself.
_LEAST_MTU, _MOST_MTU = 68, 65_535
# What a queue of the kernel can be told.
_LEAST_BYTES, _MOST_BYTES = 100, 1 << 36


def _keep_chance(of: object, name: str) -> None:
    chance = getattr(of, name)
    if not 0 <= chance <= 1:
        raise errors.InvalidInput(f"{name.replace('_', ' ')} is a share, from 0 to 1")
    object.__setattr__(of, name, round(chance, _PLACES))


class Behaviour(StrEnum):
    """What a kind of networks may be able to do to a way, each by itself."""

    CUT = "cut"
    LOSS = "loss"
    BURSTS = "bursts"
    DELAY = "delay"
    JITTER = "jitter"
    CORRUPT = "corrupt"
    DUPLICATE = "duplicate"
    REORDER = "reorder"
    RATE = "rate"
    MTU = "mtu"
    DNS = "dns"


class Spread(StrEnum):
    """How delays lie around their middle."""

    # Anywhere within the jitter, and nowhere else.
    UNIFORM = "uniform"
    # The jitter is the standard deviation.
    NORMAL = "normal"
    # So too; most are somewhat early and a few are very late.
    PARETO = "pareto"


@dataclass(frozen=True, slots=True)
class Bursts:
    """Loss after Gilbert and Elliott: a way is good or bad, and may change at each frame."""

    # That a good way turns bad, and a bad one good.
    worsens: float
    recovers: float
    # How many frames are lost while it is so.
    loss_bad: float = 1.0
    loss_good: float = 0.0

    def __post_init__(self) -> None:
        for name in ("worsens", "recovers", "loss_bad", "loss_good"):
            _keep_chance(self, name)
        if self.worsens + self.recovers == 0:
            raise errors.InvalidInput("a way that comes in bursts has to change at times")

    @property
    def bad_share(self) -> float:
        """How many frames meet a bad way."""
        return self.worsens / (self.worsens + self.recovers)

    @property
    def loss(self) -> float:
        """How many frames are lost in all."""
        return self.bad_share * self.loss_bad + (1 - self.bad_share) * self.loss_good

    def beside(self, loss: float) -> Bursts:
        """Lose so many more, each by itself."""
        return Bursts(
            self.worsens,
            self.recovers,
            _either(self.loss_bad, loss),
            _either(self.loss_good, loss),
        )


@dataclass(frozen=True, slots=True)
class Impairment:
    """What befalls the frames that go from one machine to another. By default, nothing."""

    # Nothing passes.
    cut: bool = False
    # How many of all are lost, from 0 to 1.
    loss: float = 0.0
    # How much the loss of a frame follows that of the one before: their correlation.
    loss_correlation: float = 0.0
    # Instead of both.
    bursts: Bursts | None = None
    delay_s: float = 0.0
    # How far delays are from that; so frames overtake each other.
    jitter_s: float = 0.0
    spread: Spread = Spread.UNIFORM
    # How many have one bit changed, behind the header that tells whose they are.
    corrupt: float = 0.0
    # How many come twice.
    duplicate: float = 0.0
    # How many pass at once where others are delayed; where nothing is, how many are overtaken.
    reorder: float = 0.0
    # What passes in a second; the rest queues up.
    rate_bytes: int | None = None
    # Larger ones, behind the Ethernet header, vanish, and nobody is told: a black hole.
    mtu: int | None = None
    # Questions to servers of names, whatever asks them, vanish.
    dns: bool = False
    # Names the luck that frames meet, where that can be told in advance: in userspace.
    seed: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for name in ("loss", "loss_correlation", "corrupt", "duplicate", "reorder"):
            _keep_chance(self, name)
        for name in ("delay_s", "jitter_s"):
            object.__setattr__(self, name, round(getattr(self, name), _PLACES))
        if not (0 <= self.jitter_s <= self.delay_s <= _MOST_S):
            raise errors.InvalidInput(
                "a delay is not negative nor longer than an hour, and its jitter not larger than it"
            )
        if self.spread is not Spread.UNIFORM and not self.jitter_s:
            raise errors.InvalidInput(f"delays are spread by a jitter; {self.spread} has none")
        if self.rate_bytes is not None and not _LEAST_BYTES <= self.rate_bytes <= _MOST_BYTES:
            raise errors.InvalidInput(
                f"a rate is at least {_LEAST_BYTES} bytes a second; to let nothing pass, cut"
            )
        if self.mtu is not None and not _LEAST_MTU <= self.mtu <= _MOST_MTU:
            raise errors.InvalidInput(
                f"an MTU is from {_LEAST_MTU} to {_MOST_MTU} bytes; to let nothing pass, cut"
            )
        if self.reorder > _MOST_REORDERED and not self.delay_s:
            raise errors.InvalidInput(
                f"without a delay no more than {_MOST_REORDERED} of all frames can be overtaken"
            )
        self._check_loss()

    def _check_loss(self) -> None:
        if self.loss_correlation and not 0 < self.loss < 1:
            raise errors.InvalidInput("only the loss of some frames can follow that of others")
        if self.loss_correlation == 1:
            raise errors.InvalidInput("a loss that follows the last one always is none, or all")
        if self.bursts is not None and self.loss:
            raise errors.InvalidInput("frames are lost in bursts or each by itself, not both")

    @property
    def needs(self) -> frozenset[Behaviour]:
        """What a network has to be able to do for it."""
        asked = {
            Behaviour.CUT: self.cut,
            Behaviour.LOSS: self.loss and not self.loss_correlation,
            Behaviour.BURSTS: self.chain is not None,
            Behaviour.DELAY: self.delay_s,
            Behaviour.JITTER: self.jitter_s,
            Behaviour.CORRUPT: self.corrupt,
            Behaviour.DUPLICATE: self.duplicate,
            Behaviour.REORDER: self.reorder,
            Behaviour.RATE: self.rate_bytes,
            Behaviour.MTU: self.mtu,
            Behaviour.DNS: self.dns,
        }
        return frozenset(behaviour for behaviour, wanted in asked.items() if wanted)

    @property
    def chain(self) -> Bursts | None:
        """The way's good and bad times, where the loss of frames follows that of others.

        A correlated loss is the chain of two states that has just that share and correlation.
        """
        if not self.loss_correlation:
            return self.bursts
        changes = 1 - self.loss_correlation
        return Bursts(self.loss * changes, (1 - self.loss) * changes)


AS_IT_SHOULD_BE = Impairment()


def combined(impairments: Iterable[Impairment]) -> Impairment:
    """Put together what several faults do to one way, whichever came first.

    Raises: Conflict for two that cannot both be so.
    """
    whole = AS_IT_SHOULD_BE
    for each in impairments:
        whole = _joined(whole, each)
    return whole


def _joined(one: Impairment, two: Impairment) -> Impairment:
    if one.jitter_s and two.jitter_s and one.spread is not two.spread:
        raise errors.Conflict(f"delays are spread {one.spread} there already, not {two.spread}")
    # Of two, the one in which the loss of frames follows that of others, if any does.
    first, second = (two, one) if two.chain is not None else (one, two)
    if second.chain is not None:
        raise errors.Conflict("frames are lost there in bursts already")
    joined = replace(
        first,
        cut=one.cut or two.cut,
        delay_s=one.delay_s + two.delay_s,
        jitter_s=one.jitter_s + two.jitter_s,
        spread=one.spread if one.jitter_s else two.spread,
        corrupt=_either(one.corrupt, two.corrupt),
        duplicate=_either(one.duplicate, two.duplicate),
        reorder=_either(one.reorder, two.reorder),
        rate_bytes=min(filter(None, (one.rate_bytes, two.rate_bytes)), default=None),
        mtu=min(filter(None, (one.mtu, two.mtu)), default=None),
        dns=one.dns or two.dns,
        seed=" ".join(sorted(filter(None, (one.seed, two.seed)))),
    )
    if not second.loss:
        return joined
    if first.chain is None:
        return replace(joined, loss=_either(first.loss, second.loss))
    chain = first.chain.beside(second.loss)
    return replace(joined, loss=0.0, loss_correlation=0.0, bursts=chain)


def aside(spread: Spread, chance: float) -> float:
    """Tell how many times its jitter a delay is off, for a chance from 0 to 1."""
    if spread is Spread.UNIFORM:
        return 2 * chance - 1
    chance = min(max(chance, 1e-9), 1 - 1e-9)
    off = NormalDist().inv_cdf(chance) if spread is Spread.NORMAL else _pareto(chance)
    return max(-MOST_ASIDE, min(MOST_ASIDE, off))


# Of a distribution of Pareto with a shape of 3 that goes no further than this: chosen so that,
# moved to its middle and to a deviation of 1, it ends where the kernel's tables do.
_FURTHEST = 3.727
_MIDDLE = 1.5 - 0.5 / _FURTHEST**2
_DEVIATION = math.sqrt(3 - 2 / _FURTHEST - _MIDDLE**2)


def _pareto(chance: float) -> float:
    return (min((1 - chance) ** (-1 / 3), _FURTHEST) - _MIDDLE) / _DEVIATION


def _either(one: float, two: float) -> float:
    return one + two - one * two
