"""What is written to netem is what is read from it, and its tables are those of userspace."""

from __future__ import annotations

import statistics
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microvm_orchestrator.network import netem
from microvm_orchestrator.network.impairment import Bursts, Impairment, Spread

MILLIONTHS = st.integers(0, 1_000_000).map(lambda number: number / 1_000_000)
UP_TO_HALF = st.integers(0, 500_000).map(lambda number: number / 1_000_000)
SOME = st.integers(1, 1_000_000).map(lambda number: number / 1_000_000)


@st.composite
def disturbances(draw: st.DrawFn) -> Impairment:
    delay_s = draw(st.sampled_from([0.0, 0.000001, 0.123457, 12.345678, 3600.0]))
    jitter_s = draw(st.sampled_from([0.0, delay_s / 2, delay_s]))
    return Impairment(
        bursts=draw(st.none() | st.builds(Bursts, SOME, MILLIONTHS, MILLIONTHS, MILLIONTHS)),
        delay_s=delay_s,
        jitter_s=jitter_s,
        spread=draw(st.sampled_from(Spread)) if round(jitter_s, 6) else Spread.UNIFORM,
        corrupt=draw(MILLIONTHS),
        duplicate=draw(MILLIONTHS),
        reorder=draw(UP_TO_HALF),
    )


@settings(max_examples=200)
@given(disturbances())
def test_what_is_written_is_read_to_the_millionth(its: Impairment) -> None:
    mark = list(Spread).index(its.spread) | (4 if its.reorder and not its.delay_s else 0)
    assert netem.read(netem.options(its), mark) == its


@pytest.mark.parametrize("spread", [Spread.NORMAL, Spread.PARETO])
def test_a_table_has_the_middle_and_the_deviation_that_the_kernel_takes_it_for(
    spread: Spread,
) -> None:
    table = struct.unpack("=4096h", netem.table(spread))
    assert abs(statistics.fmean(table) / 8192) < 0.01
    assert statistics.pstdev(table) / 8192 == pytest.approx(1, rel=0.01)
