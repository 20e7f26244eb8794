"""The networks of this host's machines: written down, made, and who is in them.

A machine gets its places, with MACs and addresses, when it is written down, and keeps them until it
is deleted; so they are the same after every start. What stands for them on the host is made before
the machine starts and goes when it has ended. Above are the machines; below, the store and one kind
of networks, in userspace or in the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import anyio

from microvm_orchestrator import errors, log
from microvm_orchestrator.machine.base import Link
from microvm_orchestrator.model.machine import MACHINE, SNAPSHOT, Machine, MachineSnapshot
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.network import NETWORK, Network, Place
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.network import base
from microvm_orchestrator.network.addresses import assign, prefixes
from microvm_orchestrator.store.base import Store, Tell
from microvm_orchestrator.store.every import every_record

# For whoever names no prefixes, the first that no network has.
_USUAL = [(f"10.80.{number}.0/24", f"fd80:0:0:{number:x}::/64") for number in range(256)]
_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A network that a machine is to be in: by name or id, with addresses that it has to have."""

    network: str
    addresses: tuple[str, ...] = ()


class Networks:
    """The networks of one daemon."""

    def __init__(self, store: Store, switch: base.Networks) -> None:
        self._store = store
        self._switch = switch
        # The ports of machines that run, or are about to.
        self._ports: dict[str, list[base.Port]] = {}
        # Held from looking who has which place until that is written down.
        self.giving = anyio.Lock()

    # What is known

    async def visible(self, by: Actor) -> list[Network]:
        """The networks that somebody may know of, oldest first."""
        records = await every_record(self._store, NETWORK, by)
        networks = [Network.model_validate(record.body) for record in records]
        return [each for each in networks if by.sees_of(each.owner)]

    async def get(self, reference: str, by: Actor) -> Network:
        """Find a network by its id or name. Raises: NotFound, also for what `by` cannot see."""
        visible = await self.visible(by)
        for network in visible:
            if network.network_id == reference:
                return network
        for network in visible:
            if network.name == reference:
                return network
        raise errors.NotFound(f"no network {reference}", hint="network_list shows the networks")

    async def members(self, network: Network) -> list[Machine]:
        """The machines that have a place in a network, running or not."""
        return [
            machine
            for machine in await self._machines()
            if any(place.network_id == network.network_id for place in machine.networks)
        ]

    async def usage(self, machine: Machine) -> tuple[int, int] | None:
        """Count the bytes that a running machine received and sent; None where nobody does."""
        ports = self._ports.get(machine.machine_id)
        if not ports:
            return None
        try:
            usages = [await self._switch.usage(port) for port in ports]
        except errors.NotFound:
            return None  # it could not be connected again after a restart, or has just ended
        return sum(each.rx_bytes for each in usages), sum(each.tx_bytes for each in usages)

    # Verbs

    async def create(self, name: str, wanted: Sequence[str], by: Actor) -> Network:
        """Make a network; without prefixes it gets some that no other has.

        Raises: AlreadyExists, InvalidInput, NoRoom, Unavailable when this host cannot.
        """
        async with self.giving:
            others = await self.visible(SYSTEM)
            if any(each.name == name for each in others):
                raise errors.AlreadyExists(f"network {name} already exists")
            network_id = new_id("n")
            segment = base.Network(network_id, tuple(wanted or _free(others)))
            network = Network(
                network_id=network_id,
                name=name,
                owner=by.name,
                prefixes=[str(prefix) for prefix in prefixes(segment)],
                created_at=moment(await self._store.now()),
            )
            # What is being written down is so, whoever leaves meanwhile.
            with anyio.CancelScope(shield=True):
                await self._make(network, by)
        return network

    async def _make(self, network: Network, by: Actor) -> None:
        await self._switch.make(_segment(network))
        try:
            tell = Tell("created", {"name": network.name, "prefixes": list(network.prefixes)})
            record = Record(NETWORK, network.network_id, network.model_dump(mode="json"))
            await self._store.save(record, by, expect=0, tell=tell)
        except BaseException:
            await self._switch.remove(network.network_id)
            raise

    async def remove(self, reference: str, by: Actor) -> Network:
        """Take a network away in which nobody has a place. Raises: NotFound, StateForbids."""
        async with self.giving:
            network = await self.get(reference, by)
            if users := await self._users(network, by):
                raise errors.StateForbids(
                    f"network {network.name} has places for {', '.join(users)}",
                    hint="delete what has a place in it first",
                )
            with anyio.CancelScope(shield=True):
                await self._store.erase(NETWORK, network.network_id, by)
                await self._switch.remove(network.network_id)
        return network

    async def places(
        self, machine_id: str, attachments: Iterable[Attachment], by: Actor
    ) -> list[Place]:
        """Find a machine its places; `giving` is held until they are written down.

        Raises: NotFound, InvalidInput, AlreadyExists when a wanted address is taken, NoRoom.
        """
        taken = [port for machine in await self._machines() for port in _ports(machine)]
        found: list[Place] = []
        for attachment in attachments:
            network = await self.get(attachment.network, by)
            if any(each.network_id == network.network_id for each in found):
                raise errors.InvalidInput(f"a machine has one place in network {network.name}")
            port = assign(_segment(network), machine_id, taken, attachment.addresses)
            found.append(
                Place(
                    network_id=network.network_id,
                    name=network.name,
                    mac=port.mac,
                    addresses=list(port.addresses),
                )
            )
        return found

    # While machines run

    async def prepare(self, machine: Machine) -> tuple[Link, ...]:
        """Make what a machine is started with; `release` takes it away again.

        Raises: NotFound, Conflict, Unavailable.
        """
        ports = self._ports[machine.machine_id] = _ports(machine)
        return tuple([await self._switch.prepare(port) for port in ports])

    async def connect(self, machine: Machine, links: Sequence[Path]) -> None:
        """Let a machine that runs speak with others. Raises: NotFound, Unavailable."""
        for port, link in zip(self._ports.get(machine.machine_id, ()), links, strict=True):
            await self._switch.connect(port, link)

    async def release(self, machine_id: str) -> None:
        """Take away what a machine had that has ended, or never started."""
        for port in self._ports.pop(machine_id, ()):
            try:
                await self._switch.release(port)
            except errors.OrchestratorError as error:
                # It is swept when the daemon starts again.
                _log.warning("port_not_released", machine=machine_id, why=error.message)

    # After a restart

    async def restore(self) -> None:
        """Make all that is written down again, or leave it as it is."""
        for network in await self.visible(SYSTEM):
            try:
                await self._switch.make(_segment(network))
            except errors.OrchestratorError as error:
                _log.error("network_not_made", network=network.name, why=error.message)

    async def sweep(self) -> None:
        """Take away what an earlier daemon left for machines that do not run any more."""
        known = [network.network_id for network in await self.visible(SYSTEM)]
        ports = [port for ports in self._ports.values() for port in ports]
        try:
            for what in await self._switch.sweep(known, ports):
                _log.info("network_swept", what=what)
        except errors.OrchestratorError as error:
            _log.warning("networks_not_swept", why=error.message)

    # The records

    async def _machines(self) -> list[Machine]:
        records = await every_record(self._store, MACHINE, SYSTEM)
        return [Machine.model_validate(record.body) for record in records]

    async def _users(self, network: Network, by: Actor) -> list[str]:
        """Name what has a place in a network, or begins with one; others' are only counted."""
        # In this order: a machine may be saved and deleted meanwhile.
        machines = await self.members(network)
        records = await every_record(self._store, SNAPSHOT, SYSTEM)
        snapshots = [MachineSnapshot.model_validate(record.body) for record in records]
        users = [
            (f"machine {machine.name or machine.machine_id}", machine.owner) for machine in machines
        ] + [
            (f"snapshot {snapshot.snapshot_id}", snapshot.owner)
            for snapshot in snapshots
            if network.network_id in snapshot.networks
        ]
        told = [name for name, owner in users if by.sees_of(owner)]
        hidden = len(users) - len(told)
        return told + ([f"{hidden} of somebody else"] if hidden else [])


def _free(others: Iterable[Network]) -> list[str]:
    used = [ip_network(text) for network in others for text in network.prefixes]
    for pair in _USUAL:
        if not any(ip_network(text).overlaps(each) for text in pair for each in used):
            return list(pair)
    raise errors.NoRoom("all usual prefixes are taken", hint="name prefixes for the network")


def _segment(network: Network) -> base.Network:
    return base.Network(network.network_id, tuple(network.prefixes))


def _ports(machine: Machine) -> list[base.Port]:
    return [
        base.Port(place.network_id, machine.machine_id, place.mac, tuple(place.addresses))
        for place in machine.networks
    ]
