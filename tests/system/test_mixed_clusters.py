"""A cluster of which libvirt runs one node and we the other, on a real libvirtd."""

from __future__ import annotations

from collections.abc import Generator

import anyio
import pytest

import libvirtd
from clustering import ALICE, daemon, unreported
from machines import LONG_S, Rig, built_image, running_libvirt_rig, sh
from microvm_orchestrator.machine.libvirt.machine import LibvirtMachine
from microvm_orchestrator.machine.qemu.machine import QemuMachine
from microvm_orchestrator.model.records import SYSTEM

TOPOLOGY = """
cluster_name: mixed
network: {name: lan, subnet: 10.9.0.0/24, subnet6: "fd09::/64"}
nodes:
  - {name: theirs, backend: libvirt, image: disk, memory_mb: 192, ip: 10.9.0.11, ip6: "fd09::11"}
  - {name: ours, image: plain, memory_mb: 192, ip: 10.9.0.12, ip6: "fd09::12"}
"""
NODES = ("theirs", "ours")


@pytest.fixture(scope="module")
def rig() -> Generator[Rig]:
    if why := libvirtd.why_not():
        pytest.skip(why)
    with running_libvirt_rig(anyio.run(built_image)) as rig:
        rig.state_dir.mkdir(exist_ok=True)
        yield rig


async def test_nodes_of_both_kinds_are_raised_saved_put_back_and_ended_as_one(rig: Rig) -> None:
    with anyio.fail_after(LONG_S):
        async with daemon(rig) as house:
            await house.raised(TOPOLOGY)
            machines = {
                node: house.machines.live(await house.machines.get(f"mixed.{node}", SYSTEM))
                for node in NODES
            }
            assert isinstance(machines["theirs"], LibvirtMachine)
            assert isinstance(machines["ours"], QemuMachine)
            reach = "ping -c 1 -W 9 10.9.0.12 >/dev/null && ping -c 1 -W 9 fd09::12 >/dev/null"
            await sh(machines["theirs"], reach)
            for node in NODES:
                await sh(machines[node], f"echo {node} >/tmp/state")
            saved = await house.whole.create("mixed", "s", ALICE, unreported)
            assert set(saved.nodes) == set(NODES)
            for node in NODES:
                await sh(machines[node], "rm /tmp/state")
            back = await house.whole.revert("mixed", "s", ALICE, unreported)
            assert [node.reachable for node in back.nodes] == [True, True]
            for node in NODES:
                machine = house.machines.live(await house.machines.get(f"mixed.{node}", SYSTEM))
                assert await sh(machine, "cat /tmp/state") == f"{node}\n"
                if node == "theirs":
                    await sh(machine, reach)
            again = await house.life.crash("mixed", "theirs", ALICE, unreported, restart=True)
            assert again.reachable
            await house.clusters.destroy("mixed", ALICE, delete_disks=True)
            assert (house.qemu.found(), await house.networks.visible(SYSTEM)) == ([], [])
