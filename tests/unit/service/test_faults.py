"""What a request for a fault means, among the machines of a network by name and id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from calling import VIEWER, House, house
from machines import publish_no_image
from microvm_orchestrator import errors
from microvm_orchestrator.network.impairment import Bursts, Impairment, Spread
from microvm_orchestrator.service.faults import InjectFault, plan_of

if TYPE_CHECKING:
    from pathlib import Path

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
    assert ways(kind="impair", machine="a", mtu=1280)["ab"] == Impairment(mtu=1280)
    named = ways(kind="impair", machine="a", loss=0.5, seed="7")
    assert {its.seed for its in named.values()} == {"7 a b", "7 a c"}


def test_questions_for_names_go_nowhere_or_not_to_those_who_are_named() -> None:
    assert ways(kind="dns", machine="a") == dict.fromkeys(("ab", "ac"), Impairment(dns=True))
    assert set(ways(kind="dns", machine="a", targets=["c"])) == {"ac"}


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"kind": "partition"}, "2 groups"),
        ({"kind": "partition", "shape": "one_way", "groups": [["a"]]}, "two groups"),
        ({"kind": "partition", "shape": "single"}, "takes a machine"),
        ({"kind": "impair", "loss": 0.1}, "takes a machine"),
        ({"kind": "flap", "machine": "a", "down_s": 1}, "an up_s"),
        ({"kind": "impair", "machine": "a"}, "change something"),
        ({"kind": "impair", "machine": "a", "mtu": 67}, "68 to 65535"),
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
    with pytest.raises(errors.NotFound, match="network lan has no machine x"):
        ways(kind="link_down", machine="x")


async def in_lan(here: House) -> None:
    """Have three machines in a network; none of them runs."""
    publish_no_image(here.service.host.images, "embedded")
    await here.ask("network_create", name="lan")
    for name in "abc":
        await here.ask("machine_define", name=name, networks=["lan"])


async def test_faults_are_listed_while_they_hold_and_over_a_restart(tmp_path: Path) -> None:
    async with house(tmp_path) as here:
        await in_lan(here)
        split = await here.ask(
            "fault_inject", network="lan", kind="partition", groups=[["a"], ["b", "c"]]
        )
        assert (split["state"], len(split["ways"])) == ("active", 4)
        assert split["parameters"]["groups"] == [["a"], ["b", "c"]]
        slow = await here.ask(
            "fault_inject", network="lan", kind="impair", machine="a", delay_s=0.1, ttl_s=3600
        )
        assert slow["heals_at"] is not None
        assert [way["meets"]["cut"] for way in slow["before"]] == [True, True]
    async with house(tmp_path) as here:
        assert (await here.ask("fault_list", by=VIEWER))["items"] == [split, slow]
        assert await here.ask("fault_get", fault_id=split["fault_id"]) == split
        healed = await here.ask("fault_heal", fault_id=split["fault_id"])
        assert healed["state"] == "healed"
        assert await here.ask("fault_heal", fault_id=split["fault_id"]) == healed
        assert (await here.ask("fault_list", network="lan"))["items"] == [slow]
        assert await here.ask("fault_heal_all", network="lan") == {"healed": 1}
        assert (await here.ask("fault_list"))["items"] == []
        assert len((await here.ask("fault_list", ended=True))["items"]) == 2


async def test_a_key_breaks_something_once_and_nothing_else(tmp_path: Path) -> None:
    down = {"network": "lan", "kind": "link_down", "machine": "b", "idempotency_key": "once"}
    async with house(tmp_path) as here:
        await in_lan(here)
        fault = await here.ask("fault_inject", **down)
        assert await here.ask("fault_inject", **down) == fault
        with pytest.raises(errors.KeyReused, match="another one"):
            await here.ask("fault_inject", **{**down, "machine": "a"})
        healed = await here.ask("fault_heal", fault_id=fault["fault_id"])
        assert await here.ask("fault_inject", **down) == healed
        assert len((await here.ask("fault_list", ended=True))["items"]) == 1


async def test_a_machine_that_is_defined_later_finds_a_link_that_is_down(tmp_path: Path) -> None:
    async with house(tmp_path) as here:
        await in_lan(here)
        fault = await here.ask("fault_inject", network="lan", kind="link_down", machine="b")
        apart = await here.ask("fault_inject", network="lan", kind="partition", shape="halves")
        late = await here.ask("machine_define", name="late", networks=["lan"])
        await here.ask("machine_define", name="elsewhere")
        now = await here.ask("fault_get", fault_id=fault["fault_id"])
        assert len(now["ways"]) == len(fault["ways"]) + 2
        assert late["machine_id"] in now["machines"]
        assert await here.ask("fault_get", fault_id=apart["fault_id"]) == apart
    async with house(tmp_path) as here:
        assert await here.ask("fault_get", fault_id=fault["fault_id"]) == now
        renewed = await here.ask("fault_renew", fault_id=fault["fault_id"], ttl_s=60)
        assert renewed["heals_at"] is not None


async def test_a_network_that_is_removed_takes_its_faults_along(tmp_path: Path) -> None:
    async with house(tmp_path) as here:
        await in_lan(here)
        fault = await here.ask("fault_inject", network="lan", kind="link_down", machine="b")
        for name in "abc":
            await here.ask("machine_delete", machine=name)
        await here.ask("network_remove", network="lan")
        fault = await here.ask("fault_get", fault_id=fault["fault_id"])
        assert (fault["state"], fault["reason"]) == ("healed", "its network is gone")
