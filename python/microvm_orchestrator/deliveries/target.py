"""Where a webhook may point: http or https, and nothing inside the host's own networks.

A name is looked up here, every address it has is judged, and the connection is made to an address
that was judged: a name that means something else a moment later leads nowhere new.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from functools import partial

import anyio
import anyio.to_thread
import httpx2

from microvm_orchestrator import errors

MAX_URL = 2000
_SCHEMES = {"http": 80, "https": 443}

# Of IPv6 only this is the public network; what lies outside is loopback, mapped IPv4, local,
# multicast or not assigned.
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_SPECIAL_V6 = [
    ipaddress.IPv6Network("2001::/23"),  # protocol assignments, Teredo among them
    ipaddress.IPv6Network("2001:db8::/32"),  # documentation
    ipaddress.IPv6Network("2002::/16"),  # 6to4 carries any IPv4 address
    ipaddress.IPv6Network("3fff::/20"),  # documentation
]
# A network without IPv4 reaches it through these; the last 32 bits are the address meant.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_SPECIAL_V4 = [
    ipaddress.IPv4Network("192.0.0.0/24"),
    ipaddress.IPv4Network("192.88.99.0/24"),
    ipaddress.IPv4Network("224.0.0.0/3"),
]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Target:
    """A URL, and the addresses that it may be reached at."""

    url: httpx2.URL
    addresses: tuple[str, ...]


def read_url(text: str) -> httpx2.URL:
    """Raises: TargetRefused."""
    if len(text) > MAX_URL:
        raise errors.TargetRefused(f"the URL is longer than {MAX_URL} characters")
    try:
        url = httpx2.URL(text)
    except httpx2.InvalidURL as error:
        raise errors.TargetRefused(f"the URL cannot be read: {error}") from error
    if url.scheme not in _SCHEMES or not url.host:
        raise errors.TargetRefused("a webhook's URL is http://host/... or https://host/...")
    if url.userinfo:
        raise errors.TargetRefused(
            "the URL holds a name or password, which lists would show",
            hint="let the receiver check the signature instead",
        )
    if not 0 < port_of(url) < 65_536:
        raise errors.TargetRefused(f"there is no port {url.port}")
    return url


def port_of(url: httpx2.URL) -> int:
    return _SCHEMES[url.scheme] if url.port is None else url.port


async def resolve(
    text: str, *, allow_private: bool, lookups: anyio.CapacityLimiter | None = None
) -> Target:
    """Look the host up and judge what comes.

    Raises: TargetRefused when any of its addresses is not for deliveries, or there is none.
    """
    url = read_url(text)
    addresses = await _look_up(url, lookups)
    for address in addresses:
        if not allow_private and not is_public(address):
            raise errors.TargetRefused(
                f"{url.host} is at {address}, which is not a public address",
                hint="webhooks.allow_private_targets allows such addresses",
            )
    return Target(url, tuple(str(address) for address in addresses))


async def _look_up(url: httpx2.URL, lookups: anyio.CapacityLimiter | None) -> list[Address]:
    host = url.raw_host.decode("ascii")
    ask = partial(socket.getaddrinfo, host, port_of(url), type=socket.SOCK_STREAM)
    try:
        # In a thread of the caller's own allowance: a dead name server holds up nobody else.
        found = await anyio.to_thread.run_sync(ask, abandon_on_cancel=True, limiter=lookups)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no host name"
        raise errors.TargetRefused(f"no address of {url.host} is known: {why}") from error
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
