"""What a campaign breaks when, as it is drawn."""

from __future__ import annotations

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.clusters.campaign_schedule import KINDS, Ground, drawn, ending_s
from microvm_orchestrator.model.campaign import MAX_FAULTS, ScheduledFault

TRIO = Ground(nodes=["n1", "n2", "n3"], networks={"lan": ["n1", "n2", "n3"], "san": ["n1"]})
LONE = Ground(nodes=["n1"], networks={"lan": ["n1"]})


def draw(seed: str, ground: Ground = TRIO, *kinds: str, of_s: float = 3600) -> list[ScheduledFault]:
    return drawn(seed, ground, duration_s=of_s, interval_s=5.0, hold_s=5.0, kinds=kinds)


def test_a_seed_draws_the_same_schedule_again_and_another_seed_another_one() -> None:
    assert draw("7") == draw("7")
    assert draw("7") != draw("8")
    # As anybody draws it, anywhere: who replays it on another host needs no more than the seed.
    assert draw("7", TRIO, "crash", of_s=20.0) == [
        ScheduledFault(at_s=6.062, for_s=6.89, fault={"kind": "crash", "machine": "n1"})
    ]


def test_faults_come_one_after_another_and_all_are_over_in_time() -> None:
    schedule = draw("7")
    assert len(schedule) > 300
    ended_s = 0.0
    for each in schedule:
        assert 2.5 <= round(each.at_s - ended_s, 3) <= 7.5
        assert 2.5 <= each.for_s <= 7.5
        ended_s = each.at_s + each.for_s
    assert ending_s(schedule) == ended_s <= 3600


def test_all_kinds_are_drawn_in_all_their_forms() -> None:
    faults = [each.fault for each in draw("7", TRIO, *KINDS)]
    assert {str(fault["kind"]) for fault in faults} == set(KINDS)
    shapes = {str(fault.get("shape")) for fault in faults if fault["kind"] == "partition"}
    assert shapes == {"single", "halves", "one_way", "bridge", "majorities_ring"}
    harms = {frozenset(fault) for fault in faults if fault["kind"] == "impair"}
    assert len(harms) == 7
    # Nobody can be apart where somebody is alone.
    assert {str(fault.get("network")) for fault in faults} == {"lan", "None"}


def test_what_needs_more_than_nodes_is_drawn_only_where_it_is_asked_for() -> None:
    usual = {str(each.fault["kind"]) for each in draw("7")}
    assert usual == {"partition", "impair", "link_down", "flap", "pause", "crash"}


def test_only_the_kinds_that_are_asked_for_are_drawn() -> None:
    kinds = {str(each.fault["kind"]) for each in draw("7", TRIO, "crash", "link_down")}
    assert kinds == {"crash", "link_down"}


def test_what_cannot_be_in_a_cluster_is_not_drawn_and_refused_when_it_is_asked_for() -> None:
    assert {str(each.fault["kind"]) for each in draw("7", LONE)} == {"crash", "pause"}
    with pytest.raises(errors.InvalidInput, match="partition takes 2 nodes in a network"):
        draw("7", LONE, "partition")
    with pytest.raises(errors.InvalidInput, match="no fault of kind flood can be drawn"):
        draw("7", TRIO, "flood")


def test_a_campaign_has_room_for_a_fault_and_not_for_too_many() -> None:
    with pytest.raises(errors.InvalidInput, match="no fault has room in 2 s"):
        draw("7", of_s=2.0)
    with pytest.raises(errors.TooLarge, match=f"at most {MAX_FAULTS} faults"):
        draw("7", of_s=86_400.0)
