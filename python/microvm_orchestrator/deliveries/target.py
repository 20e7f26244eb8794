"""Where a webhook may point: http or https, and nothing inside the host's own networks.

A name is looked up here, every address it has is judged, and the connection is made to an address
that was judged: a name that means something else a moment later leads nowhere new.
"""

from __future__ import annotations

from dataclasses import dataclass

import anyio
import httpx2

from microvm_orchestrator import errors
from microvm_orchestrator.egress.addresses import Address, is_public, look_up

MAX_URL = 2000
_SCHEMES = {"http": 80, "https": 443}


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
    try:
        # A thread of the caller's own allowance: a dead name server holds up nobody else.
        return await look_up(url.raw_host.decode("ascii"), port_of(url), lookups)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        raise errors.TargetRefused(
            f"no address of {url.host} is known: {why or 'it is no host name'}"
        ) from error
