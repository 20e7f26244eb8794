"""Faults in the networks of a cluster, and what becomes of them when it is destroyed."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from calling import house
from clustering import trio
from machines import fake_program, publish_no_image
from microvm_orchestrator import places
from microvm_orchestrator.images.store import ImageStore

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
