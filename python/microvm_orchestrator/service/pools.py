"""Pools: machines that stand ready to be claimed.

Above are the front ends; below, the pools of this host.
"""

from __future__ import annotations

from pydantic import Field

from microvm_orchestrator.model.access import Role
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.service import Service


class NoPoolFilter(Request):
    """No parameters."""


class PoolInfo(Answer):
    """Machines of one image, kept ready."""

    image: str = Field(description="as the settings machines.warm and agents.warm name it")
    for_agents: bool = Field(description="whether they have the disk that agents live on")
    wanted: int
    ready: int = Field(description="how many can be claimed at once")
    reason: str = Field(description="why none is made ready; empty when nothing is wrong")


class PoolList(Answer):
    """Every image of which machines are kept ready."""

    items: list[PoolInfo]


@declare("pool_list", "GET /v1/pools", role=Role.VIEWER, effect=Effect.READ)
async def pool_list(service: Service, caller: Caller, request: NoPoolFilter) -> PoolList:
    """List the images of which machines stand ready: `machine_start` of such a one claims it.

    It has to be made as they are: with the usual memory, one processor, and no disk but the one
    that agents have where they are for agents.
    """
    del caller, request
    return PoolList(
        items=[
            PoolInfo(
                image=kind.image,
                for_agents=kind.for_agents,
                wanted=kind.wanted,
                ready=kind.ready,
                reason=kind.reason,
            )
            for kind in service.host.warm.kinds
        ]
    )


CALLS: tuple[Call, ...] = (pool_list,)
