"""Which addresses the connections of a guest may end at, and how a name becomes one.

Names are looked up on the host, every address a name has is judged, and connections are made to an
address that was judged: a name that means something else a moment later leads nowhere new. Above
stand the policy and the webhooks; below, nothing but the system's resolver.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import anyio
import anyio.to_thread

from microvm_orchestrator import errors

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# Gives the addresses of a name, one or more. Raises: OSError when there is none.
Resolver = Callable[[str, int], Awaitable[Sequence[Address]]]

# Of IPv6 only this is the public network; what lies outside is loopback, mapped IPv4, local,
# multicast or not assigned.
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_SPECIAL_V6 = (
    ipaddress.IPv6Network("2001::/23"),  # protocol assignments, Teredo among them
    ipaddress.IPv6Network("2001:db8::/32"),  # documentation
    ipaddress.IPv6Network("2002::/16"),  # 6to4 carries any IPv4 address
    ipaddress.IPv6Network("3fff::/20"),  # documentation
)
# A network without IPv4 reaches it through these; the last 32 bits are the address meant.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_SPECIAL_V4 = (
    ipaddress.IPv4Network("192.0.0.0/24"),
    ipaddress.IPv4Network("192.88.99.0/24"),
    ipaddress.IPv4Network("224.0.0.0/3"),  # multicast and what is reserved
)


async def look_up(
    host: str, port: int, limiter: anyio.CapacityLimiter | None = None
) -> list[Address]:
    """Ask the system's resolver, in a thread that is not waited for. Raises: OSError."""
    ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        found = await anyio.to_thread.run_sync(ask, abandon_on_cancel=True, limiter=limiter)
    except UnicodeError as error:
        raise OSError(f"{host} is no host name") from error
    return list(dict.fromkeys(ipaddress.ip_address(str(entry[4][0])) for entry in found))


def is_public(address: Address) -> bool:
    """Whether this is an address of the public network, and of nothing inside ours."""
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not any(address in network for network in _SPECIAL_V4)
    if address.scope_id is not None:
        return False
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return address in _GLOBAL_V6 and not any(address in network for network in _SPECIAL_V6)


def parse_network(text: str) -> Network:
    """Read `10.1.0.0/16` or a single address. Raises: InvalidInput."""
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise errors.InvalidInput(
            f"{text} is no network", hint="write it as in 10.1.0.0/16 or fd00::/8"
        ) from error
