"""Faults in the networks of a cluster, and what becomes of them when it is destroyed."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from calling import house
from clustering import trio
from machines import fake_program, publish_no_image
from microvm_orchestrator import errors, places
from microvm_orchestrator.images.store import ImageStore
from microvm_orchestrator.machines import HELD

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from calling import House

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def raised(state: Path) -> AsyncGenerator[House]:
    """Keep a service with a cluster of three nodes that run."""
    publish_no_image(ImageStore(state / places.IMAGES), "plain")
    async with house(state, machines={"qemu": str(fake_program(state))}) as kept:
        await kept.ask("cluster_define", topology=trio())
        started = await kept.ask("cluster_start", cluster="trio", wait_s=60.0)
        assert started["state"] == "succeeded", started
        try:
            yield kept
        finally:
            gone = await kept.ask("cluster_destroy", cluster="trio", delete_disks=True, wait_s=60.0)
            assert gone["state"] == "succeeded", gone


async def test_faults_are_healed_when_their_cluster_is_destroyed(tmp_path: Path) -> None:
    async with raised(tmp_path) as kept:
        fault = await kept.ask(
            "fault_inject",
            network="trio.lan",
            kind="partition",
            groups=[["trio.n1"], ["trio.n2", "trio.n3"]],
        )
        assert fault["state"] == "active"
        # Nodes are reached by another way than their networks.
        status = await kept.ask("cluster_status", cluster="trio")
        assert [node["reachable"] for node in status["nodes"]] == [True] * 3
        await kept.ask("cluster_destroy", cluster="trio", wait_s=60.0)
        assert (await kept.ask("fault_get", fault_id=fault["fault_id"]))["state"] == "healed"
        # For the end of the block.
        await kept.ask("cluster_define", topology=trio())


async def test_a_node_that_a_fault_pauses_is_told_so_and_goes_on_when_it_is_healed(
    tmp_path: Path,
) -> None:
    async with raised(tmp_path) as kept:
        fault = await kept.ask("fault_inject", kind="pause", machine="trio.n1")
        assert (fault["state"], fault["network_id"]) == ("active", None)
        assert [each["suffers"]["paused"] for each in fault["harms"]] == [True]
        machine = await kept.ask("machine_get", machine="trio.n1")
        assert (machine["state"], machine["reason"]) == ("paused", HELD)
        status = await kept.ask("cluster_status", cluster="trio")
        assert [node["state"] for node in status["nodes"]] == ["paused", "running", "running"]
        assert [node["reachable"] for node in status["nodes"]] == [False, True, True]
        with pytest.raises(errors.MachineUnreachable, match="paused"):
            await kept.ask("node_exec", cluster="trio", node="n1", script="true", timeout_s=5.0)
        with pytest.raises(errors.StateForbids, match="a fault lets it stand still"):
            await kept.ask("machine_resume", machine="trio.n1")
        # It is so for the machine, also for the one that it is after a crash.
        await kept.ask("node_crash", cluster="trio", node="n1", wait_s=60.0)
        assert (await kept.ask("machine_get", machine="trio.n1"))["state"] == "paused"
        assert await kept.ask("fault_heal_all", machine="trio.n1") == {"healed": 1}
        assert (await kept.ask("machine_get", machine="trio.n1"))["state"] == "running"
        ran = await kept.ask("node_exec", cluster="trio", node="n1", script="true")
        assert ran["exit_code"] == 0
        await kept.ask("machine_pause", machine="trio.n2")
        with pytest.raises(errors.StateForbids, match="is paused"):
            await kept.ask("fault_inject", kind="pause", machine="trio.n2")
        await kept.ask("machine_resume", machine="trio.n2")


async def test_a_machine_that_is_deleted_ends_its_faults(tmp_path: Path) -> None:
    async with raised(tmp_path) as kept:
        machine = await kept.ask("machine_get", machine="trio.n3")
        fault = await kept.ask("fault_inject", kind="pause", machine="trio.n3")
        await kept.ask("cluster_destroy", cluster="trio", delete_disks=True, wait_s=60.0)
        fault = await kept.ask("fault_get", fault_id=fault["fault_id"])
        assert (fault["state"], fault["machines"]) == ("healed", [machine["machine_id"]])
        await kept.ask("cluster_define", topology=trio())


# Two of its nodes share a second network.
WIDE = """
cluster_name: wide
networks:
  - {name: lan, subnet: 10.9.0.0/24, dhcp: true}
  - {name: san, subnet: 10.8.0.0/24, dhcp: true}
nodes:
  - {name: n1, image: plain, networks: [{name: lan}, {name: san}]}
  - {name: n2, image: plain, networks: [{name: lan}, {name: san}]}
  - {name: n3, image: plain, networks: [{name: lan}]}
"""


async def test_faults_of_a_cluster_go_by_the_names_of_its_topology(tmp_path: Path) -> None:
    publish_no_image(ImageStore(tmp_path / places.IMAGES), "plain")
    async with house(tmp_path, machines={"qemu": str(fake_program(tmp_path))}) as kept:
        wide = await kept.ask("cluster_define", topology=WIDE)
        ids = {node["name"]: node["machine_id"] for node in wide["nodes"]}
        networks = {each["name"]: each["network_id"] for each in wide["networks"]}

        async def broken(**asked: object) -> list[tuple[str, str]]:
            fault = await kept.ask("fault_inject", cluster="wide", **asked)
            names = {machine_id: name for name, machine_id in ids.items()}
            where = {network_id: name for name, network_id in networks.items()}
            found = [f"{names[way['source']]} {names[way['target']]}" for way in fault["ways"]]
            if not fault["also_in"]:
                return [(where[fault["network_id"]], each) for each in sorted(found)]
            return sorted(
                (where[way["network_id"]], each)
                for way, each in zip(fault["ways"], found, strict=True)
            )

        # What is spoken of is in one network only.
        assert await broken(kind="partition", groups=[["n1"], ["n3"]]) == [
            ("lan", "n1 n3"),
            ("lan", "n3 n1"),
        ]
        assert await broken(kind="link_down", network="san", machine="n2") == [
            ("san", "n1 n2"),
            ("san", "n2 n1"),
        ]
        # Without a network it is in all that they share, which is one fault.
        assert await broken(kind="impair", machine="n1", targets=["n2"], loss=0.1) == [
            ("lan", "n1 n2"),
            ("san", "n1 n2"),
        ]
        assert await kept.ask("fault_heal_all", cluster="wide", network="san") == {"healed": 2}
        key = {"idempotency_key": "rest", "groups": [["n1"], ["n2", "n3"]]}
        apart = await broken(kind="partition", **key)
        assert apart == [
            *(("lan", f"n1 {each}") for each in ("n2", "n3")),
            *(("lan", f"{each} n1") for each in ("n2", "n3")),
            ("san", "n1 n2"),
            ("san", "n2 n1"),
        ]
        assert await broken(kind="partition", **key) == apart
        for wrong in ({"machine": "n9"}, {"machine": "n1", "network": "wan"}):
            with pytest.raises(errors.NotFound, match=r"n9|wan"):
                await broken(kind="link_down", **wrong)
        with pytest.raises(errors.NotFound, match="no machine n3"):
            await broken(kind="link_down", machine="n3", network="san")
        other = await kept.ask("network_create", name="lan")
        await kept.ask("machine_define", name="n1", image="plain", networks=["lan"])
        await kept.ask("machine_define", name="n2", image="plain", networks=["lan"])
        beside = await kept.ask("fault_inject", network="lan", kind="link_down", machine="n1")
        assert beside["network_id"] == other["network_id"]

        async def listed(**asked: object) -> int:
            return len((await kept.ask("fault_list", **asked))["items"])

        assert await listed() == 3
        assert await listed(cluster="wide") == 2
        assert await listed(cluster="wide", network="san") == 1
        assert await listed(cluster="wide", machine="n1") == 2
        assert await listed(cluster="wide", machine="n3") == 2
        assert await kept.ask("fault_heal_all", cluster="wide", network="san") == {"healed": 1}
        assert await kept.ask("fault_heal_all", cluster="wide") == {"healed": 1}
        assert await listed() == 1
        gone = await kept.ask("cluster_destroy", cluster="wide", delete_disks=True, wait_s=60.0)
        assert gone["state"] == "succeeded"
