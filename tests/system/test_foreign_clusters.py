"""Three nodes that a real libvirtd runs, with nothing of ours in them, as a cluster.

Their disk is built here. They are told who they are by cloud-init's disk and reached by their own
SSH servers. Above the clusters nothing knows how a node is reached, so the tools over MCP are tried
out on nodes with our agent, in `test_vmcluster_tools.py`.
"""

from __future__ import annotations

from collections.abc import Generator

import anyio
import pytest

import libvirtd
from clustering import ALICE, House, daemon, unreported
from machines import LONG_S, Rig, kill_process, running_libvirt_rig, sh
from microvm_orchestrator import errors
from microvm_orchestrator.clusters.kernel_logs import KernelLogs
from microvm_orchestrator.clusters.life import StopMode
from microvm_orchestrator.faults.grudges import groups_apart
from microvm_orchestrator.faults.ledger import Ledger
from microvm_orchestrator.faults.plans import impairing, partition
from microvm_orchestrator.machine.libvirt.machine import LibvirtMachine
from microvm_orchestrator.machine.ssh import our_key_path
from microvm_orchestrator.model.kernel_log import Source
from microvm_orchestrator.model.machine import Machine
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.network.impairment import Impairment
from microvm_orchestrator.runner import Ssh
from sufferers import PlainSufferers
from system.test_libvirt_ssh import foreign_in

NODES = ("n1", "n2", "n3")
TOPOLOGY = """
cluster_name: trio
backend: libvirt
image: disk
network: {name: lan, subnet: 10.9.0.0/24, subnet6: "fd09::/64"}
nodes:
  - {name: n1, memory_mb: 192, ip: 10.9.0.11, ip6: "fd09::11"}
  - {name: n2, memory_mb: 192, ip: 10.9.0.12, ip6: "fd09::12"}
  - {name: n3, memory_mb: 192, ip: 10.9.0.13, ip6: "fd09::13"}
"""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Generator[Rig]:
    if why := libvirtd.why_not():
        pytest.skip(why)
    with running_libvirt_rig(foreign_in(tmp_path_factory.mktemp("foreign"))) as rig:
        rig.state_dir.mkdir(exist_ok=True)
        yield rig


class Trio:
    """The cluster, asked for by the names of its nodes."""

    def __init__(self, house: House) -> None:
        self._house = house

    async def machine(self, node: str) -> Machine:
        return await self._house.machines.get(f"trio.{node}", SYSTEM)

    async def live(self, node: str) -> LibvirtMachine:
        running = self._house.machines.live(await self.machine(node))
        assert isinstance(running, LibvirtMachine)
        return running

    async def said(self, node: str, script: str) -> str:
        return await sh(await self.live(node), script)

    async def hears(self, node: str, other: str) -> bool:
        ping = f"for _ in 1 2 3; do ping -c 1 -W 3 {other} && break; done >&2 && echo heard || :"
        return await self.said(node, ping) == "heard\n"


@pytest.mark.long
async def test_three_nodes_are_raised_until_ssh_answers_on_each_and_know_each_other(
    rig: Rig, *, whole: bool
) -> None:
    with anyio.fail_after(4 * LONG_S):
        async with daemon(rig, login=Ssh("root", None)) as house:
            await house.raised(TOPOLOGY)
            trio = Trio(house)
            status = await house.life.status(await house.records.get("trio", SYSTEM))
            assert [(node.backend, node.reachable) for node in status.nodes] == [
                ("libvirt", True)
            ] * 3
            for node in NODES:
                assert await trio.said(node, "hostname") == f"{node}\n"
            assert our_key_path(rig.state_dir).exists()
            assert len({(await trio.live(node)).ssh_port for node in NODES}) == 3
            assert [await trio.hears("n1", other) for other in NODES] == [True] * 3
            if whole:
                await _broken_and_healed(house, trio)
                await _dead(house, trio)
                await _saved(house, trio)
            stopped = await house.life.stop(
                "trio", ALICE, unreported, mode=StopMode.DESTROY, deadline_s=LONG_S
            )
            assert {str(node.state) for node in stopped.nodes} == {"stopped"}
            await house.clusters.destroy("trio", ALICE, delete_disks=True)
            assert (house.qemu.found(), await house.networks.visible(SYSTEM)) == ([], [])


async def _broken_and_healed(house: House, trio: Trio) -> None:
    """What is broken between guests is met by them, and their way in is not."""
    faults = Ledger(house.store, house.switch, PlainSufferers([]))
    [network] = await house.networks.visible(SYSTEM)
    one, two, three = [(await trio.machine(node)).machine_id for node in NODES]
    apart = partition(network.network_id, groups_apart([[one, two], [three]]))
    fault = await faults.inject(apart, ALICE)
    assert [await trio.hears("n1", other) for other in NODES] == [True, True, False]
    for _ in range(2):
        await faults.heal(fault.fault_id, ALICE)
    assert await trio.hears("n3", "n1")
    slow = impairing(network.network_id, one, [two], Impairment(delay_s=0.3))
    await faults.inject(slow, ALICE)
    ping = "ping -c 2 -W 9 n2 | sed -n 's/.*time=\\([0-9]*\\).*/\\1/p' | tail -n 1"
    assert int(await trio.said("n1", ping)) >= 300
    assert await faults.heal_all(ALICE) == 1


async def _dead(house: House, trio: Trio) -> None:
    """A node whose QEMU was killed is an error, and its kernel is not clean; it comes back."""
    logs = KernelLogs(house.store, house.machines)
    marks = {node: await logs.mark(await trio.machine(node), SYSTEM) for node in NODES}
    await trio.said("n3", "echo '<3>odd' >/dev/kmsg")
    heard = await logs.collect(await trio.machine("n3"), marks["n3"].mark)
    assert ([line.text for line in heard.lines], heard.source) == (["odd"], Source.RING)
    kill_process(await trio.live("n3"))
    async with house.store.hints() as changes:
        while (await house.states("trio"))["n3"] == "running":
            await anext(changes)
    assert await house.states("trio") == {"n1": "running", "n2": "running", "n3": "crashed"}
    cluster = await house.records.get("trio", SYSTEM)
    with pytest.raises(errors.MachineUnreachable, match="node n3"):
        await house.life.alive(cluster, "n3")
    with pytest.raises(errors.StateForbids):
        await logs.collect(await trio.machine("n3"))
    with pytest.raises(errors.MachineUnreachable):
        await house.whole.create("trio", "s", ALICE, unreported)
    await house.life.start("trio", ALICE, unreported)
    assert await trio.hears("n3", "n1")
    again = await house.life.crash("trio", "n3", ALICE, unreported, restart=True)
    assert again.reachable


async def _saved(house: House, trio: Trio) -> None:
    """What was written after a snapshot is gone in all nodes; the newest is deleted at will."""
    for node in NODES:
        await trio.said(node, f"echo {node} >/run/state")
    saved = await house.whole.create("trio", "s", ALICE, unreported)
    assert set(saved.nodes) == set(NODES)
    for node in NODES:
        await trio.said(node, "rm /run/state")
    back = await house.whole.revert("trio", "s", ALICE, unreported)
    assert [node.reachable for node in back.nodes] == [True] * 3
    for node in NODES:
        assert await trio.said(node, "cat /run/state") == f"{node}\n"
    await house.whole.delete("trio", "s", ALICE)
    assert await trio.said("n2", "cat /run/state") == "n2\n"
