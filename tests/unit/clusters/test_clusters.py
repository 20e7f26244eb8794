"""Clusters on machines that are none: made, repaired, started, ended, and what fails of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import pytest

from clustering import ALICE, BOB, daemon, trio, unreported
from machines import Rig, fake_rig, kill_process, removed_in_the_end, sh
from microvm_orchestrator import errors
from microvm_orchestrator.clusters.life import StopMode
from microvm_orchestrator.model.cluster import ClusterState
from microvm_orchestrator.model.machine import MachineState
from microvm_orchestrator.model.records import SYSTEM

PATIENCE_S = 30


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncGenerator[Rig]:
    rig = fake_rig(tmp_path)
    yield rig
    async with rig.open() as qemu, removed_in_the_end(qemu):
        pass


# Define


async def test_a_cluster_is_defined_once_and_a_second_time_nothing_changes(rig: Rig) -> None:
    async with daemon(rig) as house:
        first = await house.define(trio())
        assert first.state is ClusterState.DEFINED
        machines = await house.machines.visible(SYSTEM)
        assert [machine.name for machine in machines] == ["trio.n1", "trio.n2", "trio.n3"]
        assert [machine.hostname for machine in machines] == ["n1", "n2", "n3"]
        assert [machine.networks[0].addresses for machine in machines] == [
            [f"10.9.0.1{number}/24", f"fd09::1{number}/64"] for number in (1, 2, 3)
        ]
        await house.life.start("trio", ALICE, unreported)
        pids = [(await house.running("trio", name)).pid for name in ("n1", "n2", "n3")]
        assert await house.define(trio()) == first
        assert [(await house.running("trio", name)).pid for name in ("n1", "n2", "n3")] == pids
        await house.clusters.destroy("trio", ALICE, delete_disks=True)


async def test_what_could_not_be_made_is_named_and_made_by_the_next_define(rig: Rig) -> None:
    async with daemon(rig) as house:
        with pytest.raises(errors.NodesFailed, match=r"node n2: no image absent"):
            await house.define(trio(images=("plain", "absent", "plain")))
        half = await house.records.get("trio", ALICE)
        assert half.state is ClusterState.INCOMPLETE
        assert {node.name: node.reason for node in half.nodes} == {
            "n1": "",
            "n2": "no image absent",
            "n3": "",
        }
        assert await house.states("trio") == {"n1": "defined", "n2": "None", "n3": "defined"}
        with pytest.raises(errors.StateForbids, match="incomplete: n2"):
            await house.life.start("trio", ALICE, unreported)
        whole = await house.define(trio())
        assert whole.state is ClusterState.DEFINED
        kept = [(node.name, node.machine_id) for node in half.nodes if not node.reason]
        assert [(n.name, n.machine_id) for n in whole.nodes if n.name != "n2"] == kept
        assert whole.networks == half.networks


async def test_a_network_that_is_anothers_leaves_a_record_and_goes_when_it_is_free(
    rig: Rig,
) -> None:
    async with daemon(rig) as house:
        await house.networks.create("trio.lan", ("10.7.0.0/24",), BOB)
        with pytest.raises(errors.NodesFailed, match=r"network lan: .*; node n1: its network lan"):
            await house.define(trio())
        assert await house.machines.visible(SYSTEM) == []
        await house.networks.remove("trio.lan", BOB)
        assert (await house.define(trio())).state is ClusterState.DEFINED


async def test_a_machine_that_was_deleted_is_told_of_and_made_again(rig: Rig) -> None:
    async with daemon(rig) as house:
        cluster = await house.define(trio())
        await house.machines.delete("trio.n2", ALICE)
        looked = await house.life.look(cluster, "n2")
        assert (looked.state, looked.reachable) == (None, False)
        assert "was deleted" in looked.reason
        again = await house.define(trio())
        assert [node.machine_id for node in again.nodes] == [n.machine_id for n in cluster.nodes]
        assert await house.states("trio") == dict.fromkeys(("n1", "n2", "n3"), "defined")


async def test_what_is_there_does_not_become_another_and_what_is_free_to_change_does(
    rig: Rig,
) -> None:
    async with daemon(rig) as house:
        await house.define(trio())
        other = trio().replace("10.9.0.12", "10.9.0.22").replace("memory_mb: 64", "memory_mb: 96")
        with pytest.raises(errors.StateForbids) as refused:
            await house.define(other.replace("subnet6", "dhcp: true, subnet6"))
        assert refused.value.message.partition(": ")[2].split("; ") == [
            "nodes[0].memory_mb",
            "nodes[1].memory_mb",
            "nodes[1].networks",
            "nodes[2].memory_mb",
        ]
        without = "\n".join(trio().splitlines()[:-1])
        with pytest.raises(errors.StateForbids, match="node n3 is gone"):
            await house.define(without)
        free = trio(more="env: {MODE: x}\nsnapshots: {baseline: clean}\n")
        more = "  - {name: n4, image: plain, memory_mb: 64, ip: 10.9.0.14}\n"
        grown = await house.define(free + more)
        assert grown.topology.env == {"MODE": "x"}
        assert [node.name for node in grown.nodes] == ["n1", "n2", "n3", "n4"]


async def test_a_daemon_that_ended_in_the_middle_of_defining_is_taken_up(rig: Rig) -> None:
    async with daemon(rig) as house:
        cluster = await house.define(trio())
        # As it is written down before anything is made.
        planned = cluster.model_copy(
            update={
                "state": ClusterState.INCOMPLETE,
                "networks": [
                    each.model_copy(update={"network_id": None, "reason": "not yet"})
                    for each in cluster.networks
                ],
            }
        )
        await house.records.save(planned, ALICE, "defined", expect=None)
        await house.machines.delete("trio.n3", ALICE)
    async with daemon(rig) as house:
        again = await house.define(trio())
        assert (again.networks, again.nodes) == (cluster.networks, cluster.nodes)
        assert len(await house.machines.visible(SYSTEM)) == 3


async def test_a_node_of_libvirt_boots_a_disk_and_a_microvm_none(rig: Rig) -> None:
    async with daemon(rig) as house:
        mixed = trio(images=("disk", "plain", "disk")).replace(
            "{name: n1,", "{name: n1, backend: libvirt,"
        )
        with pytest.raises(errors.NodesFailed, match=r"node n3: image disk is none for microvm$"):
            await house.define(mixed)
        half = await house.records.get("trio", ALICE)
        assert [(node.backend, node.reason == "") for node in half.nodes] == [
            ("libvirt", True),
            ("microvm", True),
            ("microvm", False),
        ]
        images = [machine.image for machine in await house.machines.visible(SYSTEM)]
        assert images == ["disk", "plain"]
        based = trio("based", images=("disk",), more="base_image: /srv/absent.qcow2\n")
        with pytest.raises(errors.NodesFailed, match=r"no image absent; image_add with disk=/srv"):
            await house.define(based.replace("image: disk, ", ""))
        await house.define(trio("based", images=("disk",), more="base_image: /srv/disk.qcow2\n"))


async def test_a_node_that_asks_for_no_memory_has_what_its_image_is_made_for(rig: Rig) -> None:
    async with daemon(rig) as house:
        text = trio(images=("made", "plain", "made")).replace("memory_mb: 64, ", "", 2)
        await house.define(text)
        machines = {each.name: each for each in await house.machines.visible(SYSTEM)}
        has = [machines[f"trio.{name}"] for name in ("n1", "n2", "n3")]
        assert [(each.memory_mib, each.vcpus) for each in has] == [(96, 2), (512, 1), (64, 2)]


async def test_a_cluster_is_seen_by_its_owner_and_who_sees_everything(rig: Rig) -> None:
    async with daemon(rig) as house:
        cluster = await house.define(trio())
        assert await house.records.visible(BOB) == []
        for reference in ("trio", cluster.cluster_id):
            with pytest.raises(errors.NotFound):
                await house.records.get(reference, BOB)
            with pytest.raises(errors.NotFound):
                await house.clusters.destroy(reference, BOB, delete_disks=True)
        with pytest.raises(errors.AlreadyExists):
            await house.define(trio(), BOB)
        mine = await house.define(trio("mine"), BOB)
        await house.define(trio("mine"), ALICE)
        owners = {machine.name: machine.owner for machine in await house.machines.visible(SYSTEM)}
        assert {owners["mine.n1"], mine.owner} == {"bob"}


async def test_a_node_in_several_networks_has_its_interfaces_in_their_order(rig: Rig) -> None:
    text = """
cluster_name: wide
networks:
  - {name: lan, subnet: 10.9.0.0/24, subnet6: "fd09::/64"}
  - {name: storage, subnet: 10.10.0.0/24, dhcp: true}
nodes:
  - {name: one, memory_mb: 64, ip: 10.9.0.10, networks: [{name: storage}]}
  - {name: apart, memory_mb: 64, networks: [{name: storage, ip: 10.10.0.7}]}
"""
    async with daemon(rig) as house:
        cluster = await house.raised(text)
        status = await house.life.status(cluster)
        one, apart = (node.addresses for node in status.nodes)
        assert (list(one), list(apart)) == (["lan", "storage"], ["storage"])
        assert one["lan"][0] == "10.9.0.10"
        # Given, as the topology leaves it open: of IPv6 in the first, of IPv4 in the second.
        assert one["lan"][1].startswith("fd09::")
        assert one["storage"][0].startswith("10.10.0.")
        assert apart["storage"] == ["10.10.0.7"]
        links = (await house.running("wide", "one")).spec.links
        assert [link.address for link in links] == ["10.9.0.10/24", f"{one['storage'][0]}/24"]
        await house.clusters.destroy("wide", ALICE, delete_disks=True)


# Start and end


async def test_a_node_that_does_not_start_is_named_and_the_others_are_kept(rig: Rig) -> None:
    async with daemon(rig) as house:
        await house.define(trio(images=("plain", "panics", "plain")))
        with pytest.raises(errors.NodesFailed, match=r"^1 of 3 nodes .*: n2: .*"):
            await house.life.start("trio", ALICE, unreported)
        assert await house.states("trio") == {"n1": "running", "n2": "crashed", "n3": "running"}
        await house.clusters.destroy("trio", ALICE, delete_disks=True)


async def test_places_that_are_taken_are_told_and_nobody_waits_for_another(rig: Rig) -> None:
    async with daemon(rig, count=2) as house:
        await house.define(trio())
        with anyio.fail_after(PATIENCE_S), pytest.raises(errors.NodesFailed, match="1 of 3"):
            await house.life.start("trio", ALICE, unreported)
        assert sorted((await house.states("trio")).values()) == ["defined", "running", "running"]
        await house.clusters.destroy("trio", ALICE, delete_disks=True)
        assert house.slots.owners == []


async def test_stopping_tells_when_all_have_ended_and_starting_goes_on_from_there(
    rig: Rig,
) -> None:
    async with daemon(rig) as house:
        await house.raised(trio())
        with anyio.move_on_after(0.5):
            await sh(await house.running("trio", "n1"), 'kill -STOP "$PPID"; sleep 9')
        await house.machines.pause("trio.n2", ALICE)
        stopped = await house.life.stop(
            "trio", ALICE, unreported, mode=StopMode.SHUTDOWN, deadline_s=1.0
        )
        assert [node.state for node in stopped.nodes] == [MachineState.STOPPED] * 3
        assert "ended by force" in stopped.nodes[0].reason
        assert [node.reachable for node in stopped.nodes] == [False] * 3
        started = await house.life.start("trio", ALICE, unreported)
        assert [node.reachable for node in started.nodes] == [True] * 3
        killed = await house.life.stop(
            "trio", ALICE, unreported, mode=StopMode.DESTROY, deadline_s=60.0
        )
        assert {node.state for node in killed.nodes} <= {MachineState.STOPPED, MachineState.CRASHED}
        await house.clusters.destroy("trio", ALICE, delete_disks=True)


async def test_a_node_that_runs_and_does_not_answer_is_not_reachable(rig: Rig) -> None:
    async with daemon(rig) as house:
        cluster = await house.raised(trio())
        hung = await house.running("trio", "n2")
        with anyio.move_on_after(0.5):
            await sh(hung, 'kill -STOP "$PPID"; sleep 9')
        with anyio.fail_after(PATIENCE_S):
            status = await house.life.status(cluster)
        assert [(node.name, node.reachable) for node in status.nodes] == [
            ("n1", True),
            ("n2", False),
            ("n3", True),
        ]
        assert (status.nodes[1].state, status.nodes[1].reason) == (
            MachineState.RUNNING,
            "its guest did not answer within 2 s",
        )
        with pytest.raises(errors.NodesFailed, match="n2: its guest did not answer"):
            await house.life.start("trio", ALICE, unreported)
        await house.clusters.destroy("trio", ALICE, delete_disks=True)


async def test_a_crashed_node_comes_back_and_a_dead_one_cannot_crash(rig: Rig) -> None:
    async with daemon(rig) as house:
        cluster = await house.raised(trio())
        before = (await house.running("trio", "n2")).pid
        back = await house.life.crash("trio", "n2", ALICE, unreported, restart=True)
        assert (back.state, back.reachable) == (MachineState.RUNNING, True)
        assert (await house.running("trio", "n2")).pid != before
        down = await house.life.crash("trio", "n2", ALICE, unreported, restart=False)
        assert (down.state, down.reachable) == (MachineState.STOPPED, False)
        with pytest.raises(errors.MachineUnreachable, match="node n2 of cluster trio is stopped"):
            await house.life.crash("trio", "n2", ALICE, unreported, restart=True)
        with pytest.raises(errors.MachineUnreachable):
            await house.life.alive(cluster, "n2")
        with pytest.raises(errors.NotFound, match="has no node n9"):
            await house.life.crash("trio", "n9", ALICE, unreported, restart=True)
        kill_process(await house.running("trio", "n3"))
        with anyio.fail_after(PATIENCE_S):
            async with house.store.hints() as changes:
                while (await house.states("trio"))["n3"] != "crashed":
                    await anext(changes)
        with pytest.raises(
            errors.MachineUnreachable, match=r"n3 of cluster trio is crashed: .*KILL"
        ):
            await house.life.alive(cluster, "n3")
        await house.clusters.destroy("trio", ALICE, delete_disks=True)


# Destroy


async def test_nothing_is_left_of_a_cluster_that_has_nothing_to_keep(rig: Rig) -> None:
    async with daemon(rig) as house:
        await house.raised(trio())
        assert await house.clusters.destroy("trio", ALICE, delete_disks=False) is None
        assert await house.records.visible(SYSTEM) == []
        assert await house.machines.visible(SYSTEM) == []
        assert await house.networks.visible(SYSTEM) == []
        assert (house.qemu.found(), house.slots.owners) == ([], [])


async def test_disks_are_kept_until_they_are_to_go_and_taken_up_by_who_defines_again(
    rig: Rig,
) -> None:
    disks = trio()
    for number in (1, 2, 3):
        disk = f"disk_gb: 1, extra_disks: [{{path: /data/{number}/log, size_gb: 2}}]"
        disks = disks.replace(f"{{name: n{number},", f"{{name: n{number}, {disk},")
    async with daemon(rig) as house:
        cluster = await house.raised(disks)
        machine = await house.machines.get("trio.n1", ALICE)
        assert (machine.disk_mib, [(d.serial, d.size_mib) for d in machine.disks]) == (
            1024,
            [("log", 2048)],
        )
        kept = sorted((rig.state_dir / "machines").rglob("disk*.qcow2"))
        assert len(kept) == 6
        ended = await house.clusters.destroy("trio", ALICE, delete_disks=False)
        assert ended is not None
        assert ended.state is ClusterState.DESTROYED
        inodes = [path.stat().st_ino for path in kept]
        for verb in (house.life.start, house.life.stop):
            more = {"mode": StopMode.DESTROY, "deadline_s": 1.0} if verb == house.life.stop else {}
            with pytest.raises(errors.StateForbids, match="only its disks are kept"):
                await verb("trio", ALICE, unreported, **more)  # type: ignore[arg-type]  # of the one that takes them
        again = await house.raised(disks)
        assert again.nodes == cluster.nodes
        assert [path.stat().st_ino for path in kept] == inodes
        await house.clusters.destroy("trio", ALICE, delete_disks=True)
        assert (house.qemu.found(), await house.networks.visible(SYSTEM)) == ([], [])


async def test_what_cannot_be_taken_away_is_told_and_goes_with_the_next_try(rig: Rig) -> None:
    async with daemon(rig) as house:
        await house.raised(trio())
        alone = await house.snapshots.save("trio.n1", ALICE)
        with pytest.raises(errors.NodesFailed, match=r"is left: lan: network .* has places for"):
            await house.clusters.destroy("trio", ALICE, delete_disks=True)
        assert (await house.records.get("trio", ALICE)).state is ClusterState.INCOMPLETE
        await house.snapshots.forget(alone.snapshot_id, ALICE)
        await house.clusters.destroy("trio", ALICE, delete_disks=True)
        assert await house.records.visible(SYSTEM) == []
        assert await house.networks.visible(SYSTEM) == []


async def test_machines_of_a_cluster_outlive_the_daemon(rig: Rig) -> None:
    async with daemon(rig) as house:
        await house.raised(trio())
    async with daemon(rig) as house:
        status = await house.life.status(await house.records.get("trio", ALICE))
        assert [node.reachable for node in status.nodes] == [True] * 3
        await house.clusters.destroy("trio", ALICE, delete_disks=True)
