"""A cluster with two nodes of libvirt's and one of ours, raised, broken, mended, saved and ended.

A program of its own, for it is run as somebody without rights, with a libvirtd of that user's own
and networks in userspace; and as root in a network namespace of its own, with a libvirtd of root's
and networks of the kernel. It says each thing that was seen on its stdout.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
from pydantic import TypeAdapter

from clustering import ALICE, House, daemon, unreported
from machines import LONG_S, new_machine_id, qcow2_of, running_libvirt_rig, sh
from microvm_orchestrator import errors, log
from microvm_orchestrator.faults.grudges import groups_apart
from microvm_orchestrator.faults.ledger import Ledger
from microvm_orchestrator.faults.plans import Plan, impairing, link_down, partition
from microvm_orchestrator.machine.base import Accel, Boot, MachineSpec
from microvm_orchestrator.machine.hypervisor import open_hypervisor
from microvm_orchestrator.machine.libvirt.machine import LibvirtMachine
from microvm_orchestrator.model.machine import Machine
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.network.impairment import Behaviour, Impairment
from microvm_orchestrator.network.kernel import KernelNetworks
from microvm_orchestrator.runner import Ssh
from microvm_orchestrator.together import together
from sufferers import PlainSufferers

BOOTS = TypeAdapter(Boot)
TOPOLOGY = """
cluster_name: trio
network: {name: lan, subnet: 10.9.0.0/24, subnet6: "fd09::/64"}
nodes:
  - {name: one, backend: libvirt, image: disk, memory_mb: 192, ip: 10.9.0.11, ip6: "fd09::11"}
  - {name: two, backend: libvirt, image: disk, memory_mb: 192, ip: 10.9.0.12, ip6: "fd09::12"}
  - {name: ours, image: plain, memory_mb: 192, ip: 10.9.0.13, ip6: "fd09::13"}
"""
NODES = {"one": 11, "two": 12, "ours": 13}
# Two of libvirt's, and one with one of ours.
PAIRS = (("one", "two"), ("one", "ours"))
SEEN = [
    "raised",
    "partitioned",
    "healed",
    "link down",
    "link up",
    "impaired",
    "saved and put back",
    "destroyed",
]
DELAY_S = 0.2
PING = """
heard() {{ busybox ping -c 1 -W {patience_s} "$1" >/dev/null && echo yes || echo no; }}
heard 10.9.0.{number} &
heard fd09::{number}
wait
"""


async def main() -> None:
    if "refused" in sys.argv:
        await refused(sys.argv[-1])
        return
    if "beside" in sys.argv:
        await beside(sys.argv[-1])
        return
    kernel = KernelNetworks() if "kernel" in sys.argv else None
    image = BOOTS.validate_json(sys.stdin.read())
    with running_libvirt_rig(image, session=os.geteuid() != 0) as rig:
        rig.state_dir.mkdir(exist_ok=True)
        with anyio.fail_after(2 * LONG_S):
            async with daemon(rig, kernel=kernel) as house:
                await run(house)


async def run(house: House) -> None:
    await house.raised(TOPOLOGY)
    for node in ("one", "two"):
        assert isinstance(house.machines.live(await machine(house, node)), LibvirtMachine)
    usual = [await reaches(house, *pair) for pair in PAIRS]
    assert all(usual), usual
    tell("raised")
    lan = (await house.records.get("trio", SYSTEM)).networks[0].network_id or ""
    ids = [(await machine(house, node)).machine_id for node in NODES]
    ledger = Ledger(house.store, house.switch, PlainSufferers([]))
    await cut(house, ledger, partition(lan, groups_apart([ids[:1], ids[1:]])))
    tell("partitioned")
    assert all([await reaches(house, *pair) for pair in PAIRS])
    tell("healed")
    await cut(house, ledger, link_down(lan, ids[0], ids))
    tell("link down")
    assert all([await reaches(house, *pair) for pair in PAIRS])
    tell("link up")
    await impaired(house, ledger, lan, ids)
    tell("impaired")
    await house.whole.create("trio", "s", ALICE, unreported)
    for node in NODES:
        await said(house, node, "echo late >/tmp/late")
    back = await house.whole.revert("trio", "s", ALICE, unreported)
    assert [node.reachable for node in back.nodes] == [True] * 3
    for node in NODES:
        await said(house, node, "test ! -e /tmp/late")
    assert all([await reaches(house, *pair) for pair in PAIRS])
    tell("saved and put back")
    await house.clusters.destroy("trio", ALICE, delete_disks=True)
    assert (house.qemu.found(), await house.networks.visible(SYSTEM)) == ([], [])
    tell("destroyed")


async def refused(uri: str) -> None:
    """Ask a libvirt of the whole host for a machine whose agent would be its user's to reach."""
    image = BOOTS.validate_json(sys.stdin.read())
    with tempfile.TemporaryDirectory() as name:
        async with open_hypervisor(Path(name), libvirt=uri) as hypervisor:
            try:
                await hypervisor.start(MachineSpec(new_machine_id(), qcow2_of(image)))
            except errors.NotOffered as error:
                print(error.message, error.hint)


async def beside(uri: str) -> None:
    """Have a machine of a libvirt of the whole host, whose process is its user's alone to end.

    What is read from stdin, behind the image, lets it go on: libvirt has gone, and so has QEMU.
    """
    image = BOOTS.validate_json(sys.stdin.readline())
    system = replace(qcow2_of(image), ssh=Ssh("root"), cloud_init=True)
    with tempfile.TemporaryDirectory() as name:
        async with open_hypervisor(Path(name), libvirt=uri) as hypervisor:
            spec = MachineSpec(new_machine_id(), system, accel=Accel.TCG, boot_timeout_s=LONG_S)
            machine = await hypervisor.start(spec)
            assert await sh(machine, "echo here") == "here\n"
            print(machine.pid, flush=True)
            sys.stdin.readline()
            try:
                await machine.kill()
            except errors.Unavailable as error:
                print(machine.state, error.message, flush=True)
            sys.stdin.readline()
            await machine.wait()
            print(machine.state, machine.reason, flush=True)
            sys.stdin.readline()
            await hypervisor.remove(machine.machine_id)
            print(hypervisor.found(), flush=True)


async def cut(house: House, ledger: Ledger, plan: Plan) -> None:
    """See that a fault keeps the first from the others by IPv4 and IPv6, and us from nobody."""
    fault = await ledger.inject(plan, ALICE)
    ways = [*PAIRS, *((target, source) for source, target in PAIRS)]
    heard = await together([partial(reaches, house, *way, patience_s=1) for way in ways])
    assert not any(heard), heard
    assert await reaches(house, "two", "ours")
    for node in NODES:
        assert await said(house, node, "echo here") == "here\n"
    await ledger.heal(fault.fault_id, ALICE)


async def impaired(house: House, ledger: Ledger, lan: str, ids: list[str]) -> None:
    """See what one sends be late, or lost as often as was asked for where networks cannot."""
    slow = Behaviour.DELAY in (await ledger.abilities()).can
    what = Impairment(delay_s=DELAY_S) if slow else Impairment(loss=0.5, seed="0")
    fault = await ledger.inject(impairing(lan, ids[0], ids[1:], what), ALICE)
    for _, other in PAIRS:
        script = f"busybox ping -c 40 -i 0.05 -W 2 10.9.0.{NODES[other]} || true"
        told = await said(house, "one", script)
        times = [
            float(line.partition("time=")[2].split()[0])
            for line in told.splitlines()
            if "time=" in line
        ]
        if slow:
            assert min(times) >= DELAY_S * 1000, told
        else:
            assert 8 <= len(times) <= 32, told
    await ledger.heal(fault.fault_id, ALICE)


async def reaches(house: House, source: str, target: str, *, patience_s: int = 9) -> bool:
    """Tell whether one node hears another, by IPv4 and IPv6 alike."""
    number = NODES[target]
    heard = await said(house, source, PING.format(number=number, patience_s=patience_s))
    assert heard in {"yes\nyes\n", "no\nno\n"}, (source, target, heard)
    return heard == "yes\nyes\n"


async def machine(house: House, node: str) -> Machine:
    return await house.machines.get(f"trio.{node}", SYSTEM)


async def said(house: House, node: str, script: str) -> str:
    return await sh(house.machines.live(await machine(house, node)), script)


def tell(what: str) -> None:
    print(what, f"{time.monotonic() - BEGAN:.1f}", flush=True)


if __name__ == "__main__":
    BEGAN = time.monotonic()
    log.configure("error", "console", sys.stderr)
    anyio.run(main)
