"""Forwards: ports of a guest on the host, and services of the host in a guest.

Above are the front ends; below, the forwards of this host.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from microvm_orchestrator import errors, forwards
from microvm_orchestrator.machine.shell import Unix
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.forward import Direction, Forward, ForwardState
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.machines import MachineRef, NamedMachine
from microvm_orchestrator.service.service import Service, actor

ForwardId = Annotated[str, Field(min_length=1, max_length=100)]
_ADDRESS = "PORT, HOST:PORT, or the absolute path of a unix socket"
Address = Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[^\x00-\x20\x7f]*$")]


class AddForward(NamedMachine):
    """A port to forward."""

    guest: Address = Field(description=f"in the guest: {_ADDRESS}")
    host: Address = Field(
        default="0",
        description=f"on the host: {_ADDRESS}; port 0 takes any that is free. What is listened on "
        "is an address of the host itself, never one of a network.",
    )
    direction: Direction = Field(
        default=Direction.TO_GUEST,
        description="who connects: somebody on the host, or somebody in the guest",
    )


class ForwardRef(Request):
    """A forward."""

    forward_id: ForwardId


class ForwardListRequest(Request):
    """Which forwards."""

    machine: MachineRef | None = Field(default=None, description="only of this machine")


class ForwardInfo(Forward):
    """A forward, and where it stands."""

    state: ForwardState
    reason: str = Field(description="why it is in this state, or what went wrong the last time")
    connections: int = Field(description="how many there are now")


class ForwardList(Answer):
    """Forwards, oldest first."""

    items: list[ForwardInfo]


class ForwardRemoved(Answer):
    """The forward that is gone."""

    forward_id: str


@declare("forward_add", "POST /v1/machines/{machine}/forwards", role=Role.OPERATOR)
async def forward_add(service: Service, caller: Caller, request: AddForward) -> ForwardInfo:
    """Forward a port of a guest to the host, or a service of the host into the guest.

    It needs no network. It lasts as long as the machine is known, through restarts of machine and
    daemon. Sockets in the host's file system are for administrators: the daemon opens them.
    """
    by = actor(caller, "forward_add")
    host = service.host
    machine = await host.machines.get(request.machine, by)
    guest, here = forwards.parse(request.guest), forwards.parse(request.host)
    if isinstance(here, Unix) and not by.role.reaches(Role.ADMIN):
        raise errors.Denied(
            f"forwarding the host's {here.path} needs the role {Role.ADMIN}",
            hint="forward a port instead",
        )
    if request.direction is Direction.TO_HOST and not by.scope.everything:
        raise errors.Denied(
            "what the host reaches is not for the guests of one who sees only what is its own",
            hint="ask who sees everything to add it",
        )
    opened = await host.forwards.add(machine, request.direction, guest, here, by)
    return await _info(service, opened)


@declare("forward_list", "GET /v1/forwards", role=Role.VIEWER, effect=Effect.READ)
async def forward_list(
    service: Service, caller: Caller, request: ForwardListRequest
) -> ForwardList:
    """List forwards: yours, or all if you see everything."""
    by = actor(caller, "forward_list")
    wanted = None
    if request.machine is not None:
        wanted = (await service.host.machines.get(request.machine, by)).machine_id
    found = [
        opened
        for opened in service.host.forwards.visible(by)
        if wanted in {None, opened.forward.machine_id}
    ]
    return ForwardList(items=[await _info(service, opened) for opened in found])


@declare(
    "forward_remove",
    "DELETE /v1/forwards/{forward_id}",
    role=Role.OPERATOR,
    effect=Effect.DESTROY,
)
async def forward_remove(service: Service, caller: Caller, request: ForwardRef) -> ForwardRemoved:
    """End a forward, and the connections that it has."""
    by = actor(caller, "forward_remove")
    forward = await service.host.forwards.remove(request.forward_id, by)
    return ForwardRemoved(forward_id=forward.forward_id)


async def _info(service: Service, opened: forwards.Open) -> ForwardInfo:
    state, reason = await service.host.forwards.state(opened)
    return ForwardInfo(
        **opened.forward.model_dump(),
        state=state,
        reason=reason,
        connections=opened.connections,
    )


CALLS: tuple[Call, ...] = (forward_add, forward_list, forward_remove)
