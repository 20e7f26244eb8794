"""Roles that agents take on, as callers know them: a name, and what an agent is told with it."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Source(StrEnum):
    """Who wrote something for agents."""

    # It comes with this program.
    SHIPPED = "shipped"
    # It lies in a folder that the settings name, as agents.roles_dir.
    USER = "user"


class WrittenForAgents(BaseModel):
    """Something that is written in a file of its name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    aliases: tuple[str, ...] = Field(description="other names by which it is found")
    source: Source


class RoleBrief(WrittenForAgents):
    """A role in a list."""


class AgentRole(RoleBrief):
    """A role that an agent can take on."""

    prompt: str = Field(description="what an agent is told that takes it on")


class BrokenFile(BaseModel):
    """A file of a folder that cannot be read as what it is there for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    reason: str
