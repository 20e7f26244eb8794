"""Campaigns in a cluster of machines that are none: what they break, tell, and make whole again."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from calling import PATIENCE_S, VIEWER, house
from clustering import trio
from daemon import running_daemon
from machines import fake_program, publish_no_image
from microvm_orchestrator import errors, places
from microvm_orchestrator.cli.client import Client
from microvm_orchestrator.clusters.history import event_of, operations
from microvm_orchestrator.images.store import ImageStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from calling import House

pytestmark = pytest.mark.anyio

APART = {"kind": "partition", "groups": [["n1"], ["n2", "n3"]]}
LATE = {"kind": "impair", "machine": "n2", "delay_s": 0.2}
# Longer than any test takes.
FOR_EVER_S = 3600.0
GONE: dict[str, Any] = {"cluster": "trio", "delete_disks": True, "wait_s": 60.0}


def held(*faults: dict[str, Any], for_s: float = FOR_EVER_S) -> list[dict[str, Any]]:
    return [{"at_s": 0.0, "for_s": for_s, "fault": fault} for fault in faults]


@asynccontextmanager
async def raised(state: Path, *, kept_on: bool = False) -> AsyncGenerator[House]:
    """Keep a service with a cluster of three nodes that run, until its end or longer."""
    if not (state / places.IMAGES).exists():
        publish_no_image(ImageStore(state / places.IMAGES), "plain")
    async with house(state, machines={"qemu": str(fake_program(state))}) as kept:
        await kept.ask("cluster_define", topology=trio())
        started = await kept.ask("cluster_start", cluster="trio", wait_s=60.0)
        assert started["state"] == "succeeded", started
        try:
            yield kept
        finally:
            if not kept_on:
                gone = await kept.ask("cluster_destroy", **GONE)
                assert gone["state"] == "succeeded", gone


async def begun(kept: House, *faults: dict[str, Any]) -> str:
    """Begin a campaign that holds faults for ever; its id, once all of them hold."""
    operation = await kept.ask("fault_campaign", cluster="trio", schedule=held(*faults), wait_s=0.0)
    campaign_id = str(operation["target"])

    async def all_hold() -> bool:
        campaign = await kept.ask("fault_campaign_get", campaign_id=campaign_id)
        return campaign["injected"] == len(faults)

    await kept.until(all_hold)
    return campaign_id


async def test_a_campaign_by_hand_breaks_heals_and_tells_a_history(tmp_path: Path) -> None:
    async with raised(tmp_path) as kept:
        schedule = [
            {"at_s": 0.0, "for_s": 0.2, "fault": APART},
            {"at_s": 0.1, "for_s": 0.2, "fault": LATE},
            {"at_s": 0.4, "for_s": 0.1, "fault": {"kind": "crash", "machine": "n3"}},
            {"at_s": 0.6, "for_s": 0.1, "fault": {"kind": "pause", "machine": "n1"}},
        ]
        ran = await kept.ask("fault_campaign", cluster="trio", schedule=schedule, wait_s=60.0)
        campaign = ran["result"]
        assert (ran["state"], campaign["state"], campaign["reason"]) == ("succeeded",) * 2 + ("",)
        assert campaign == await kept.ask("fault_campaign_get", campaign_id=ran["target"])
        assert (campaign["injected"], campaign["crashed"]) == (4, [])
        faults = [await kept.ask("fault_get", fault_id=each) for each in campaign["fault_ids"]]
        assert [(each["kind"], each["state"]) for each in faults] == [
            ("partition", "healed"),
            ("impair", "healed"),
            ("pause", "healed"),
        ]
        assert {each["campaign_id"] for each in faults} == {ran["target"]}
        # What checkers read: one process, one thing after another.
        told = operations(event_of(json.dumps(each), "the history") for each in campaign["history"])
        assert [(each.process, each.f, each.outcome) for each in told] == [
            ("nemesis", f, "ok")
            for f in ("partition", "impair", "heal", "heal", "crash", "heal", "pause", "heal")
        ]
        assert all(each.end is not None and each.end >= each.start for each in told)
        due_ns = (0, 1e8, 2e8, 3e8, 4e8, 5e8, 6e8, 7e8)
        assert all(each.start >= due for each, due in zip(told, due_ns, strict=True))
        status = await kept.ask("cluster_status", cluster="trio")
        assert [node["reachable"] for node in status["nodes"]] == [True] * 3


async def test_a_seed_is_told_with_its_schedule_which_is_what_happens(tmp_path: Path) -> None:
    async with raised(tmp_path) as kept:
        asked = {"cluster": "trio", "kinds": ["partition"], "duration_s": 1.0}
        asked |= {"interval_s": 0.1, "hold_s": 0.1}
        dry = (await kept.ask("fault_campaign", **asked, dry_run=True))["result"]
        assert (dry["state"], dry["campaign_id"]) == ("drawn", None)
        assert (await kept.ask("fault_campaign_list"))["items"] == []
        for _ in range(2):
            ran = await kept.ask("fault_campaign", **asked, seed=dry["seed"], wait_s=60.0)
            assert ran["result"]["schedule"] == dry["schedule"]
            done = [
                e
                for e in ran["result"]["history"]
                if (e["f"], e["type"]) == ("partition", "invoke")
            ]
            assert [event["value"] for event in done] == [each["fault"] for each in dry["schedule"]]
        listed = (await kept.ask("fault_campaign_list", cluster="trio"))["items"]
        assert [each["state"] for each in listed] == ["succeeded"] * 2


async def test_a_campaign_that_is_cancelled_leaves_all_whole(tmp_path: Path) -> None:
    async with raised(tmp_path) as kept:
        campaign_id = await begun(kept, APART, {"kind": "crash", "machine": "n3"})
        with pytest.raises(errors.StateForbids, match="has campaign"):
            await kept.ask("fault_campaign", cluster="trio", schedule=held(LATE))
        campaign = await kept.ask("fault_campaign_cancel", campaign_id=campaign_id)
        assert (campaign["state"], campaign["crashed"]) == ("cancelled", [])
        assert (await kept.ask("fault_list"))["items"] == []
        status = await kept.ask("cluster_status", cluster="trio")
        assert [node["reachable"] for node in status["nodes"]] == [True] * 3
        [operation] = (await kept.ask("operation_list", kind="fault_campaign"))["items"]
        assert operation["state"] == "cancelled"
        # To end it twice is to end it once.
        assert campaign == await kept.ask("fault_campaign_cancel", campaign_id=campaign_id)


async def test_what_cannot_be_injected_is_told_and_the_others_follow(tmp_path: Path) -> None:
    async with raised(tmp_path) as kept:
        await kept.ask("machine_kill", machine="trio.n3")
        schedule = held({"kind": "crash", "machine": "n3"}, APART, for_s=0.1)
        ran = await kept.ask("fault_campaign", cluster="trio", schedule=schedule, wait_s=60.0)
        campaign = ran["result"]
        assert (campaign["state"], campaign["injected"]) == ("succeeded", 1)
        failed = [event for event in campaign["history"] if event["type"] == "fail"]
        assert [event["f"] for event in failed] == ["crash"]
        assert failed[0]["error"].startswith("node n3 of cluster trio is stopped")
        # Whoever ended it wants it so.
        assert (await kept.ask("machine_get", machine="trio.n3"))["state"] == "stopped"


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ({"kind": "crash", "machine": "n9"}, "schedule[0]: cluster trio has no node n9"),
        ({"kind": "crash", "machine": "n1", "loss": 1}, "schedule[0]: loss"),
        ({"kind": "link_down", "machine": "n9"}, "schedule[0]: cluster trio has no node n9"),
        ({"kind": "flood"}, "schedule[0]: kind"),
        ({**LATE, "network": "wan"}, "schedule[0]: cluster trio has no network wan"),
        ({"kind": "pause", "machine": "n9"}, "schedule[0]: cluster trio has no node n9"),
        (
            {"kind": "pause", "machine": "n1", "network": "lan"},
            "schedule[0]: pause takes a machine",
        ),
        ({**LATE, "idempotency_key": "k"}, "schedule[0]: a fault of a schedule has no"),
        ({**LATE, "cluster": "trio"}, "schedule[0]: a fault of a schedule is in"),
        ({**LATE, "ttl_s": 5}, "schedule[0]: for_s tells how long it holds"),
        ({}, "schedule[0]: kind"),
    ],
)
async def test_a_schedule_that_is_wrong_is_refused_before_anything_is_broken(
    fault: dict[str, Any], why: str, tmp_path: Path
) -> None:
    async with house(tmp_path, machines={"qemu": str(fake_program(tmp_path))}) as kept:
        publish_no_image(ImageStore(tmp_path / places.IMAGES), "plain")
        await kept.ask("cluster_define", topology=trio())
        with pytest.raises(errors.InvalidInput) as refused:
            await kept.ask("fault_campaign", cluster="trio", schedule=held(fault))
        assert refused.value.message.startswith(why)
        assert (await kept.ask("fault_campaign_list"))["items"] == []
        with pytest.raises(errors.InvalidInput, match="seed is for a schedule that is drawn"):
            await kept.ask("fault_campaign", cluster="trio", schedule=held(LATE), seed="7")
        await kept.ask("cluster_destroy", **GONE)


async def test_destroying_a_cluster_ends_its_campaign_first(tmp_path: Path) -> None:
    async with raised(tmp_path) as kept:
        campaign_id = await begun(kept, APART, {"kind": "crash", "machine": "n3"})
        await kept.ask("cluster_destroy", **GONE)
        campaign = await kept.ask("fault_campaign_get", campaign_id=campaign_id)
        assert (campaign["state"], campaign["reason"]) == ("cancelled", "")
        # For the end of the block.
        await kept.ask("cluster_define", topology=trio())


async def test_only_who_operates_may_run_a_campaign(tmp_path: Path) -> None:
    async with house(tmp_path) as kept:
        with pytest.raises(errors.Denied):
            await kept.ask("fault_campaign", by=VIEWER, cluster="trio")


async def test_a_daemon_that_stops_heals_and_leaves_the_booting_to_the_next(tmp_path: Path) -> None:
    async with raised(tmp_path, kept_on=True) as kept:
        campaign_id = await begun(kept, APART, {"kind": "crash", "machine": "n3"})
    async with house(tmp_path, machines={"qemu": str(fake_program(tmp_path))}) as again:
        assert (await again.ask("fault_list"))["items"] == []

        async def ended() -> bool:
            campaign = await again.ask("fault_campaign_get", campaign_id=campaign_id)
            return (campaign["state"], campaign["crashed"]) == ("interrupted", [])

        await again.until(ended)
        # One history, though two daemons wrote it.
        campaign = await again.ask("fault_campaign_get", campaign_id=campaign_id)
        times = [event["time"] for event in campaign["history"]]
        assert times == sorted(times)
        [operation] = (await again.ask("operation_list", kind="fault_campaign"))["items"]
        assert operation["state"] == "lost"
        await again.ask("cluster_destroy", **GONE)


def test_the_next_daemon_makes_whole_what_a_campaign_has_broken(tmp_path: Path) -> None:
    state = tmp_path / "s"
    state.mkdir(mode=0o700)
    publish_no_image(ImageStore(state / places.IMAGES), "plain")
    settings: dict[str, Any] = {"machines": {"qemu": str(fake_program(state))}}
    with running_daemon(state, **settings) as daemon:
        client = Client(daemon.socket)
        client.call("cluster_define", {"topology": trio()})
        client.call("cluster_start", {"cluster": "trio", "wait_s": 60.0})
        schedule = held({"kind": "crash", "machine": "n3"}, APART)
        asked = {"cluster": "trio", "schedule": schedule, "wait_s": 0.0}
        campaign_id = str(client.call("fault_campaign", asked).value["target"])
        hear(client, campaign_id, "campaign.partition_done")
        daemon.kill()
    with running_daemon(state, **settings) as daemon:
        client = Client(daemon.socket)
        hear(client, campaign_id, "campaign.interrupted")
        campaign = client.call("fault_campaign_get", {"campaign_id": campaign_id}).value
        assert (campaign["state"], campaign["crashed"]) == ("interrupted", [])
        [fault_id] = campaign["fault_ids"]
        assert client.call("fault_get", {"fault_id": fault_id}).value["state"] == "healed"
        status = client.call("cluster_status", {"cluster": "trio"}).value
        assert [node["reachable"] for node in status["nodes"]] == [True] * 3
        assert client.call("cluster_destroy", GONE).value["state"] == "succeeded"


def hear(client: Client, subject: str, kind: str) -> None:
    """Wait for an event, or find that it was before."""
    asked = {"kinds": [kind], "subjects": [subject], "timeout_s": float(PATIENCE_S)}
    assert client.call("event_wait", asked).value["events"], kind
