"""All roles there are: those that come with this program, and those in a folder of its user."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from microvm_orchestrator.agents.roles.text import parse_role
from microvm_orchestrator.agents.shelf import Shelf, fill_shelf, read_shipped

if TYPE_CHECKING:
    from pathlib import Path

    from microvm_orchestrator.model.agent_role import AgentRole


def read_shelf(folder: Path) -> Shelf[AgentRole]:
    """Read all roles; a folder that is not there has none."""
    return fill_shelf("role", shipped_roles(), folder, parse_role)


@cache
def shipped_roles() -> dict[str, AgentRole]:
    """The roles that come with this program, by their names."""
    return read_shipped("microvm_orchestrator.agents.roles", parse_role)
