"""How fast histories of registers are checked, beside the search of Wing and Gong as they wrote it.

That one has no memory of where it has been, so it is given histories of a size that it can do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from bench.figures import Stopwatch, tell
from histories import atomic, with_stale_read
from microvm_orchestrator.clusters.history import EventType, Operation
from microvm_orchestrator.clusters.linear import Answer, check_linearizable


def plainly(history: Sequence[Operation], register: object = None) -> bool:
    """Take any operation that may be the first, and go on with the others."""
    left = [each for each in history if each.outcome is EventType.OK]
    return _plainly(left, register)


def _plainly(left: list[Operation], register: object) -> bool:
    if not left:
        return True
    earliest = min(each.end or 0 for each in left)
    for each in left:
        if each.start > earliest:
            continue
        after, fits = register, True
        if each.f == "read":
            fits = each.result == register
        elif each.f == "write":
            after = each.value
        elif isinstance(each.value, list):
            fits, after = each.value[0] == register, each.value[1]
        if fits and _plainly([other for other in left if other is not each], after):
            return True
    return False


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_small_histories_beside_a_search_without_memory(processes: int, whole: bool) -> None:
    right = [atomic(seed, 24, processes, lost=0.0) for seed in range(40 if whole else 5)]
    histories = [*right, *(with_stale_read(each, 9) for each in right)]
    with Stopwatch() as ours:
        answers = [check_linearizable(each).answer is Answer.VALID for each in histories]
    with Stopwatch() as theirs:
        plain = [plainly(each) for each in histories]
    assert answers == plain
    operations = sum(map(len, histories))
    mine, floor = operations / ours.timed.cpu_s, operations / theirs.timed.cpu_s
    tell(
        f"linear, {len(histories)} histories of {processes} clients",
        f"{mine:.0f} operations/s",
        floor=f"{floor:.0f}",
        ratio=f"{floor / mine:.2f}",
    )


@pytest.mark.parametrize(("keys", "processes", "lost"), [(1, 5, 0.0), (1, 10, 0.0), (50, 5, 0.02)])
def test_long_histories(keys: int, processes: int, lost: float, whole: bool) -> None:
    length = (10_000 if whole else 1000) // keys
    history = [
        replace(each, key=key)
        for key in range(keys)
        for each in atomic(key, length, processes, lost=lost)
    ]
    with Stopwatch() as watch:
        verdict = check_linearizable(history)
    assert verdict.answer is Answer.VALID
    rate = len(history) / watch.timed.cpu_s
    what = f"{len(history)} of {processes} clients, {keys} keys"
    tell(f"linear, {what}, {lost:.0%} lost", f"{rate:.0f} operations/s")
