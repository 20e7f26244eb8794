"""Roles of agents: looked at, and found for those who spawn one.

Above are the front ends; below, the shelf of roles, which is read anew each time.
"""

from __future__ import annotations

from typing import Annotated

import anyio.to_thread
from pydantic import Field

from microvm_orchestrator import errors
from microvm_orchestrator.agents.roles.shelf import read_shelf
from microvm_orchestrator.agents.shelf import Shelf
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.agent_role import AgentRole, BrokenFile, RoleBrief
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.service import Service


class NoRoleFilter(Request):
    """No parameters."""


class NamedRole(Request):
    """A role."""

    name: Annotated[str, Field(min_length=1, max_length=100, description="its name or an alias")]


class RoleList(Answer):
    """The roles there are."""

    items: list[RoleBrief]
    broken: list[BrokenFile] = Field(description="files of the folder that are no roles, and why")


async def find_role(service: Service, word: str) -> AgentRole:
    """Find the role that an agent shall take on. Raises: InvalidInput."""
    try:
        return (await _shelf(service)).find(word)
    except errors.NotFound as error:
        raise errors.InvalidInput(error.message, hint=error.hint) from error


async def _shelf(service: Service) -> Shelf[AgentRole]:
    return await anyio.to_thread.run_sync(read_shelf, service.settings.roles_folder)


@declare("role_list", "GET /v1/roles", role=Role.VIEWER, effect=Effect.READ)
async def role_list(service: Service, caller: Caller, request: NoRoleFilter) -> RoleList:
    """List the roles that an agent can be spawned with: those that ship, and this host's own.

    This host's own lie in the folder of the setting agents.roles_dir, which is read each time.
    """
    del caller, request
    shelf = await _shelf(service)
    return RoleList(items=shelf.briefs(RoleBrief), broken=list(shelf.broken.values()))


@declare("role_get", "GET /v1/roles/{name}", role=Role.VIEWER, effect=Effect.READ)
async def role_get(service: Service, caller: Caller, request: NamedRole) -> AgentRole:
    """Look at a role, and at what an agent is told that takes it on."""
    del caller
    return (await _shelf(service)).find(request.name)


CALLS: tuple[Call, ...] = (role_list, role_get)
