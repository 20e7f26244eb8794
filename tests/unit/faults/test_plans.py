"""What faults are to do, as plans: in which direction, with which luck, and written down whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.faults.grudges import groups_apart, halves, one_way
from microvm_orchestrator.faults.plans import (
    CUT,
    Plan,
    impairing,
    impairment_of,
    link_down,
    partition,
    read,
    together,
    told,
)
from microvm_orchestrator.model.fault import FaultKind, FaultWay, Meets
from microvm_orchestrator.network.base import Ends
from microvm_orchestrator.network.impairment import AS_IT_SHOULD_BE, Bursts, Impairment, Spread

SLOW = Impairment(delay_s=0.1)
EVERYTHING = Impairment(
    bursts=Bursts(0.1, 0.2, 0.9, 0.01),
    delay_s=0.1,
    jitter_s=0.05,
    spread=Spread.PARETO,
    corrupt=0.1,
    duplicate=0.2,
    reorder=0.3,
    rate_bytes=1000,
    mtu=1280,
    dns=True,
    seed="seven",
)


def test_a_partition_cuts_each_way_that_there_is_a_grudge_about() -> None:
    plan = partition("net", halves(["a", "b", "c"]))
    assert (plan.kind, plan.machines) == (FaultKind.PARTITION, ["a", "b", "c"])
    assert plan.ways == {Ends(*ends): CUT for ends in ("ab", "ba", "ac", "ca")}
    assert set(partition("net", one_way(["a"], ["b"])).ways) == {Ends("a", "b")}


def test_what_a_machine_sends_is_impaired_and_not_what_it_hears() -> None:
    plan = impairing("net", "a", ["c", "b"], SLOW)
    assert plan.ways == {Ends("a", "b"): SLOW, Ends("a", "c"): SLOW}


def test_a_link_that_is_down_leaves_a_machine_alone() -> None:
    assert set(link_down("net", "b", "abc").ways) == {Ends(*e) for e in ("ba", "bc", "ab", "cb")}


def test_luck_is_named_by_what_machines_are_called_and_differs_by_way() -> None:
    one = impairing("net", "m1", ["m2"], SLOW, seed="7", names={"m1": "web", "m2": "db"})
    two = impairing("net", "m8", ["m9"], SLOW, seed="7", names={"m8": "web", "m9": "db"})
    assert [way.seed for way in one.ways.values()] == [way.seed for way in two.ways.values()]
    back = impairing("net", "m2", ["m1"], SLOW, seed="7", names={"m1": "web", "m2": "db"})
    assert [w.seed for w in back.ways.values()] != [w.seed for w in one.ways.values()]
    assert [way.seed for way in impairing("net", "a", ["b"], SLOW).ways.values()] == [""]


def test_what_is_written_down_is_read_again_whole() -> None:
    ways = {Ends("a", "b"): EVERYTHING, Ends("b", "a"): CUT}
    written = [way.model_dump(mode="json") for way in told(ways)]
    again = read([FaultWay.model_validate(way) for way in written])
    assert again == ways
    assert again[Ends("a", "b")].seed == "seven"


def test_what_holds_on_a_way_is_all_that_is_said_of_it() -> None:
    ways = [{Ends("a", "b"): SLOW}, {Ends("a", "b"): CUT, Ends("b", "a"): CUT}]
    assert together(ways, [Ends("a", "b"), Ends("c", "d")]) == {
        Ends("a", "b"): Impairment(cut=True, delay_s=0.1),
        Ends("c", "d"): AS_IT_SHOULD_BE,
    }


def test_a_plan_of_more_ways_than_can_be_kept_is_refused() -> None:
    many = [f"m{number}" for number in range(102)]
    with pytest.raises(errors.TooLarge):
        partition("net", groups_apart([[each] for each in many]))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: impairing("net", "a", ["a"], SLOW),
        lambda: impairing("net", "a", [], SLOW),
        lambda: impairing("net", "a", ["b"], Impairment()),
        lambda: Plan(FaultKind.IMPAIR, "net", {Ends("a", "b"): SLOW}, ttl_s=0),
        lambda: Plan(FaultKind.IMPAIR, "net", {Ends("a", "b"): SLOW}, ttl_s=float("nan")),
        lambda: impairment_of(Meets(spread="odd")),
        lambda: impairment_of(Meets(delay_s=0.1, jitter_s=0.2)),
        lambda: impairment_of(Meets(rate_bytes=1)),
    ],
)
def test_a_plan_that_cannot_be_is_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(errors.InvalidInput):
        wrong()
