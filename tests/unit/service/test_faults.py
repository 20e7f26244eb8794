"""What a request for a fault means, among the machines of a network by name and id."""

from __future__ import annotations

from typing import Any

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.network.impairment import Bursts, Impairment, Spread
from microvm_orchestrator.service.faults import InjectFault, plan_of

MEMBERS = {"m_3": "a", "m_1": "b", "m_2": "c"}


def ways(**asked: Any) -> dict[str, Impairment]:
    """Ask for a fault, and tell its ways by names."""
    plan = plan_of(InjectFault(network="lan", **asked), "n_1", MEMBERS)
    assert plan.network_id == "n_1"
    assert plan.parameters["network"] == "lan"
    return {f"{MEMBERS[e.source]}{MEMBERS[e.target]}": its for e, its in plan.ways.items()}


@pytest.mark.parametrize(
    ("asked", "cut"),
    [
        ({"groups": [["a"], ["b", "m_2"]]}, "ab ba ac ca"),
        ({"shape": "one_way", "groups": [["a"], ["b"]]}, "ab"),
        ({"shape": "halves"}, "ab ba ac ca"),
        ({"shape": "single", "machine": "b"}, "ba ab bc cb"),
        ({"shape": "bridge"}, "ac ca"),
        ({"shape": "majorities_ring"}, "ba cb ac"),
        ({"shape": "grudges", "grudges": {"a": ["b"], "c": ["b"]}}, "ba bc"),
    ],
)
def test_a_partition_parts_machines_by_the_order_of_their_names(
    asked: dict[str, Any], cut: str
) -> None:
    found = ways(kind="partition", **asked)
    if asked.get("shape") == "majorities_ring":
        assert len(found) == 3
        assert {each[1] for each in found} == set("abc")
    else:
        assert set(found) == set(cut.split())
    assert set(found.values()) == {Impairment(cut=True)}


def test_a_shuffled_partition_is_the_same_for_the_same_seed_and_not_for_all() -> None:
    found = [
        frozenset(ways(kind="partition", shape="halves", shuffle=str(seed))) for seed in range(9)
    ]
    assert found[3] == frozenset(ways(kind="partition", shape="halves", shuffle="3"))
    assert len(set(found)) == 3


def test_a_link_that_is_down_is_one_machines() -> None:
    assert set(ways(kind="link_down", machine="c")) == {"ca", "cb", "ac", "bc"}


def test_what_a_machine_sends_is_impaired_for_its_targets_or_for_all() -> None:
    meets = {"delay_s": 0.1, "jitter_s": 0.05, "spread": "pareto", "bursts": [0.1, 0.5]}
    found = ways(kind="impair", machine="a", targets=["c"], **meets)
    assert found == {
        "ac": Impairment(delay_s=0.1, jitter_s=0.05, spread=Spread.PARETO, bursts=Bursts(0.1, 0.5))
    }
    assert set(ways(kind="impair", machine="m_3", loss=0.5)) == {"ab", "ac"}
    named = ways(kind="impair", machine="a", loss=0.5, seed="7")
    assert {its.seed for its in named.values()} == {"7 a b", "7 a c"}


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"kind": "partition"}, "2 groups"),
        ({"kind": "partition", "shape": "one_way", "groups": [["a"]]}, "two groups"),
        ({"kind": "partition", "shape": "single"}, "takes a machine"),
        ({"kind": "impair", "loss": 0.1}, "takes a machine"),
        ({"kind": "impair", "machine": "a"}, "change something"),
        ({"kind": "impair", "machine": "a", "bursts": [0.1]}, "bursts take"),
        ({"kind": "impair", "machine": "a", "spread": "odd", "loss": 0.1}, "spread uniform"),
        ({"kind": "impair", "machine": "a", "jitter_s": 1.0}, "jitter"),
        ({"kind": "impair", "machine": "a", "targets": ["a"], "loss": 0.1}, "itself"),
    ],
)
def test_what_makes_no_sense_is_refused(asked: dict[str, Any], word: str) -> None:
    with pytest.raises(errors.InvalidInput, match=word):
        ways(**asked)


def test_a_machine_that_is_not_in_the_network_is_not_found() -> None:
    with pytest.raises(errors.NotFound, match="no machine x in network lan"):
        ways(kind="link_down", machine="x")
