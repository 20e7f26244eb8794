"""Slots: who holds places on this host, and who waits for one.

Above are the front ends; below, the slots of this host and its machines.
"""

from __future__ import annotations

from pydantic import Field

from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.machine import Machine
from microvm_orchestrator.service.caches import CacheInfo, visible
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.service import Service, actor
from microvm_orchestrator.slots import Capacity


class NoSlotFilter(Request):
    """No parameters."""


class Places(Answer):
    """So many machines, with so much together."""

    count: int
    memory_mib: int
    vcpus: int


class SlotInfo(Answer):
    """A machine that holds a place, or waits for one."""

    machine_id: str
    name: str | None
    memory_mib: int
    vcpus: int
    waiting: bool
    cache: str | None = Field(description="the cache disk that it has, if any")


class SlotList(Answer):
    """The places of this host."""

    capacity: Places
    used: Places = Field(description="by all machines, also those you do not see")
    waiting: int = Field(description="how many wait in line")
    items: list[SlotInfo] = Field(description="those you see; who waits, in the order of the line")
    caches: list[CacheInfo]


@declare("slot_list", "GET /v1/slots", role=Role.VIEWER, effect=Effect.READ)
async def slot_list(service: Service, caller: Caller, request: NoSlotFilter) -> SlotList:
    """List who holds places on this host, who waits for one, and the cache disks."""
    del request
    by = actor(caller, "slot_list")
    slots = service.host.slots
    seen = {machine.machine_id: machine for machine in await service.host.machines.visible(by)}
    caches = await visible(service, by)
    held = {cache.holder: f"{cache.domain}/{cache.number}" for cache in caches if cache.holder}
    places = [(name, False) for name in slots.owners] + [(name, True) for name in slots.waiting]
    return SlotList(
        capacity=_places(slots.capacity),
        used=_places(slots.used()),
        waiting=len(slots.waiting),
        items=[
            _info(seen[name], held.get(name), waiting=waiting)
            for name, waiting in places
            if name in seen
        ],
        caches=caches,
    )


def _places(capacity: Capacity) -> Places:
    return Places(count=capacity.count, memory_mib=capacity.memory_mib, vcpus=capacity.vcpus)


def _info(machine: Machine, cache: str | None, *, waiting: bool) -> SlotInfo:
    return SlotInfo(
        machine_id=machine.machine_id,
        name=machine.name,
        memory_mib=machine.memory_mib,
        vcpus=machine.vcpus,
        waiting=waiting,
        cache=cache,
    )


CALLS: tuple[Call, ...] = (slot_list,)
