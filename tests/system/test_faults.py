"""Faults between real guests: they meet what was asked for, and nothing once it is healed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import anyio

from faulting import ALICE
from machines import LONG_S, built_image, like, qemu_rig, removed_in_the_end, sh
from microvm_orchestrator.faults.grudges import groups_apart
from microvm_orchestrator.faults.ledger import Ledger
from microvm_orchestrator.faults.plans import impairing, nameless, partition
from microvm_orchestrator.machine.base import Link
from microvm_orchestrator.machine.qemu.hypervisor import open_qemu
from microvm_orchestrator.machine.qemu.machine import QemuMachine
from microvm_orchestrator.network.addresses import assign
from microvm_orchestrator.network.base import Network, Port
from microvm_orchestrator.network.impairment import Impairment
from microvm_orchestrator.network.switch import open_switch
from microvm_orchestrator.store.sqlite import SqliteStore
from sufferers import PlainSufferers

LAN = Network("lan", ("10.9.0.0/24", "fd09::/64"))
PING = "busybox ping{six} -c {count} -s {size} -i 0.05 -W 1 {address} || true"

# Says of every name that it is 10.9.0.77, once it listens.
NAMES = """cat > /tmp/names.py <<'END'
import socket
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
    server.bind(("::", 53))
    print("listens", flush=True)
    while True:
        asked, who = server.recvfrom(512)
        end = asked.index(bytes(1), 12) + 5
        head = asked[:2] + bytes.fromhex("81800001000100000000")
        told = bytes.fromhex("c00c000100010000003c00040a09004d")
        server.sendto(head + asked[12:end] + told, who)
END
mkfifo /tmp/listens
setsid python3 /tmp/names.py </dev/null >/tmp/listens 2>&1 &
head -n 1 /tmp/listens"""
ASK = "busybox nslookup -type=a -timeout={patience_s} -retry=1 {name} {server} 2>&1 || true"


async def asks(machine: QemuMachine, name: str, server: Port, version: int, patience_s: int) -> str:
    """Ask another machine for a name, and return all that is said of it."""
    address = (server.ipv4 if version == 4 else server.ipv6) or ""
    asked = ASK.format(name=name, server=address.partition("/")[0], patience_s=patience_s)
    return await sh(machine, asked)


async def pings(
    machine: QemuMachine, port: Port, count: int, version: int = 4, size: int = 56
) -> list[float]:
    """Tell how long each answer took, in milliseconds."""
    address = (port.ipv4 if version == 4 else port.ipv6) or ""
    six = " -6" if version == 6 else ""
    said = await sh(
        machine, PING.format(six=six, count=count, size=size, address=address.partition("/")[0])
    )
    return [float(took) for took in re.findall(r"time=([0-9.]+) ms", said)]


async def test_guests_meet_what_a_fault_says_and_their_way_in_does_not(tmp_path: Path) -> None:
    rig = qemu_rig(tmp_path, await built_image())
    store = SqliteStore(tmp_path / "store.db")
    with anyio.fail_after(LONG_S):
        async with (
            store.opened(),
            open_switch() as networks,
            open_qemu(rig.state_dir) as qemu,
            removed_in_the_end(qemu),
        ):
            ledger = Ledger(store, networks, PlainSufferers([]))
            await networks.make(LAN)
            first = await qemu.start(rig.spec(links=(Link("02:00:00:00:00:01"),)))
            saved = await first.save(f"{first.machine_id}-s")
            await first.kill()
            ports: list[Port] = []
            guests: list[QemuMachine] = []
            for _ in range(2):
                spec = like(saved)
                ports.append(assign(LAN, spec.machine_id, ports))
                link = await networks.prepare(ports[-1])
                guests.append(await qemu.clone(saved, replace(spec, links=(link,))))
                await networks.connect(ports[-1], guests[-1].links[0])
            (one, two), (mine, yours) = guests, ports
            # Each asks for the other's address once.
            assert await pings(one, yours, 5)
            # The quickest of all: what a busy host adds is none of the fault's doing.
            usual = min(await pings(one, yours, 20))

            ids = [port.machine_id for port in ports]
            slow = impairing("lan", ids[0], ids[1:], Impairment(delay_s=0.1))
            fault = await ledger.inject(slow, ALICE)
            for version in (4, 6):
                took = await pings(one, yours, 20, version)
                assert 95 < min(took) - usual < 110, took
            # Both ways of a ping: the one that is slow is on either.
            assert 95 < min(await pings(two, mine, 10)) - usual < 110
            await ledger.heal(fault.fault_id, ALICE)

            fault = await ledger.inject(partition("lan", groups_apart([ids[:1], ids[1:]])), ALICE)
            assert await pings(one, yours, 3) == []
            assert await pings(two, mine, 3, version=6) == []
            # What we say to a guest goes by no network of it.
            assert await sh(two, "echo still here") == "still here\n"
            await ledger.heal(fault.fault_id, ALICE)
            assert min(await pings(one, yours, 10)) < usual + 10

            assert await sh(two, NAMES) == "listens\n"
            assert "10.9.0.77" in await asks(one, "before.test", yours, 4, 20)
            fault = await ledger.inject(nameless("lan", ids[0], ids[1:]), ALICE)
            for version in (4, 6):
                assert "10.9.0.77" not in await asks(one, "meanwhile.test", yours, version, 1)
            assert await pings(one, yours, 5)
            await ledger.heal(fault.fault_id, ALICE)
            assert "10.9.0.77" in await asks(one, "after.test", yours, 6, 20)

            fault = await ledger.inject(
                impairing("lan", ids[0], ids[1:], Impairment(mtu=600)), ALICE
            )
            # Eight and twenty bytes of headers are in each of them.
            assert await pings(one, yours, 3, size=572)
            assert await pings(one, yours, 3, size=573) == []
            await ledger.heal(fault.fault_id, ALICE)
            assert await pings(one, yours, 3, size=573)
            assert await networks.impaired("lan") == {}
            await qemu.forget(saved.snapshot_id)
