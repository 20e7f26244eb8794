"""What this host lends to those who ask: images, machines on it, and long work.

Made once by the daemon, from the bottom up, and ended from the top down; the machines go on. Above
is the service; below, each part in a module of its own.
"""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import anyio.to_thread

from microvm_orchestrator import config, errors, log, places
from microvm_orchestrator.artifact_trees import ArtifactTrees
from microvm_orchestrator.artifacts import Artifacts, Quotas
from microvm_orchestrator.caches import Caches
from microvm_orchestrator.clusters.campaigns import Campaigns
from microvm_orchestrator.clusters.kernel_events import KernelEvents
from microvm_orchestrator.clusters.kernel_logs import KernelLogs
from microvm_orchestrator.clusters.room import ClusterRoom, furnished
from microvm_orchestrator.conversations.agents import Agents
from microvm_orchestrator.conversations.coordinations import OPERATION_KIND, Coordinations
from microvm_orchestrator.conversations.family import Limits
from microvm_orchestrator.conversations.ground import AgentGround, Door
from microvm_orchestrator.conversations.records import AgentRecords
from microvm_orchestrator.conversations.teams import Teams
from microvm_orchestrator.conversations.watching import Policy
from microvm_orchestrator.egress.credentials import Credentials
from microvm_orchestrator.execs.execs import Execs
from microvm_orchestrator.faults.ledger import Ledger
from microvm_orchestrator.forwards import Forwards
from microvm_orchestrator.harms import Harms
from microvm_orchestrator.images.runner import bootable
from microvm_orchestrator.images.store import (
    AnyImage,
    DiskImage,
    Fixed,
    ImageStore,
    RunnerImage,
    fixed_by,
)
from microvm_orchestrator.lifecycle.cache import Histories, path_of
from microvm_orchestrator.lifecycle.egress import WaysOut
from microvm_orchestrator.lifecycle.forgetting import Forgetting
from microvm_orchestrator.lifecycle.live import Ground, Usual
from microvm_orchestrator.lifecycle.merging import Merging
from microvm_orchestrator.lifecycle.source import Sources
from microvm_orchestrator.machine.base import (
    Boot,
    Change,
    Disk,
    DiskFormat,
    Machine,
    MachineSpec,
    Qcow2,
)
from microvm_orchestrator.machine.hypervisor import open_hypervisor
from microvm_orchestrator.machine.probe import Acceleration
from microvm_orchestrator.machine.shell import GuestEvent
from microvm_orchestrator.machines import Machines
from microvm_orchestrator.model.agent import USUAL_DISK_MIB
from microvm_orchestrator.model.cluster import Cluster
from microvm_orchestrator.model.machine import Machine as KnownMachine
from microvm_orchestrator.model.records import SYSTEM, Actor
from microvm_orchestrator.model.run import RUN
from microvm_orchestrator.model.topology import Backend
from microvm_orchestrator.network.base import Networks as Switch
from microvm_orchestrator.network.base import OnPortEvent, PortEvent
from microvm_orchestrator.network.kernel import KernelNetworks
from microvm_orchestrator.network.switch import open_switch
from microvm_orchestrator.networks import Networks
from microvm_orchestrator.operations import Operations
from microvm_orchestrator.repos import Repos
from microvm_orchestrator.runner import Runner, Ssh
from microvm_orchestrator.runs import Runs
from microvm_orchestrator.seeded import SeededRuns
from microvm_orchestrator.slots import Capacity, Slots
from microvm_orchestrator.snapshots import Snapshots
from microvm_orchestrator.starting import SCRATCH_SERIAL
from microvm_orchestrator.store.base import Store
from microvm_orchestrator.store.every import every_record
from microvm_orchestrator.warm import Kind, Warm

# Of the host's memory, what machines may have when nothing is said.
_MEMORY_SHARE = 0.75
_VCPUS_FOR_EACH = 4
_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Host:
    """The parts the service works with."""

    operations: Operations
    images: ImageStore
    # What builds have fetched; may be removed at any time between two.
    image_cache: Path
    machines: Machines
    snapshots: Snapshots
    execs: Execs
    forwards: Forwards
    kernel_logs: KernelLogs
    kernel_events: KernelEvents
    seeded: SeededRuns
    slots: Slots
    warm: Warm
    caches: Caches
    networks: Networks
    faults: Ledger
    clusters: ClusterRoom
    campaigns: Campaigns
    repos: Repos
    artifacts: Artifacts
    trees: ArtifactTrees
    runs: Runs
    agents: Agents
    teams: Teams
    coordinations: Coordinations
    forgetting: Forgetting
    # The keys that are added for guests.
    credentials: Credentials
    # How guest code can run here.
    find_acceleration: Callable[[], Awaitable[Acceleration]]


@asynccontextmanager
async def open_host(settings: config.Settings, store: Store) -> AsyncGenerator[Host]:
    """Adopt what runs, and take on machines and long work until the block ends.

    Raises: ConfigInvalid when there is no such user, or the file of credentials is not safe.
    """
    state_dir = settings.state_dir
    # What an earlier daemon was in the middle of.
    await anyio.to_thread.run_sync(shutil.rmtree, state_dir / places.TRANSFERS, True)  # noqa: FBT003  # run_sync passes positions only
    credentials = await anyio.to_thread.run_sync(Credentials, state_dir, _handed(os.environ))
    images = ImageStore(state_dir / places.IMAGES)
    slots = Slots(capacity(settings.machines))

    def boot(reference: str) -> Boot | Runner | Qcow2:
        return boot_of(images.get(reference))

    async def usual(reference: str) -> MachineSpec:
        found = await anyio.to_thread.run_sync(boot, reference)
        return MachineSpec(
            "usual",
            found,
            memory_mib=settings.machines.default_memory_mib,
            boot_timeout_s=settings.machines.boot_timeout_s,
        )

    async def home(reference: str) -> MachineSpec:
        scratch = Disk(SCRATCH_SERIAL, read_only=False, size_mib=USUAL_DISK_MIB)
        return replace(await usual(reference), disks=(scratch,))

    # Nothing happens to a machine before there are machines.
    async def on_change(change: Change) -> None:
        await machines.hear(change)

    async def on_guest_event(machine_id: str, event: GuestEvent) -> None:
        await machines.hear_guest(machine_id, event)

    async def on_begin(machine_id: str, running: Machine) -> None:
        try:
            await harms.begin(machine_id, running, faults.suffers(machine_id))
        except errors.OrchestratorError as error:
            _log.error("machine_not_harmed", machine=machine_id, why=error.message)
            faults.doubt(machine_id)

    async def on_define(machine: KnownMachine) -> None:
        for place in machine.networks:
            await faults.join(place.network_id, machine)

    async def on_port_event(event: PortEvent) -> None:
        await machines.hear_port(event)

    async with AsyncExitStack() as life:
        hypervisor = await life.enter_async_context(
            open_hypervisor(
                state_dir,
                on_change=on_change,
                on_guest_event=on_guest_event,
                binary=settings.machines.qemu,
                user=_user(settings.machines.user),
                libvirt=settings.libvirt.uri,
            )
        )
        caches = Caches(
            state_dir / places.CACHES,
            size_mib=settings.machines.cache_mib,
            count=settings.machines.cache_count,
        )
        warm = Warm(
            hypervisor,
            [
                *(Kind(image, count, usual) for image, count in settings.machines.warm.items()),
                *(
                    Kind(image, count, home, for_agents=True)
                    for image, count in settings.agents.warm.items()
                ),
            ],
        )
        switch = await life.enter_async_context(_open_switch(settings.networks, on_port_event))
        networks = Networks(store, switch)
        history_of = partial(path_of, state_dir / places.REPOS)
        machines = Machines(
            store,
            hypervisor,
            slots,
            boot,
            warm,
            caches,
            networks,
            history_of,
            boot_timeout_s=settings.machines.boot_timeout_s,
            on_begin=on_begin,
            on_define=on_define,
        )
        harms = Harms(machines)
        faults = Ledger(store, switch, harms)
        snapshots = Snapshots(store, hypervisor, machines)
        execs = Execs(store, machines)
        forwards = Forwards(store, machines, settings.socket.path)
        kernel_logs = KernelLogs(store, machines)
        kernel_events = KernelEvents(store, machines, kernel_logs)
        seeded = SeededRuns(hypervisor, slots, boot)
        operations = Operations(store, lasting={OPERATION_KIND})
        repos = Repos(store, state_dir / places.REPOS)
        artifacts = Artifacts(
            state_dir / places.ARTIFACTS, state_dir / places.RUNS, quotas(settings.artifacts)
        )
        trees = ArtifactTrees(store, artifacts)

        async def image(name: str | None) -> AnyImage:
            wanted = name or settings.machines.default_image
            return await anyio.to_thread.run_sync(images.get, wanted)

        async def image_of(name: str | None, backend: Backend) -> tuple[str, Fixed]:
            found = await image(name)
            if isinstance(found, DiskImage) is not (backend is Backend.LIBVIRT):
                what = "a disk" if isinstance(found, DiskImage) else "no disk"
                raise errors.InvalidInput(f"image {name} is {what}, and none for {backend}")
            return found.digest, fixed_by(found)

        async def forget(machine_id: str) -> None:
            await execs.forget_machine(machine_id)
            await forwards.forget_machine(machine_id)
            await kernel_logs.forget_machine(machine_id)

        async def heal(cluster: Cluster, by: Actor) -> None:
            del by  # whoever broke them, or had them heard
            await kernel_events.switch_off(cluster, SYSTEM)
            for network in cluster.networks:
                if network.network_id is not None:
                    await faults.heal_all(SYSTEM, network.network_id)
            for node in cluster.nodes:
                await faults.heal_all(SYSTEM, machine_id=node.machine_id)

        clusters = furnished(
            store,
            machines,
            snapshots,
            networks,
            trees,
            image_of=image_of,
            forget=forget,
            before_end=[heal],
        )
        campaigns = Campaigns(store, clusters.records, clusters.life, faults, operations)
        ways_out = WaysOut(settings.egress, credentials)
        ground = Ground(
            machines=machines,
            execs=execs,
            artifacts=artifacts,
            sources=Sources(repos, Histories(machines, hypervisor)),
            merging=Merging(repos),
            ways_out=ways_out,
            image=image,
            folder=state_dir / places.RUNS,
            usual=Usual(settings.machines.default_memory_mib, settings.runs.timeout_s),
        )
        runs = Runs(store, ground, settings.runs.count)
        agents = Agents(
            AgentGround(
                records=AgentRecords(store),
                machines=machines,
                snapshots=snapshots,
                execs=execs,
                ways_out=ways_out,
                image=image,
                forget=forget,
                door=Door(),
                repos=repos,
                runs=replace(ground, folder=state_dir / places.AGENTS),
                folder=state_dir / places.AGENTS,
                families=Limits(settings.agents.depth, settings.agents.children),
                memory_mib=settings.machines.default_memory_mib,
                timeout_s=settings.runs.timeout_s,
                supervision=Policy.of(settings.agents, settings.roles_folder),
            )
        )
        teams = Teams(store, agents)
        coordinations = Coordinations(store, agents, operations, agents.care.waits)
        # Before machines are connected, so that none hears what it must not.
        await networks.restore()
        await faults.reconcile()
        for machine in await machines.visible(SYSTEM):
            # It may have been written down when the daemon ended.
            await on_define(machine)
        await life.enter_async_context(machines.running())
        await life.enter_async_context(faults.running())
        await snapshots.reconcile()
        await kernel_logs.reconcile()
        await life.enter_async_context(execs.running())
        await life.enter_async_context(forwards.running())
        await clusters.reconcile()
        await life.enter_async_context(kernel_events.running())
        await life.enter_async_context(warm.running())
        await life.enter_async_context(operations.running())
        await life.enter_async_context(campaigns.running())
        await repos.reconcile()
        known = {record.id for record in await every_record(store, RUN, SYSTEM)}
        await artifacts.reconcile({*known, *await trees.known()})
        await life.enter_async_context(runs.running())
        await life.enter_async_context(agents.running())
        await life.enter_async_context(teams.running())
        await life.enter_async_context(coordinations.running())
        forgetting = Forgetting(
            store, repos, lambda task_id: runs.find(task_id) is not None, artifacts.forget
        )
        await life.enter_async_context(forgetting.running())
        yield Host(
            operations=operations,
            images=images,
            # apt writes down where its index lies: a way there by a link may not last as long.
            image_cache=(state_dir / places.IMAGE_CACHE).resolve(),
            machines=machines,
            snapshots=snapshots,
            execs=execs,
            forwards=forwards,
            kernel_logs=kernel_logs,
            kernel_events=kernel_events,
            seeded=seeded,
            slots=slots,
            warm=warm,
            caches=caches,
            networks=networks,
            faults=faults,
            clusters=clusters,
            campaigns=campaigns,
            repos=repos,
            artifacts=artifacts,
            trees=trees,
            runs=runs,
            agents=agents,
            teams=teams,
            coordinations=coordinations,
            forgetting=forgetting,
            credentials=credentials,
            find_acceleration=hypervisor.acceleration,
        )


@asynccontextmanager
async def _open_switch(settings: config.Networks, on_event: OnPortEvent) -> AsyncGenerator[Switch]:
    if settings.kind == "kernel":
        yield KernelNetworks(netns=settings.netns)
    else:
        async with open_switch(on_event) as switch:
            yield switch


def boot_of(image: AnyImage) -> Boot | Runner | Qcow2:
    """Tell what a machine of an image starts from. It reads files. Raises: ImageDamaged."""
    if isinstance(image, RunnerImage):
        return bootable(image)
    if isinstance(image, DiskImage):
        return _qcow2_of(image)
    manifest = image.manifest
    return Boot(
        digest=image.digest,
        kernel=image.path(manifest.kernel),
        initrd=image.path(manifest.initrd),
        cmdline=manifest.cmdline,
        disks=tuple(Disk(disk.serial, image.path(disk)) for disk in manifest.disks),
    )


def _qcow2_of(image: DiskImage) -> Qcow2:
    path = image.path(image.manifest.disk)
    login = image.manifest.ssh
    return Qcow2(
        digest=image.digest,
        system=Disk("", path, DiskFormat.QCOW2, read_only=False),
        ssh=login and Ssh(login.user, login.host_key),
        cloud_init=image.manifest.cloud_init,
    )


def capacity(settings: config.Machines) -> Capacity:
    """Decide what machines may take of this host."""
    total_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return Capacity(
        count=settings.count,
        memory_mib=settings.memory_mib or int(total_mib * _MEMORY_SHARE),
        vcpus=settings.vcpus or _VCPUS_FOR_EACH * (os.cpu_count() or 1),
    )


def quotas(settings: config.Artifacts) -> Quotas:
    """Tell in bytes how much may be kept of what runs leave behind."""
    return Quotas(
        file=settings.max_file_mib << 20,
        run=settings.max_run_mib << 20,
        total=settings.max_total_mib << 20,
    )


def _handed(env: Mapping[str, str]) -> Path | None:
    """Tell where systemd puts what LoadCredential= names."""
    given = env.get("CREDENTIALS_DIRECTORY")
    return Path(given) if given else None


def _user(name: str | None) -> tuple[int, int] | None:
    if name is None:
        return None
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise errors.ConfigInvalid(f"machines.user: there is no user {name}") from None
    return found.pw_uid, found.pw_gid
