"""Roles that agents take on, as callers know them: a name, and what an agent is told with it."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Source(StrEnum):
    """Who wrote a role."""

    # It comes with this program.
    SHIPPED = "shipped"
    # It lies in the folder of the setting agents.roles_dir.
    USER = "user"


class RoleBrief(BaseModel):
    """A role in a list."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    aliases: tuple[str, ...] = Field(description="other names by which it is found")
    source: Source


class AgentRole(RoleBrief):
    """A role that an agent can take on."""

    prompt: str = Field(description="what an agent is told that takes it on")


class BrokenRole(BaseModel):
    """A file of the folder that cannot be read as a role."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    reason: str
