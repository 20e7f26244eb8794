"""Snapshots of clusters, on machines that are none: all or nothing, put back, copied, deleted."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import pytest

from clustering import ALICE, BOB, House, daemon, trio, unreported
from machines import Rig, fake_rig, removed_in_the_end, sh
from microvm_orchestrator import errors
from microvm_orchestrator.machine.base import Machine, Snapshot
from microvm_orchestrator.model.cluster import ClusterSnapshotState, Quiesced
from microvm_orchestrator.model.machine import MachineState, SnapshotState
from microvm_orchestrator.model.records import SYSTEM

CAP_SYS_ADMIN = 21
NODES = ("n1", "n2", "n3")
PATIENCE_S = 30


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncGenerator[Rig]:
    rig = fake_rig(tmp_path)
    yield rig
    async with rig.open() as qemu, removed_in_the_end(qemu):
        pass


async def write(house: House, words: str, cluster: str = "trio") -> None:
    for node in NODES:
        ((await house.home(cluster, node)) / "words").write_text(f"{words} {node}")


async def read(house: House, cluster: str = "trio") -> list[str]:
    return [((await house.home(cluster, node)) / "words").read_text() for node in NODES]


async def refuse_to_freeze_this_host(machine: Machine) -> None:
    """See that a guest, whose file systems are this host's, has no right to hold them."""
    rights = await sh(machine, "while read -r a b; do echo $a $b; done </proc/self/status")
    (effective,) = (line.split()[1] for line in rights.splitlines() if line.startswith("CapEff:"))
    assert not int(effective, 16) & 1 << CAP_SYS_ADMIN


async def end(house: House, *clusters: str) -> None:
    for name in clusters:
        await house.clusters.destroy(name, ALICE, delete_disks=True)
    assert (house.qemu.found(), await house.qemu.saved()) == ([], [])
    assert await house.networks.visible(SYSTEM) == []


async def test_a_cluster_goes_on_after_it_was_saved_and_back_to_it_as_itself(rig: Rig) -> None:
    async with daemon(rig) as house:
        await house.raised(trio(more="snapshots: {baseline: clean}\n"))
        await write(house, "before")
        before = await house.machines.visible(SYSTEM)
        saved = await house.whole.create("trio", "baseline", ALICE, unreported)
        assert (saved.name, saved.state) == ("clean", ClusterSnapshotState.READY)
        assert (saved.held, list(saved.nodes)) == ([], list(NODES))
        assert saved.memory
        assert 0.0 < saved.skew_s <= saved.pause_s
        assert await house.states("trio") == dict.fromkeys(NODES, "running")
        await write(house, "after")
        await house.machines.kill("trio.n2", ALICE)
        back = await house.whole.revert("trio", "baseline", ALICE, unreported)
        assert [(node.state, node.reachable) for node in back.nodes] == [
            (MachineState.RUNNING, True)
        ] * 3
        assert await read(house) == ["before n1", "before n2", "before n3"]
        now = await house.machines.visible(SYSTEM)
        same = ("machine_id", "name", "hostname", "networks", "snapshot_id")
        assert [[getattr(m, name) for name in same] for m in now] == [
            [getattr(m, name) for name in same] for m in before
        ]
        # Once: whoever crashes boots, and is not back at the snapshot.
        await house.life.crash("trio", "n1", ALICE, unreported, restart=True)
        assert not ((await house.home("trio", "n1")) / "words").exists()
        await end(house, "trio")


async def test_a_node_that_stood_still_does_so_after_the_cluster_was_saved(rig: Rig) -> None:
    async with daemon(rig) as house:
        await house.raised(trio())
        await house.machines.pause("trio.n2", ALICE)
        await house.whole.create("trio", "s", ALICE, unreported)
        states = await house.states("trio")
        assert states == {"n1": "running", "n2": "paused", "n3": "running"}
        await end(house, "trio")


async def test_disks_alone_are_saved_when_guests_have_written_down_what_they_had_and_boot_later(
    rig: Rig,
) -> None:
    async with daemon(rig) as house:
        cluster = await house.raised(trio())
        for node in NODES:
            await refuse_to_freeze_this_host(await house.running("trio", node))
        await write(house, "in memory")
        saved = await house.whole.create("trio", "s", ALICE, unreported, memory=False)
        assert not saved.memory
        assert [node.quiesced for node in saved.nodes.values()] == [Quiesced.SYNCED] * 3
        assert [found.nodes for found in await house.saved.of(cluster)] == [saved.nodes]
        machines = [
            await house.snapshots.check(node.snapshot_id, SYSTEM) for node in saved.nodes.values()
        ]
        assert [machine.memory for machine in machines] == [False] * 3
        assert await read(house) == ["in memory n1", "in memory n2", "in memory n3"]
        back = await house.whole.revert("trio", "s", ALICE, unreported)
        assert [node.reachable for node in back.nodes] == [True] * 3
        for node in NODES:
            assert not ((await house.home("trio", node)) / "words").exists()
        copy = await house.whole.branch("trio", "s", "copy", ALICE, unreported)
        assert [node.reachable for node in copy.nodes] == [True] * 3
        await house.whole.delete("trio", "s", ALICE)
        assert await house.qemu.saved() == []
        await end(house, "trio", "copy")


async def test_a_guest_that_cannot_write_down_what_it_has_is_not_saved_without_its_memory(
    rig: Rig,
) -> None:
    async with daemon(rig) as house:
        cluster = await house.raised(trio())
        await house.machines.pause("trio.n2", ALICE)
        with pytest.raises(errors.StateForbids, match="node n2 of cluster trio is paused"):
            await house.whole.create("trio", "s", ALICE, unreported, memory=False)
        await house.machines.resume("trio.n2", ALICE)
        assert (await house.saved.of(cluster), await house.qemu.saved()) == ([], [])
        assert await house.states("trio") == dict.fromkeys(NODES, "running")
        await end(house, "trio")


async def test_one_that_cannot_be_saved_leaves_nothing_saved_and_all_go_on(rig: Rig) -> None:
    async with daemon(rig) as house:
        cluster = await house.raised(trio(images=("plain", "unsaved", "plain")))
        with pytest.raises(errors.NodesFailed, match=r"cannot be saved: n2: "):
            await house.whole.create("trio", "s", ALICE, unreported)
        assert await house.saved.of(cluster) == []
        assert (await house.snapshots.visible(SYSTEM), await house.qemu.saved()) == ([], [])
        status = await house.life.status(cluster)
        assert [node.reachable for node in status.nodes] == [True] * 3
        await end(house, "trio")


async def test_one_that_does_not_go_on_is_told_and_seen_to_stand_and_nothing_is_saved(
    rig: Rig,
) -> None:
    async with daemon(rig) as house:
        cluster = await house.raised(trio(images=("plain", "stays", "plain")))
        with pytest.raises(errors.NodesFailed, match=r"do not go on: n2: .* it stays"):
            await house.whole.create("trio", "s", ALICE, unreported)
        assert (await house.saved.of(cluster), await house.qemu.saved()) == ([], [])
        states = await house.states("trio")
        assert states == {"n1": "running", "n2": "paused", "n3": "running"}
        with pytest.raises(errors.NodesFailed, match="n2: it is paused"):
            await house.life.start("trio", ALICE, unreported)
        await end(house, "trio")


async def test_a_cluster_with_a_dead_node_is_not_saved_and_none_stands_still(rig: Rig) -> None:
    async with daemon(rig) as house:
        cluster = await house.raised(trio())
        await house.machines.kill("trio.n3", ALICE)
        with pytest.raises(errors.MachineUnreachable, match="node n3 of cluster trio is stopped"):
            await house.whole.create("trio", "s", ALICE, unreported)
        assert await house.saved.of(cluster) == []
        assert await house.states("trio") == {"n1": "running", "n2": "running", "n3": "stopped"}
        await end(house, "trio")


async def test_a_name_is_taken_once_and_what_is_not_there_is_not_found(rig: Rig) -> None:
    async with daemon(rig) as house:
        await house.raised(trio())
        await house.whole.create("trio", "s", ALICE, unreported)
        with pytest.raises(errors.AlreadyExists, match="has a snapshot s already"):
            await house.whole.create("trio", "s", ALICE, unreported)
        for name in ("other", "baseline"):
            with pytest.raises(errors.NotFound, match=f"has no snapshot {name}"):
                await house.whole.revert("trio", name, ALICE, unreported)
        with pytest.raises(errors.NotFound):
            await house.whole.revert("trio", "s", BOB, unreported)
        with pytest.raises(errors.NotFound):
            await house.whole.delete("trio", "s", BOB)
        await end(house, "trio")


async def test_a_damaged_snapshot_ends_no_node(rig: Rig) -> None:
    async with daemon(rig) as house:
        await house.raised(trio())
        saved = await house.whole.create("trio", "s", ALICE, unreported)
        pids = [(await house.running("trio", node)).pid for node in NODES]
        folder = rig.state_dir / "snapshots" / saved.nodes["n3"].snapshot_id
        state = folder / "state"
        state.chmod(0o600)
        state.write_bytes(b"something else")
        with pytest.raises(errors.SnapshotDamaged, match="cannot be used: n3: "):
            await house.whole.revert("trio", "s", ALICE, unreported)
        with pytest.raises(errors.SnapshotDamaged):
            await house.whole.branch("trio", "s", "copy", ALICE, unreported)
        assert [(await house.running("trio", node)).pid for node in NODES] == pids
        assert [cluster.name for cluster in await house.records.visible(SYSTEM)] == ["trio"]
        await end(house, "trio")


async def test_a_part_of_a_snapshot_goes_with_the_whole_alone(rig: Rig) -> None:
    async with daemon(rig) as house:
        await house.raised(trio())
        saved = await house.whole.create("trio", "s", ALICE, unreported)
        for node in saved.nodes.values():
            with pytest.raises(errors.StateForbids, match=f"one of cluster {saved.cluster_id}"):
                await house.snapshots.forget(node.snapshot_id, ALICE)
        await house.whole.revert("trio", "s", ALICE, unreported)
        await house.whole.delete("trio", "s", ALICE)
        await end(house, "trio")


async def test_any_snapshot_goes_the_newest_too_and_the_cluster_runs_on(rig: Rig) -> None:
    async with daemon(rig) as house:
        cluster = await house.raised(trio())
        for name in ("one", "two"):
            await write(house, name)
            await house.whole.create("trio", name, ALICE, unreported)
        assert [each.name for each in await house.saved.of(cluster)] == ["one", "two"]
        await house.whole.revert("trio", "two", ALICE, unreported)
        await house.whole.delete("trio", "two", ALICE)
        assert await read(house) == ["two n1", "two n2", "two n3"]
        await house.whole.revert("trio", "one", ALICE, unreported)
        assert await read(house) == ["one n1", "one n2", "one n3"]
        assert len(await house.qemu.saved()) == 3
        await end(house, "trio")


async def test_a_copy_has_names_and_networks_of_its_own_and_goes_on_beside_the_first(
    rig: Rig,
) -> None:
    async with daemon(rig) as house:
        await house.raised(trio())
        await write(house, "saved")
        await house.whole.create("trio", "s", ALICE, unreported)
        copy = await house.whole.branch("trio", "s", "copy", ALICE, unreported)
        await write(house, "first goes on")
        assert [(node.name, node.reachable) for node in copy.nodes] == [
            (node, True) for node in NODES
        ]
        assert await read(house, "copy") == ["saved n1", "saved n2", "saved n3"]
        places = {
            machine.name: (machine.networks[0].addresses, machine.networks[0].network_id)
            for machine in await house.machines.visible(SYSTEM)
        }
        assert len(places) == 6
        for node in NODES:
            first, second = places[f"trio.{node}"], places[f"copy.{node}"]
            assert first[0] == second[0]
            assert first[1] != second[1]
        with pytest.raises(errors.AlreadyExists):
            await house.whole.branch("trio", "s", "copy", ALICE, unreported)
        assert await house.states("copy") == dict.fromkeys(NODES, "running")
        # What was copied from may go.
        await house.clusters.destroy("trio", ALICE, delete_disks=True)
        assert await read(house, "copy") == ["saved n1", "saved n2", "saved n3"]
        await end(house, "copy")


async def test_of_a_copy_that_does_not_come_up_whole_nothing_is_left(rig: Rig) -> None:
    async with daemon(rig, count=5) as house:
        await house.raised(trio())
        await house.whole.create("trio", "s", ALICE, unreported)
        with pytest.raises(errors.NodesFailed, match="did not come up from snapshot s"):
            await house.whole.branch("trio", "s", "copy", ALICE, unreported)
        assert [cluster.name for cluster in await house.records.visible(SYSTEM)] == ["trio"]
        assert len(await house.machines.visible(SYSTEM)) == 3
        assert [each.name for each in await house.networks.visible(SYSTEM)] == ["trio.lan"]
        await end(house, "trio")


async def test_a_cluster_whose_snapshots_are_kept_is_destroyed_and_comes_back_to_them(
    rig: Rig,
) -> None:
    async with daemon(rig) as house:
        await house.raised(trio())
        await write(house, "saved")
        await house.whole.create("trio", "s", ALICE, unreported)
        kept = await house.clusters.destroy("trio", ALICE, delete_disks=False)
        assert kept is not None
        assert await house.states("trio") == dict.fromkeys(NODES, "stopped")
        await house.define(trio())
        await house.whole.revert("trio", "s", ALICE, unreported)
        assert await read(house) == ["saved n1", "saved n2", "saved n3"]
        await end(house, "trio")


async def test_nodes_that_stood_still_for_a_snapshot_when_the_daemon_died_go_on(rig: Rig) -> None:
    async with daemon(rig) as house:
        cluster = await house.raised(trio())
        whole = await house.whole.create("trio", "s", ALICE, unreported)
        half = whole.model_copy(
            update={
                "state": ClusterSnapshotState.SAVING,
                "held": [node.machine_id for node in cluster.nodes[:2]],
            }
        )
        await house.saved.save(half, ALICE, "saving")
        for node in NODES:
            await house.machines.pause(f"trio.{node}", ALICE)
    async with daemon(rig) as house:
        assert await house.states("trio") == {"n1": "running", "n2": "running", "n3": "paused"}
        assert (await house.saved.of(cluster), await house.qemu.saved()) == ([], [])
        await end(house, "trio")


async def test_a_snapshot_of_which_a_part_cannot_be_removed_is_none_and_goes_by_the_next_delete(
    rig: Rig,
) -> None:
    async with daemon(rig) as house:
        cluster = await house.raised(trio())
        saved = await house.whole.create("trio", "s", ALICE, unreported)
        obstacle = put_in_the_way(await house.qemu.find_snapshot(saved.nodes["n2"].snapshot_id))
        with pytest.raises(errors.NodesFailed, match=r"snapshot s of cluster trio is left: n2: "):
            await house.whole.delete("trio", "s", ALICE)
        for _ in range(2):
            # What could be taken away is gone, and what is left looks like no snapshot.
            [left] = await house.saved.of(cluster)
            assert left.state is ClusterSnapshotState.DELETING
            [part] = await house.snapshots.visible(SYSTEM)
            assert (part.snapshot_id, part.state) == (
                saved.nodes["n2"].snapshot_id,
                SnapshotState.DELETING,
            )
            with pytest.raises(errors.StateForbids, match="is being deleted"):
                await house.whole.revert("trio", "s", ALICE, unreported)
            with pytest.raises(errors.StateForbids, match="is being deleted"):
                await house.whole.branch("trio", "s", "copy", ALICE, unreported)
            with pytest.raises(errors.StateForbids):
                await house.snapshots.branch(part.snapshot_id, ALICE)
            with pytest.raises(errors.AlreadyExists):
                await house.whole.create("trio", "s", ALICE, unreported)
            with pytest.raises(errors.NodesFailed, match="is left: n2: "):
                await house.clusters.destroy("trio", ALICE, delete_disks=True)
            await house.life.start("trio", ALICE, unreported)
        assert await house.states("trio") == dict.fromkeys(NODES, "running")
        obstacle.rmdir()
        await house.whole.delete("trio", "s", ALICE)
        assert (await house.saved.of(cluster), await house.snapshots.visible(SYSTEM)) == ([], [])
        await house.whole.create("trio", "s", ALICE, unreported)
        await end(house, "trio")


async def test_what_is_left_of_a_snapshot_that_was_deleted_goes_with_the_next_daemon_that_can(
    rig: Rig,
) -> None:
    async with daemon(rig) as house:
        cluster = await house.raised(trio())
        saved = await house.whole.create("trio", "s", ALICE, unreported)
        obstacle = put_in_the_way(await house.qemu.find_snapshot(saved.nodes["n1"].snapshot_id))
        with pytest.raises(errors.NodesFailed):
            await house.whole.delete("trio", "s", ALICE)
        await house.machines.pause("trio.n3", ALICE)
    async with daemon(rig) as house:
        [left] = await house.saved.of(cluster)
        assert left.state is ClusterSnapshotState.DELETING
        # It stands still for nobody's snapshot.
        assert (await house.states("trio"))["n3"] == "paused"
    obstacle.rmdir()
    async with daemon(rig) as house:
        assert (await house.saved.of(cluster), await house.snapshots.visible(SYSTEM)) == ([], [])
        assert await house.qemu.saved() == []
        await end(house, "trio")


def put_in_the_way(saved: Snapshot | None) -> Path:
    """Let a snapshot have something in place of its first file that is not removed as a file is."""
    assert saved is not None
    manifest = saved.path / "manifest.json"
    manifest.unlink()
    manifest.mkdir()
    return manifest


async def test_a_copy_that_was_being_made_when_the_daemon_died_is_taken_away(rig: Rig) -> None:
    async with daemon(rig) as house:
        await house.raised(trio())
        await house.whole.create("trio", "s", ALICE, unreported)
        await house.whole.branch("trio", "s", "copy", ALICE, unreported)
        copy = await house.records.get("copy", ALICE)
        assert not copy.copying
        half = copy.model_copy(update={"copying": True})
        await house.records.save(half, ALICE, "changed", expect=None)
    async with daemon(rig) as house:
        assert [cluster.name for cluster in await house.records.visible(SYSTEM)] == ["trio"]
        assert len(house.qemu.found()) == 3
        assert await house.states("trio") == dict.fromkeys(NODES, "running")
        await end(house, "trio")


async def test_whoever_gives_up_waiting_for_a_snapshot_leaves_all_running_and_nothing_saved(
    rig: Rig,
) -> None:
    async with daemon(rig) as house:
        cluster = await house.raised(trio())
        for tenth in range(6):
            with anyio.move_on_after(tenth / 10):
                await house.whole.create("trio", f"s{tenth}", ALICE, unreported)
            kept = {each.name for each in await house.saved.of(cluster)}
            assert kept <= {f"s{number}" for number in range(tenth + 1)}
            assert len(await house.qemu.saved()) == 3 * len(kept)
            for node in NODES:
                with anyio.fail_after(PATIENCE_S):
                    assert await sh(await house.running("trio", node), "echo on") == "on\n"
            assert await house.states("trio") == dict.fromkeys(NODES, "running")
        await end(house, "trio")
