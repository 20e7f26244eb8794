"""What may be wrong with a way, what it takes, and what several things make together."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microvm_orchestrator import errors
from microvm_orchestrator.network.impairment import (
    AS_IT_SHOULD_BE,
    Behaviour,
    Bursts,
    Impairment,
    Spread,
    aside,
    combined,
)

BURSTS = Bursts(0.05, 0.45)


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss": 1.1},
        {"loss": -0.1},
        {"loss": float("nan")},
        {"reorder": 2},
        {"reorder": 1.0},
        {"corrupt": 7},
        {"duplicate": -1},
        {"delay_s": -1},
        {"delay_s": 3601},
        {"delay_s": float("nan")},
        {"delay_s": 1, "jitter_s": 2},
        {"jitter_s": 1},
        {"delay_s": 1, "spread": Spread.NORMAL},
        {"rate_bytes": 0},
        {"rate_bytes": 1 << 37},
        {"rate_bytes": 99},
        {"mtu": 0},
        {"mtu": 67},
        {"mtu": 65_536},
        {"loss_correlation": 0.5},
        {"loss": 0.5, "loss_correlation": 1.0},
        {"loss": 0.5, "bursts": BURSTS},
    ],
)
def test_an_impairment_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(errors.InvalidInput):
        Impairment(**wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_bursts_that_never_change_are_refused() -> None:
    with pytest.raises(errors.InvalidInput):
        Bursts(0.0, 0.0)
    with pytest.raises(errors.InvalidInput):
        Bursts(0.5, 1.5)


def test_figures_are_kept_to_a_millionth() -> None:
    kept = Impairment(loss=1 / 3, delay_s=0.12345678)
    assert (kept.loss, kept.delay_s) == (0.333333, 0.123457)


@pytest.mark.parametrize(
    ("impairment", "needs"),
    [
        (AS_IT_SHOULD_BE, set[str]()),
        (Impairment(cut=True), {"cut"}),
        (Impairment(loss=0.1), {"loss"}),
        (Impairment(loss=0.1, loss_correlation=0.5), {"bursts"}),
        (Impairment(bursts=BURSTS), {"bursts"}),
        (Impairment(delay_s=1, jitter_s=0.1), {"delay", "jitter"}),
        (
            Impairment(corrupt=0.1, duplicate=0.1, reorder=0.1, rate_bytes=100),
            {"corrupt", "duplicate", "reorder", "rate"},
        ),
        (Impairment(mtu=1280, dns=True), {"mtu", "dns"}),
    ],
)
def test_what_it_takes_is_told(impairment: Impairment, needs: set[str]) -> None:
    assert impairment.needs == {Behaviour(each) for each in needs}


def test_a_correlated_loss_is_a_chain_with_the_same_share() -> None:
    chain = Impairment(loss=0.2, loss_correlation=0.5).chain
    assert chain is not None
    assert chain.loss == pytest.approx(0.2)
    # What follows a lost frame is lost this much more often.
    assert (1 - chain.recovers) - chain.worsens == pytest.approx(0.5)


def test_what_several_faults_make_of_a_way() -> None:
    slow, lossy = Impairment(delay_s=0.1, jitter_s=0.02), Impairment(loss=0.5, duplicate=0.5)
    cut, narrow = Impairment(cut=True), Impairment(rate_bytes=1000)
    assert combined([]) == AS_IT_SHOULD_BE
    assert combined([slow]) == slow
    assert combined([slow, lossy, cut, narrow]) == Impairment(
        cut=True, loss=0.5, duplicate=0.5, delay_s=0.1, jitter_s=0.02, rate_bytes=1000
    )
    assert combined([slow, slow]).delay_s == 0.2
    assert combined([lossy, lossy]).loss == 0.75
    assert combined([narrow, Impairment(rate_bytes=100)]).rate_bytes == 100
    small, nameless = Impairment(mtu=1280), Impairment(dns=True)
    assert combined([small, nameless, Impairment(mtu=576)]) == Impairment(mtu=576, dns=True)


def test_loss_of_two_kinds_is_put_together_or_refused() -> None:
    follows, plain = Impairment(loss=0.2, loss_correlation=0.5), Impairment(loss=0.5)
    for both in itertools.permutations([follows, plain]):
        chain = combined(both).chain
        assert chain is not None
        assert chain.loss == pytest.approx(0.6)
    assert combined([follows, Impairment(delay_s=1)]) == replace(follows, delay_s=1)
    for other in (follows, Impairment(bursts=BURSTS)):
        with pytest.raises(errors.Conflict, match="bursts"):
            combined([follows, other])
    normal = Impairment(delay_s=1, jitter_s=0.1, spread=Spread.NORMAL)
    with pytest.raises(errors.Conflict, match="spread"):
        combined([normal, replace(normal, spread=Spread.PARETO)])


CHANCES = st.integers(0, 500_000).map(lambda millionths: millionths / 1_000_000)
IMPAIRMENTS = st.builds(
    Impairment,
    cut=st.booleans(),
    loss=CHANCES,
    delay_s=st.sampled_from([0.1, 0.25]),
    jitter_s=st.sampled_from([0.0, 0.05]),
    corrupt=CHANCES,
    duplicate=CHANCES,
    reorder=CHANCES,
    rate_bytes=st.none() | st.integers(100, 10**9),
    mtu=st.none() | st.integers(68, 65_535),
    dns=st.booleans(),
)


@settings(max_examples=50)
@given(st.lists(IMPAIRMENTS, max_size=3))
def test_nothing_is_ever_taken_away_by_one_more(impairments: list[Impairment]) -> None:
    whole = combined(impairments)
    for each in impairments:
        assert whole.needs >= each.needs - {Behaviour.DELAY}
        assert whole.loss >= each.loss
        assert whole.delay_s >= each.delay_s
    assert combined([*impairments, AS_IT_SHOULD_BE]) == whole


@pytest.mark.parametrize("spread", Spread)
def test_delays_lie_around_their_middle_as_they_are_said_to(spread: Spread) -> None:
    count = 10_000
    off = [aside(spread, (number + 0.5) / count) for number in range(count)]
    assert off == sorted(off)
    assert abs(statistics.fmean(off)) < 0.01
    wanted = {Spread.UNIFORM: 3**-0.5, Spread.NORMAL: 1.0, Spread.PARETO: 1.0}[spread]
    assert statistics.pstdev(off) == pytest.approx(wanted, rel=0.01)
    assert max(off) <= (1.0 if spread is Spread.UNIFORM else 4.0)
    assert (statistics.median(off) < -0.1) == (spread is Spread.PARETO)
    for chance in (0.0, 1.0):
        assert abs(aside(spread, chance)) <= 4.0
