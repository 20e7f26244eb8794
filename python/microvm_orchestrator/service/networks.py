"""Networks between machines: made, looked at, removed.

A machine asks for its places when it is defined. Above are the front ends; below, the networks of
this host.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.machine import MachineState
from microvm_orchestrator.model.network import Network
from microvm_orchestrator.model.values import Name
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.service import Service, actor

Prefix = Annotated[str, Field(min_length=4, max_length=50)]


class CreateNetwork(Request):
    """A network to make."""

    name: Name = Field(description="what it is called; unique")
    prefixes: Annotated[list[Prefix], Field(max_length=2)] = Field(
        default=[],
        description="of which its machines get their addresses, at most one of IPv4 and one of "
        "IPv6, as 10.9.0.0/24 and fd09::/64; by default one of each that no other network has",
    )


class NamedNetwork(Request):
    """A network."""

    network: Annotated[str, Field(min_length=1, max_length=100)] = Field(
        description="its name or id"
    )


class NoNetworkFilter(Request):
    """No parameters."""


class NetworkMember(Answer):
    """A machine that has a place in a network."""

    machine_id: str
    name: str | None
    state: MachineState
    mac: str
    addresses: list[str]


class NetworkInfo(Answer):
    """A network, and who is in it."""

    network: Network
    members: list[NetworkMember] = Field(description="those you see, running or not")


class NetworkList(Answer):
    """Networks, oldest first."""

    items: list[Network]


class NetworkRemoved(Answer):
    """The network that is gone."""

    network_id: str


@declare("network_create", "POST /v1/networks", role=Role.OPERATOR)
async def network_create(service: Service, caller: Caller, request: CreateNetwork) -> Network:
    """Make a network for machines; `machine_define` gives a machine its place in it.

    Machines of one network reach each other. Nobody else does: neither this host nor another
    network nor the internet is part of it.
    """
    by = actor(caller, "network_create")
    return await service.host.networks.create(request.name, request.prefixes, by)


@declare("network_get", "GET /v1/networks/{network}", role=Role.VIEWER, effect=Effect.READ)
async def network_get(service: Service, caller: Caller, request: NamedNetwork) -> NetworkInfo:
    """Look at a network, and at the machines that have a place in it."""
    by = actor(caller, "network_get")
    network = await service.host.networks.get(request.network, by)
    members = [
        NetworkMember(
            machine_id=machine.machine_id,
            name=machine.name,
            state=machine.state,
            mac=place.mac,
            addresses=place.addresses,
        )
        for machine in await service.host.networks.members(network)
        for place in machine.networks
        if place.network_id == network.network_id and by.sees_of(machine.owner)
    ]
    return NetworkInfo(network=network, members=members)


@declare("network_list", "GET /v1/networks", role=Role.VIEWER, effect=Effect.READ)
async def network_list(service: Service, caller: Caller, request: NoNetworkFilter) -> NetworkList:
    """List networks, oldest first: yours, or all if you see everything."""
    del request
    return NetworkList(items=await service.host.networks.visible(actor(caller, "network_list")))


@declare(
    "network_remove", "DELETE /v1/networks/{network}", role=Role.OPERATOR, effect=Effect.DESTROY
)
async def network_remove(service: Service, caller: Caller, request: NamedNetwork) -> NetworkRemoved:
    """Remove a network; refused while a machine or a snapshot has a place in it."""
    by = actor(caller, "network_remove")
    removed = await service.host.networks.remove(request.network, by)
    # They went along with it, and nobody need wait for the next start to be told so.
    await service.host.faults.notice()
    return NetworkRemoved(network_id=removed.network_id)


CALLS: tuple[Call, ...] = (network_create, network_get, network_list, network_remove)
