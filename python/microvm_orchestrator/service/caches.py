"""Caches: disks that outlive the machines they are lent to, by trust domain.

Whoever sees everything names domains as they are. Who sees only what is their own has domains of
their own: nobody reads what others left by naming their domain. Above are the front ends; below,
the caches of this host.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from microvm_orchestrator import caches
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.records import Actor
from microvm_orchestrator.model.values import Moment
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.service import Service, actor

# Between the name of a domain and whose it is; no name of a domain has it.
_OF = "@"

Domain = Annotated[str, Field(min_length=1, max_length=200)]


class CacheFilter(Request):
    """Which caches."""

    domain: Domain | None = Field(default=None, description="only of this domain")


class CacheRef(Request):
    """A domain, or one of its caches."""

    domain: Domain = Field(description="as `cache_list` shows it")
    number: Annotated[int, Field(strict=True, ge=1)] | None = Field(
        default=None, description="only this one; all of the domain where nothing is said"
    )


class CacheInfo(Answer):
    """A cache disk."""

    domain: str
    number: int
    size_mib: int
    used_mib: float = Field(description="what it takes on the disk")
    used_at: Moment = Field(description="when it was lent or given back the last time")
    holder: str | None = Field(description="the machine that has it now")
    home: str | None = Field(description="the machine that comes back to it")


class CacheList(Answer):
    """Cache disks, by domain and number."""

    items: list[CacheInfo]


class CachesRemoved(Answer):
    """The caches that are gone."""

    domain: str
    numbers: list[int]


def domain_of(by: Actor, name: str) -> str:
    """Name the domain that somebody means."""
    return name if by.scope.everything else f"{name}{_OF}{by.name}"


@declare("cache_list", "GET /v1/caches", role=Role.VIEWER, effect=Effect.READ)
async def cache_list(service: Service, caller: Caller, request: CacheFilter) -> CacheList:
    """List cache disks: yours, or all if you see everything."""
    by = actor(caller, "cache_list")
    found = await visible(service, by)
    return CacheList(
        items=[each for each in found if request.domain is None or _means(by, request.domain, each)]
    )


@declare("cache_remove", "DELETE /v1/caches/{domain}", role=Role.OPERATOR, effect=Effect.DESTROY)
async def cache_remove(service: Service, caller: Caller, request: CacheRef) -> CachesRemoved:
    """Remove the cache disks of a domain, or one of them; refused while a machine has it."""
    by = actor(caller, "cache_remove")
    domain = _named(by, request.domain)
    removed = await service.host.caches.remove(domain, request.number)
    await service.store.note(by, domain, "ok")
    return CachesRemoved(domain=domain, numbers=[volume.number for volume in removed])


async def visible(service: Service, by: Actor) -> list[CacheInfo]:
    """Give the caches that somebody may know of."""
    volumes = await service.host.caches.volumes()
    return [_info(volume) for volume in volumes if _is_of(by, volume.domain)]


def _is_of(by: Actor, domain: str) -> bool:
    return by.scope.everything or domain.endswith(f"{_OF}{by.name}")


def _named(by: Actor, domain: str) -> str:
    """Take a domain as it is shown, or by the name it was given."""
    return domain if _is_of(by, domain) else domain_of(by, domain)


def _means(by: Actor, domain: str, info: CacheInfo) -> bool:
    return info.domain == _named(by, domain)


def _info(volume: caches.Volume) -> CacheInfo:
    return CacheInfo(
        domain=volume.domain,
        number=volume.number,
        size_mib=volume.size_mib,
        used_mib=round(volume.used_mib, 1),
        used_at=volume.used_at,
        holder=volume.holder,
        home=volume.home,
    )


CALLS: tuple[Call, ...] = (cache_list, cache_remove)
