"""A cluster of which libvirt runs one node and we the other, on a real libvirtd."""

from __future__ import annotations

from collections.abc import Generator
from typing import cast

import anyio
import pytest

import hosted
import libvirtd
from clustering import ALICE, House, daemon, unreported
from machines import LONG_S, Rig, built_image, running_libvirt_rig, sh
from microvm_orchestrator import errors
from microvm_orchestrator.clusters.life import StopMode
from microvm_orchestrator.clusters.quiet import held_quiet
from microvm_orchestrator.machine.libvirt.machine import LibvirtMachine
from microvm_orchestrator.machine.living import LivingMachine
from microvm_orchestrator.machine.qemu.machine import QemuMachine
from microvm_orchestrator.machine.shell import Shell
from microvm_orchestrator.model.cluster import ClusterState, Quiesced
from microvm_orchestrator.model.records import SYSTEM

TOPOLOGY = """
cluster_name: mixed
network: {name: lan, subnet: 10.9.0.0/24, subnet6: "fd09::/64"}
nodes:
  - name: theirs
    backend: libvirt
    image: disk
    memory_mb: 192
    ip: 10.9.0.11
    ip6: "fd09::11"
    extra_disks: [{path: /data/1/log.qcow2, size_gb: 1}]
  - name: ours
    image: plain
    memory_mb: 192
    ip: 10.9.0.12
    ip6: "fd09::12"
    extra_disks: [{path: /data/2/log.qcow2, size_gb: 1}]
"""
NODES = ("theirs", "ours")
# Half of what a guest stays frozen at most: the script that holds it was ended, and thaws it.
THAW_S = 30.0
STOP_S = 4.0
# The disk is known by its name.
FIND = """
for disk in /sys/block/vd*; do
    [ "$(cat $disk/serial)" = log ] && device=/dev/${disk##*/}
done
mkdir -p /data
"""
MAKE = f"{FIND} mke2fs -q -t ext4 $device 16M && mount $device /data"


@pytest.fixture(scope="module")
def rig() -> Generator[Rig]:
    if why := libvirtd.why_not():
        pytest.skip(why)
    with running_libvirt_rig(anyio.run(built_image)) as rig:
        rig.state_dir.mkdir(exist_ok=True)
        yield rig


@pytest.mark.long
async def test_nodes_of_both_kinds_are_raised_saved_put_back_and_ended_as_one(rig: Rig) -> None:
    with anyio.fail_after(LONG_S):
        async with daemon(rig) as house:
            await house.raised(TOPOLOGY)
            machines = {node: await running(house, node) for node in NODES}
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
                machine = await running(house, node)
                assert await sh(machine, "cat /tmp/state") == f"{node}\n"
                if node == "theirs":
                    await sh(machine, reach)
            await disks_alone(house)
            again = await house.life.crash("mixed", "theirs", ALICE, unreported, restart=True)
            assert again.reachable
            await without_libvirt(rig, house)
            await house.clusters.destroy("mixed", ALICE, delete_disks=True)
            assert (house.qemu.found(), await house.networks.visible(SYSTEM)) == ([], [])


async def disks_alone(house: House) -> None:
    """Save what is on the disks of both nodes, with what was not written to them yet."""
    for node in NODES:
        # It is in the guest's memory alone for as long as nobody wants it on the disk.
        await sh(await running(house, node), f"{MAKE}; echo {node} >/data/state")
    saved = await house.whole.create("mixed", "disks", ALICE, unreported, memory=False)
    assert {name: node.quiesced for name, node in saved.nodes.items()} == dict.fromkeys(
        NODES, Quiesced.FROZEN
    )
    assert saved.skew_s <= saved.pause_s
    for node in NODES:
        # They are not frozen any more, and what comes now is not saved.
        await sh(await running(house, node), "echo later >/data/state; sync; touch /tmp/state")
    back = await house.whole.revert("mixed", "disks", ALICE, unreported)
    assert [node.reachable for node in back.nodes] == [True, True]
    for node in NODES:
        script = f"test ! -e /tmp/state; {FIND} mount -o ro $device /data; cat /data/state"
        assert await sh(await running(house, node), script) == f"{node}\n"
    await house.whole.delete("mixed", "disks", ALICE)
    # Who is not there any more to let them go leaves nobody frozen.
    shells: dict[str, Shell] = {}
    for node in NODES:
        machine = await running(house, node)
        await sh(machine, f"umount /data; {FIND} mount $device /data")
        shells[node] = machine.shell
    with anyio.CancelScope() as leaving:
        async with held_quiet(shells) as quiet:
            assert quiet == dict.fromkeys(NODES, Quiesced.FROZEN)
            leaving.cancel()
            await anyio.sleep_forever()
    for node in NODES:
        with anyio.fail_after(THAW_S):
            await sh(await running(house, node), "echo thawed >/data/state; sync")


async def without_libvirt(rig: Rig, house: House) -> None:
    """See what each verb does and says of a cluster, saved as `s`, while nobody runs one node."""
    assert rig.libvirtd is not None
    away = pytest.raises(errors.NodesFailed, match=r": theirs: libvirt at \S+ does not answer")
    rig.libvirtd.kill()
    assert await house.states("mixed") == dict.fromkeys(NODES, "running")
    # Nothing is saved of the one either, and it goes on.
    with away:
        await house.whole.create("mixed", "late", ALICE, unreported)
    cluster = await house.records.get("mixed", ALICE)
    assert [each.name for each in await house.saved.of(cluster)] == ["s"]
    assert len(await house.qemu.saved()) == len(NODES)
    await sh(await running(house, "ours"), "touch /tmp/goes-on")
    # What cannot be put back whole is not begun, and no copy is.
    with away:
        await house.whole.revert("mixed", "s", ALICE, unreported)
    assert await house.states("mixed") == dict.fromkeys(NODES, "running")
    await sh(await running(house, "ours"), "test -e /tmp/goes-on")
    with away:
        await house.whole.branch("mixed", "s", "copy", ALICE, unreported)
    assert [each.name for each in await house.records.visible(SYSTEM)] == ["mixed"]
    # A guest may power off, and its process stays; that is ended as any is, and its end is seen.
    stopped = await house.life.stop(
        "mixed", ALICE, unreported, mode=StopMode.SHUTDOWN, deadline_s=STOP_S
    )
    assert {str(node.state) for node in stopped.nodes} == {"stopped"}
    [theirs] = [node for node in stopped.nodes if node.name == "theirs"]
    assert theirs.reason.startswith("libvirt does not answer, and it had not ended within 4 s")
    assert hosted.processes(rig.state_dir) == {}
    with away:
        await house.life.start("mixed", ALICE, unreported)
    states = await house.states("mixed")
    assert states["ours"] == "running" != states["theirs"]
    # Its files are no libvirt's, and there is no half of them.
    await house.whole.delete("mixed", "s", ALICE)
    assert (await house.saved.of(cluster), await house.qemu.saved()) == ([], [])
    with away:
        await house.clusters.destroy("mixed", ALICE, delete_disks=True)
    [left] = await house.machines.visible(SYSTEM)
    assert left.name == "mixed.theirs"
    cluster = await house.records.get("mixed", ALICE)
    assert cluster.state is ClusterState.INCOMPLETE
    rig.libvirtd.start()


async def running(house: House, node: str) -> LivingMachine:
    return cast(
        "LivingMachine", house.machines.live(await house.machines.get(f"mixed.{node}", SYSTEM))
    )
