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
