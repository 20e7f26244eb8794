"""Partitions as Jepsen has them: who hears whom afterwards, for any set of machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microvm_orchestrator import errors
from microvm_orchestrator.faults.grudges import (
    Grudge,
    alone,
    arbitrary,
    bridged,
    groups_apart,
    halves,
    majorities_ring,
    one_way,
    shuffled,
)
from microvm_orchestrator.network.base import Ends

FIVE = ["a", "b", "c", "d", "e"]
MACHINES = st.lists(st.sampled_from([f"m{n}" for n in range(12)]), min_size=3, unique=True)
quick = settings(max_examples=60)


def heard_by(machine: str, machines: Sequence[str], grudge: Grudge) -> set[str]:
    return {each for each in machines if Ends(each, machine) not in grudge}


@quick
@given(MACHINES, st.data())
def test_groups_hear_themselves_and_nobody_else(machines: list[str], data: st.DataObject) -> None:
    number_of = {each: data.draw(st.integers(0, 2)) for each in machines}
    groups = [[each for each in machines if number_of[each] == n] for n in range(3)]
    groups = [group for group in groups if group]
    if len(groups) < 2:
        return
    grudge = groups_apart(groups)
    for group in groups:
        for machine in group:
            assert heard_by(machine, machines, grudge) == set(group)
    assert grudge == {Ends(*reversed(ends)) for ends in grudge}


@quick
@given(MACHINES)
def test_halves_are_two_and_differ_by_one_at_most(machines: list[str]) -> None:
    grudge = halves(machines)
    sides = {frozenset(heard_by(each, machines, grudge)) for each in machines}
    few, many = sorted(map(len, sides))
    assert (few + many, many - few) == (len(machines), len(machines) % 2)


@quick
@given(MACHINES)
def test_one_that_is_alone_is_so_both_ways_and_nobody_else_is(machines: list[str]) -> None:
    grudge = alone(machines[0], machines)
    assert heard_by(machines[0], machines, grudge) == {machines[0]}
    for other in machines[1:]:
        assert heard_by(other, machines, grudge) == set(machines[1:])


@quick
@given(MACHINES)
def test_a_bridge_hears_all_and_is_heard_by_all(machines: list[str]) -> None:
    grudge = bridged(machines)
    middle = machines[len(machines) // 2]
    assert heard_by(middle, machines, grudge) == set(machines)
    others = {frozenset(heard_by(m, machines, grudge)) for m in machines if m != middle}
    one, two = others
    assert one & two == {middle}


@quick
@given(MACHINES)
def test_in_a_ring_everybody_hears_a_majority_of_their_own(machines: list[str]) -> None:
    grudge = majorities_ring(machines)
    heard = [frozenset(heard_by(each, machines, grudge)) for each in machines]
    assert {len(each) for each in heard} == {len(machines) // 2 + 1}
    assert len(set(heard)) == len(machines)
    assert all(machine in each for machine, each in zip(machines, heard, strict=True))


def test_a_ring_of_five_is_two_neighbours_each() -> None:
    assert majorities_ring(FIVE) == {
        Ends(*ends) for ends in ("ca", "da", "db", "eb", "ec", "ac", "ad", "bd", "be", "ce")
    }


def test_one_way_is_one_way() -> None:
    assert one_way(["a", "b"], ["c"]) == {Ends("a", "c"), Ends("b", "c")}


def test_any_grudge_may_be_had_against_anybody() -> None:
    grudge = arbitrary({"a": ["b", "c"], "b": [], "d": ["a"]}, FIVE)
    assert grudge == {Ends("b", "a"), Ends("c", "a"), Ends("a", "d")}


@quick
@given(MACHINES, st.text(max_size=4))
def test_the_same_seed_shuffles_the_same_way(machines: list[str], seed: str) -> None:
    assert sorted(shuffled(machines, seed)) == sorted(machines)
    assert shuffled(machines, seed) == shuffled(machines[::-1], seed)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (lambda: groups_apart([["a"]]), "at least 2 groups"),
        (lambda: groups_apart([["a"], []]), "at least one"),
        (lambda: groups_apart([["a", "b"], ["b"]]), "machine b is in two groups"),
        (lambda: one_way(["a"], ["a"]), "in two groups"),
        (lambda: halves(["a"]), "at least 2 machines"),
        (lambda: halves(["a", "a", "b"]), "twice"),
        (lambda: alone("x", FIVE), "machine x is not among"),
        (lambda: alone("a", ["a"]), "at least one"),
        (lambda: bridged(["a", "b"]), "at least 3"),
        (lambda: majorities_ring(["a", "b"]), "at least 3"),
        (lambda: arbitrary({"a": ["x"]}, FIVE), "machine x is not among"),
        (lambda: arbitrary({"a": ["a"]}, FIVE), "hears itself"),
        (lambda: arbitrary({"a": []}, FIVE), "nobody"),
    ],
)
def test_a_partition_that_cannot_be_is_refused(wrong: Callable[[], Grudge], word: str) -> None:
    with pytest.raises(errors.InvalidInput, match=word):
        wrong()
