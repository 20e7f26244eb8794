"""Real guests that talk to each other over each kind of networks."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from machines import LONG_S, Rig, built_image, like, qemu_rig, removed_in_the_end, sh
from microvm_orchestrator.machine.base import Boot, Link, Snapshot
from microvm_orchestrator.machine.qemu.hypervisor import Qemu, open_qemu
from microvm_orchestrator.machine.qemu.machine import QemuMachine
from microvm_orchestrator.network.addresses import assign
from microvm_orchestrator.network.base import Network, Networks, Port
from microvm_orchestrator.network.switch import open_switch
from networking import STAGES, Stage

# Says what it has received, to each who connects.
SERVE = """
import hashlib, os, socket
server = socket.create_server(("::", 7), family=socket.AF_INET6, dualstack_ipv6=True)
if os.fork():
    os._exit(0)
os.setsid()
for fd in range(3):
    os.dup2(os.open("/dev/null", os.O_RDWR), fd)
while True:
    peer, _ = server.accept()
    if not os.fork():
        digest = hashlib.sha256()
        while data := peer.recv(65536):
            digest.update(data)
        peer.sendall(digest.hexdigest().encode())
        os._exit(0)
    peer.close()
"""
ASK = """
import hashlib, os, socket
data = os.urandom(1 << 20)
with socket.create_connection(("{address}", 7), timeout=60) as peer:
    peer.sendall(data)
    peer.shutdown(socket.SHUT_WR)
    assert peer.recv(64, socket.MSG_WAITALL).decode() == hashlib.sha256(data).hexdigest()
print("the same")
"""
# Leaves somebody behind who writes on, and on.
FLOOD = """
import os, socket
peer = socket.create_connection(("{address}", 7), timeout=60)
peer.sendall(bytes(1 << 20))
if os.fork():
    os._exit(0)
os.setsid()
for fd in range(3):
    os.dup2(os.open("/dev/null", os.O_RDWR), fd)
while True:
    peer.sendall(bytes(1 << 20))
"""
# QEMU needs no right for any kind of networks.
NOBODY = (65534, 65534) if os.geteuid() == 0 else None
HERE, THERE = (Network(name, ("10.9.0.0/24", "fd09::/64")) for name in ("here", "there"))


@pytest.fixture(scope="module")
async def boot() -> Boot:
    return await built_image()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, boot: Boot) -> Rig:
    return qemu_rig(tmp_path_factory.mktemp("machines"), boot)


@pytest.fixture(scope="module")
async def saved(rig: Rig) -> Snapshot:
    """A machine with a link, in no network."""
    async with open_qemu(rig.state_dir, user=NOBODY) as qemu, removed_in_the_end(qemu):
        machine = await qemu.start(rig.spec(links=(Link("02:00:00:00:00:01"),)))
        return await machine.save(f"{machine.machine_id}-s")


@pytest.fixture
async def qemu(rig: Rig) -> AsyncGenerator[Qemu]:
    with anyio.fail_after(LONG_S):
        async with open_qemu(rig.state_dir, user=NOBODY) as qemu, removed_in_the_end(qemu):
            yield qemu


@pytest.fixture(params=STAGES)
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Stage]:
    open_stage: Callable[[Path], AbstractAsyncContextManager[Stage]] = STAGES[request.param]
    async with open_stage(tmp_path) as stage:
        yield stage


async def cloned(
    qemu: Qemu, networks: Networks, saved: Snapshot, network: Network, taken: list[Port]
) -> tuple[Port, QemuMachine]:
    """Start a machine in a network, as a daemon does."""
    spec = like(saved)
    port = assign(network, spec.machine_id, taken)
    link = await networks.prepare(port)
    machine = await qemu.clone(saved, replace(spec, links=(link,)))
    await networks.connect(port, machine.links[0])
    taken.append(port)
    return port, machine


def python(source: str) -> str:
    return f"python3 - <<'END'\n{source}\nEND"


def address_of(port: Port, version: int = 4) -> str:
    return ((port.ipv4 if version == 4 else port.ipv6) or "").partition("/")[0]


async def asks(machine: QemuMachine, port: Port, version: int = 4) -> None:
    address = address_of(port, version)
    assert await sh(machine, python(ASK.format(address=address))) == "the same\n"


async def test_guests_reach_those_of_their_network_and_no_others(
    stage: Stage, qemu: Qemu, saved: Snapshot
) -> None:
    async with stage.open() as networks:
        for network in (HERE, THERE):
            await networks.make(network)
        ports: list[Port] = []
        mine, one = await cloned(qemu, networks, saved, HERE, ports)
        yours, two = await cloned(qemu, networks, saved, HERE, ports)
        beyond, three = await cloned(qemu, networks, saved, THERE, ports)
        for port, machine in ((mine, one), (yours, two), (beyond, three)):
            await sh(machine, python(SERVE))
            assert (await sh(machine, "cat /sys/class/net/eth0/address")).strip() == port.mac
        await sh(one, f"busybox ping -c 3 {address_of(yours)}")
        await asks(one, yours)
        await sh(one, f"busybox ping -6 -c 3 {address_of(yours, 6)}")
        await asks(two, mine)
        await asks(two, mine, version=6)
        refused = f"busybox ping -c 1 -W 2 {address_of(yours)} && exit 1; echo unreachable"
        assert (await sh(three, refused)).endswith("unreachable\n")
        # Somebody else's address is of no use to who takes it.
        stolen = f"ip address add {mine.ipv4} dev eth0; ip address del {yours.ipv4} dev eth0"
        assert (await sh(two, f"{stolen}; {refused}")).endswith("unreachable\n")
        usage = await networks.usage(yours)
        assert usage.refused > 0
        assert usage.rx_bytes > 1 << 20
        for network in (HERE, THERE):
            await networks.remove(network.network_id)


async def test_a_switch_that_is_started_anew_finds_the_machines_again(
    qemu: Qemu, saved: Snapshot
) -> None:
    ports: list[Port] = []
    async with open_switch() as networks:
        await networks.make(HERE)
        _, one = await cloned(qemu, networks, saved, HERE, ports)
        _, two = await cloned(qemu, networks, saved, HERE, ports)
        await sh(two, python(SERVE))
        await asks(one, ports[1])
        # The switch ends while a frame is on its way.
        await sh(one, python(FLOOD.format(address=address_of(ports[1]))))
    async with open_switch() as networks:
        await networks.make(HERE)
        for port, machine in zip(ports, (one, two), strict=True):
            await networks.prepare(port)
            await networks.connect(port, machine.links[0])
        await asks(one, ports[1])
        assert (await networks.usage(ports[1])).rx_bytes > 1 << 20


async def test_a_machine_saved_on_one_kind_of_network_runs_on_the_other(
    stage: Stage, qemu: Qemu, saved: Snapshot
) -> None:
    async with stage.open() as networks:
        await networks.make(HERE)
        _, machine = await cloned(qemu, networks, saved, HERE, [])
        again = await machine.save(f"{machine.machine_id}-s")
        await qemu.remove(machine.machine_id)
        await networks.remove(HERE.network_id)
    async with open_switch() as networks:
        await networks.make(HERE)
        ports: list[Port] = []
        _, one = await cloned(qemu, networks, again, HERE, ports)
        _, two = await cloned(qemu, networks, saved, HERE, ports)
        await sh(two, python(SERVE))
        await asks(one, ports[1])
    await qemu.forget(again.snapshot_id)
