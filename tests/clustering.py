"""Clusters for tests: topologies, and what a daemon has of clusters, on machines that are none."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from machines import Rig, qcow2_of
from microvm_orchestrator import errors
from microvm_orchestrator.clusters import topology
from microvm_orchestrator.clusters.clusters import Clusters, Parts
from microvm_orchestrator.clusters.life import ClusterLife
from microvm_orchestrator.clusters.records import ClusterRecords
from microvm_orchestrator.clusters.saved import SavedClusters
from microvm_orchestrator.clusters.snapshots import ClusterSnapshots
from microvm_orchestrator.images.store import Fixed
from microvm_orchestrator.machine.base import Boot, Qcow2
from microvm_orchestrator.machine.hypervisor import AnyKind
from microvm_orchestrator.machine.qemu.machine import QemuMachine
from microvm_orchestrator.machines import Machines
from microvm_orchestrator.model.access import Role, Scope
from microvm_orchestrator.model.cluster import Cluster
from microvm_orchestrator.model.records import SYSTEM, Actor
from microvm_orchestrator.model.topology import Backend
from microvm_orchestrator.network import base
from microvm_orchestrator.network.switch import open_switch, unheard
from microvm_orchestrator.networks import Networks
from microvm_orchestrator.runner import Ssh
from microvm_orchestrator.slots import Capacity, Slots
from microvm_orchestrator.snapshots import Snapshots
from microvm_orchestrator.store.base import Store
from microvm_orchestrator.store.sqlite import SqliteStore

ALICE = Actor(name="alice", role=Role.OPERATOR, via="test", action="cluster_define")
BOB = Actor(name="bob", role=Role.OPERATOR, via="test", action="x", scope=Scope(everything=False))

# An image for each way in which a node can go wrong; any other name is of none.
IMAGES = {
    "plain": "",
    "panics": "fake.panic",
    "unsaved": "fake.unsaved",
    "stays": "fake.stays",
    "disk": "",
    # As of a runner, whose guests have this and nothing else.
    "made": "",
}
MADE_FOR = Fixed(memory_mib=96, vcpus=2)


def trio(name: str = "trio", *, images: tuple[str, ...] = ("plain",) * 3, more: str = "") -> str:
    """Write a topology of three nodes down."""
    nodes = "".join(
        f"  - {{name: n{number}, image: {image}, memory_mb: 64, ip: 10.9.0.1{number}, "
        f'ip6: "fd09::1{number}"}}\n'
        for number, image in enumerate(images, 1)
    )
    return (
        f"cluster_name: {name}\n"
        'network: {name: lan, subnet: 10.9.0.0/24, subnet6: "fd09::/64"}\n'
        f"ssh: {{connect_timeout_s: 2}}\n{more}nodes:\n{nodes}"
    )


async def unreported(fraction: float | None, message: str) -> None:
    """Tell nobody how far it is."""


@dataclass(frozen=True)
class House:
    rig: Rig
    store: Store
    switch: base.Networks
    qemu: AnyKind
    machines: Machines
    networks: Networks
    snapshots: Snapshots
    slots: Slots
    records: ClusterRecords
    saved: SavedClusters
    clusters: Clusters
    life: ClusterLife
    whole: ClusterSnapshots

    async def define(self, text: str, by: Actor = ALICE) -> Cluster:
        return await self.clusters.define(topology.read(text), by)

    async def raised(self, text: str) -> Cluster:
        cluster = await self.define(text)
        await self.life.start(cluster.name, ALICE, unreported)
        return cluster

    async def running(self, cluster: str, node: str) -> QemuMachine:
        machine = await self.machines.get(f"{cluster}.{node}", SYSTEM)
        running = self.machines.live(machine)
        assert isinstance(running, QemuMachine)
        return running

    async def home(self, cluster: str, node: str) -> Path:
        """Give the folder that is all there is of a node's guest."""
        return Path(self.rig.home(await self.running(cluster, node)))

    async def states(self, cluster: str) -> dict[str, str]:
        found = await self.life.status(await self.records.get(cluster, SYSTEM))
        return {node.name: str(node.state) for node in found.nodes}


@asynccontextmanager
async def daemon(
    rig: Rig,
    *,
    count: int = 8,
    kernel: base.Networks | None = None,
    login: Ssh | None = None,
) -> AsyncGenerator[House]:
    """What a daemon has of clusters, from its start to its end; their machines outlive it.

    Its networks are those of a switch in userspace, or of this kernel. `login` is of disks whose
    guests have nothing of ours, and are told by cloud-init who they are.
    """
    store = SqliteStore(rig.state_dir / "store.db")

    async def image_of(name: str | None, backend: Backend) -> tuple[str, Fixed]:
        if (name or "plain") not in IMAGES:
            raise errors.NotFound(f"no image {name}")
        if (backend is Backend.LIBVIRT) is not (name == "disk"):
            raise errors.InvalidInput(f"image {name} is none for {backend}")
        return name or "plain", MADE_FOR if name == "made" else Fixed(None, None)

    def boot_of(image: str) -> Boot | Qcow2:
        if image == "disk":
            return replace(qcow2_of(rig.boot), ssh=login, cloud_init=login is not None)
        return replace(rig.boot, cmdline=f"{rig.boot.cmdline} {IMAGES[image]}".strip())

    async def forget(machine_id: str) -> None:
        del machine_id

    async with store.opened(), open_switch(unheard) as userspace, rig.open_any() as qemu:
        switch = kernel or userspace
        networks = Networks(store, switch)
        slots = Slots(Capacity(count, 4096, 32))
        machines = Machines(store, qemu, slots, boot_of, networks=networks)
        async with machines.running():
            snapshots = Snapshots(store, qemu, machines)
            await snapshots.reconcile()
            records = ClusterRecords(store)
            saved = SavedClusters(store, machines, snapshots)
            parts = Parts(store, records, saved, machines, snapshots, networks, image_of, forget)
            clusters, life = Clusters(parts), ClusterLife(parts)
            whole = ClusterSnapshots(parts, clusters, life)
            await saved.reconcile()
            await whole.reconcile()
            yield House(
                rig,
                store,
                switch,
                qemu,
                machines,
                networks,
                snapshots,
                slots,
                records,
                saved,
                clusters,
                life,
                whole,
            )
