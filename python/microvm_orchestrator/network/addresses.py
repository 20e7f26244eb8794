"""Which MAC and which addresses a machine has in a network. Nobody is asked, and nothing is kept.

The same machine is offered the same everywhere and always, so a port can be worked out again, and a
neighbour rarely remembers an address under somebody else's MAC. Above stands who keeps the ports.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)

from microvm_orchestrator import errors
from microvm_orchestrator.network.base import Network, Port

_Address = IPv4Address | IPv6Address

# The first address of a prefix is nobody's: a gateway may want it one day.
_FIRST = 2
# Of an IPv6 prefix the first are enough; its size is more than Python counts a range by.
_MOST_OFFERED = 1 << 32


def mac_of(machine_id: str, network_id: str, attempt: int = 0) -> str:
    """Return a unicast MAC of those that are administered locally."""
    octets = bytearray(_digest("mac", machine_id, network_id, str(attempt))[:6])
    octets[0] = octets[0] & 0xFC | 0x02
    return octets.hex(":")


def assign(
    network: Network, machine_id: str, taken: Collection[Port] = (), wanted: Iterable[str] = ()
) -> Port:
    """Find a machine its place beside those that are taken.

    `wanted` are addresses without prefix that it has to have. A machine that has a place already
    gets the same. Raises: InvalidInput, AlreadyExists when a wanted address is taken, NoRoom.
    """
    others = [port for port in taken if port.network_id == network.network_id]
    for port in others:
        if port.machine_id == machine_id:
            return port
    macs = {port.mac for port in others}
    attempts = (mac_of(machine_id, network.network_id, number) for number in range(len(macs) + 1))
    mac = next(mac for mac in attempts if mac not in macs)
    used = {ip_interface(text).ip for port in others for text in port.addresses}
    given: list[str] = []
    chosen = _wanted(network, wanted)
    for prefix in prefixes(network):
        address = chosen.get(prefix.version)
        if address is None:
            offered = _offered(prefix, machine_id)
            address = next((each for each in offered if each not in used), None)
        elif address in used:
            raise errors.AlreadyExists(f"{address} in network {network.network_id} is taken")
        if address is None:
            raise errors.NoRoom(
                f"all addresses of {prefix} in network {network.network_id} are taken"
            )
        given.append(f"{address}/{prefix.prefixlen}")
    return Port(network.network_id, machine_id, mac, tuple(given))


def prefixes(network: Network) -> list[IPv4Network | IPv6Network]:
    """Read the prefixes of a network. Raises: InvalidInput."""
    found: list[IPv4Network | IPv6Network] = []
    for text in network.prefixes:
        try:
            prefix = ip_network(text)
        except ValueError as error:
            raise errors.InvalidInput(f"{text!r} is no prefix: {error}") from None
        if prefix.is_multicast or prefix.is_loopback or prefix.is_link_local:
            raise errors.InvalidInput(f"no machine can have an address of {prefix}")
        if _last(prefix) < _FIRST:
            raise errors.InvalidInput(f"{prefix} has no room for machines")
        found.append(prefix)
    if len({prefix.version for prefix in found}) < len(found):
        raise errors.InvalidInput(
            f"network {network.network_id} has two prefixes of one family: "
            + ", ".join(network.prefixes)
        )
    return found


def _wanted(network: Network, wanted: Iterable[str]) -> dict[int, _Address]:
    chosen: dict[int, _Address] = {}
    for text in wanted:
        try:
            address = ip_address(text)
        except ValueError:
            raise errors.InvalidInput(f"{text!r} is no address") from None
        prefix = next((each for each in prefixes(network) if address in each), None)
        if prefix is None or not _FIRST <= int(address) - int(prefix[0]) <= _last(prefix):
            raise errors.InvalidInput(
                f"{address} is no address for a machine in network {network.network_id}"
            )
        if chosen.setdefault(address.version, address) != address:
            raise errors.InvalidInput(f"a machine has one address of a family, not also {address}")
    return chosen


def _offered(prefix: IPv4Network | IPv6Network, machine_id: str) -> Iterator[_Address]:
    """Go once through the addresses for machines, from one that the name decides on."""
    size = min(_last(prefix) - _FIRST + 1, _MOST_OFFERED)
    begin = int.from_bytes(_digest("address", machine_id)[:8]) % size
    for step in range(size):
        yield prefix[_FIRST + (begin + step) % size]


def _last(prefix: IPv4Network | IPv6Network) -> int:
    """Return the offset of the last address for a machine: behind it, IPv4 has the broadcast."""
    return prefix.num_addresses - (2 if prefix.version == 4 else 1)


def _digest(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode()).digest()
