"""What impaired ways leave in the kernel, what a fresh daemon reads there, and what goes wrong."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.machine.tap import within
from microvm_orchestrator.network import netlink, queues, tables
from microvm_orchestrator.network.addresses import assign
from microvm_orchestrator.network.base import Ends, Network, Port
from microvm_orchestrator.network.impairment import Behaviour, Impairment
from microvm_orchestrator.network.kernel import KernelNetworks
from microvm_orchestrator.network.table_words import Word
from microvm_orchestrator.network.way_rules import MAPS, SETS, Rule, rules_in, table_of
from networking import KernelStage, kernel_stage
from nft_ways import nft_text

LONG_S = 60.0
NETWORK = Network("net")
NAMES = ("a", "b", "c", "d", "e")
CUT, LOSSY, NARROW = Impairment(cut=True), Impairment(loss=0.123456), Impairment(rate_bytes=12_345)
FAST = Impairment(rate_bytes=1 << 36)


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncGenerator[KernelStage]:
    with anyio.fail_after(LONG_S):
        async with kernel_stage(tmp_path) as stage:
            yield stage


@pytest.fixture
async def networks(stage: KernelStage) -> KernelNetworks:
    networks = KernelNetworks(netns=stage.netns)
    await networks.make(NETWORK)
    for port in ports():
        await networks.prepare(port)
        await networks.connect(port, stage.path(port))
    return networks


def ports() -> list[Port]:
    return [assign(NETWORK, name) for name in NAMES]


def tap_of(stage: KernelStage, machine_id: str) -> str:
    found = within(stage.netns, netlink.interfaces)
    return next(each.name for each in found if f" net {machine_id} " in each.alias)


async def test_when_all_is_mended_the_kernel_is_as_it_was_to_the_byte(
    stage: KernelStage, networks: KernelNetworks
) -> None:
    pristine = stage.dump()
    everything = {
        Ends(source, target): impairment
        for source in NAMES
        for target in NAMES
        for impairment in [(CUT, LOSSY, NARROW, FAST)[(ord(source) + ord(target)) % 4]]
        if source != target
    }
    await networks.impair("net", everything)
    assert await networks.impaired("net") == everything
    dump = stage.dump()
    assert dump != pristine
    # However it came to be, it is the same.
    await networks.mend("net", list(everything))
    assert stage.dump() == pristine
    for ends, impairment in reversed(everything.items()):
        await networks.impair("net", {ends: impairment})
    assert stage.dump() == dump
    for ends in everything:
        await networks.mend("net", [ends])
    assert stage.dump() == pristine


async def test_a_fresh_daemon_reads_what_an_earlier_one_did(
    stage: KernelStage, networks: KernelNetworks
) -> None:
    ways = {Ends("a", "b"): CUT, Ends("b", "a"): LOSSY, Ends("c", "a"): NARROW}
    await networks.impair("net", ways)
    dump = stage.dump()
    fresh = KernelNetworks(netns=stage.netns)
    assert await fresh.impaired("net") == ways
    await fresh.impair("net", {Ends("a", "b"): CUT})
    assert stage.dump() == dump
    await fresh.impair("net", {Ends("d", "a"): NARROW})
    assert await fresh.impaired("net") == {**ways, Ends("d", "a"): NARROW}
    await fresh.mend("net", [Ends("d", "a"), *ways])
    assert await fresh.impaired("net") == {}


async def test_what_it_does_not_know_by_name_is_told_all_the_same(
    stage: KernelStage, networks: KernelNetworks
) -> None:
    await networks.impair("net", {Ends("a", "b"): CUT})
    tap = tap_of(stage, "b")
    await networks.release(ports()[1])
    fresh = KernelNetworks(netns=stage.netns)
    assert await fresh.impaired("net") == {Ends("a", tap): CUT}
    await fresh.mend("net", [Ends("a", tap)])
    assert await fresh.impaired("net") == {}
    await networks.impair("net", {Ends("a", "b"): CUT})
    fresh = KernelNetworks(netns=stage.netns)
    await fresh.mend("net", [Ends("a", "b")])
    assert await fresh.impaired("net") == {}


async def test_what_somebody_took_away_is_seen_to_be_missing(
    stage: KernelStage, networks: KernelNetworks
) -> None:
    await networks.impair("net", {Ends("a", "b"): NARROW, Ends("b", "c"): CUT})
    stage.run("tc", "qdisc", "delete", "dev", tap_of(stage, "b"), "root")
    assert await networks.impaired("net") == {Ends("b", "c"): CUT}
    await networks.impair("net", {Ends("a", "b"): NARROW})
    assert await networks.impaired("net") == {Ends("a", "b"): NARROW, Ends("b", "c"): CUT}
    (table,) = (
        line.split()[2]
        for line in stage.run("nft", "list", "tables", "bridge").splitlines()
        if " mvb" in line
    )
    stage.run("nft", "delete", "table", "bridge", table)
    assert await networks.impaired("net") == {}


async def test_a_change_that_fails_half_way_leaves_all_as_it_was(
    stage: KernelStage, networks: KernelNetworks
) -> None:
    before = {Ends("a", "b"): CUT, Ends("c", "b"): NARROW}
    await networks.impair("net", before)
    dump = stage.dump()
    # Somebody has a queue of their own where ours is to be, after another one of ours was made.
    last = max(tap_of(stage, name) for name in "de")
    stage.run("tc", "qdisc", "add", "dev", last, "root", "handle", "7:", "pfifo")
    foreign = stage.dump()
    with pytest.raises(errors.Unavailable):
        await networks.impair("net", {Ends("a", "d"): NARROW, Ends("a", "e"): NARROW})
    assert stage.dump() == foreign
    assert await networks.impaired("net") == before
    stage.run("tc", "qdisc", "delete", "dev", last, "root")
    assert stage.dump() == dump


async def test_rules_of_a_bridge_that_is_gone_are_swept(
    stage: KernelStage, networks: KernelNetworks
) -> None:
    await networks.impair("net", {Ends("a", "b"): CUT})
    (bridge,) = (
        each.name for each in within(stage.netns, netlink.interfaces) if each.name.startswith("mvb")
    )
    within(stage.netns, lambda: netlink.delete(bridge))
    assert f"rules for {bridge}" in await networks.sweep([], [])
    assert await networks.sweep([], []) == []
    assert "mvb" not in stage.run("nft", "list", "ruleset")


async def test_five_machines_are_parted_in_one_step_of_nft(
    stage: KernelStage, networks: KernelNetworks
) -> None:
    ways = {
        Ends(*ends): CUT
        for one in ("a", "b")
        for two in ("c", "d", "e")
        for ends in ((one, two), (two, one))
    }
    await networks.impair("net", ways)
    assert await networks.impaired("net") == ways
    assert "qdisc htb" not in stage.dump()


async def test_what_this_kernel_lacks_is_found_by_trying(
    stage: KernelStage, networks: KernelNetworks
) -> None:
    assert within(stage.netns, lambda: queues.lacks("htb")) is False
    assert within(stage.netns, lambda: queues.lacks("nonsense")) is True
    before = stage.dump()
    abilities = await networks.abilities()
    assert stage.dump() == before
    assert {Behaviour.CUT, Behaviour.LOSS, Behaviour.RATE} <= abilities.can
    assert bool(abilities.reason) == (abilities.can != frozenset(Behaviour))


async def test_an_interface_has_the_classes_it_was_given_and_no_others(stage: KernelStage) -> None:
    given = {2: Impairment(rate_bytes=1000), 9: Impairment(rate_bytes=1 << 36)}

    def check() -> None:
        netlink.make_tap("mvtx")
        assert queues.queues_of(["mvtx"]) == {}
        queues.take("mvtx")
        queues.give("mvtx", given)
        assert queues.queues_of(["mvtx", "lo"]) == {"mvtx": given}
        queues.give("mvtx", {3: Impairment(rate_bytes=100)})
        assert queues.queues_of(["mvtx"]) == {"mvtx": {3: Impairment(rate_bytes=100)}}
        queues.give("mvtx", {})
        assert queues.queues_of(["mvtx"]) == {}
        with pytest.raises(errors.NotFound):
            queues.give("mvty", given)

    within(stage.netns, check)


RULES = {
    ("mvt1", "mvt2"): Rule(cut=True),
    ("mvt1", "mvt3"): Rule(loss=0.123456, number=0x2A),
    ("mvt2", "mvt1"): Rule(mtu=1280, dns=True),
    ("mvt3", "mvt1"): Rule(cut=True, loss=0.5, mtu=65_535, dns=True, number=2),
}


@pytest.mark.parametrize("wanted", [RULES, *({ends: rule} for ends, rule in RULES.items())])
async def test_what_the_kernel_is_told_is_what_nft_would_tell_it(
    stage: KernelStage, wanted: dict[tuple[str, str], Rule], tmp_path: Path
) -> None:
    def check() -> None:
        tables.try_out("mvbx", table_of(wanted))
        assert tables.find("mvbx", SETS, MAPS) == tables.Table()
        tables.replace("mvbx", table_of(wanted))
        assert rules_in(tables.find("mvbx", SETS, MAPS)) == wanted

    within(stage.netns, check)
    ours = stage.run("nft", "list", "ruleset")
    text = tmp_path / "text"
    text.write_text(nft_text("mvbx", wanted))
    stage.run("nft", "-f", str(text))
    assert sorted(stage.run("nft", "list", "ruleset").splitlines()) == sorted(ours.splitlines())
    assert within(stage.netns, lambda: rules_in(tables.find("mvbx", SETS, MAPS))) == wanted
    within(stage.netns, lambda: tables.replace("mvbx", tables.Table()))
    assert stage.run("nft", "list", "ruleset") == ""


async def test_all_may_be_lost_though_nft_could_not_say_so(stage: KernelStage) -> None:
    rules = {("mvt1", "mvt2"): Rule(loss=1.0)}
    within(stage.netns, lambda: tables.replace("mvbx", table_of(rules)))
    assert within(stage.netns, lambda: rules_in(tables.find("mvbx", SETS, MAPS))) == rules


async def test_more_ways_than_one_message_holds_are_told_and_read(stage: KernelStage) -> None:
    many = {(f"mvt{one}", f"mvt{two}"): Rule(cut=True) for one in range(60) for two in range(60)}

    def check() -> None:
        tables.replace("mvbx", table_of(many))
        assert rules_in(tables.find("mvbx", SETS, MAPS)) == many

    within(stage.netns, check)


async def test_a_set_that_no_rule_looks_into_is_not_taken_for_a_cut(stage: KernelStage) -> None:
    within(stage.netns, lambda: tables.replace("mvbx", table_of(RULES)))
    stage.run("nft", "flush", "chain", "bridge", "mvbx", "asking")
    found = within(stage.netns, lambda: rules_in(tables.find("mvbx", SETS, MAPS)))
    assert found == {ends: replace(rule, dns=False) for ends, rule in RULES.items()}
    stage.run("nft", "flush", "chain", "bridge", "mvbx", "passed")
    stage.run("nft", "add", "rule", "bridge", "mvbx", "passed", "accept")
    assert within(stage.netns, lambda: rules_in(tables.find("mvbx", SETS, MAPS))) == {}


async def test_a_table_that_the_kernel_does_not_take_changes_nothing(stage: KernelStage) -> None:
    wrong = table_of({("mvt1", "mvt2"): Rule(cut=True)})
    chains: dict[str, list[Sequence[Word]]] = {"passed": [[("nonsense", {})]]}
    within(stage.netns, lambda: tables.replace("mvbx", table_of(RULES)))
    with pytest.raises(errors.Unavailable, match="does not take rules"):
        within(stage.netns, lambda: tables.replace("mvbx", replace(wrong, chains=chains)))
    with pytest.raises(errors.Unavailable, match="does not take rules"):
        within(stage.netns, lambda: tables.try_out("mvbx", replace(wrong, chains=chains)))
    assert within(stage.netns, lambda: rules_in(tables.find("mvbx", SETS, MAPS))) == RULES


def test_rules_that_say_nothing_are_no_table() -> None:
    assert table_of({("a", "b"): Rule()}) == tables.Table()
